"""Data sets that do not fit a GPU's memory: loader threads fill page-locked buffers, which are uploaded beside the
steps; augmentation, views and sums are the GPU's work, as for resident data, and give the same bytes."""

from __future__ import annotations

from typing import Any

import _cgxffcv
import numpy as np

from cgxffcv.loader import Loader
from cgxffcv.recipes import TestView
from cgxffcv.train.resident import SAMPLE, load_set

__all__ = ["FedEvaluation", "FedTraining"]


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two contiguous int64 arrays are equal; what is the same memory is not read, for a pass may be long."""
    return len(a) == len(b) and (a.ctypes.data == b.ctypes.data or np.array_equal(a, b))


class _Passes:
    """Batches of any samples, in any order; the loader reads ahead in the order that it was last told."""

    def __init__(self, loader: Loader):
        self.loader, self.core = loader, loader._core
        self._coming = np.zeros(0, np.int64)

    def expect(self, ids: np.ndarray) -> None:
        """These samples come next; reading begins."""
        ids = np.ascontiguousarray(ids, np.int64)
        if len(ids) == 0 or _same(self._coming, ids):
            return
        self._coming = np.zeros(0, np.int64)
        self.core.begin(0, 0, True, False, ids)
        self._coming = ids

    def take(self, ids: np.ndarray) -> Any:
        """What gives the batches of these samples next, and must be asked for all of them. A failure meanwhile is no
        obstacle to what is expected after it."""
        ids = np.ascontiguousarray(ids, np.int64)
        if not _same(self._coming[: len(ids)], ids):
            self.expect(ids)
        self._left, self._coming = self._coming[len(ids) :], np.zeros(0, np.int64)
        return self.core

    def taken(self) -> None:
        """All that was asked for has come."""
        self._coming = self._left

    def seconds(self) -> float:
        """How long batches have been waited for."""
        return self.core.stats()["wait_seconds"]

    def close(self) -> None:
        self.loader.close()


class FedTraining:
    """Steps on batches that come from a loader while earlier ones are worked on.

    trainer: a `_cgxffcv.Trainer` of a model on a GPU. loader: see `data.feeding_loader`. operations: how training
    augments, see `data.core_operations`. graphs: record each phase's step once and replay it. MemoryError if there is
    no room for a batch.
    """

    resident = False

    def __init__(self, trainer: Any, loader: Loader, operations: tuple, seed: int, graphs: bool = True):
        self.passes = _Passes(loader)
        self.core = _cgxffcv.Resident(trainer, operations, seed, graphs)

    def expect(self, ids: np.ndarray) -> None:
        """The samples of the next runs: reading begins."""
        self.passes.expect(ids)

    def run(self, ids: np.ndarray, epoch: int, records: np.ndarray, losses: np.ndarray | None) -> None:
        """As ResidentTraining.run; a failure of the loader (an unreadable image, say) comes after the steps before."""
        self.core.run(self.passes.take(ids), epoch, records, losses)
        self.passes.taken()

    def whiten(self, loader: Loader, epsilon: float) -> None:
        """Sets the frozen layer from all images of this loader, which lie on the GPU meanwhile."""
        try:
            load_set(self.core, SAMPLE, loader)
            self.core.whiten(SAMPLE, loader.num_samples, epsilon)
        finally:
            self.core.drop(SAMPLE)

    def wait_seconds(self) -> float:
        """How long batches have been waited for."""
        return self.passes.seconds()

    def close(self) -> None:
        self.core.close()
        self.passes.close()


class FedEvaluation:
    """The test images `ids` from a loader (see `data.feeding_loader`), for `run_evaluation`. core: a
    `_cgxffcv.Resident`."""

    def __init__(self, core: Any, loader: Loader, ids: np.ndarray):
        self._core, self._passes, self._ids = core, _Passes(loader), ids

    def first(self, views: tuple[TestView, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels, sample numbers and logits (images, classes) of all images."""
        if len(self._ids) == 0:
            return np.zeros(0, np.int64), self._ids, np.zeros((0, 1), np.float32)
        logits, labels = self._evaluate(self._ids, views)
        return labels, self._ids, logits

    def again(self, positions: np.ndarray, views: tuple[TestView, ...]) -> np.ndarray:
        """Logits of the images with these indices in `first`'s results."""
        return self._evaluate(self._ids[positions], views)[0]

    def _evaluate(self, ids: np.ndarray, views: tuple[TestView, ...]) -> tuple[np.ndarray, np.ndarray]:
        result = self._core.evaluate_fed(self._passes.take(ids), len(ids), views)
        self._passes.taken()
        return result

    def close(self) -> None:
        self._passes.close()
