"""The rules of names in the C code of tests: what a file there declares is used, by it or another one; a function with
external linkage stands in for one of csrc/ or of a library; a program names the rooms that it includes, no others."""

import re
from functools import cache

import pytest
from c_names import Tree, room_of
from checkout import CSRC, ROOT
from rooms import INCLUDE, MAY_INCLUDE, code, sources

TESTS = ROOT / "tests"
FOLDERS = ("c", "fuzz", "mpi", "support")  # tests/cuda/emulator is CUDA's interface, used or not
# Names that others look for: libc, libFuzzer, AddressSanitizer; and NCCL's own name of what it hides.
ENTRY = {"main", "LLVMFuzzerTestOneInput", "LLVMFuzzerCustomMutator", "LLVMFuzzerMutate", "__asan_default_options"}
HIDDEN = {"ncclComm"}
LIBRARIES = re.compile(r"cuda[A-Z]|cudnn[A-Z]|nccl[A-Z]|MPI_|__(?:wrap|real)_")  # functions that have stand-ins
LOADED = {"support/shim.c"}  # a library that Python loads: it stands in for libc, and Python calls the rest
ROOMS = re.compile(r"// rooms: ([^\n]*)\n")


def is_entry(name, declared):
    return name in ENTRY or name in declared or bool(LIBRARIES.match(name))


@cache
def tree_of_tests():
    paths = [path for folder in FOLDERS for path in sorted((TESTS / folder).rglob("*")) if path.suffix in (".c", ".h")]
    return Tree({path.relative_to(TESTS).as_posix(): code(path) for path in paths}, {})


@cache
def declared_in_csrc():
    texts = {path.relative_to(CSRC).as_posix(): code(path) for path in sources() if path.suffix in (".h", ".cuh")}
    return {name for names in Tree(texts, {}).names.values() for name in names.declared}


def listed(found):
    return "".join("\n  " + ": ".join(parts) for parts in found)


def test_what_tests_declare_is_used():
    unused = tree_of_tests().idle("inline", "macro", "type", "constant")
    unused = [(path, name) for path, name in unused if name not in HIDDEN]
    assert not unused, f"declared, and never used:{listed(unused)}"


def test_what_tests_define_for_others_stands_in_for_something():
    known = declared_in_csrc() | {name for _, name in tree_of_tests().external("function")}
    found = [
        (path, name)
        for path, names in tree_of_tests().names.items()
        for name in names.defined
        if path not in LOADED and names.declared.get(name) == "function" and not is_entry(name, known)
    ]
    assert not found, f"external, and in nobody's place (static?):{listed(found)}"


def programs():
    paths = [path for folder in FOLDERS for path in sorted((TESTS / folder).rglob("*.c"))]
    return [path for path in paths if ROOMS.match(path.read_text())]


def rooms_of(text):
    """(those that the first line names, those of the single files that it names)."""
    rooms, _, others = ROOMS.match(text)[1].partition(", with ")
    return {room_of(name) for name in rooms.split()}, {room_of(name) for name in others.split() if "/" in name}


def included(path, seen=None):
    """Rooms of csrc/ whose headers the program includes, also through headers of tests."""
    seen = set() if seen is None else seen
    rooms = set()
    for quote, name in INCLUDE.findall(path.read_text()):
        if quote != '"' or name in seen:
            continue
        seen.add(name)
        beside = [place / name for place in (path.parent, TESTS / "support") if (place / name).is_file()]
        rooms |= included(beside[0], seen) if beside else {room_of(name)}
    return rooms


def reached(rooms):
    """With the rooms that those may include, and so on."""
    found = set(rooms)
    while more := {"base", *(other for room in found for other in MAY_INCLUDE[room])} - found:
        found |= more
    return found


@pytest.mark.parametrize("path", programs(), ids=lambda path: path.relative_to(TESTS).as_posix())
def test_a_program_names_the_rooms_that_it_uses(path):
    named, others = rooms_of(path.read_text())
    uses = included(path)
    unnamed = sorted(uses - named - others)
    assert not unnamed, f"includes headers of rooms that its first line does not name: {unnamed}"
    assert named <= reached(uses), f"names rooms that nothing in it leads to: {sorted(named - reached(uses))}"
    assert others <= uses


def test_there_are_programs():
    assert len(programs()) > 10 and len(tree_of_tests().texts) > 25


# ---- the rules themselves ----


def test_what_nobody_uses_is_found():
    texts = {
        "c/a.c": "typedef struct Alone { int x; } Alone;\n#define ALONE 1\nstatic int alone(void) { return 0; }\n"
        "enum { FIRST, SECOND };\nint main(void) { return SECOND; }",
        "support/b.h": "static inline int idle(void) { return 1; }\nstatic inline int busy(void) { return busy_too; }",
        "c/c.c": "typedef struct Used Used;\nint made(Used *p) { return busy(); }",
    }
    found = {name for _, name in Tree(texts, {}).idle("inline", "macro", "type", "constant")}
    assert found == {"Alone", "ALONE", "alone", "FIRST", "idle"}
    assert not is_entry("made", {"mode"}) and is_entry("made", {"made"}) and is_entry("cudaMalloc", set())


def test_rooms_are_read():
    assert rooms_of("// rooms: base image, with jpeg nn/a.c\n") == ({"base", "image"}, {"nn"})
    assert reached({"train"}) >= {"base", "comm", "image", "device"} and reached({"base"}) == {"base"}
