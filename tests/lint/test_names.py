"""The law of the rooms reads names, too. What a header of csrc/ declares: a file of another room uses it only where it
may include that header, however it came to see it; with external linkage it begins with its room's noun; it is defined,
and used. And what the law allows is in use."""

import re
from collections import Counter
from functools import cache
from typing import NamedTuple

from checkout import CSRC
from rooms import INCLUDE, MAY_INCLUDE, ONLY_IN, SEAMS, code, sources

# What external names begin with in the rooms that have more nouns than their own name.
NOUNS = {
    "base": "atomic_file cpu error guard hash library memory pool",
    "image": "jpeg resize resizer",
    "python": "py",
    "quant": "quant quantize dequantize",
    "train": "train trainer",
}
# What nothing in csrc/ uses, and why it is there.
FOR_OTHERS = {
    "PY_SSIZE_T_CLEAN": "Python.h reads it",
    "comm_segment": "tests damage what lies in it",
    "comm_slot_return": "tests hold all slots and give them back",
    "jpeg_decoder_leave_to_library": "tests compare with it",
    "loader_batches": "tests count by it",
    "loader_batch_retain": "tests hold a batch twice",
}
# Headers whose types a room hands on, from one that it may include to another, without including them.
HANDED_ON = {"comm/comm.h": {"train"}}

WORD = re.compile(r"(?<![\w.])(?<!->)[A-Za-z_]\w*")
MACRO = re.compile(r"^[ \t]*#[ \t]*define[ \t]+(\w+)(?:[ \t]+(\w+)[ \t]*$)?", re.M)
DIRECTIVE = re.compile(r"^[ \t]*#(?:\\\n|[^\n])*", re.M)
TRANSPARENT = re.compile(r'(?:\bextern\s*""|\bnamespace\s*\w*)\s*$')
LOCAL = re.compile(r"\b(?:static|inline|INLINE|HOST_DEVICE|template|__device__|__global__)\b")
CALL = re.compile(r"[\w*>]\s+\**([A-Za-z_]\w*)\s*\((?!\*)")  # behind a type
BY_MACRO = re.compile(r"^[A-Z][A-Z0-9_]*\(([^;{}]*?)\)\s*;?$", re.M)  # a definition
PASTED = re.compile(r"\w+(?:\s*##\s*\w+)+")
NO_FUNCTION = {"__attribute__", "__launch_bounds__", "alignas", "_Alignas", "static_assert", "_Static_assert"}


class Names(NamedTuple):
    declared: dict  # name -> "function", "variable" (both external), "inline" (functions), "type", "constant", "macro"
    defined: list  # functions with a body
    alias: dict  # macro -> the one word that it stands for


def statements(text):
    """What stands outside of all braces, as (head, whether the body of a function follows)."""
    head, depth = "", 0
    for c in text:
        if c == "{" and depth == 0 and TRANSPARENT.search(head):
            head = ""
            continue
        depth += (c == "{") - (c == "}")
        if depth < 0:  # the end of a transparent one
            head, depth = "", 0
        elif depth == 0 and c == "}" and re.search(r"\)\s*$", head.split("{")[0]):
            yield head.split("{")[0], True
            head = ""
        elif depth == 0 and c == ";":
            yield head, False
            head = ""
        else:
            head += c


def names_of(text):
    """What C code without comments declares for whoever includes it."""
    alias = {macro: word for macro, word in MACRO.findall(text) if word}
    declared, defined = dict.fromkeys((macro for macro, _ in MACRO.findall(text)), "macro"), []
    text = DIRECTIVE.sub("", text)
    for made in BY_MACRO.findall(text):
        defined += WORD.findall(made)
    for head, has_body in statements(BY_MACRO.sub("", text)):
        if enum := re.search(r"\benum\b[^{;]*\{(.*)\}", head, re.S):
            declared |= dict.fromkeys(re.findall(r"(?:^|,)\s*([A-Za-z_]\w*)", enum[1]), "constant")
        flat = re.sub(r"\{.*\}|\[[^]]*\]|__attribute__\s*\(\(.*?\)\)", " ", head, flags=re.S)
        if re.match(r"\s*typedef\b", flat):
            pointer = re.search(r"\(\*\s*(\w+)\)\s*\(", flat)
            declared[pointer[1] if pointer else re.findall(r"[A-Za-z_]\w*", flat)[-1]] = "type"
        elif tag := re.match(r"\s*(?:struct|enum|union)\s+(\w+)\s*(\{)?", head):
            declared |= {tag[1]: "type"} if tag[2] else {}
        elif call := next((m for m in CALL.finditer(flat.split("=")[0]) if m[1] not in NO_FUNCTION), None):
            declared[call[1]] = "inline" if LOCAL.search(flat[: call.start(1)]) else "function"
            defined += [call[1]] if has_body else []
        elif re.match(r"\s*extern\b", flat):
            declared |= dict.fromkeys(re.findall(r"([A-Za-z_]\w*)\s*(?:,|$)", flat), "variable")
    return Names(declared, defined, alias)


