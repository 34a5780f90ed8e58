"""What a run's best network makes of its test set: how often each class is taken for which, and the images that it is
most confidently wrong about."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cgxffcv.app import runs
from cgxffcv.errors import UserError

__all__ = ["Mistake", "Verdicts", "judge"]

MOST_IMAGES = 10_000
BATCH = 500
CHECKPOINTS = (runs.BEST, runs.LAST)


@dataclass(frozen=True)
class Mistake:
    """A test image, its number in the file, with its class, the one it was taken for, and how sure the network was
    (0 to 1)."""

    number: int
    image: np.ndarray
    label: int
    taken_for: int
    probability: float


@dataclass(frozen=True)
class Verdicts:
    """`confusion`[label, taken for]: numbers of images, int64 (classes, classes); `worst`: the most confident mistakes
    first; `images`: the size of the test set, of which those that `confusion` counts were judged."""

    classes: tuple[str, ...]
    confusion: np.ndarray
    worst: list[Mistake]
    checkpoint: str
    images: int

    @property
    def judged(self) -> int:
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        return float(np.trace(self.confusion) / self.judged)


def _judge(classifier: Any, file: Any, image: str, labels: np.ndarray, most: int, name: str) -> Verdicts:
    classes = classifier.recipe.classes
    confusion = np.zeros((classes, classes), np.int64)
    worst: list[Mistake] = []
    chosen = np.linspace(0, len(labels) - 1, min(len(labels), MOST_IMAGES)).astype(np.int64)
    for at in range(0, len(chosen), BATCH):
        numbers = chosen[at : at + BATCH]
        part = labels[numbers]
        images = np.stack([file.value(int(number), image) for number in numbers])
        probabilities = classifier.probabilities(images, tta=False)
        taken = probabilities.argmax(axis=1)
        np.add.at(confusion, (part, taken), 1)
        for i in np.flatnonzero(taken != part):
            worst.append(
                Mistake(int(numbers[i]), images[i], int(part[i]), int(taken[i]), float(probabilities[i, taken[i]]))
            )
        worst = sorted(worst, key=lambda mistake: -mistake.probability)[:most]
    return Verdicts(classifier.classes, confusion, worst, name, len(labels))


def judge(folder: Path, test: str | None, most: int = 24) -> Verdicts:
    """Judges the test images, each as it is; of more than 10,000, that many from all over the file, which may be sorted
    by class. UserError without a checkpoint or a test set that fits it."""
    from cgxffcv import nn
    from cgxffcv.reader import Reader
    from cgxffcv.train.data import IMAGE, LABEL, labelled_images

    found = [folder / name for name in CHECKPOINTS if (folder / name).is_file()]
    if not found:
        raise UserError(f"{folder}: no checkpoint in it")
    if not isinstance(test, str) or not Path(test).is_file():
        raise UserError(f"{test}: the test set no longer exists")
    classifier = nn.load(found[0])
    try:
        with Reader(test) as file:
            fields = labelled_images(file)
            labels = file.column(fields[LABEL])
            if len(labels) == 0 or labels.min() < 0 or labels.max() >= classifier.recipe.classes:
                raise UserError(f"{test}: its labels are not those of {found[0].name}")
            return _judge(classifier, file, fields[IMAGE], labels, most, found[0].name)
    except ValueError as error:
        raise UserError(f"{test}: {error}") from error
