"""Anything that JSON can express."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from cgxffcv.decoders import in_pieces
from cgxffcv.fields.base import CoreField, Spec, spec


def parse_row(row: np.ndarray) -> Any:
    """The value of one row of BytesDecoder: JSON text, padded with zeros. ValueError or RecursionError if it is not
    JSON."""
    return json.loads(row.tobytes().rstrip(b"\0"))


def _array(values: Any) -> Any:
    return values.detach().cpu().numpy() if hasattr(values, "cpu") else values


class JSONField(CoreField):
    """A value that json.dumps takes, stored as its text and one NUL."""

    def describe(self, name: str) -> Spec:
        return spec("json", name)

    def converter(self) -> Callable[[Any], Any]:
        if self._overrides("encode"):
            return lambda value: self.convert(self._encoded(value))
        return self.convert  # returns text, which must not be converted again

    def _of_bytes(self, data: np.ndarray) -> Any:
        return parse_row(data)

    def convert(self, value: Any) -> bytes:
        return json.dumps(value).encode("ascii") + b"\0"

    @staticmethod
    def unpack(batch: Any) -> Any:
        """The values of a batch that BytesDecoder made of this field, as a list; for one row, its value.

        Takes uint8 arrays and tensors, and the pairs that BytesDecoder(lengths=True) and (offsets=True) give.
        (JSONDecoder gives the values themselves.)
        """
        pair = isinstance(batch, tuple) and len(batch) == 2
        rows = _array(batch[0] if pair else batch)
        if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.ndim not in (1, 2):
            what = f"{rows.dtype} of shape {rows.shape}" if isinstance(rows, np.ndarray) else type(rows).__name__
            raise TypeError(f"JSONField.unpack takes rows of uint8 as BytesDecoder gives them, not {what}")
        behind_each_other = pair and rows.ndim == 1 and np.ndim(batch[1]) == 1
        texts = in_pieces(rows, _array(batch[1])) if behind_each_other else np.atleast_2d(rows)
        values = []
        for number, row in enumerate(texts):
            try:
                values.append(parse_row(row))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"JSONField.unpack: row {number} is not JSON text: {error}") from None
        return values if rows.ndim == 2 or behind_each_other else values[0]
