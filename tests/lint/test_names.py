"""The rules of the rooms also apply to names. What a header of csrc/ declares: a file of another room uses it only if
it may include that header, however it came to see it; with external linkage its name begins with its room's noun; it is
defined, and used. And everything that the rules allow is in use."""

import re
import tokenize
from functools import cache

from c_names import Tree, names_of, room_of
from checkout import CSRC, ROOT
from rooms import INCLUDE, MAY_INCLUDE, ONLY_IN, SEAMS, code, sources

# What external names begin with in the rooms that have more nouns than their own name.
NOUNS = {
    "base": "atomic_file cpu environment error guard handlers hash library memory pool",
    "image": "jpeg resize resizer",
    "python": "py",
    "quant": "quant quantize dequantize",
    "train": "train trainer",
}
# Names that nothing in csrc/ uses, and why they are there.
FOR_OTHERS = {
    "PY_SSIZE_T_CLEAN": "Python.h reads it",
    "jpeg_decoder_leave_to_library": "tests compare with it",
}
# Macros and types of csrc/ that nothing in it reads, and who does.
READ_ELSEWHERE = {
    "KERNELS_TABLE": "the name of a function in kernels_template.h",
    "NPY_NO_DEPRECATED_API": "NumPy's headers read it",
    "NPY_TARGET_VERSION": "NumPy's headers read it",
    "PY_SSIZE_T_CLEAN": "Python.h reads it",
    "jpeg_entropy_decoder": "jpeglib.h only declares it",
}
# Constants that nothing names: the default, 0, or numbers that come from Python.
NUMBERS = (
    "ALLREDUCE_LINK_ANY BACKEND_CPU CUDA_GEMM_FLOAT32 FORWARD_RUNS LOADER_SEQUENTIAL OPTIM_NESTEROV PHILOX_TEST "
    "SCHEDULE_PROJECT_NEVER TRAINER_SLOW_STATISTICS TRAIN_SET_SAMPLE TRAIN_SET_TEST"
).split()
# Headers whose types a room passes on, from one that it may include to another, without including them.
HANDED_ON = {"comm/comm.h": {"train"}}


@cache
def tree():
    paths = {path.relative_to(CSRC).as_posix(): path for path in sources()}
    includes = {
        name: [found for quote, found in INCLUDE.findall(p.read_text()) if quote == '"'] for name, p in paths.items()
    }
    return Tree({name: code(path) for name, path in paths.items()}, includes)


def listed(found):
    return "".join("\n  " + ": ".join(parts) for parts in found)


def test_no_file_uses_a_name_of_a_header_that_it_may_not_include():
    found = [f for f in tree().strangers(MAY_INCLUDE, SEAMS) if room_of(f[0]) not in HANDED_ON.get(f[2], ())]
    assert not found, f"names used against the law of the rooms (file, name, where it comes from):{listed(found)}"


def test_external_names_carry_their_rooms_noun():
    found = tree().without_noun(NOUNS)
    assert not found, f"external names without their room's noun:{listed(found)}"


def test_every_function_has_a_body_and_every_name_a_use():
    undefined, unused = tree().undefined(), [(path, name) for path, name in tree().unused() if name not in FOR_OTHERS]
    assert not undefined, f"declared, and never defined:{listed(undefined)}"
    assert not unused, f"declared, and never used:{listed(unused)}"


def needs_no_use(path, name):
    """An enum, whose constants are used, or the one declaration that C requires of a file that is otherwise empty."""
    return re.search(rf"typedef\s+enum\s+{name}\b", tree().texts[path]) or name.endswith("Unused")


def test_every_macro_type_and_constant_has_a_use():
    found = [(path, name) for path, name in tree().idle("macro", "type", "constant") if not needs_no_use(path, name)]
    unused = [(path, name) for path, name in found if name not in READ_ELSEWHERE and name not in NUMBERS]
    assert not unused, f"declared, and never used:{listed(unused)}"
    stale = {*READ_ELSEWHERE, *NUMBERS} - {name for _, name in found}
    assert not stale, f"used, or gone: {sorted(stale)}"


def test_the_exceptions_are_some():
    unused, declared = {name for _, name in tree().unused()}, set().union(*(n.declared for n in tree().names.values()))
    stale = set(FOR_OTHERS) - (unused & declared)
    assert not stale, f"FOR_OTHERS has names that are used, or gone: {sorted(stale)}"


def test_functions_are_declared_in_headers():
    found = tree().borrowed()
    assert not found, f"declared by hand: include the header instead:{listed(found)}"


def test_kernels_are_called_so():
    kernel = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)")
    found = [(path, name) for path, text in tree().texts.items() for name in kernel.findall(text)]
    assert len(found) > 20
    assert not (wrong := [f for f in found if not f[1].endswith("_kernel")]), f"no _kernel at its end:{listed(wrong)}"
    twice = [(f, n) for f, n in found if sum(n == other for _, other in found) > 1]
    assert not twice, f"kernels of one name:{listed(twice)}"


def test_names_spell_quantize_with_z():
    found = [(path, name) for path, text in tree().texts.items() for name in re.findall(r"\w*quantis\w*", text)]
    for path in sorted((ROOT / "cgxffcv").rglob("*.py")):
        with tokenize.open(path) as file:
            names = {t.string for t in tokenize.generate_tokens(file.readline) if t.type == tokenize.NAME}
        found += [(path.name, name) for name in sorted(names) if "quantis" in name]
    assert not found, f"names with quantis, not quantiz:{listed(found)}"


