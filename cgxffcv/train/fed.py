"""Training and testing on batches that loader threads bring one by one. For a GPU they fill page-locked buffers, which
are uploaded alongside the steps; augmentation, views and sums are the GPU's work, as for resident data, and give the
same bytes. For a CPU they also augment, and batches are used where they are."""

from __future__ import annotations

from typing import Any

import _cgxffcv
import numpy as np

from cgxffcv.loader import Loader
from cgxffcv.loader.feeding import Feeding
from cgxffcv.recipes import TestView
from cgxffcv.train.optim import patch_moments, whitening_filters
from cgxffcv.train.resident import SAMPLE, load_set

__all__ = ["FedEvaluation", "FedTraining", "HostTraining"]


class _LoaderTraining:
    """Steps on batches that come from a loader while earlier ones are worked on. core: a `_cgxffcv.Runner`."""

    resident = False

    def __init__(self, core: Any, loader: Loader):
        self.core, self.passes = core, Feeding(loader)

    def expect(self, ids: np.ndarray, epoch: int) -> None:
        """Announces the samples of the next runs: reading begins."""
        self.passes.expect(ids, epoch)

    def run(self, ids: np.ndarray, epoch: int, records: np.ndarray, losses: np.ndarray | None) -> None:
        """Like ResidentTraining.run; a failure of the loader (an unreadable image, say) is raised after the steps
        before it."""
        self.core.run(self.passes.take(ids, epoch), epoch, records, losses)
        self.passes.taken()

    def wait_seconds(self) -> float:
        """The seconds spent waiting for batches."""
        return self.passes.seconds()

    def close(self) -> None:
        self.core.close()
        self.passes.close()


class FedTraining(_LoaderTraining):
    """Training on a GPU.

    trainer: a `_cgxffcv.Trainer` of a model there. loader: see `data.feeding_loader`. operations: how training
    augments, see `data.core_operations`. graphs: record each phase's step once and replay it. MemoryError if there is
    no room for a batch.
    """

    def __init__(self, trainer: Any, loader: Loader, operations: tuple, seed: int, graphs: bool = True):
        super().__init__(_cgxffcv.Runner(trainer, operations, seed, graphs), loader)

    def whiten(self, loader: Loader, epsilon: float) -> None:
        """Sets the frozen layer from all images of this loader, which are on the GPU meanwhile."""
        try:
            load_set(self.core, SAMPLE, loader)
            self.core.whiten(SAMPLE, loader.num_samples, epsilon)
        finally:
            self.core.drop(SAMPLE)

    def restart(self, seed: int) -> None:
        """Starts over with augmentation of another seed, from step 0 on."""
        self.core.restart(seed)


class HostTraining(_LoaderTraining):
    """Training on a CPU.

    trainer: a `_cgxffcv.Trainer` of a model there. loader: see `data.feeding_loader`; it augments.
    """

    def __init__(self, trainer: Any, loader: Loader):
        super().__init__(_cgxffcv.Runner(trainer, (), 0, False), loader)
        self._trainer = trainer

    def whiten(self, images: np.ndarray, epsilon: float, threads: int) -> None:
        """Sets the frozen layer from normalised images, float32 (n, 3, side, side)."""
        filters = whitening_filters(patch_moments(images, threads=threads), epsilon)
        parameters = self._trainer.read("parameters")
        for name, _, _, trained, shape, offset in self._trainer.layers():
            if not trained:
                assert shape == (24, 2, 2, 3), f"{name} is not a whitening layer"
                parameters[offset : offset + filters.size] = filters.transpose(0, 2, 3, 1).reshape(-1)
        self._trainer.write("parameters", parameters)

    def restart(self, seed: int) -> None:
        """Starts over with augmentation of another seed, from step 0 on."""
        self.core.restart(seed)
        self.passes.reseed(seed)


class FedEvaluation:
    """The test images `ids` from a loader (see `data.feeding_loader`), for `run_evaluation`. core: a
    `_cgxffcv.Runner`."""

    def __init__(self, core: Any, loader: Loader, ids: np.ndarray):
        self._core, self._passes, self._ids = core, Feeding(loader), ids

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
