"""The image operations of the C core as transforms: names, arguments, defaults and checks are those of its table
(csrc/augment/ops)."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import _cgxffcv
import numpy as np

from cgxffcv import lengths
from cgxffcv.checked import Checked
from cgxffcv.wording import brief, counted

MAX_SIDE = 65535
MAX_SAMPLES = 1 << 26  # of what can only be iterated


def numbers(values: Any, name: str, what: str, most: int) -> np.ndarray:
    """float64, from anything that NumPy takes for numbers (but not strings); at most so many, or so many rows."""
    if lengths.longer(values, most):
        raise ValueError(f"{name} must be {what}, not {brief(values)}")
    try:
        array = np.asarray(values)
        if array.dtype.kind in "biuf":
            return array.astype(np.float64)
    except ValueError:  # rows of different lengths
        pass
    raise TypeError(f"{name} must be {what}, not {brief(values)}")


MAX_CHANNELS = 4


def by_channel(values: Any, name: str) -> tuple[float, ...]:
    """One number per channel, for images of up to four; three for a single number, which suits any number of
    channels."""
    what = "one number, or one per channel (up to four)"
    array = numbers(values, name, what, MAX_CHANNELS)
    if array.size == 1:
        array = np.repeat(array, 3)
    if array.ndim != 1 or not 1 <= len(array) <= MAX_CHANNELS or not np.isfinite(array).all():
        raise ValueError(f"{name} must be {what}, finite, not {brief(values)}")
    return tuple(array.tolist())


def of_channels(values: tuple[float, ...], name: str, channels: int) -> tuple[float, ...]:
    """What `by_channel` gave, as one number per channel."""
    if len(set(values)) == 1:
        return values[:1] * channels
    if len(values) != channels:
        raise ValueError(
            f"{name} must be one number, or one per channel, for images of {counted(channels, 'channel')}, "
            f"not {len(values)} numbers"
        )
    return values


def pair(size: Any, name: str) -> tuple[Any, Any]:
    both = tuple(size) if isinstance(size, (tuple, list, np.ndarray)) and np.ndim(size) > 0 else (size, size)
    if len(both) != 2:
        raise ValueError(f"{name} must be a number or (height, width), not {brief(size)}")
    return both


def limits(values: Any, name: str) -> tuple[float, float]:
    what = "two numbers, the lower one first"
    both = numbers(values, name, what, 2)
    if both.shape != (2,):
        raise ValueError(f"{name} must be {what}, not {brief(values)}")
    return float(both[0]), float(both[1])


def border(fill: Any, name: str) -> Any:
    return fill if isinstance(fill, str) else by_channel(fill, name)


def samples(values: Any, name: str) -> np.ndarray:
    """Whole numbers, each once, ascending."""
    lengths.check_fits(values, name)
    if isinstance(values, Iterable):
        endless = f"{name} gives more than {MAX_SAMPLES:,} sample numbers: does its iteration ever end?"
        values = list(values) if hasattr(values, "__len__") else lengths.taken(values, MAX_SAMPLES, endless)
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise TypeError(f"{name} must be numbers of samples, not {brief(values)}")
    if array.size and int(array.min()) < 0:
        raise ValueError(f"{name} holds {int(array.min())}: sample numbers start at 0")
    if array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise ValueError(f"{name} holds {int(array.max())}, which is not a sample number")
    return np.unique(array.astype(np.int64))


def plane(values: Any, name: str) -> np.ndarray:
    array = numbers(values, name, f"an array of numbers, at most {MAX_SIDE} rows", MAX_SIDE)
    array = array.astype(np.float32, order="C")  # a copy, not the caller's own
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite")
    return array


# For each type of parameter: from what a user gives to what the core checks, and from there to what is kept.
SHAPES: dict[str, Callable[[Any, str], Any]] = {
    "limits": limits,
    "size": pair,
    "colour": by_channel,
    "border": border,
    "samples": samples,
    "plane": plane,
}
KEPT: dict[str, Callable[[Any], Any]] = {
    "flag": bool,
    "number": float,
    "whole": operator.index,
    "size": lambda size: tuple(map(operator.index, size)),
}


class Transform(Checked):
    """Base of all transforms."""

    def _arguments(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in vars(self).items())

    def _check_array(self, batch: Any) -> None:
        """Raises TypeError if the batch is not an array but a list, say, of JSON's values."""
        if not (hasattr(batch, "dtype") and hasattr(batch, "shape")):
            what = "a pair of arrays" if isinstance(batch, tuple) else f"a {type(batch).__name__}"
            raise TypeError(f"{self!r} takes one array or tensor, not {what}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._arguments()})"


class Operation(Transform):
    """An operation of the core's table. Its draws are a pure function of (seed, epoch, sample, operation); an operation
    that mixes a batch also depends on the batch's samples."""

    operation = phase = ""  # its name in the core's table, and when it works
    types: dict[str, str] = {}  # of its parameters, in order
    __signature__ = inspect.Signature()

    def __init__(self, *args: Any, **kwargs: Any):
        try:
            given = self.__signature__.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.operation}: {error}") from None
        given.apply_defaults()
        for name, value in self._checked(given.arguments).items():
            super().__setattr__(name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.types and self.types.keys() <= vars(self).keys():  # checked as in __init__
            value = self._checked({**{own: getattr(self, own) for own in self.types}, name: value})[name]
        super().__setattr__(name, value)

    def _checked(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What is kept of these values of all parameters."""
        values = {
            name: SHAPES.get(self.types[name], lambda value, _: value)(value, name) for name, value in arguments.items()
        }
        _cgxffcv.check_operation(self.operation, tuple(values.values()))
        return {name: KEPT.get(self.types[name], lambda value: value)(value) for name, value in values.items()}

    def values(self) -> tuple:
        """The values of its parameters, as the core takes them."""
        return tuple(getattr(self, name) for name in self.types)


class ImageOperation(Operation):
    """An operation on images."""


class LabelOperation(Operation):
    """An operation on whole numbers."""


def operation_class(name: str, phase: str, doc: str, parameters: list[tuple[str, str, tuple]]) -> type[Operation]:
    of_python = inspect.Parameter
    signature = inspect.Signature(
        [
            of_python(parameter, of_python.POSITIONAL_OR_KEYWORD, default=default[0] if default else of_python.empty)
            for parameter, _, default in parameters
        ]
    )
    members = {
        "__doc__": doc,
        "__module__": "cgxffcv.transforms",
        "__signature__": signature,
        "operation": name,
        "phase": phase,
        "types": {parameter: kind for parameter, kind, _ in parameters},
    }
    return type(name, (LabelOperation if phase in ("value", "label") else ImageOperation,), members)


OPERATIONS = {
    name: operation_class(name, phase, doc, parameters)
    for name, phase, _, doc, parameters in _cgxffcv.image_operations()
}