def test_the_law_allows_nothing_that_nobody_does():
    crossings = set(tree().crossings())
    rooms = {(room, room_of(header)) for room, header in crossings}
    dead = [(room, other) for room, others in MAY_INCLUDE.items() for other in others if (room, other) not in rooms]
    assert not dead, f"permissions without use:{listed(dead)}"
    used = {header for room, header in crossings if room != room_of(header)}
    dead = [(room, header) for room, headers in SEAMS.items() for header in headers if f"{room}/{header}" not in used]
    assert not dead, f"seams that nobody includes:{listed(dead)}"
    begun = {(room_of(path), name) for path, name in tree().external("function", "variable")}
    nouns = [(room, noun) for room, words in NOUNS.items() for noun in words.split()]
    dead = [(r, n) for r, n in nouns if not any(r == room and re.match(rf"{n}(_|$)", name) for room, name in begun)]
    assert not dead, f"nouns that no name begins with:{listed(dead)}"
    outside = {(name, path) for path in tree().texts for _, name in INCLUDE.findall((CSRC / path).read_text())}
    dead = [(name, path) for name, paths in ONLY_IN.items() for path in paths if (name, path) not in outside]
    assert not dead, f"libraries' headers that are not included there:{listed(dead)}"


# ---- the rules themselves, on made-up rooms ----

MADE_UP = {
    "low/low.h": """
#define LOW_MOST 3
typedef enum LowKind { LOW_ONE, LOW_TWO = LOW_MOST } LowKind;
typedef struct LowThing { int wide; struct { int deep; } in; } LowThing;
typedef int (*LowHook)(void *context, int (*inner)(void));
extern "" {
int low_open(LowKind kind, LowHook hook);
}
static inline int low_twice(int x) { return 2 * x; }
extern const LowThing low_things[3], low_last;
""",
    "low/low.c": 'int low_open(LowKind kind, LowHook hook) { return hook("", 0) + low_twice(kind) + LOW_ONE; }',
    "mid/mid.h": "LowThing *mid_make(LowKind kind);",
    "mid/mid.c": "LowThing *mid_make(LowKind k) { low_open(k, 0); return low_things + (&low_last - mid_make(0)); }",
    "top/top.c": "static int run(void) { return mid_make(0)->wide; }",
}
INCLUDES = {
    "mid/mid.h": ["low/low.h"],
    "mid/mid.c": ["mid/mid.h"],
    "top/top.c": ["mid/mid.h"],
    "low/low.c": ["low/low.h"],
}
MAY = {"low": set(), "mid": {"low"}, "top": {"mid"}}
OPEN = {"low": {"low.h"}, "mid": {"mid.h"}}


def made_up(**changes):
    """The made-up rooms, with `room_file=text` appended to a file's text: room/room.c, or room/room.h for room_h."""
    texts = dict(MADE_UP)
    for key, text in changes.items():
        room, kind = key.split("_")
        texts[f"{room}/{room}.{kind}"] += "\n" + text
    return Tree(texts, {path: INCLUDES.get(path, []) for path in texts})


def test_names_are_read():
    names = names_of(MADE_UP["low/low.h"])
    assert names.declared == {
        "LOW_MOST": "macro",
        "LowKind": "type",
        "LOW_ONE": "constant",
        "LOW_TWO": "constant",
        "LowThing": "type",
        "LowHook": "type",
        "low_open": "function",
        "low_twice": "inline",
        "low_things": "variable",
        "low_last": "variable",
    }
    assert names.defined == ["low_twice"] and names.alias == {"LOW_MOST": "3"}


def test_made_up_rooms_obey():
    tree = made_up()
    assert not tree.strangers(MAY, OPEN) and not tree.without_noun({}) and not tree.undefined() and not tree.borrowed()
    assert tree.unused() == []


def test_a_stranger_is_found():
    tree = made_up(top_c="int members(Run *p, Run s) { return p->LOW_ONE + s.LOW_ONE + low_twice(x) + LOW_MOST; }")
    assert tree.strangers(MAY, OPEN) == [("top/top.c", name, "low/low.h") for name in ("LOW_MOST", "low_twice")]
    assert made_up().strangers(MAY, {"low": set(), "mid": {"mid.h"}})[0][1] == "LowKind"  # low.h as a private header
    assert made_up().strangers({**MAY, "top": set()}, OPEN) == [("top/top.c", "mid_make", "mid/mid.h")]


def test_a_name_without_noun_is_found():
    tree = made_up(mid_h="int made(void); static inline int near(void) { return 1; }")
    assert tree.without_noun({}) == [("mid/mid.h", "made")]
    assert tree.without_noun({"mid": "mid made"}) == []
    assert ("mid/mid.h", "mid_make") in tree.without_noun({"mid": "middle"})


def test_what_is_never_defined_or_used_is_found():
    tree = made_up(
        mid_h="void mid_lost(int x);\nvoid mid_idle(void);\n#define MID_IDLE 1", mid_c="void mid_idle(void) {}"
    )
    assert tree.undefined() == [("mid/mid.h", "mid_lost")]
    assert {name for _, name in tree.unused()} == {"mid_lost", "mid_idle", "MID_IDLE"}
    for body in ("#define NAME mid_fast\nint NAME(void) { return mid_fast(); }", "NAME(mid_fast)\nint x = mid_fast();"):
        through = made_up(mid_h="int mid_fast(void);", mid_c=body)
        assert through.undefined() == [] and through.unused() == []


def test_names_that_macros_put_together_are_used():
    body = "#define CALL(name) mid_##name##_run()\nint mid_fast_run(void) {}\nint mid_fast_walk(void) {}"
    tree = made_up(mid_h="int mid_fast_run(void); int mid_fast_walk(void);", mid_c=body)
    assert tree.unused() == [("mid/mid.h", "mid_fast_walk")]


def test_a_function_declared_by_hand_is_found():
    assert made_up(top_c="int low_secret(void);\nTABLE(x)\n").borrowed() == [("top/top.c", "low_secret")]
