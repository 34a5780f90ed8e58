"""argparse as this package uses it: any mistake in a command's arguments gives one line and exit code 2."""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from cgxffcv.errors import UsageError
from cgxffcv.lengths import machine_bytes
from cgxffcv.nearest import suggest


def summary(doc: str | None) -> str:
    """The first paragraph of a docstring; nothing where Python was told to leave them out (-OO)."""
    return (doc or "").partition("\n\n")[0]


class Parser(argparse.ArgumentParser):
    """A parser whose errors are UsageErrors that name its --help and, for an unknown option, the nearest one."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{' '.join(message.split())}; see {self.prog} --help")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuses a word that is not one of the choices, in the same words with every Python, and names the nearest."""
        if action.choices is not None and value not in action.choices:
            known = ", ".join(action.choices)
            wrong = f"invalid choice: {value!r}; expected one of {known}{suggest(value, action.choices)}"
            raise argparse.ArgumentError(action, wrong)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # a sub-parser's, too
        options, extra = super().parse_known_args(args, namespace)
        if extra:
            word = extra[0].partition("=")[0]
            if not word.startswith("-"):
                self.error(f"unexpected argument {extra[0]!r}")
            self.error(f"unknown option {word}{suggest(word, self._option_string_actions)}")
        return options, extra


MEASURED = "write all measurements to FILE, next to the table, or to standard output instead of it"


def add_json(parser: argparse.ArgumentParser, help: str = MEASURED) -> None:
    """The option --json [FILE] of a benchmark."""
    parser.add_argument("--json", metavar="FILE", nargs="?", const="-", help=help)


def whole(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """The type of an option that is a whole number in a range."""

    def read(text: str) -> int:
        with contextlib.suppress(ValueError):
            value = int(text)
            if minimum <= value <= (value if maximum is None else maximum):
                return value
        limit = "" if maximum is None else f" to {maximum}"
        raise argparse.ArgumentTypeError(f"expected a whole number from {minimum}{limit}, not {text!r}")

    return read


def fitting(item_bytes: int) -> Callable[[str], int]:
    """The type of an option that is a number of items of that many bytes, which must fit in this machine's memory."""
    return whole(1, machine_bytes() // item_bytes)


def number(minimum: float, maximum: float = math.inf) -> Callable[[str], float]:
    """The type of an option that is a finite number in a range."""

    def read(text: str) -> float:
        with contextlib.suppress(ValueError):
            value = float(text)
            if math.isfinite(value) and minimum <= value <= maximum:
                return value
        limit = "" if maximum == math.inf else f" to {maximum:g}"
        raise argparse.ArgumentTypeError(f"expected a number from {minimum:g}{limit}, not {text!r}")

    return read
