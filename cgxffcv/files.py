"""Files that are written whole or not at all, and files that must be regular ones."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import IO, Any

__all__ = ["cache_folder", "naming", "open_plain", "warn_unsynced", "write"]


def cache_folder() -> Path:
    """The folder for what was measured on this machine; it may not exist yet. csrc/nn/cuda/conv/plans.c has the same
    rule."""
    own, xdg = os.environ.get("CGXFFCV_CACHE"), os.environ.get("XDG_CACHE_HOME", "")
    usual = Path(xdg) if xdg.startswith("/") else Path.home() / ".cache"
    return Path(own) if own else usual / "cgxffcv"


def warn_unsynced(path: str | PathLike[str], error: int) -> None:
    """Warns that a file is in place, but perhaps not after a power failure. error: what the core returned; 0: no
    warning."""
    if error:
        warnings.warn(
            f"{os.fspath(path)}: the new file is complete and in its place, but its folder could not be synced to the "
            f"disk ({os.strerror(error)}): after a power failure the old file, or none, may be there again",
            RuntimeWarning,
            3,
        )


def write(path: str | PathLike[str], pieces: str | Sequence[Any], durable: bool = True) -> None:
    """Writes a text, or buffers one after the other, as the file `path`: whole or not at all.

    A symbolic link is followed. durable: synced to the disk before it appears. OSError with the path if that fails, or
    if something other than a file is there (a folder, FIFO, socket, device); what was there before stays. In a text,
    bytes of file names that are not UTF-8 are escaped.
    """
    import _cgxffcv  # here, so that what only opens files works without the core

    data = [pieces.encode("utf-8", "backslashreplace")] if isinstance(pieces, str) else pieces
    warn_unsynced(path, _cgxffcv.write_file(path, data, durable))


@contextlib.contextmanager
def naming(path: str | PathLike[str]) -> Iterator[None]:
    """For reads within: an OSError that names no file, such as a failed read's, gets this name."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def open_plain(path: str | PathLike[str], mode: str, follow: bool = True, **options: Any) -> IO[Any]:
    """open(), but for regular files only: OSError for a FIFO, which would wait for ever, a socket or a device.

    A number is not a name: open() would take it for a descriptor, and close that in the end.

    follow: whether the name may be that of a symbolic link; False where others could have planted one.
    """
    return open(os.fspath(path), mode, opener=functools.partial(_open_plain, follow=follow), **options)


def _open_plain(path: str, flags: int, follow: bool = True) -> int:
    refusal = OSError(errno.EINVAL, "is not a regular file; name one that is", path)
    try:
        also = os.O_NONBLOCK | os.O_NOCTTY | (0 if follow else os.O_NOFOLLOW)
        descriptor = os.open(path, flags | also, 0o666)
    except OSError as error:
        raise refusal if error.errno == errno.ENXIO else error from None  # a socket, or a FIFO that nobody reads
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path) if stat.S_ISDIR(mode) else refusal
    return descriptor
