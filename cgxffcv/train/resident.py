"""The data set in the memory of a GPU: read once, then trained and tested on without the host."""

from __future__ import annotations

from typing import Any

import _cgxffcv
import numpy as np

from cgxffcv.loader import Loader
from cgxffcv.recipes import TestView
from cgxffcv.train.data import share_of

__all__ = ["ResidentEvaluation", "ResidentTraining"]

TRAIN, TEST, SAMPLE = 0, 1, 2
RECORD_FIELDS = 5  # loss sum, correct, images, skipped, side


def load_set(core: Any, which: int, loader: Loader) -> tuple[np.ndarray, np.ndarray]:
    """Copies a loader's pass to the GPU; returns labels and sample numbers, int64. MemoryError if there is no room."""
    count = len(share_of(loader))
    labels, ids = np.empty(count, np.int64), np.empty(count, np.int64)
    if count == 0:
        return labels, ids
    core.begin(which, count)
    at = 0
    for images, label, number in loader:
        part = slice(at, at + len(images))
        labels[part], ids[part] = label.reshape(-1), number
        core.put(which, images, labels[part], ids[part])
        at += len(images)
    return labels, ids


class ResidentTraining:
    """Steps on a training set that is on the GPU.

    trainer: a `_cgxffcv.Trainer` of a model there. loader: of all samples in use, one rank, not augmented; its image
    pipeline says how training augments. graphs: record each phase's step once and replay it.
    Raises MemoryError if the set does not fit.
    """

    resident = True

    def __init__(self, trainer: Any, loader: Loader, seed: int, graphs: bool = True):
        operations = loader.outputs[0].columns[0]["image"]["operations"]
        self.core = _cgxffcv.Runner(trainer, operations, seed, graphs)
        try:
            _, ids = load_set(self.core, TRAIN, loader)
        except BaseException:
            self.core.close()
            raise
        self._position = np.full(int(ids.max()) + 1, -1, np.int32)
        self._position[ids] = np.arange(len(ids), dtype=np.int32)

    def positions(self, ids: np.ndarray) -> np.ndarray:
        """The positions of samples in the set, int32."""
        return self._position[ids]

    def expect(self, ids: np.ndarray, epoch: int) -> None:
        """Announces the samples of the next runs; they are already there."""

    def run(self, ids: np.ndarray, epoch: int, records: np.ndarray, losses: np.ndarray | None) -> None:
        """Runs len(records) steps on these samples of this rank. `records`: float64 (steps, 5), see RECORD_FIELDS;
        `losses`: float32 (samples,) or None. A failure (Ctrl-C) leaves what the steps done so far have written."""
        self.core.run(self.positions(ids), epoch, records, losses)

    def whiten(self, count: int, epsilon: float) -> None:
        """Sets the frozen layer from the first `count` images."""
        self.core.whiten(TRAIN, count, epsilon)

    def restart(self, seed: int) -> None:
        """Starts over with augmentation of another seed, from step 0 on."""
        self.core.restart(seed)

    def wait_seconds(self) -> float:
        """The seconds spent waiting for batches: none."""
        return 0.0

    def close(self) -> None:
        self.core.close()


class ResidentEvaluation:
    """This rank's share of the test set on the GPU, for `run_evaluation`. core: a `_cgxffcv.Runner`. MemoryError if
    the set does not fit."""

    def __init__(self, core: Any, loader: Loader):
        self._core = core
        self.labels, self.ids = load_set(self._core, TEST, loader)

    def first(self, views: tuple[TestView, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels, sample numbers and logits (images, classes) of all images."""
        if len(self.ids) == 0:
            return self.labels, self.ids, np.zeros((0, 1), np.float32)
        return self.labels, self.ids, self._core.evaluate(TEST, None, len(self.ids), views)

    def again(self, positions: np.ndarray, views: tuple[TestView, ...]) -> np.ndarray:
        """Logits of the images with these indices in `first`'s results."""
        return self._core.evaluate(TEST, positions.astype(np.int32), len(positions), views)

    def close(self) -> None:
        """Does nothing: the set is freed with the training's."""
