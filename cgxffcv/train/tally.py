"""Sums over the steps of an epoch: of this rank as they are done, of all ranks at its end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import _cgxffcv

from cgxffcv.errors import UserError
from cgxffcv.recipes import Recipe
from cgxffcv.train.interface import EpochReport, StepReport

__all__ = ["EpochSums", "Tally", "TrainingDiverged", "compare_replicas", "epoch_report"]

MAX_SKIPPED = 10  # steps in a row without an update


class TrainingDiverged(UserError, ArithmeticError):
    """Losses or gradients have not been finite for many steps in a row."""


@dataclass
class EpochSums:
    """This rank's sums over the steps of the epoch in progress; `seconds`: in this process, so they are not in a
    checkpoint."""

    images: int = 0
    correct: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    wire_bytes: int = 0
    skipped: int = 0

    def saved(self) -> dict[str, Any]:
        """What a checkpoint keeps: the same for two runs that do the same."""
        return {name: value for name, value in vars(self).items() if name != "seconds"}


class Tally:
    """Counts the steps of a training of `recipe`."""

    def __init__(self, recipe: Recipe):
        self._recipe = recipe
        self.begin()

    def begin(self) -> None:
        """Begins a training, before its first step."""
        self.skipped_in_a_row = self.skipped = 0
        self.begin_epoch()

    def begin_epoch(self) -> None:
        self.sums = EpochSums()

    def count(self, step: StepReport, loss: float) -> None:
        """Counts a step that is done, with the sum of its images' losses. TrainingDiverged after ten in a row whose
        update was skipped."""
        sums = self.sums
        sums.images += step.images
        sums.correct += step.correct
        sums.seconds += step.seconds
        sums.wire_bytes += step.wire_bytes
        if not step.skipped:
            sums.loss += loss
            self.skipped_in_a_row = 0
            return
        sums.skipped += 1
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= MAX_SKIPPED:
            raise TrainingDiverged(
                f"the loss or the gradients were not finite in {MAX_SKIPPED} steps in a row (up to step {step.step}), "
                "so nothing was learned in them; lower the learning rate (recipe "
                f"{self._recipe.name}: lr = {self._recipe.lr:g}), or check the data"
            )


def compare_replicas(hashes: list[str], step: int) -> None:
    """CommError if the networks of two ranks differ after `step`, by their hashes in rank order."""
    for rank, theirs in enumerate(hashes):
        if theirs != hashes[0]:
            raise _cgxffcv.CommError(
                f"the networks of rank 0 and rank {rank} differ after step {step} (hashes {hashes[0]} and {theirs}); "
                "the ranks may run different processors, builds or files"
            )


def epoch_report(everyone: list[dict[str, Any]], epoch: int, batch: int, replica_hash: str) -> EpochReport:
    """The report from all ranks' EpochSums (as dicts). `batch`: images per step, of all ranks."""
    total = {name: sum(rank[name] for rank in everyone) for name in ("images", "correct", "loss", "wire_bytes")}
    images, skipped = total["images"], everyone[0]["skipped"]
    counted = images - skipped * batch  # skipped steps have no loss
    return EpochReport(
        epoch=epoch,
        images=images,
        loss=total["loss"] / counted if counted else math.nan,
        correct=total["correct"],
        accuracy=total["correct"] / images if images else 0.0,
        seconds=max(rank["seconds"] for rank in everyone),
        wire_bytes=total["wire_bytes"],
        skipped=skipped,
        replica_hash=replica_hash,
    )
