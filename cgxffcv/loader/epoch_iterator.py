"""One pass of a Loader."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cgxffcv.loader.settings import Plan

if TYPE_CHECKING:
    from cgxffcv.loader.loader import Loader


class EpochIterator(Iterator):
    """One pass over the data; len() is the number of batches left."""

    def __init__(self, loader: Loader, plan: Plan, epoch: int, number: int, left: int):
        self._loader: Loader | None = loader
        self._plan, self._epoch, self._number, self._left = plan, epoch, number, left

    def __len__(self) -> int:
        return self._left

    def __next__(self) -> tuple:
        loader = self._loader
        if loader is None:
            raise StopIteration
        if not loader._runs(self._number):
            if self._loader is None:  # another thread has come to its end meanwhile
                raise StopIteration
            self._loader = None
            raise RuntimeError(
                "this pass has ended: its Loader was closed, loaded a state, or began another pass over resident images"
            )
        try:
            batch = self._plan.core.next()
        except BaseException:  # also what a signal's handler raises, or that another thread is inside this Loader
            with contextlib.suppress(RuntimeError, ValueError):  # forked, or closed meanwhile
                if not self._plan.core.active():
                    self.close()
            raise
        if batch is None:
            self.close()
            raise StopIteration
        self._left -= 1
        return self._plan.finish(*batch, self._epoch, self._plan.evaluate)

    def close(self) -> None:
        """Ends the pass; its workers stop."""
        loader, self._loader = self._loader, None  # first, so that no other thread takes this for an early end
        if loader is None:
            return
        try:
            loader._end(self._number)
        except RuntimeError:  # another thread is inside: the pass goes on
            self._loader = loader
            raise

    def __del__(self):
        # RuntimeError: another thread is inside this Loader, and its pass goes on; AttributeError: never fully made.
        with contextlib.suppress(AttributeError, RuntimeError, ValueError):
            self.close()
