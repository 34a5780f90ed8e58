"""The data set in the memory of a GPU: read once, then trained and tested on without the host."""

from __future__ import annotations

from typing import Any

import _cgxffcv
import numpy as np

from cgxffcv.loader import Loader
from cgxffcv.recipes import TestView

__all__ = ["ResidentTest", "ResidentTraining"]

TRAIN, TEST = 0, 1
RECORD_FIELDS = 5  # loss sum, correct, images, skipped, side


def _load(core: Any, which: int, loader: Loader) -> tuple[np.ndarray, np.ndarray]:
    """Copies a loader's pass to the GPU; labels and sample numbers, int64. MemoryError if there is no room."""
    count = loader.num_samples
    batches: Any = loader
    if loader.world_size > 1:  # how many of them are this rank's shows when they have come
        batches = list(loader)
        count = sum(len(batch[-1]) for batch in batches)
    labels, ids = np.empty(count, np.int64), np.empty(count, np.int64)
    if count == 0:
        return labels, ids
    core.begin(which, count)
    at = 0
    for images, label, number in batches:
        part = slice(at, at + len(images))
        labels[part], ids[part] = label.reshape(-1), number
        core.put(which, images, labels[part], ids[part])
        at += len(images)
    return labels, ids


class ResidentTraining:
    """Steps on a training set that lies on the GPU.

    trainer: a `_cgxffcv.Trainer` of a model there. loader: of all samples in use, one rank, not augmented; its image
    pipeline says how training augments. graphs: record each phase's step once and replay it.
    Raises MemoryError if the set does not fit.
    """

    def __init__(self, trainer: Any, loader: Loader, seed: int, graphs: bool = True):
        operations = loader.outputs[0].columns[0][3][0]
        self.core = _cgxffcv.Resident(trainer, operations, seed, graphs)
        try:
            _, ids = _load(self.core, TRAIN, loader)
        except BaseException:
            self.core.close()
            raise
        self._place = np.full(int(ids.max()) + 1, -1, np.int32)
        self._place[ids] = np.arange(len(ids), dtype=np.int32)

    def places(self, ids: np.ndarray) -> np.ndarray:
        """Where samples lie in the set, int32."""
        return self._place[ids]

    def run(self, ids: np.ndarray, epoch: int, records: np.ndarray, losses: np.ndarray | None) -> None:
        """len(records) steps on these samples of this rank. `records`: float64 (steps, 5), see RECORD_FIELDS; `losses`:
        float32 (samples,) or None. A failure (Ctrl-C) leaves what the steps done so far have written."""
        self.core.run(self.places(ids), epoch, records, losses)

    def close(self) -> None:
        self.core.close()


class ResidentTest:
    """This rank's share of the test set on the GPU, for `run_test`. MemoryError if it does not fit."""

    __test__ = False

    def __init__(self, training: ResidentTraining, loader: Loader):
        self._core = training.core
        self.labels, self.ids = _load(self._core, TEST, loader)

    def first(self, views: tuple[TestView, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels, sample numbers and logits (images, classes) of all images."""
        if len(self.ids) == 0:
            return self.labels, self.ids, np.zeros((0, 1), np.float32)
        return self.labels, self.ids, self._core.evaluate(TEST, None, len(self.ids), views)

    def again(self, places: np.ndarray, views: tuple[TestView, ...]) -> np.ndarray:
        """Logits of the images with these indices in `first`'s results."""
        return self._core.evaluate(TEST, places.astype(np.int32), len(places), views)