class Tree:
    """The files of csrc/, or made-up ones: path -> code without comments and strings, and path -> its own includes."""

    def __init__(self, texts, includes):
        self.texts, self.includes = texts, includes
        self.names = {path: names_of(text) for path, text in texts.items()}
        self.headers = [path for path in texts if path.endswith((".h", ".cuh"))]

    def seen(self, path):
        """All headers that the compiler reads for this file."""
        found, left = set(), [path]
        while left:
            new = [name for name in self.includes[left.pop()] if name in self.texts and name not in found]
            found.update(new)
            left += new
        return found

    def strangers(self, may, seams):
        """(file, name, header) where a file uses a name of a header that it may not include."""
        found = []
        for path, text in self.texts.items():
            room, words = room_of(path), set(WORD.findall(text))
            forbidden = [h for h in self.seen(path) if not allowed(room, h, may, seams)]
            granted = {name for h in self.seen(path) - set(forbidden) for name in self.names[h].declared}
            found += [
                (path, name, h) for h in forbidden for name in sorted(words & (set(self.names[h].declared) - granted))
            ]
        return found

    def crossings(self):
        """(room, header) where a file of the room includes the header, or uses a name of it."""
        for path, text in self.texts.items():
            words = set(WORD.findall(text))
            for header in self.seen(path):
                if header in self.includes[path] or words & set(self.names[header].declared):
                    yield room_of(path), header

    def external(self, *kinds):
        """(header, name) of what headers declare, but for names that are macros: those differ from file to file."""
        macros = {name for names in self.names.values() for name, kind in names.declared.items() if kind == "macro"}
        for path in self.headers:
            for name, kind in self.names[path].declared.items():
                if kind in kinds and (kind == "macro" or name not in macros):
                    yield path, name

    def without_noun(self, nouns):
        found = []
        for path, name in self.external("function", "variable"):
            own = nouns.get(room_of(path), room_of(path)).split()
            if name not in own and not name.startswith(tuple(f"{noun}_" for noun in own)):
                found.append((path, name))
        return found

    def undefined(self):
        """External functions without a body; one whose name is a macro is a body of all that the macro stands for."""
        defined = {name for names in self.names.values() for name in names.defined}
        defined |= {word for names in self.names.values() for macro, word in names.alias.items() if macro in defined}
        return [(path, name) for path, name in self.external("function") if name not in defined]

    def unused(self):
        """What stands only where it is declared and defined, and is not put together by a macro."""
        uses = Counter(word for text in self.texts.values() for word in WORD.findall(text))
        for names in self.names.values():
            uses.subtract(names.declared.keys())
        pasted = {pattern_of(made) for text in self.texts.values() for made in PASTED.findall(text)} - {None}
        made = re.compile("|".join(sorted(pasted)) or r"(?!)")
        return [
            (path, name)
            for path, name in self.external("function", "variable", "inline", "macro")
            if uses[name] < 1 and not made.fullmatch(name)
        ]

    def borrowed(self):
        """(file, name) of external functions that a .c or .cu file declares by hand, instead of including a header."""
        return [
            (path, name)
            for path, names in self.names.items()
            if path not in self.headers
            for name, kind in names.declared.items()
            if kind == "function" and name not in names.defined
        ]


def pattern_of(made):
    """What a##name##_b of a macro can become: parts that end or begin with an underline stand as they are."""
    parts = [part if part.strip("_") != part else None for part in re.split(r"\s*##\s*", made)]
    return "".join(part or r"\w+" for part in parts) if any(parts) else None


def room_of(path):
    return path.split("/")[0]


def allowed(room, header, may, seams):
    target, rest = header.split("/", 1)
    return target in (room, "base") or (target in may[room] and rest in seams[target])


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


# ---- the law itself, on made-up rooms ----

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
    """The made-up rooms, with `room_file=text` put behind a file's text: room/room.c, or room/room.h for room_h."""
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
