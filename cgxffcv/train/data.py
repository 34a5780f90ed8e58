"""Loaders for training and testing, as a recipe needs them."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from os import PathLike
from typing import Any

import numpy as np
from _cgxffcv import BetonError

from cgxffcv.decoders import IntDecoder, SimpleRGBImageDecoder
from cgxffcv.errors import DataError
from cgxffcv.loader import Loader, PipelineSpec
from cgxffcv.loader.orders import as_ids, random_order, share_of_order
from cgxffcv.pipeline.compile import compile_outputs
from cgxffcv.reader import Reader
from cgxffcv.recipes import Recipe
from cgxffcv.transforms import (
    AlternatingFlip,
    Cutout,
    NormalizeImage,
    RandomCrop,
    RandomHorizontalFlip,
    RandomTranslate,
    ToTorchImage,
)

__all__ = [
    "Samples",
    "augmentation",
    "core_operations",
    "evaluation_loader",
    "feeding_loader",
    "labelled_images",
    "share_of",
    "whitening_images",
    "whole_pixels",
    "whole_loader",
]

IMAGE, LABEL = "image", "label"  # usual names of the fields
KINDS = {IMAGE: ("image", "colour images of one size"), LABEL: ("int", "whole numbers")}


def labelled_images(file: Reader) -> dict[str, str]:
    """The names of the fields that training takes as IMAGE and LABEL: those with these names, or else the only ones of
    their kind. DataError if there are none."""
    found = {}
    for use, (kind, what) in KINDS.items():
        fitting = [name for name, info in file.fields.items() if info.kind == kind]
        if use not in fitting and len(fitting) != 1:
            several = f"; {' and '.join(fitting)} are several: give one of them that name" if fitting else ""
            raise DataError(f"{file.path}: training needs a field {use!r} of {what}{several}")
        found[use] = use if use in fitting else fitting[0]
    return found


def augmentation(recipe: Recipe) -> list[Any]:
    """The recipe's operations on uint8 images, in their order; the network normalises by itself."""
    steps: list[Any] = []
    flips = {"random": [RandomHorizontalFlip()], "alternating": [AlternatingFlip()], "none": []}
    if recipe.translate > 0:
        if recipe.padding == "reflect":
            steps.append(RandomCrop(recipe.side, padding=recipe.translate, fill="reflect"))
        else:
            steps.append(RandomTranslate(recipe.translate, fill=recipe.translate_fill))
    # Shift, then mirror, with a reflected border; mirror, then shift, with a filled one: each family's own order.
    steps = steps + flips[recipe.flip] if recipe.padding == "reflect" else flips[recipe.flip] + steps
    if recipe.cutout > 0:
        steps.append(Cutout(recipe.cutout, fill=recipe.cutout_fill))
    return steps


def _open(path: str | PathLike[str], batch: int, pipelines: dict[str, Any], **options: Any) -> Loader:
    """A loader of `pipelines` only, in this order, whatever else is in the file; DataError if its fields are not those
    of labelled images."""
    with Reader(path) as file:
        chosen: dict[str, Any] = dict.fromkeys(file.fields)  # outputs of other names come in the order given
        fields = labelled_images(file)
    for use, steps in pipelines.items():
        chosen[f"training {use}"] = PipelineSpec(fields[use], steps[0], steps[1:])
    try:
        return Loader(path, batch, pipelines=chosen, **options)
    except BetonError:
        raise
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{os.fspath(path)}: training needs a field {IMAGE!r} of colour images of one size and a field "
            f"{LABEL!r} of whole numbers ({error})"
        ) from error


class Samples:
    """The samples in use of a file of labelled images, which is not kept open.

    `numbers`: theirs in the file, int64, in the order given. `seed`: of their random orders, which are those of a
    Loader with OrderOption.RANDOM. DataError if none is in use, if a label is not a class of the recipe, or if the
    first image has another size than the recipe's; IndexError and TypeError for wrong indices.
    """

    def __init__(self, path: str | PathLike[str], recipe: Recipe, indices: np.ndarray | None = None, seed: int = 0):
        self.path, self.seed = os.fspath(path), seed
        with Reader(path) as file:
            in_file = file.num_samples
            self.numbers = np.arange(in_file) if indices is None else as_ids(indices, "indices", in_file)
            if len(self.numbers) == 0:
                chosen = f"none of its {in_file:,} samples is chosen (by indices)" if in_file else "holds no samples"
                raise DataError(f"{self.path}: {chosen}")
            fields = labelled_images(file)
            self._labels = file.column(fields[LABEL])[self.numbers]
            self._check_labels(recipe)
            height, width, _ = file.value(self.numbers[0], fields[IMAGE]).shape
        if (height, width) != (recipe.side, recipe.side):
            raise DataError(
                f"{self.path}: images of {height} x {width} pixels; recipe {recipe.name} is made for "
                f"{recipe.side} x {recipe.side} ({FIT})"
            )

    def _check_labels(self, recipe: Recipe) -> None:
        wrong = np.flatnonzero((self._labels < 0) | (self._labels >= recipe.classes))
        if len(wrong):
            raise DataError(
                f"{self.path}: sample {self.numbers[wrong[0]]} has the label {self._labels[wrong[0]]}; expected 0 to "
                f"{recipe.classes - 1} ({len(wrong):,} of {len(self):,} labels are not; {FIT})"
            )

    def __len__(self) -> int:
        return len(self.numbers)

    def labels_checksum(self) -> int:
        """A checksum of the labels, to tell data sets apart."""
        return zlib.crc32(self._labels.tobytes())

    def order(self, epoch: int) -> np.ndarray:
        """The sample numbers of an epoch in random order, for all ranks."""
        return random_order(self.numbers, self.seed, epoch)


