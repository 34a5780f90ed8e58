"""What C files declare and use, found without a compiler: for the lints, which check whether names follow the rules of
the rooms, and whether anything uses them."""

import re
from collections import Counter
from typing import NamedTuple

WORD = re.compile(r"(?<![\w.])(?<!->)[A-Za-z_]\w*")
MACRO = re.compile(r"^[ \t]*#[ \t]*define[ \t]+(\w+)(?:[ \t]+(\w+)[ \t]*$)?", re.M)
DIRECTIVE = re.compile(r"^[ \t]*#(?:\\\n|[^\n])*", re.M)
TRANSPARENT = re.compile(r'(?:\bextern\s*""|\bnamespace\s*\w*)\s*$')
LOCAL = re.compile(r"\b(?:static|inline|INLINE|HOST_DEVICE|template|__device__|__global__)\b")
CALL = re.compile(r"[\w*>]\s+\**([A-Za-z_]\w*)\s*\((?!\*)")  # after a type
BY_MACRO = re.compile(r"^[A-Z][A-Z0-9_]*\(([^;{}]*?)\)\s*;?$", re.M)  # a definition
PASTED = re.compile(r"\w+(?:\s*##\s*\w+)+")
NO_FUNCTION = {"__attribute__", "__launch_bounds__", "alignas", "_Alignas", "static_assert", "_Static_assert"}


class Names(NamedTuple):
    declared: dict  # name -> "function", "variable" (both external), "inline" (functions), "type", "constant", "macro"
    defined: list  # functions with a body
    alias: dict  # macro -> the one word that it stands for


def statements(text):
    """Everything outside all braces, as (head, whether the body of a function follows)."""
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
    """What C code without comments declares for the files that include it."""
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
        """External functions without a body; a body whose name is a macro counts for everything that the macro may
        stand for."""
        defined = {name for names in self.names.values() for name in names.defined}
        defined |= {word for names in self.names.values() for macro, word in names.alias.items() if macro in defined}
        return [(path, name) for path, name in self.external("function") if name not in defined]

    def unused(self):
        """Names that occur only where they are declared and defined, and are not put together by a macro."""
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

    def idle(self, *kinds):
        """(file, name) of what any file declares and none uses; a type's name before and after its members does not
        count as a use."""
        uses = Counter(word for text in self.texts.values() for word in WORD.findall(text))
        for path, names in self.names.items():
            uses.subtract(names.declared.keys())
            tags = re.findall(r"\btypedef\s+(?:struct|enum|union)\s+(\w+)", self.texts[path])
            uses.subtract(tag for tag in tags if names.declared.get(tag) == "type")
        return [
            (path, name)
            for path, names in self.names.items()
            for name, kind in names.declared.items()
            if kind in kinds and uses[name] < 1
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
    """A pattern for what a##name##_b of a macro can become: parts that end or begin with an underscore stay as they
    are."""
    parts = [part if part.strip("_") != part else None for part in re.split(r"\s*##\s*", made)]
    return "".join(part or r"\w+" for part in parts) if any(parts) else None


def room_of(path):
    return path.split("/")[0]


def allowed(room, header, may, seams):
    target, rest = header.split("/", 1)
    return target in (room, "base") or (target in may[room] and rest in seams[target])
