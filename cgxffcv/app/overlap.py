"""Checks whether a test set contains images of the training set: a quick look, which cannot prove that it does not."""

from __future__ import annotations

import os

import numpy as np

from cgxffcv.reader import Reader

__all__ = ["shared_images"]

MOST_TESTED = 64  # images of the test set that are looked for
MOST_SEARCHED = 20_000  # images of the training set that are searched
IMAGE, LABEL = "image", "label"


def _of_one_class(labels: np.ndarray, label: int, most: int) -> list[int]:
    """The numbers of at most `most` samples with this label, evenly spread."""
    numbers = np.flatnonzero(labels == label)
    return numbers[np.linspace(0, len(numbers) - 1, min(most, len(numbers))).astype(np.int64)].tolist()


def shared_images(train: str | os.PathLike[str], test: str | os.PathLike[str]) -> tuple[int, int]:
    """How many of how many test images are also in the training set, with the same label and stored byte for byte the
    same. Looks only at images of the first one's class; (0, 0) for files that hold no labelled images."""
    with Reader(train) as searched, Reader(test) as tested:
        for file in (searched, tested):
            kinds = [getattr(file.fields.get(name), "kind", None) for name in (IMAGE, LABEL)]
            if kinds != ["image", "int"] or len(file) == 0:
                return 0, 0
        labels = tested.column(LABEL)
        wanted = [tested.stored_image(i, IMAGE) for i in _of_one_class(labels, labels[0], MOST_TESTED)]
        numbers = _of_one_class(searched.column(LABEL), labels[0], MOST_SEARCHED)
        there = {searched.stored_image(i, IMAGE) for i in numbers} if numbers else set()
        return sum(image in there for image in wanted), len(wanted)
