"""Loaders for training and testing, as a recipe wants them."""

from __future__ import annotations

import os
import zlib
from os import PathLike
from typing import Any

import numpy as np
from _cgxffcv import BetonError

from cgxffcv.decoders import IntDecoder, SimpleRGBImageDecoder
from cgxffcv.errors import DataError
from cgxffcv.loader import Loader, OrderOption, PipelineSpec
from cgxffcv.loader.orders import share_of_order
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
    "SIDE",
    "augmentation",
    "core_operations",
    "evaluation_loader",
    "feeding_loader",
    "labels_checksum",
    "order_of",
    "permutation_of",
    "reseed",
    "share_of",
    "training_loader",
    "whitening_images",
    "whole_loader",
]

SIDE = 32  # of the images that the networks take
CLASSES = 10
IMAGE, LABEL = "image", "label"


def augmentation(recipe: Recipe) -> list[Any]:
    """The recipe's operations on uint8 images, in their order; the network normalises by itself."""
    steps: list[Any] = []
    flips = {"random": [RandomHorizontalFlip()], "alternating": [AlternatingFlip()], "none": []}
    if recipe.translate > 0:
        if recipe.padding == "reflect":
            steps.append(RandomCrop(SIDE, padding=recipe.translate, fill="reflect"))
        else:
            steps.append(RandomTranslate(recipe.translate, fill=recipe.translate_fill))
    # Shift, then mirror, with a reflected border; mirror, then shift, with a filled one: each family's own order.
    steps = steps + flips[recipe.flip] if recipe.padding == "reflect" else flips[recipe.flip] + steps
    if recipe.cutout > 0:
        steps.append(Cutout(recipe.cutout, fill=recipe.cutout_fill))
    return steps


def _open(path: str | PathLike[str], batch: int, pipelines: dict[str, Any], **options: Any) -> Loader:
    """A loader of `pipelines` only and in their order, whatever else is in the file; DataError if its fields are not
    those of labelled images."""
    with Reader(path) as file:
        chosen: dict[str, Any] = dict.fromkeys(file.fields)  # outputs of other names come in the order given
    for name, steps in pipelines.items():
        chosen[f"training {name}"] = PipelineSpec(name, steps[0], steps[1:])
    try:
        return Loader(path, batch, pipelines=chosen, **options)
    except BetonError:
        raise
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{os.fspath(path)}: training needs a field {IMAGE!r} of colour images of one size and a field "
            f"{LABEL!r} of whole numbers ({error})"
        ) from error


def _labels(loader: Loader) -> np.ndarray:
    """Of all samples of the file."""
    with Reader(loader.fname) as file:
        if LABEL not in file.fields or file.fields[LABEL].kind != "int":
            raise DataError(f"{loader.fname}: training needs a field {LABEL!r} of whole numbers")
        return file.column(LABEL)


def labels_checksum(loader: Loader) -> int:
    """Of the samples in use, in the file's order: other data have another one."""
    return zlib.crc32(_labels(loader)[loader.indices].tobytes())


def _check_labels(loader: Loader) -> None:
    labels = _labels(loader)
    numbers = loader.indices
    wrong = numbers[(labels[numbers] < 0) | (labels[numbers] >= CLASSES)]
    if len(wrong):
        raise DataError(
            f"{loader.fname}: sample {wrong[0]} has the label {labels[wrong[0]]}; expected 0 to {CLASSES - 1} "
            f"({len(wrong):,} of {len(numbers):,} labels are not)"
        )


def _checked(loader: Loader) -> Loader:
    """Refuses an empty file, labels that name no class, and images of a wrong size, by the first one."""
    if loader.num_samples == 0:
        in_file = loader.reader.num_samples
        loader.close()
        chosen = f"none of its {in_file:,} samples is chosen (by indices)" if in_file else "holds no samples"
        raise DataError(f"{loader.fname}: {chosen}")
    numbers = loader.indices[:1]
    try:
        _check_labels(loader)
        for image in loader.get_batch(numbers, evaluate=True)[0]:
            if image.shape != (SIDE, SIDE, 3):
                raise DataError(
                    f"{loader.fname}: images of {image.shape[0]} x {image.shape[1]} pixels; the networks of this "
                    f"version take {SIDE} x {SIDE}"
                )
    except BaseException:
        loader.close()
        raise
    return loader


def _pipelines(steps: list[Any]) -> dict[str, Any]:
    return {IMAGE: [SimpleRGBImageDecoder(), *steps], LABEL: [IntDecoder()]}


