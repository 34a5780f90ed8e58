"""One configuration for both scripts: sections of values, where each value came from, and what was wrong with it.

Sources, each stronger than the ones before: built-in defaults (or the recipe's, for values that a recipe decides),
``--config-file`` files in the order given, the command line (``--section.name=value`` or one of the flat flags), the
environment (``CGXFFCV__SECTION__NAME=value``; ``section.name=value`` works too where a launcher can set such a name).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from cgxffcv import files
from cgxffcv.errors import ConfigError
from cgxffcv.nearest import suggest
from cgxffcv.schema import FLAGS, SCHEMA, SECTIONS, Param, WrongValue

ENV_PREFIX = "CGXFFCV__"
MAX_FILE_BYTES = 1 << 20
MAX_ITEMS = 16  # of a list


@dataclass(frozen=True)
class Value:
    """A value and where it came from: "default", "FILE:LINE", a flag, "environment NAME" or "recipe NAME"."""

    value: Any
    origin: str


class Section:
    """The values of one section, as attributes."""

    def __init__(self, config: Config, name: str):
        self._config, self._name = config, name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self._config[f"{self._name}.{name}"]
        except KeyError as error:
            raise AttributeError(error.args[0]) from None


class Config:
    """The effective configuration: ``config["training.lr"]``, ``config.training.lr``, ``config.origin("training.lr")``.

    A value that is None is left to the recipe; `fill` puts the recipe's in.
    """

    def __init__(self, values: dict[str, Value]):
        self._values = values

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            raise KeyError(f"no such parameter: {key}{suggest(key, self._values)}")
        return self._values[key].value

    def __getattr__(self, name: str) -> Section:
        if name in SECTIONS:
            return Section(self, name)
        raise AttributeError(name)

    def origin(self, key: str) -> str:
        return self._values[key].origin

    def given(self, key: str) -> bool:
        """Whether the user said it, by whatever way."""
        return self.origin(key) != "default"

    def said(self, key: str) -> bool:
        """Whether there is a value that the user gave; null is none."""
        return self.given(key) and self[key] is not None and not self.origin(key).startswith("recipe ")

    def fill(self, values: Mapping[str, Any], origin: str) -> None:
        """Puts `values` ("section.name" to value) in where nobody has said anything; KeyError for unknown names."""
        for key, value in values.items():
            if self[key] is None:
                self._values[key] = Value(value, origin)

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Section to name to value."""
        out: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
        for key, item in self._values.items():
            section, name = key.split(".")
            out[section][name] = item.value
        return out

    def lines(self, sections: Iterable[str] = SECTIONS) -> list[str]:
        """A table for people: name, value, origin."""
        items = [(key, item) for key, item in self._values.items() if key.split(".")[0] in set(sections)]
        # what a recipe decides beyond the usual is shown only where somebody said something else
        items = [(key, item) for key, item in items if not key.startswith("recipe.") or self.said(key)]
        names = max(len(key) for key, _ in items)
        shown = {key: show(item.value) for key, item in items}
        width = min(max(len(text) for text in shown.values()), 40)
        return [f"{key:<{names}} = {shown[key]:<{width}}  ({item.origin})" for key, item in items]

    def to_yaml(self) -> str:
        """The values as a --config-file that gives the same run again; the origins as comments."""
        out = ["# The effective configuration of a run. Use it again with --config-file."]
        for section, values in self.as_dict().items():
            out.append(f"{section}:")
            for name, value in values.items():
                if name == "resume":  # says how this run was started, not what it is
                    continue
                value = _listed(value)
                text = yaml.safe_dump(value, default_flow_style=True, width=10**9).removesuffix("\n...\n").strip()
                out.append(f"  {name}: {text}  # {' '.join(self.origin(f'{section}.{name}').split())}")
        return "\n".join(out) + "\n"


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


