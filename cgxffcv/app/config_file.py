"""Configuration files: YAML (or JSON) of sections and values, from any source, hence not trusted.

Only the composed nodes are looked at, never objects made from them: tags have no effect, aliases are not expanded,
sizes and depths are bounded, and every mistake names its line.
"""

from __future__ import annotations

import os
from typing import Any

import yaml

from cgxffcv import files
from cgxffcv.app.schema import SCHEMA, SECTIONS, WrongValue
from cgxffcv.nearest import suggest
from cgxffcv.wording import brief

MAX_BYTES = 1 << 16  # PyYAML reads 30 kB per second at worst
MAX_ITEMS = 16  # in a list
MAX_DIGITS = 40  # in what is taken for a number
MOST_PROBLEMS = 20  # reported per file
_TAG = "tag:yaml.org,2002:"
_TEXT = {
    f"{_TAG}{name}" for name in ("str", "timestamp", "merge", "value")
}  # taken as text, whatever else YAML makes of it
_VALUES = {f"{_TAG}{name}" for name in ("null", "bool", "int", "float")}


def read(path: str | os.PathLike[str], problems: list[str]) -> dict[str, tuple[Any, str]]:
    """ "section.name" to (value, "FILE:LINE") of one file; what is wrong with it goes to `problems`."""
    name = os.fspath(path)
    try:
        root = _compose(name)
    except OSError as error:
        problems.append(f"--config-file {name}: {error.strerror or error}")
    except WrongValue as error:
        problems.append(f"{name}: {error}")
    except RecursionError:
        problems.append(f"{name}: not a configuration: it is nested too deeply")
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        problems.append(f"{name}: not valid YAML: {' '.join(str(error).split())[:500]}")
    else:
        return _Reader(name, problems).values(root)
    return {}


def _compose(name: str) -> yaml.Node | None:
    with files.open_plain(name, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise WrongValue(f"larger than {MAX_BYTES:,} bytes; this is not a configuration file")
    if not data.strip():
        raise WrongValue("the file is empty")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise WrongValue(f"not UTF-8 text (byte {error.start})") from None
    return yaml.compose(text, Loader=yaml.SafeLoader)


class _Reader:
    """Walks the nodes of one file."""

    def __init__(self, name: str, problems: list[str]):
        self.name, self.problems = name, problems
        self.problem_count = 0

    def problem(self, line: int, text: str) -> None:
        """Records a mistake; if there are very many, only the first are reported."""
        self.problem_count += 1
        if self.problem_count <= MOST_PROBLEMS:
            self.problems.append(f"{self.name}:{line}: {text}")
        elif self.problem_count == MOST_PROBLEMS + 1:
            self.problems.append(f"{self.name}: there are more mistakes; fix these first")

    def entries(self, node: yaml.MappingNode) -> list[tuple[str, yaml.Node, int]]:
        """(key, value node, line) of a mapping; a key that occurs twice is a problem."""
        seen: dict[str, int] = {}
        out: list[tuple[str, yaml.Node, int]] = []
        if node.tag != f"{_TAG}map":
            self.problem(node.start_mark.line + 1, f"expected plain values, not ones with the tag {brief(node.tag)}")
            return out
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag not in _TEXT | _VALUES:
                self.problem(line, "a key must be a plain name")
            elif key_node.tag == f"{_TAG}merge":
                self.problem(line, "merge keys (<<) are not supported; write the values out")
            elif key_node.value in seen:
                also = seen[key_node.value]
                self.problem(line, f"duplicate key {brief(key_node.value)} (also in line {also}); keep one of them")
            else:
                seen[key_node.value] = line
                out.append((key_node.value, value_node, line))
        return out

    def values(self, root: yaml.Node | None) -> dict[str, tuple[Any, str]]:
        found: dict[str, tuple[Any, str]] = {}
        if root is None:
            return found
        if not isinstance(root, yaml.MappingNode):
            self.problems.append(f"{self.name}: expected sections ({', '.join(SECTIONS)}), each with its values")
            return found
        for section, node, line in self.entries(root):
            for key, value, at in self.items(section, node, line):
                if self.problem_count > MOST_PROBLEMS:
                    return found
                if key in found:
                    self.problem(at, f"duplicate key {brief(key)}; keep one of them")
                elif key not in SCHEMA:
                    self.problem(at, f"unknown parameter {brief(key)[1:-1]}{suggest(key, SCHEMA)}")
                else:
                    try:
                        found[key] = _value(value, SCHEMA[key].as_written), f"{self.name}:{at}"
                    except WrongValue as error:
                        self.problem(at, f"{key}: expected {error}")
        return found

    def items(self, section: str, node: yaml.Node, line: int) -> list[tuple[str, yaml.Node, int]]:
        """("section.name", value node, line) of a section, or of a "section.name" at the top."""
        if "." in section:
            return [(section, node, line)]
        if section not in SECTIONS:
            near = suggest(section, SECTIONS) or f"; the sections are {', '.join(SECTIONS)}"
            self.problem(line, f"unknown section {brief(section)}{near}")
        elif isinstance(node, yaml.MappingNode):
            return [(f"{section}.{key}", value, at) for key, value, at in self.entries(node)]
        elif not (isinstance(node, yaml.ScalarNode) and node.tag == f"{_TAG}null"):
            self.problem(line, f"section {brief(section)} must hold values (name: value), one per line")
        return []


def _value(node: yaml.Node, as_written: bool, depth: int = 0) -> Any:
    """The Python value of a scalar, or of a short list of them; WrongValue for anything else."""
    if node.tag not in _TEXT | _VALUES | {f"{_TAG}seq", f"{_TAG}map"}:
        raise WrongValue(f"a plain value, not one with the tag {brief(node.tag)}")
    if isinstance(node, yaml.SequenceNode) and depth < 2 and len(node.value) <= MAX_ITEMS:
        return [_value(item, as_written, depth + 1) for item in node.value]
    if not isinstance(node, yaml.ScalarNode):
        raise WrongValue("a single value, not a section or a long list")
    if node.tag in _TEXT or (as_written and node.tag != f"{_TAG}null") or len(node.value) > MAX_DIGITS:
        return node.value
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node)
    except (ValueError, LookupError, AttributeError, yaml.YAMLError):  # a tag that does not fit the text
        return node.value
    finally:
        loader.dispose()
