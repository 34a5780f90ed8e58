"""Whole and real numbers."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from cgxffcv.decoders import FloatDecoder, IntDecoder  # noqa: F401 (where FFCV has them)
from cgxffcv.fields.base import CoreField, Spec, refuse_masked, spec


def _scalar(value: Any) -> Any:
    """The one element of an array or tensor of one element; anything else as it is."""
    item = getattr(value, "item", None)
    if item is None or getattr(value, "size", 1) == 0:
        return value
    refuse_masked(value)
    try:
        return item()
    except (ValueError, RuntimeError):
        raise ValueError(f"one number was expected, not an array of shape {tuple(value.shape)}") from None


class IntField(CoreField):
    """A whole number, stored as int64 in the record. Takes int, bool, NumPy integers, arrays and tensors of one
    integer, and whole np.float64 scalars: a table's column of integers becomes float64 where one is missing. Other
    floats are refused, whole or not, since they are more likely a value of another field."""

    def describe(self, name: str) -> Spec:
        return spec("int", name)

    def convert(self, value: Any) -> int:
        if type(value) is int:
            return value
        if isinstance(value, np.float64) and value.is_integer():
            return int(value)
        try:
            return operator.index(_scalar(value))
        except TypeError:
            raise TypeError(f"a whole number was expected, not {type(value).__name__} {value!r:.60}") from None


class FloatField(CoreField):
    """A real number, stored as float64 in the record."""

    def describe(self, name: str) -> Spec:
        return spec("float", name)

    def convert(self, value: Any) -> float:
        try:
            return float(_scalar(value))
        except TypeError:
            raise TypeError(f"a number was expected, not {type(value).__name__}") from None
