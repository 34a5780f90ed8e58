"""Arrays and tensors of one dtype and shape."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np
from _cgxffcv import FIELD_DTYPES

from cgxffcv.decoders import NDArrayDecoder  # noqa: F401 (where FFCV has them)
from cgxffcv.fields.base import CoreField, Spec, _check_int, refuse_masked, spec
from cgxffcv.lengths import longer, taken
from cgxffcv.wording import brief

MAX_DIMS = 32
MAX_READ = 1024  # of what may have no end


def _dtype(dtype: Any) -> np.dtype:
    """From anything NumPy knows, a torch dtype or its name."""
    name = str(dtype)
    if name.startswith("torch."):
        dtype = name.removeprefix("torch.")
    try:
        known = np.dtype("None" if dtype is None else dtype)  # to NumPy None is float64
    except TypeError:
        raise TypeError(f"dtype {dtype!r} is not known; one of {', '.join(FIELD_DTYPES)} was expected") from None
    if known.name not in FIELD_DTYPES or not known.isnative:
        raise TypeError(
            f"dtype {known} cannot be stored; one of {', '.join(FIELD_DTYPES)} (little-endian) was expected"
        )
    return known


def _sides(shape: tuple[int, ...]) -> list[int]:
    """The sides that decide how elements are laid out."""
    return [side for side in shape if side != 1]


def _lie_alike(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """True if the elements of one, row after row, are unambiguously those of the other: the shapes differ only in sides
    of 1, or one of them is flat. (2, 3) and (3, 2) are not laid out alike."""
    ours, theirs = _sides(shape), _sides(other)
    flat = len(ours) <= 1 or len(theirs) <= 1
    return ours == theirs or (flat and math.prod(ours) == math.prod(theirs))


class NDArrayField(CoreField):
    """Arrays of one dtype and one shape (1 to 32 dimensions, none of them 0); the file keeps no length for each.

    dtype: anything np.dtype takes: bool, integers, floats, complex. shape: a tuple of integers.
    A value must have this dtype and, apart from sides of 1, this shape; a flat value fills any shape of as many
    elements, row after row, and any value a flat shape.
    """

    kind = "array"

    def __init__(self, dtype: Any, shape: tuple[int, ...] | int):
        self.dtype = _dtype(dtype)
        dims = f"shape must have 1 to {MAX_DIMS} dimensions, not "
        ordered = isinstance(shape, Iterable) and not isinstance(shape, Set | Mapping)
        several = ordered and getattr(shape, "ndim", 1) != 0
        sides = taken(shape, MAX_READ, dims + brief(shape)) if several else [shape]
        if not 1 <= len(sides) <= MAX_DIMS:
            raise ValueError(f"{dims}{len(sides)}: {shape}")
        self.shape = tuple(_check_int("a side of shape", side, 1) for side in sides)
        if math.prod(self.shape) * self.dtype.itemsize > 1 << 30:
            raise ValueError(f"a value of shape {self.shape} and dtype {self.dtype} is over the limit of 1 GiB")

    def describe(self, name: str) -> Spec:
        return spec(self.kind, name, dtype=self.dtype.name, shape=self.shape)

    def convert(self, value: Any) -> np.ndarray:
        if hasattr(value, "cpu"):
            value = value.detach().cpu().numpy()
        refuse_masked(value)
        if longer(value, math.prod(self.shape)):
            raise ValueError(f"an array of shape {self.shape} was expected, not {brief(value)}")
        array = np.asarray(value)
        if array.dtype != self.dtype:
            raise TypeError(f"an array of {self.dtype} was expected, not of {array.dtype}; astype converts it")
        if array.shape != self.shape and not _lie_alike(array.shape, self.shape):
            raise ValueError(f"an array of shape {self.shape} was expected, not {array.shape}")
        return np.ascontiguousarray(array).reshape(self.shape)

    def _of_bytes(self, data: np.ndarray) -> np.ndarray:
        return data.view(self.dtype).reshape(self.shape)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.dtype.name!r}, {self.shape})"


class TorchTensorField(NDArrayField):
    """Torch tensors of one dtype and shape, like NDArrayField. dtype: a torch dtype or its name; torch is not
    needed."""

    kind = "tensor"
