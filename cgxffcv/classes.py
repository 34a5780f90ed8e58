"""Class names, next to a .beton file whose labels are their numbers: FILE.beton.classes, UTF-8, one per line."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from os import PathLike

from cgxffcv import files
from cgxffcv.errors import DataError

__all__ = [
    "check_names",
    "check_same",
    "common_names",
    "keep_names",
    "names_file",
    "plain_names",
    "read_names",
    "write_names",
]

MOST_BYTES = 1 << 20


def names_file(path: str | PathLike[str]) -> str:
    """Where the names of a .beton file's classes are, if they are known."""
    return f"{os.fsdecode(path)}.classes"


def _plain(name: str) -> str:
    """On one line, and without characters that UTF-8 rejects: a folder name may contain any byte."""
    return "".join(char if char.isprintable() else "?" for char in name.encode("utf-8", "backslashreplace").decode())


def plain_names(names: Sequence[str], where: str) -> tuple[str, ...]:
    """The names as they are written to a file; DataError if that makes two the same, or one empty."""
    return check_names([_plain(name) for name in names], where)


def write_names(path: str | PathLike[str], names: Sequence[str]) -> None:
    """Writes the names of the classes of the .beton file `path`, whole or not at all. DataError as from plain_names."""
    where = names_file(path)
    files.write(where, "".join(f"{name}\n" for name in plain_names(names, where)))


def _is_absent(error: OSError) -> bool:
    """True also if the .beton file's own name is already as long as names may be."""
    return error.errno in (errno.ENOENT, errno.ENAMETOOLONG)


def read_names(path: str | PathLike[str]) -> tuple[str, ...] | None:
    """The names of the classes of the .beton file `path`; None if there is no file of them. DataError if that file is
    not a list of names."""
    where = names_file(path)
    try:
        with files.open_plain(where, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        if _is_absent(error):
            return None
        raise
    try:
        names = tuple(data.decode().splitlines())
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: expected UTF-8 text, one class per line ({error})") from None
    if len(data) > MOST_BYTES:
        raise DataError(f"{where}: more than {MOST_BYTES:,} bytes; expected the name of a class on each line")
    return check_names(names, where)


def check_names(names: Sequence[str], where: str) -> tuple[str, ...]:
    """The names; DataError if one is empty or occurs twice, so that a prediction would not say which class it means."""
    seen: set[str] = set()
    for number, name in enumerate(names):
        if not isinstance(name, str) or not name.strip() or name in seen:
            what = "a duplicate" if name in seen else "not a name"
            raise DataError(f"{where}: class {number}, {name!r}, is {what}; expected a name for each class, each once")
        seen.add(name)
    return tuple(names)


def check_same(names: Sequence[str], where: str, others: Sequence[str], there: str) -> None:
    """DataError if a number that both lists have is another class in each."""
    for number, (name, other) in enumerate(zip(names, others, strict=False)):
        if name != other:
            raise DataError(
                f"{where}: class {number} is {name!r}, but {other!r} in {there}: the same label would mean two "
                "classes; number them in the same way (folders: the same sub-folders in each, including empty ones)"
            )


def common_names(paths: Iterable[str | PathLike[str]]) -> tuple[str, ...] | None:
    """The names that .beton files have for the same labels: the longest list of those that have one. None if none has.
    DataError if a label means one class in one file and another class in another."""
    found: tuple[str, ...] | None = None
    where = ""
    for path in paths:
        names = read_names(path)
        if names is None:
            continue
        check_same(names, names_file(path), found or (), where)
        if found is None or len(names) > len(found):
            found, where = names, names_file(path)
    return found


def keep_names(path: str | PathLike[str], names: Sequence[str] | None) -> None:
    """Puts these names, or none, next to a .beton file that has just been written, whatever an earlier file there
    had."""
    if names is not None:
        write_names(path, names)
        return
    try:
        os.unlink(names_file(path))
    except OSError as error:
        if not _is_absent(error):
            raise
