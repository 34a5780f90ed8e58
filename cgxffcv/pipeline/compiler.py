"""FFCV's module of this name: operations ask it how to iterate. Nothing is compiled here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Compiler:
    """FFCV's calls, for operations that make them."""

    is_enabled = False
    num_threads = 1

    @classmethod
    def set_enabled(cls, enabled: Any) -> None:
        """Accepted, without effect."""

    @classmethod
    def set_num_threads(cls, threads: int) -> None:
        """Accepted, without effect: see Loader(num_workers=...)."""

    @classmethod
    def compile(cls, code: Callable, signature: Any = None) -> Callable:
        """The function as it is."""
        return code

    @classmethod
    def get_iterator(cls) -> type[range]:
        """What operations iterate over a batch with."""
        return range
