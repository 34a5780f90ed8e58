"""What a trainer reports, and what a script may ask of it.

The shortest use::

    from cgxffcv import recipes
    from cgxffcv.train import Trainer

    trainer = Trainer(recipes.get("airbench94"), "cifar_train.beton", "cifar_test.beton", seed=0)
    while not trainer.finished:
        for step in trainer.run_epoch():      # StepReport after every step, this rank's numbers
            ...
        report = trainer.evaluate()           # EvaluationReport, the same on every rank
        trainer.save("last.safetensors")      # atomic; every rank calls it, rank 0 writes
"""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike
from typing import Any, NamedTuple, Protocol


class StepReport(NamedTuple):
    """One training step as this rank saw it. Losses and hits are those of its own images before the update."""

    epoch: int  # from 0
    step: int  # of the whole training, from 0
    steps: int  # of the whole training
    images: int  # of this rank
    loss: float  # mean smoothed cross entropy of these images
    correct: int  # images whose largest logit is their label's
    rate: float  # learning rate of the main group (SGD, or Muon's)
    seconds: float  # from the end of the previous step (or the start of the epoch) to the end of this one
    load_seconds: float  # of these, waiting for the loader
    wire_bytes: int  # sent by this rank for the gradients of this step
    skipped: bool  # the update was left out because a loss or a gradient was not finite on some rank
    resolution: int  # side of the images in pixels


class EvaluationReport(NamedTuple):
    """The whole test set, each image once, shared among the ranks; the same numbers on every rank."""

    epoch: int  # training epochs done
    images: int
    correct: int
    accuracy: float  # correct / images
    loss: float  # mean cross entropy without smoothing, of the mean logits over the views
    seconds: float


class EpochReport(NamedTuple):
    """One epoch over all ranks; the same numbers on every rank."""

    epoch: int
    images: int
    loss: float
    correct: int
    accuracy: float
    seconds: float  # the slowest rank's, since the start of the epoch, or since this process resumed it
    wire_bytes: int  # of all ranks
    skipped: int
    replica_hash: str  # of parameters and momenta (different on a GPU and on a CPU); the ranks have compared theirs


class TrainerInterface(Protocol):
    """The methods of `cgxffcv.train.Trainer`, for scripts and other callers."""

    recipe: Any
    rank: int
    ranks: int
    epoch: int  # epochs completed
    step: int  # steps completed
    steps: int  # of the whole training
    steps_per_epoch: int
    epochs: int  # of the whole training: passes over the data, or over its hardest images; the last may be cut short
    images_per_step: int  # of all ranks
    test_images: int
    gpu: int | None  # index of this rank's GPU; None on the CPU
    precision: str  # of activations: float32, bfloat16, float16
    flops_per_image: float  # forward and backward, in the current phase
    best_accuracy: float  # so far; 0.0 before the first evaluation
    skipped: int  # steps so far whose update was left out

    @property
    def finished(self) -> bool: ...

    def run_epoch(self) -> Iterator[StepReport]:
        """Trains the next epoch, or the rest of an interrupted one; a generator, one report per step. It may be left
        early (`break`, an exception, Ctrl-C): the trainer is then between two steps and can be saved."""

    def end_epoch(self) -> EpochReport:
        """Returns the sums of the epoch just run over all ranks; compares the replicas' hashes (CommError names ranks
        that differ). Collective."""

    def evaluate(self, tta: bool = True) -> EvaluationReport:
        """Tests with rank 0's running statistics; without `tta` on the plain view only. Collective."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs: arrays and plain values. Collective."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from there, bit for bit; ValueError if it is of another training."""

    def save(self, path: str | PathLike[str], *, best: bool = False) -> None:
        """Writes a checkpoint (safetensors), whole or not at all; `best` is noted in it. Every rank calls it, rank 0
        writes."""

    def resume(self, path: str | PathLike[str]) -> list[str]:
        """Loads a checkpoint that `save` wrote; returns what is different from before, in sentences."""

    def explain(self) -> str:
        """How gradients are sent between the ranks, in words."""

    def algorithms(self) -> dict[str, Any]:
        """How the convolutions of the plans made so far are computed, in JSON's types."""

    def close(self) -> None:
        """Ends threads and frees memory; also a context manager."""
