"""A trained network, loaded from just a checkpoint, that classifies images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from os import PathLike
from typing import Any

import numpy as np

from cgxffcv import checkpoint
from cgxffcv.checkpoint import CheckpointError
from cgxffcv.classes import check_names
from cgxffcv.device import choose
from cgxffcv.errors import DataError
from cgxffcv.nn.describe import Conv, Description
from cgxffcv.nn.network import Network
from cgxffcv.nn.recipe import describe
from cgxffcv.recipes import Recipe
from cgxffcv.wording import brief

__all__ = ["Classifier", "load"]

LARGEST_BATCH = 500  # images at a time


class Classifier:
    """A trained network that normalises and views images as its recipe does. `load` makes one.

    Images are uint8 arrays of shape (n, side, side, 3), of the recipe's side (32 for CIFAR-10): RGB, height before
    width. Others are refused with a TypeError or a ValueError that says how to convert them. `tta` (test-time
    augmentation): the mean over the views of the recipe's test, for all images; without it the plain image only.
    """

    def __init__(
        self, network: Network, recipe: Recipe, name: str = "this network", classes: tuple[str, ...] | None = None
    ):
        self.network, self.recipe, self.name = network, recipe, name
        self._names = classes
        self._plan: Any = None
        self._room = 0

    def __repr__(self) -> str:
        return f"<Classifier {self.name}: recipe {self.recipe.name}, {self.network!r}>"

    @property
    def names(self) -> tuple[str, ...] | None:
        """The names of the classes that are in the checkpoint itself; None if there are none."""
        return self._names

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, by their numbers: the checkpoint's, if there are any; else CIFAR-10's for ten
        classes and images of its size, else the numbers."""
        if self._names is not None:
            return self._names
        if not self.recipe.of_cifar:
            return tuple(map(str, range(self.recipe.classes)))
        from cgxffcv.cifar import CLASSES  # here, since it imports what downloads need

        return CLASSES

    def predict(self, images: np.ndarray, *, tta: bool = True) -> np.ndarray:
        """The number of each image's most probable class: int64 (n,)."""
        return self.logits(images, tta=tta).argmax(axis=1)

    def probabilities(self, images: np.ndarray, *, tta: bool = True) -> np.ndarray:
        """The probability of each class: float32 (n, classes), rows add up to 1."""
        scores = self.logits(images, tta=tta).astype(np.float64)
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)

    def logits(self, images: np.ndarray, *, tta: bool = True) -> np.ndarray:
        """The network's outputs, the weighted sum over the views: float32 (n, classes). CheckpointError if they are not
        finite, as after a training that has diverged."""
        checked = _checked(images, self.recipe.side)
        parts = [checked[at : at + LARGEST_BATCH] for at in range(0, len(checked), LARGEST_BATCH)]
        none = np.zeros((0, self.network.description.nodes[-1].classes), np.float32)
        scores = np.concatenate([none, *(self._scores(part, tta) for part in parts)])
        if not np.isfinite(scores).all():
            raise CheckpointError(
                f"{self.name} gives outputs that are not finite: its training has diverged; use another one"
            )
        return scores

    def _scores(self, images: np.ndarray, tta: bool) -> np.ndarray:
        if len(images) > self._room:
            self._room = len(images)
            self._plan = self.network.plan(self._room, self.recipe.side, training=False)
        usual = {"mean": self.recipe.mean, "std": self.recipe.std}
        if not tta:
            return self._plan.evaluate(images, **usual)
        views = [(view.weight, (view.mirror, view.dy, view.dx)) for view in self.recipe.views]
        return sum(np.float32(weight) * self._plan.evaluate(images, *view, **usual) for weight, view in views)


def _checked(images: Any, side: int) -> np.ndarray:
    """Contiguous uint8 (n, side, side, 3)."""
    array = np.asarray(images)
    if array.dtype != np.uint8:
        raise TypeError(
            f"images are {array.dtype}; expected uint8 from 0 to 255, not normalised: the network does that by itself"
        )
    if array.ndim == 4 and array.shape[1:] == (side, side, 3):
        return np.ascontiguousarray(array)
    hint = f"resize them to {side} x {side}"
    if array.shape == (side, side, 3):
        hint = "images[None] makes one image a batch"
    elif array.ndim == 4 and array.shape[1] == 3:
        hint = "np.moveaxis(images, 1, -1) turns NCHW into NHWC"
    elif array.ndim != 4 or array.shape[3] != 3:
        hint = "height before width, and three colours last"
    raise ValueError(f"images have the shape {array.shape}; expected (n, {side}, {side}, 3): {hint}")


def load(
    path: str | PathLike[str], *, device: str = "cpu", gpu: int = 0, precision: str = "auto", threads: int = 0
) -> Classifier:
    """The trained network of a checkpoint that `Trainer.save` or the training script wrote (last.safetensors,
    best.safetensors); nothing else is needed.

    device: "cpu", "gpu" (number `gpu`) or "auto" (a GPU if there is one). precision: of activations and products, see
    Network. threads: of the CPU; 0: all cores of this process. Raises OSError if the file cannot be read,
    CheckpointError if it is damaged or holds no trained network, and anything that Network and the choice of a GPU
    raise.
    """
    state, name = checkpoint.load(path), os.fspath(path)
    try:
        recipe = Recipe(**state["recipe"])
        description = describe(recipe)
        _check_size(description, state)
        names = _names(state, recipe, name)
    except (DataError, KeyError, TypeError, ValueError, OverflowError) as error:
        reason = f"no {error} in it" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{name}: not the checkpoint of a trained network: {reason}") from error
    backend = "cpu" if choose(device, gpu) is None else "cuda"
    network = Network(description, backend=backend, precision=precision, threads=threads)
    try:
        _fill(network, state)
    except ValueError as error:
        raise CheckpointError(f"{name}: not the checkpoint of a trained network: {error}") from None
    return Classifier(network, recipe, name, names)


def _names(state: Mapping[str, Any], recipe: Recipe, where: str) -> tuple[str, ...] | None:
    """The names of the classes, if the training knew any."""
    names = state.get("classes")
    if names is not None and (not isinstance(names, list) or len(check_names(names, where)) != recipe.classes):
        raise ValueError(f"its classes are {brief(names)}; expected {recipe.classes} names")
    return None if names is None else tuple(names)


def _check_size(description: Description, state: Mapping[str, Any]) -> None:
    """ValueError unless the filters are in the state: before memory for them is allocated."""
    channels = description.channels_read()
    for node in description.nodes:
        if isinstance(node, Conv):
            _take(state, f"{node.name}.weight", (node.channels, node.kernel, node.kernel, channels[node.name]))


def _take(state: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> np.ndarray:
    value = state.get(name)
    if not isinstance(value, np.ndarray) or value.shape != shape or value.dtype != np.float32:
        found = f"has the shape {value.shape} and {value.dtype}" if isinstance(value, np.ndarray) else "is missing"
        raise ValueError(f"the tensor {name} {found}; expected {shape} and float32")
    return value


def _fill(network: Network, state: Mapping[str, Any]) -> None:
    for layer in network.layers:
        network.parameter(layer.name)[...] = _take(state, layer.name, layer.shape)
    for norm in network.statistics:
        for name, values in (
            ("running_mean", network.running_mean(norm.name)),
            ("running_variance", network.running_variance(norm.name)),
        ):
            values[...] = _take(state, f"{norm.name}.{name}", values.shape)
