"""What a training must know about a data set that is not CIFAR-10, and the recipe that fits it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from os import PathLike

import numpy as np

from cgxffcv import recipes
from cgxffcv.classes import common_names, names_file, read_names
from cgxffcv.errors import DataError
from cgxffcv.reader import Reader
from cgxffcv.recipes import CLASSES, SIDES, Recipe
from cgxffcv.train.data import IMAGE, LABEL, labelled_images, whole_pixels

__all__ = ["ImageFacts", "fitted", "look_at"]

MOST_MEASURED = 10_000  # images whose colours are measured


@dataclass(frozen=True)
class ImageFacts:
    """Facts about labelled images: how many there are for training, pixels per side, classes, their names if a file has
    them, mean and standard deviation of each colour of the training images (0..255)."""

    samples: int
    side: int
    classes: int
    names: tuple[str, ...] | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def of_cifar(self) -> bool:
        """True if they may be taken for CIFAR-10: as many pixels and classes, and no names of other classes."""
        return self.names is None and (self.side, self.classes) == (32, 10)

    def fit(self, recipe: Recipe) -> Recipe:
        """The recipe for these images; CIFAR-10's as it is."""
        return recipe if self.of_cifar else recipe.fitted(self.side, self.classes, self.mean, self.std)


def _labels(path: str, indices: np.ndarray | None) -> np.ndarray:
    with Reader(path) as file:
        labels = file.column(labelled_images(file)[LABEL])
    return labels if indices is None else labels[indices]


def _classes(path: str, labels: np.ndarray, test: np.ndarray, names: tuple[str, ...] | None) -> int:
    """The number of classes: as many as have names, else one more than the largest label."""
    both = np.concatenate([labels, test])
    least, most = both.min(), both.max()
    if least < 0:
        raise DataError(f"{path}: a label is {least}; labels are the numbers of classes, from 0 on")
    if names is not None and most >= len(names):
        raise DataError(f"{names_file(path)} names {len(names):,} classes, but there is a label {most}")
    classes = int(most) + 1 if names is None else len(names)
    if classes > CLASSES[1]:
        raise DataError(
            f"{path}: labels up to {most:,}; networks distinguish at most {CLASSES[1]:,} classes (0 to 999)"
        )
    if len(np.unique(labels)) < 2:
        raise DataError(
            f"{path}: all {len(labels):,} training images are of one class ({labels[0]}); there is nothing to learn: "
            f"expected {CLASSES[0]} to {CLASSES[1]:,} classes"
        )
    return classes


def _side(path: str) -> int:
    with Reader(path) as file:
        info = file.fields[labelled_images(file)[IMAGE]]
    sides = {info.min_width, info.max_width, info.min_height, info.max_height}
    side = info.min_width or 0
    if len(sides) > 1 or not SIDES[0] <= side <= SIDES[1]:
        least, most = f"{info.min_width} x {info.min_height}", f"{info.max_width} x {info.max_height}"
        seen = least if least == most else f"{least} to {most}"
        raise DataError(
            f"{path}: images of {seen} pixels; expected squares of one size, with sides of {SIDES[0]} to {SIDES[1]} "
            "pixels: data.source=folder makes such squares of a folder of images"
        )
    return side


def look_at(
    train: str | PathLike[str],
    test: str | PathLike[str] | None = None,
    *,
    train_indices: np.ndarray | None = None,
    test_indices: np.ndarray | None = None,
    workers: int = 1,
) -> ImageFacts:
    """Reads the labels of both files, and the colours of at most 10,000 training images, evenly spread.

    Raises DataError for files that cannot be trained on: not exactly one image field and one int field (or fields
    "image" and "label"), images that are not squares of one size of 16 to 96 pixels, fewer than 2 or more than 1,000
    classes, fewer than 2 images, and different names for a label in the two files; BetonError for damaged ones.
    """
    path = os.fspath(train)
    labels = _labels(path, train_indices)
    if len(labels) < 2:
        raise DataError(f"{path}: {len(labels)} training images; expected at least 2, of 2 classes")
    names = read_names(path)
    if test is not None:
        common_names([path, os.fspath(test)])
    tested = np.zeros(0, np.int64) if test is None else np.unique(_labels(os.fspath(test), test_indices))
    classes = _classes(path, labels, tested, names)
    numbers = np.arange(len(labels)) if train_indices is None else np.asarray(train_indices)
    side = _side(path)
    if names is None and (side, classes) == (32, 10):
        return ImageFacts(len(labels), side, classes, None, recipes.get("resnet9").mean, recipes.get("resnet9").std)
    spread = np.linspace(0, len(numbers) - 1, min(len(numbers), MOST_MEASURED)).astype(np.int64)
    return ImageFacts(len(labels), side, classes, names, *_colours(path, numbers[spread], workers))


def _colours(path: str, numbers: np.ndarray, workers: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each colour; sums of integers, so that all ranks find the same."""
    count, sums, squares = 0, np.zeros(3, np.int64), np.zeros(3, np.int64)
    for images in whole_pixels(path, numbers, workers):
        values = images.reshape(-1, 3).astype(np.int64)
        count, sums, squares = count + len(values), sums + values.sum(axis=0), squares + (values**2).sum(axis=0)
    mean = sums / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1.0))  # at least 1: a colour may be the same everywhere
    return tuple(round(float(v), 3) for v in mean), tuple(round(float(v), 3) for v in std)


def fitted(recipe: Recipe | str, train: str | PathLike[str], test: str | PathLike[str] | None = None) -> Recipe:
    """The recipe for the images of these .beton files: side, classes, colours. CIFAR-10's (10 classes of 32 x 32 pixels
    without a file of other names) stay as they are. Raises what `look_at` raises."""
    return look_at(train, test).fit(recipes.get(recipe) if isinstance(recipe, str) else recipe)