def show(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return ",".join(
            ":".join(show(part) for part in item) if isinstance(item, tuple) else show(item) for item in value
        )
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def convert(param: Param, key: str, value: Any, where: str) -> Any:
    """`value` in the parameter's type; WrongValue names place, key, value and what was expected."""
    try:
        return param.convert(value)
    except WrongValue as error:
        raise WrongValue(f"{where}: {key} = {value!r}: expected {error}") from None


# --- files ---------------------------------------------------------------------------------------------------------


def _entries(node: yaml.MappingNode, path: str, problems: list[str]) -> list[tuple[str, yaml.Node, int]]:
    """(key, value node, line) of a mapping; a key that stands twice is a problem."""
    seen: dict[str, int] = {}
    out = []
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            problems.append(f"{path}:{line}: a key must be a plain name")
            continue
        key = key_node.value
        if key in seen:
            problems.append(f"{path}:{line}: duplicate key {key!r} (also in line {seen[key]}); keep one of them")
            continue
        seen[key] = line
        out.append((key, value_node, line))
    return out


def _plain(node: yaml.Node, depth: int = 0) -> Any:
    """The Python value of a scalar, or of a short list of them; WrongValue for anything else."""
    if isinstance(node, yaml.SequenceNode) and depth < 2 and len(node.value) <= MAX_ITEMS:
        return [_plain(item, depth + 1) for item in node.value]
    if not isinstance(node, yaml.ScalarNode):
        raise WrongValue("a single value, not a section or a long list")
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node)
    except (ValueError, yaml.YAMLError):
        return node.value
    finally:
        loader.dispose()


