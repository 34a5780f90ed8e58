"""A Loader that feeds a training: the trainer's core takes its batches, and Python only says which samples come
next."""

from __future__ import annotations

from typing import Any

import numpy as np

from cgxffcv.loader.loader import Loader


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """True if two contiguous int64 arrays are equal; the same memory is not read, as a pass may be long."""
    return len(a) == len(b) and (a.ctypes.data == b.ctypes.data or np.array_equal(a, b))


class Feeding:
    """Batches of any samples, in any order, for code that takes them from the C core; the loader reads ahead in the
    order that it was last given. The loader is used for nothing else, and is closed with this."""

    def __init__(self, loader: Loader):
        self.loader, self._core = loader, loader._core
        self._coming, self._epoch = np.zeros(0, np.int64), 0

    def expect(self, ids: np.ndarray, epoch: int = 0) -> None:
        """Announces that these samples come next, as they are in that epoch; reading begins."""
        ids = np.ascontiguousarray(ids, np.int64)
        if len(ids) == 0 or (epoch == self._epoch and _same(self._coming, ids)):
            return
        self._coming = np.zeros(0, np.int64)
        self._core.begin(epoch, 0, False, False, ids)
        self._coming, self._epoch = ids, epoch

    def take(self, ids: np.ndarray, epoch: int = 0) -> Any:
        """Returns what gives the batches of these samples next, and must be asked for all of them. A failure meanwhile
        does not affect what is expected after it."""
        ids = np.ascontiguousarray(ids, np.int64)
        if epoch != self._epoch or not _same(self._coming[: len(ids)], ids):
            self.expect(ids, epoch)
        self._left, self._coming = self._coming[len(ids) :], np.zeros(0, np.int64)
        return self._core

    def taken(self) -> None:
        """Announces that everything asked for has come."""
        self._coming = self._left

    def reseed(self, seed: int) -> None:
        """Takes augmentations of another seed from now on; nothing is expected any more."""
        self._coming = np.zeros(0, np.int64)
        self._core.reseed(seed)

    def seconds(self) -> float:
        """The seconds spent waiting for batches."""
        return self._core.stats()["wait_seconds"]

    def close(self) -> None:
        self.loader.close()
