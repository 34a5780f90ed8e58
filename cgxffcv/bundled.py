"""A library that the wheel brings for machines that lack it."""

from __future__ import annotations

import os

PATH = os.path.join(os.path.dirname(os.path.dirname(__file__)), "cgxffcv.libs", "libgomp.so.1")


def provide(path: str = PATH) -> None:
    """Loads GCC's OpenMP runtime, which oneDNN needs, from the wheel if the system has none, like a bare Debian. The
    system's is preferred: other modules of the program may need one newer than the wheel's."""
    if not os.path.exists(path):
        return
    import ctypes

    try:
        ctypes.CDLL(os.path.basename(path))
    except OSError:
        ctypes.CDLL(path)
