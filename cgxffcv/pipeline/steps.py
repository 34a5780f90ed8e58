"""Steps of pipelines on whole batches: what they are called, and those that are not transforms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cgxffcv import decoders as dec
from cgxffcv.fields.base import Field
from cgxffcv.fields.json import parse_row
from cgxffcv.reader import beton_error


def own_of(step: Callable) -> Any:
    """What the user wrote."""
    return getattr(step, "step", step)


def called(step: Any) -> str:
    """A step as messages name it."""
    step = own_of(step)
    text = getattr(step, "__name__", None) or repr(step)
    return text if len(text) <= 100 else text[:97] + "..."


@dataclass(frozen=True)
class OnValues:
    """A step that does not ask for sample numbers."""

    step: Callable

    def __call__(self, values: Any, ids: np.ndarray) -> Any:
        return self.step(values)

    def __repr__(self) -> str:
        return repr(self.step)


Values = Callable[[str, np.ndarray], tuple[np.ndarray, np.ndarray]]  # from a field and samples to bytes and offsets


@dataclass(frozen=True)
class ReadValues:
    """Values one after the other, in place of a batch's rows."""

    name: str
    read: Values

    def __call__(self, nothing: Any, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.read(self.name, ids)

    def __repr__(self) -> str:
        return "BytesDecoder(offsets=True)"


@dataclass(frozen=True)
class DecodeField:
    """Records, and the values of a field that has data, through a user's decoder."""

    decoder: dec.FieldDecoder
    field: Field
    name: str
    path_of: Callable[[int], str]
    read: Values | None

    def __call__(self, records: Any, ids: np.ndarray) -> Any:
        data = None if self.read is None else dec.in_pieces(*self.read(self.name, ids))
        try:
            return self.decoder.decode_batch(self.field, records.view(self.field.metadata_type)[:, 0], data, ids)
        except dec.SampleError as error:
            cause, (sample,) = error.__cause__, error.args
            reason = f"{type(self.field).__name__}.decode: {type(cause).__name__}: {cause}"
            raise beton_error(reason, self.path_of(sample), self.name, sample) from cause


class ParseJSON:
    """Parses rows of padded UTF-8 to Python values."""

    def __init__(self, name: str, path_of: Callable[[int], str]):
        self.name, self.path_of = name, path_of

    def __call__(self, rows, ids) -> list:
        return [self.parse(row, sample) for row, sample in zip(rows, ids.tolist(), strict=True)]

    def parse(self, row, sample: int) -> Any:
        try:
            return parse_row(row)
        except (ValueError, RecursionError) as error:
            reason = f"JSONDecoder: text that does not parse: {error}; write it again"
            raise beton_error(reason, self.path_of(sample), self.name, sample) from None


def split_lengths(value):
    values, lengths = value
    return values, lengths[:, 0]


def to_channels_last(batch):
    return (batch[..., None] if batch.ndim == 3 else batch).transpose(0, 3, 1, 2)
