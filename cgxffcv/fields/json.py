"""Anything that JSON can say."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from cgxffcv.fields.base import CoreField, Spec, spec


def parse_row(row: np.ndarray) -> Any:
    """The value of one row of BytesDecoder: JSON text, padded with zeros. ValueError, RecursionError if it is none."""
    return json.loads(row.tobytes().rstrip(b"\0"))


class JSONField(CoreField):
    """A value that json.dumps takes, stored as its text and one NUL."""

    def describe(self, name: str) -> Spec:
        return spec("json", name)

    def converter(self) -> Callable[[Any], Any]:
        if self._overrides("encode"):
            return lambda value: self.convert(self._encoded(value))
        return self.convert  # gives text, which is no value to be converted again

    def _of_bytes(self, data: np.ndarray) -> Any:
        return parse_row(data)

    def convert(self, value: Any) -> bytes:
        return json.dumps(value).encode("ascii") + b"\0"

    @staticmethod
    def unpack(batch: Any) -> Any:
        """The values of a batch that BytesDecoder made of this field, as a list; of one row its value.

        Takes uint8 arrays and tensors, and the pair that BytesDecoder(lengths=True) gives. (JSONDecoder gives the
        values themselves.)
        """
        rows = batch[0] if isinstance(batch, tuple) and len(batch) == 2 else batch
        rows = rows.detach().cpu().numpy() if hasattr(rows, "cpu") else rows
        if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.ndim not in (1, 2):
            what = f"{rows.dtype} of shape {rows.shape}" if isinstance(rows, np.ndarray) else type(rows).__name__
            raise TypeError(f"JSONField.unpack takes rows of uint8 as BytesDecoder gives them, not {what}")
        values = []
        for number, row in enumerate(rows if rows.ndim == 2 else rows[None]):
            try:
                values.append(parse_row(row))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"JSONField.unpack: row {number} is no JSON text: {error}") from None
        return values if rows.ndim == 2 else values[0]