def training_loader(
    path: str | PathLike[str],
    recipe: Recipe,
    batch: int,
    seed: int,
    workers: int,
    rank: int,
    ranks: int,
    indices: np.ndarray | None = None,
    order: Any = None,
) -> Loader:
    """Shuffled, augmented batches of this rank: uint8 images (batch, 32, 32, 3), int64 labels (batch, 1) and sample
    numbers (batch,)."""
    return _open(
        path, batch, num_workers=workers, order=OrderOption.RANDOM if order is None else order, seed=seed,
        drop_last=True, rank=rank, world_size=ranks, pipelines=_pipelines(augmentation(recipe)), resident=True,
        indices=indices, ids=True,
    )  # fmt: skip


def evaluation_loader(
    path: str | PathLike[str], batch: int, workers: int, rank: int, ranks: int, indices: np.ndarray | None = None
) -> Loader:
    """This rank's share of the test images in the file's order, each once; batches end with the sample numbers."""
    loader = _open(
        path, batch, num_workers=workers, drop_last=False, rank=rank, world_size=ranks, pipelines=_pipelines([]),
        seed=0, evaluate=True, ids=True, indices=indices,
    )  # fmt: skip
    return _checked(loader)


def permutation_of(path: str | PathLike[str], seed: int, indices: np.ndarray | None) -> Loader:
    """A loader of one rank, for the random orders that `training_loader` has by itself."""
    loader = _open(
        path, 1, num_workers=1, order=OrderOption.RANDOM, seed=seed, rank=0, world_size=1, indices=indices,
        pipelines={IMAGE: [SimpleRGBImageDecoder()]},
    )  # fmt: skip
    return _checked(loader)


def order_of(loader: Loader, epoch: int) -> np.ndarray:
    """The sample numbers of an epoch, for all ranks."""
    loader.next_epoch = epoch
    return loader.next_traversal_order()


def whole_loader(
    path: str | PathLike[str], recipe: Recipe, batch: int, workers: int, indices: np.ndarray | None = None
) -> Loader:
    """All samples in use, once, as `training_loader` would give them with its random operations neutral: for the memory
    of a GPU, which then performs these operations itself."""
    return _open(
        path, batch, num_workers=workers, drop_last=False, rank=0, world_size=1, seed=0, evaluate=True, ids=True,
        pipelines=_pipelines(augmentation(recipe)), indices=indices,
    )  # fmt: skip


def core_operations(steps: list[Any]) -> tuple:
    """Operations of `augmentation` as the C core takes them."""
    (output,) = compile_outputs({IMAGE: "image"}, {IMAGE: [SimpleRGBImageDecoder(), *steps]}, "")
    return output.columns[0][3][0]


def feeding_loader(
    path: str | PathLike[str], batch: int, workers: int, gpu: int, indices: np.ndarray | None, keep: bool = True
) -> Loader:
    """Page-locked batches for a GPU: uint8 images (batch, 32, 32, 3), not augmented, and int64 labels (batch, 1).
    `keep`: JPEG images are decoded once and kept in host memory."""
    return _open(
        path, batch, num_workers=workers, drop_last=False, rank=0, world_size=1, seed=0, evaluate=True,
        pipelines=_pipelines([]), indices=indices, resident=keep, page_locked=gpu,
    )  # fmt: skip


def share_of(loader: Loader) -> np.ndarray:
    """The sample numbers of this rank in the loader's next pass, in order, where no sample is left out."""
    return share_of_order(loader.next_traversal_order(), loader.batch_size, loader.rank, loader.world_size)


def reseed(loader: Loader, seed: int) -> None:
    """Orders and augmentations of another seed, from the first epoch on."""
    loader.load_state_dict(loader.state_dict() | {"epoch": 0, "samples_done": 0, "seed": seed})


def whitening_images(
    path: str | PathLike[str], recipe: Recipe, count: int, workers: int, indices: np.ndarray | None = None
) -> np.ndarray:
    """The first `count` training images in use, normalised, not augmented: float32 (count, 3, 32, 32)."""
    numbers = np.arange(count) if indices is None else indices[:count]
    normalise = [NormalizeImage(recipe.mean, recipe.std, np.float32), ToTorchImage(channels_last=False)]
    with _open(
        path, count, {IMAGE: [SimpleRGBImageDecoder(), *normalise]}, num_workers=workers, indices=numbers, seed=0,
        evaluate=True, rank=0, world_size=1,
    ) as loader:  # fmt: skip
        (images,) = next(iter(loader))
        return np.array(images)
