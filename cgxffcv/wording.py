"""Values, counts, times and sizes as messages show them."""

from __future__ import annotations

import contextlib
import errno
import html
import math
import operator
from collections.abc import Iterable, Iterator
from typing import Any

LONGEST = 80
IRREGULAR = {"process": "processes", "batch": "batches", "class": "classes", "entry": "entries", "copy": "copies"}


def brief(value: Any) -> str:
    """A value on one line, shortened to what fits there."""
    try:
        shown = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    except ValueError:  # a number with more digits than Python converts
        shown = "a very long number"
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 20]}...{shown[-10:]}"


def whole_number(value: Any, name: str) -> int:
    """TypeError, by that name, if it is none; True and False are none, either."""
    if not isinstance(value, bool):
        with contextlib.suppress(TypeError):
            return operator.index(value)
    raise TypeError(f"{name} must be a whole number, not {brief(value)}")


def add_note(error: BaseException, note: str) -> None:
    """Adds a note, which Python shows below the error, from 3.11 on."""
    with contextlib.suppress(AttributeError, TypeError):  # an exception that takes no attributes
        error.__notes__ = [*getattr(error, "__notes__", ()), note]  # type: ignore[attr-defined]


@contextlib.contextmanager
def noted(note: str) -> Iterator[None]:
    """Adds the note to any exception raised within."""
    try:
        yield
    except Exception as error:
        add_note(error, note)
        raise


_LIMITS = {
    errno.EMFILE: "this process may not open so many files: raise its limit (ulimit -n)",
    errno.ENFILE: "this machine may not open so many files: raise its limit (fs.file-max)",
    errno.EAGAIN: "so many processes may not be started: raise the limit (ulimit -u, or a container's)",
}


@contextlib.contextmanager
def naming_limit(what: str) -> Iterator[None]:
    """For what starts processes: an OSError within that says that a limit was reached tells which, and what to do."""
    try:
        yield
    except OSError as error:
        limit = _LIMITS.get(error.errno or 0)
        if limit is None:
            raise
        raise OSError(error.errno, f"{what}: {limit}, or ask for fewer") from error


def counted(number: float, noun: str) -> str:
    """1 process, 2 processes, 1,000 images, 2.5 epochs."""
    shown = int(number) if number == int(number) else number
    return f"{shown:,} {noun if number == 1 else IRREGULAR.get(noun, f'{noun}s')}"


def duration(seconds: float) -> str:
    """12.3 s, 4 min 05 s, 1 h 27 min."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float) -> str:
    """17 B, 1.2 MB, 170 MB: decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


class NotebookText(str):
    """A text of several lines, which a notebook shows as `print` would."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self)}</pre>"


def as_table(caption: str, rows: Iterable[tuple[str, str]]) -> str:
    """An HTML table of (what, value), as notebooks show it."""
    left = ' style="text-align: left"'
    cells = "".join(
        f"<tr><th{left}>{html.escape(what)}</th><td{left}>{html.escape(value)}</td></tr>" for what, value in rows
    )
    return f"<table><caption>{html.escape(caption)}</caption>{cells}</table>"