def read_file(path: str | os.PathLike[str], problems: list[str]) -> dict[str, Value]:
    """The values of one YAML (or JSON) file: sections of values, or "section.name" keys."""
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise ConfigError([f"{name}: larger than {MAX_FILE_BYTES} bytes; this is no configuration file"])
        root = yaml.compose(text.decode("utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        problems.append(f"--config-file {name}: {error.strerror or error}")
        return {}
    except ConfigError as error:
        problems.extend(error.problems)
        return {}
    except UnicodeDecodeError as error:
        problems.append(f"{name}: not UTF-8 text (byte {error.start})")
        return {}
    except (yaml.YAMLError, RecursionError) as error:
        problems.append(f"{name}: not valid YAML: {' '.join(str(error).split())}")
        return {}
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        problems.append(f"{name}: expected sections ({', '.join(SECTIONS)}), each with its values")
        return {}
    return _file_values(root, name, problems)


def _file_values(root: yaml.MappingNode, name: str, problems: list[str]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for section, node, line in _entries(root, name, problems):
        if "." in section:
            items = [(section, node, line)]
        elif section not in SECTIONS:
            near = suggest(section, SECTIONS) or f"; the sections are {', '.join(SECTIONS)}"
            problems.append(f"{name}:{line}: unknown section {section!r}{near}")
            continue
        elif isinstance(node, yaml.MappingNode):
            items = [(f"{section}.{key}", value, at) for key, value, at in _entries(node, name, problems)]
        elif isinstance(node, yaml.ScalarNode) and node.value in ("", "null", "~"):
            continue
        else:
            problems.append(f"{name}:{line}: section {section!r} must hold values (name: value), one a line")
            continue
        for key, value, at in items:
            if key in found:
                problems.append(f"{name}:{at}: duplicate key {key!r}; keep one of them")
            elif key not in SCHEMA:
                problems.append(f"{name}:{at}: unknown parameter {key}{suggest(key, SCHEMA)}")
            else:
                _add(found, key, lambda value=value: _plain(value), f"{name}:{at}", problems)
    return found


def _add(found: dict[str, Value], key: str, read: Any, where: str, problems: list[str]) -> None:
    try:
        raw = read()
    except WrongValue as error:
        problems.append(f"{where}: {key}: expected {error}")
        return
    try:
        found[key] = Value(convert(SCHEMA[key], key, raw, where), where)
    except WrongValue as error:
        problems.append(str(error))


# --- command line and environment ----------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """argparse whose refusals are ConfigErrors, so that every mistake ends in the same way."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError([message])


class _Collect(argparse.Action):
    """Appends (flag as written, dotted keys, text)."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        text = self.const if values == [] or values is None else values
        collected = getattr(namespace, "collected", None) or []
        namespace.collected = [*collected, (option_string, self.dest, text)]


def make_parser(prog: str, description: str, sections: Iterable[str] = SECTIONS) -> Parser:
    """A parser with --config-file, the demo's flat flags and every --section.name, grouped by section for --help."""
    parser = Parser(prog=prog, usage="%(prog)s [--config-file FILE]... [--FLAG VALUE | --section.name=VALUE]...",
                    description=description, allow_abbrev=False, epilog=__doc__.split("\n\n", 1)[1],
                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--config-file", action="append", default=[], metavar="FILE",
                        help="YAML file of sections and values; may be repeated, later files win")  # fmt: skip
    wanted = set(sections)
    flat = parser.add_argument_group("flat flags")
    for flag in FLAGS:
        if flag.section in wanted:
            names = ["--" + name for name in flag.names]
            options: dict[str, Any] = {"action": _Collect, "dest": flag.names[0], "help": flag.help, "metavar": "VALUE"}
            if flag.const is not None:
                options |= {"nargs": "?" if flag.optional else 0, "const": flag.const}
            flat.add_argument(*names, **options)
    for section in sections:
        group = parser.add_argument_group(section, SECTIONS[section])
        for key, param in SCHEMA.items():
            if key.startswith(section + "."):
                default = "" if param.default is None else f" (default {show(param.default)})"
                text = f"{param.help}; {param.kind}{default}".replace("%", "%%")
                group.add_argument(f"--{key}", action=_Collect, dest=key, metavar="VALUE", help=text)
    return parser


def _from_command_line(collected: list[tuple[str, str, Any]], problems: list[str]) -> dict[str, Value]:
    flat: dict[str, Value] = {}
    dotted: dict[str, Value] = {}
    expand = {flag.names[0]: flag.expand for flag in FLAGS}
    for written, dest, text in collected:
        target = dotted if dest in SCHEMA else flat
        pairs = {dest: text} if dest in SCHEMA else expand[dest](text)
        for key, value in pairs.items():
            try:
                target[key] = Value(convert(SCHEMA[key], key, value, written), written)
            except WrongValue as error:
                problems.append(str(error))
    return flat | dotted  # a full name says more than a flat flag


def _unknown(words: list[str]) -> list[str]:
    known = [f"--{key}" for key in SCHEMA] + [f"--{name}" for flag in FLAGS for name in flag.names] + ["--config-file"]
    out = []
    for word in words:
        name = word.split("=", 1)[0]
        if name.startswith("-"):
            out.append(f"unknown option {name}{suggest(name, known)}")
        elif not out:
            out.append(f"unexpected argument {word!r}: every value belongs to an option, as in --training.epochs=3")
    return out


def _from_environment(environ: Mapping[str, str], problems: list[str]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for name, text in environ.items():
        if name.startswith(ENV_PREFIX):
            key = name[len(ENV_PREFIX) :].lower().replace("__", ".")
        elif name in SCHEMA:
            key = name
        else:
            continue
        if key not in SCHEMA:
            problems.append(f"environment variable {name}: unknown parameter {key}{suggest(key, SCHEMA)}")
            continue
        _add(found, key, lambda text=text: text, f"environment {name}", problems)
    return found


def load(
    argv: Sequence[str] | None = None,
    *,
    prog: str = "cgxffcv",
    description: str = "",
    sections: Iterable[str] = SECTIONS,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """The configuration from `argv` (default: the process's) and `environ`. ConfigError lists every mistake at once."""
    problems: list[str] = []
    parser = make_parser(prog, description, tuple(sections))
    options, extra = parser.parse_known_args(sys.argv[1:] if argv is None else list(argv))
    problems += _unknown(extra)
    values = {key: Value(param.default, "default") for key, param in SCHEMA.items()}
    for path in options.config_file:
        values |= read_file(path, problems)
    values |= _from_command_line(getattr(options, "collected", None) or [], problems)
    values |= _from_environment(os.environ if environ is None else environ, problems)
    if problems:
        raise ConfigError(problems)
    return Config(values)


def save(config: Config, path: Path) -> None:
    """Writes the effective configuration, whole or not at all."""
    files.write(path, config.to_yaml())