FIT = "cgxffcv.train.fitted makes a recipe fit a file"
ALONE = {"rank": 0, "world_size": 1}
IN_ORDER = {"seed": 0, "evaluate": True, "drop_last": False}


def _pipelines(steps: Sequence[Any]) -> dict[str, Any]:
    return {IMAGE: [SimpleRGBImageDecoder(), *steps], LABEL: [IntDecoder()]}


def evaluation_loader(
    path: str | PathLike[str], batch: int, workers: int, rank: int, ranks: int, indices: np.ndarray | None = None
) -> Loader:
    """This rank's share of the test images in the file's order, each once; batches end with the sample numbers."""
    place = {"num_workers": workers, "rank": rank, "world_size": ranks}
    return _open(path, batch, _pipelines([]), **place, **IN_ORDER, ids=True, indices=indices)


def whole_loader(
    path: str | PathLike[str], recipe: Recipe, batch: int, workers: int, indices: np.ndarray | None = None
) -> Loader:
    """All samples in use, once, as the recipe augments them with its random operations neutral: for the memory of a
    GPU, which then performs these operations itself."""
    pipelines = _pipelines(augmentation(recipe))
    return _open(path, batch, pipelines, num_workers=workers, **ALONE, **IN_ORDER, ids=True, indices=indices)


def core_operations(steps: list[Any]) -> tuple:
    """Operations of `augmentation` as the C core takes them."""
    (output,) = compile_outputs({IMAGE: "image"}, {IMAGE: [SimpleRGBImageDecoder(), *steps]}, str)
    return output.columns[0]["image"]["operations"]


def feeding_loader(
    path: str | PathLike[str],
    batch: int,
    workers: int,
    gpu: int | None,
    indices: np.ndarray | None,
    keep: bool = True,
    steps: Sequence[Any] = (),
    seed: int = 0,
) -> Loader:
    """Batches for the trainer's core, any samples in any order: uint8 images (batch, side, side, 3) and int64 labels
    (batch, 1). For a GPU, if one is given, they are page-locked. `keep`: JPEG images are decoded once and kept in host
    memory. `steps`: how images are augmented, see `augmentation`."""
    chosen = {"num_workers": workers, "indices": indices, "resident": keep, "page_locked": gpu, "seed": seed}
    return _open(path, batch, _pipelines(steps), **chosen, **ALONE, drop_last=False)


def share_of(loader: Loader) -> np.ndarray:
    """The sample numbers of this rank in the loader's next pass, in order, if no sample is left out."""
    return share_of_order(loader.next_traversal_order(), loader.batch_size, loader.rank, loader.world_size)


def whole_pixels(path: str | PathLike[str], numbers: np.ndarray, workers: int) -> Iterator[np.ndarray]:
    """The images of these samples as they are, uint8 (n, side, side, 3), a part at a time."""
    pipelines = {IMAGE: [SimpleRGBImageDecoder()]}
    with _open(path, 500, pipelines, num_workers=workers, indices=numbers, **ALONE, **IN_ORDER) as loader:
        for (images,) in loader:
            yield images


def whitening_images(
    path: str | PathLike[str], recipe: Recipe, count: int, workers: int, indices: np.ndarray | None = None
) -> np.ndarray:
    """The first `count` training images in use, normalised, not augmented: float32 (count, 3, 32, 32)."""
    numbers = np.arange(count) if indices is None else indices[:count]
    normalise = [NormalizeImage(recipe.mean, recipe.std, np.float32), ToTorchImage(channels_last=False)]
    pipelines = {IMAGE: [SimpleRGBImageDecoder(), *normalise]}
    with _open(path, count, pipelines, num_workers=workers, indices=numbers, **ALONE, **IN_ORDER) as loader:
        (images,) = next(iter(loader))
        return np.array(images)
