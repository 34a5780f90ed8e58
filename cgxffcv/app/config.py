"""One configuration for both scripts: sections of values, where each value came from, and what was wrong with it.

Sources, each overriding the ones before: built-in defaults (or the recipe's, for values that a recipe decides),
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
from cgxffcv.app import config_file
from cgxffcv.app.schema import FLAGS, SCHEMA, SECTIONS, Param, WrongValue
from cgxffcv.errors import ConfigError
from cgxffcv.nearest import suggest
from cgxffcv.recipes import RECIPES
from cgxffcv.wording import brief

ENV_PREFIX = "CGXFFCV__"


BASIC = ("training.recipe", "training.device", "log.config")  # shown by --help in addition to the flat flags
REST = f"""\
recipes: {", ".join(RECIPES)}

Every name in a configuration file is also an option: --training.lr=0.2; --help-all shows all of them.
"""


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
        self._usual = {key: param.default for key, param in SCHEMA.items()}

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
        """True if the user set it, in any way."""
        return self.origin(key) != "default"

    def has_value(self, key: str) -> bool:
        """True if the user gave a value; null does not count."""
        return self.given(key) and self[key] is not None and not self.origin(key).startswith("recipe ")

    def fill(self, values: Mapping[str, Any], origin: str, usual: Mapping[str, Any] | None = None) -> None:
        """Sets `values` ("section.name" to value) where nothing has been set; KeyError for unknown names.

        usual: what these values are if nothing is set, where that is not the built-in default."""
        for key, value in values.items():
            if self[key] is None:
                self._values[key] = Value(value, origin)
        self._usual |= usual or {}

    def put(self, values: Mapping[str, Any], origin: str) -> None:
        """Replaces values by what follows from others; `origin` says from which."""
        self._values |= {key: Value(value, origin) for key, value in values.items()}

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Section to name to value."""
        out: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
        for key, item in self._values.items():
            section, name = key.split(".")
            out[section][name] = item.value
        return out

    def differs(self, key: str) -> bool:
        """True if a value differs from what it would be if nothing were set."""
        return self[key] is not None and self[key] != self._usual[key]

    def lines(self, everything: bool = False) -> list[str]:
        """A table for people: name, value, origin, of what differs from the usual or of everything."""
        items = {key: item for key, item in self._values.items() if everything or self.differs(key)}
        names = max(map(len, items), default=0)
        shown = {key: show(item.value) for key, item in items.items()}
        width = min(max(map(len, shown.values()), default=0), 40)
        return [f"{key:<{names}} = {shown[key]:<{width}}  ({item.origin})" for key, item in items.items()]

    def summary(self) -> str:
        """The text printed before a run: as much as log.config asks for, and how to see the rest."""
        if self.log.config == "all":
            return "\n".join(["configuration:", *self.lines(everything=True)])
        usual, lines = f"the defaults and recipe {self.training.recipe}", self.lines()
        head = f"configuration: what differs from {usual}" if lines else f"configuration: {usual}"
        return "\n".join([f"{head} (--log.config=all shows every value)", *(f"  {line}" for line in lines)])

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
                out.append(f"  {name}: {text}  # {_comment(self.origin(f'{section}.{name}'))}")
        return "\n".join(out) + "\n"


def _comment(text: str) -> str:
    """On one line, and without characters that YAML or UTF-8 rejects: a file name may contain any byte."""
    return "".join(char if char.isprintable() else " " for char in text.encode("utf-8", "backslashreplace").decode())


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
        raise WrongValue(f"{where}: {key} = {brief(value)}: expected {error}") from None


# --- sources ---


def _add(found: dict[str, Value], key: str, raw: Any, where: str, problems: list[str]) -> None:
    try:
        found[key] = Value(convert(SCHEMA[key], key, raw, where), where)
    except WrongValue as error:
        problems.append(str(error))


