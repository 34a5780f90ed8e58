"""A library that the wheel brings for machines that lack it."""

from __future__ import annotations

import os

PATH = os.path.join(os.path.dirname(os.path.dirname(__file__)), "cgxffcv.libs", "libgomp.so.1")


def provide(path: str = PATH) -> None:
    """Loads GCC's OpenMP runtime, on which oneDNN stands, from the wheel where the system has none, as a bare Debian.
    The system's comes first: other modules of the program may need one that is newer than the wheel's."""
    if not os.path.exists(path):
        return
    import ctypes

    try:
        ctypes.CDLL(os.path.basename(path))
    except OSError:
        ctypes.CDLL(path)
