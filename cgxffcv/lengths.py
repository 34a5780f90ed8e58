"""Lengths that a caller chooses, checked before anything is copied. What a range, or a sequence of the caller's own,
holds takes memory only once it is copied, and a system that promises more memory than it has would not refuse that."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

from cgxffcv.wording import size

ENTRY_BYTES = 48  # of a number as an object, in a list, and in an array


def machine_bytes() -> int:
    """The memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def longer(values: Any, most: int) -> bool:
    """True if it says that it has more entries than that. What is in memory already, such as an array, is not asked."""
    kind = type(values)  # as len() does: what an object does when its attributes are looked at is its own affair
    if isinstance(values, list | tuple) or hasattr(kind, "__array__") or not hasattr(kind, "__len__"):
        return False
    with contextlib.suppress(TypeError, ValueError, BufferError):
        memoryview(values).release()
        return False
    try:
        return len(values) > most
    except OverflowError:
        return True
    except (TypeError, NotImplementedError):  # a class, or what has no length after all
        return False


def check_fits(values: Any, name: str, entry_bytes: int = ENTRY_BYTES) -> None:
    """MemoryError, by that name, if it is longer than this machine's memory has room for."""
    if longer(values, min(machine_bytes() // entry_bytes, sys.maxsize)):
        raise MemoryError(
            f"{name}: copies of so many entries as it says it has do not fit in this machine's memory "
            f"of {size(machine_bytes())}; give fewer"
        )


def taken(values: Iterable[Any], most: int, message: str | Callable[[], str]) -> list[Any]:
    """All of them as a list; ValueError with the message if there are more than `most`, perhaps without end. A message
    that shows the values is given as a function, so that they are asked for their texts only then."""
    found = None if longer(values, most) else list(itertools.islice(values, most + 1))
    if found is None or len(found) > most:
        raise ValueError(message if isinstance(message, str) else message())
    return found