def _from_file(path: str, problems: list[str]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for key, (raw, where) in config_file.read(path, problems).items():
        _add(found, key, raw, where, problems)
    return found


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises ConfigError, so that every mistake is reported in the same way."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError([message])


class _Collect(argparse.Action):
    """Appends (flag as written, dotted keys, text)."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        text = self.const if values == [] or values is None else values
        collected = getattr(namespace, "collected", None) or []
        namespace.collected = [*collected, (option_string, self.dest, text)]


class _HelpAll(argparse.Action):
    """Also shows what --help leaves out."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        make_parser(parser.prog, parser.description).print_help()
        parser.exit()


def make_parser(prog: str, description: str, shown: Iterable[str] = SCHEMA, rest: bool = False) -> Parser:
    """A parser with --config-file, the demo's flat flags and every --section.name; its --help has those of `shown`.

    rest: whether to add a --help-all that shows what --help leaves out.
    """
    usage = "%(prog)s [--config-file FILE]... [--FLAG VALUE | --section.name=VALUE]..."
    epilog = REST if rest else (__doc__ or "").partition("\n\n")[2]  # -OO leaves docstrings out
    about = {"description": description, "allow_abbrev": False, "epilog": epilog}
    parser = Parser(prog=prog, usage=usage, **about, formatter_class=argparse.RawDescriptionHelpFormatter)
    if rest:
        parser.add_argument(
            "--help-all", action=_HelpAll, nargs=0, help="every parameter, and which source overrides which"
        )
    text = "YAML file of sections and values; may be repeated, later files win"
    parser.add_argument("--config-file", action="append", default=[], metavar="FILE", help=text)
    flat = parser.add_argument_group("flat flags")
    shown = set(shown)
    for flag in FLAGS:
        options: dict[str, Any] = {"action": _Collect, "dest": flag.names[0], "metavar": "VALUE"}
        options["help"] = flag.help if rest or shown.intersection(flag.keys) else argparse.SUPPRESS
        if flag.const is not None:
            options |= {"nargs": "?" if flag.optional else 0, "const": flag.const}
        flat.add_argument(*("--" + name for name in flag.names), **options)
    for section, about in SECTIONS.items():
        used = any(key.startswith(f"{section}.") for key in shown)
        group = parser.add_argument_group(section, about if used else None)
        for key, param in SCHEMA.items():
            if key.startswith(section + "."):
                default = "" if param.default is None else f" (default {show(param.default)})"
                text = f"{param.help}; {param.kind}{default}".replace("%", "%%")
                text = text if key in shown else argparse.SUPPRESS
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
            _add(target, key, value, written, problems)
    return flat | dotted  # a full name overrides a flat flag


def _unknown(words: list[str]) -> list[str]:
    known = [f"--{key}" for key in SCHEMA] + [f"--{name}" for flag in FLAGS for name in flag.names] + ["--config-file"]
    out = []
    for word in words:
        name = word.split("=", 1)[0]
        if name.startswith("-"):
            out.append(f"unknown option {brief(name)[1:-1]}{suggest(name, known)}")
        elif not out:
            out.append(
                f"unexpected argument {brief(word)}: every value belongs to an option, as in --training.epochs=3"
            )
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
            problems.append(
                f"environment variable {brief(name)[1:-1]}: unknown parameter {brief(key)[1:-1]}{suggest(key, SCHEMA)}"
            )
            continue
        _add(found, key, text, f"environment {name}", problems)
    return found


def load(
    argv: Sequence[str] | None = None,
    *,
    prog: str = "cgxffcv",
    description: str = "",
    used: Iterable[str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """The configuration from `argv` (default: the process's) and `environ`. ConfigError lists every mistake at once.

    used: the parameters that the program uses, if not all of them; its --help shows only these. It accepts all of them,
    so that one configuration serves several programs.
    """
    problems: list[str] = []
    parser = make_parser(prog, description, BASIC, rest=True) if used is None else make_parser(prog, description, used)
    options, extra = parser.parse_known_args(sys.argv[1:] if argv is None else list(argv))
    problems += _unknown(extra)
    values = {key: Value(param.default, "default") for key, param in SCHEMA.items()}
    for path in options.config_file:
        values |= _from_file(path, problems)
    values |= _from_command_line(getattr(options, "collected", None) or [], problems)
    values |= _from_environment(os.environ if environ is None else environ, problems)
    if problems:
        raise ConfigError(problems)
    return Config(values)


def save(config: Config, path: Path) -> None:
    """Writes the effective configuration, whole or not at all."""
    files.write(path, config.to_yaml())
