"""Turns samples of a data set into rows for the core: conversion, error policy, chunks of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cgxffcv.fields import Field, FloatField, IntField

# Errors that are not the sample's fault.
FATAL = (MemoryError, RecursionError)


@dataclass
class Chunk:
    """Rows of samples first, first + 1...; why a sample was refused, by its position."""

    first: int
    rows: list[Any] = field(default_factory=list)
    causes: dict[int, BaseException] = field(default_factory=dict)
    num_bytes: int = 0


def _size(value: Any) -> int:
    size = getattr(value, "nbytes", None)
    if size is None:
        size = len(value) if isinstance(value, bytes | str) else 8
    return size


def _explain(error: BaseException) -> str:
    text = (str(error) or "no message").encode(errors="backslashreplace").decode()  # file names may hold any bytes
    return text if isinstance(error, TypeError | ValueError) else f"{type(error).__name__}: {text}"


class Rows:
    """Turns samples into rows. skip: refused samples stay in a chunk, marked as such; else a chunk ends with the first
    of them."""

    def __init__(self, fields: Mapping[str, Field], skip: bool):
        self.names = list(fields)
        self.converters = [field.converter() for field in fields.values()]
        self.one_number = [isinstance(field, IntField | FloatField) for field in fields.values()] == [True]
        self.skip = skip

    def _values(self, sample: Any) -> tuple[Any, ...] | list[Any]:
        if self.one_number and isinstance(sample, list) and len(sample) == 1:
            return sample
        if len(self.names) == 1 and not isinstance(sample, tuple):
            return (sample,)
        if isinstance(sample, Mapping):
            if set(sample) != set(self.names):
                raise ValueError(
                    f"the sample has {', '.join(map(str, sample))}; the fields are {', '.join(self.names)}"
                )
            return [sample[name] for name in self.names]
        if not isinstance(sample, tuple | list | np.ndarray | np.void):
            raise TypeError(f"a sample must be a tuple in the order of the fields, not {type(sample).__name__}")
        if len(sample) != len(self.names):
            raise ValueError(f"the sample has {len(sample)} values for {len(self.names)} fields")
        return sample

    def add(self, chunk: Chunk, make: Callable[[], Any]) -> bool:
        """Adds one sample; returns True if it was taken."""
        index = -1
        try:
            values = self._values(make())
            row = []
            for index, (convert, value) in enumerate(zip(self.converters, values, strict=True)):  # noqa: B007
                row.append(convert(value))
        except FATAL:
            raise
        except Exception as error:
            chunk.causes[chunk.first + len(chunk.rows)] = error
            chunk.rows.append([index, _explain(error)])
            return False
        chunk.rows.append(tuple(row))
        chunk.num_bytes += sum(map(_size, row))
        return True

    def chunks(
        self, samples: Iterable[Callable[[], Any]], size: int, num_bytes: int, first: int = 0
    ) -> Iterator[Chunk]:
        """Chunks of at most `size` samples and about `num_bytes` bytes."""
        chunk = Chunk(first)
        for make in samples:
            taken = self.add(chunk, make)
            if len(chunk.rows) >= size or chunk.num_bytes >= num_bytes or not (taken or self.skip):
                yield chunk
                chunk = Chunk(chunk.first + len(chunk.rows))
        if chunk.rows:
            yield chunk
