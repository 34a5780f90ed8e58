"""Tar files of samples (the layout of WebDataset): members KEY.EXTENSION, one sample being all files of one KEY."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

TEXT = ("cls", "index", "inx", "id", "count")
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
MAX_NAMES = 1 << 20  # of one range


def expand(pattern: str) -> list[str]:
    """part-{00..12}.tar to its thirteen names. ValueError for a range that has none, or too many."""
    match = BRACES.search(pattern)
    if match is None:
        return [pattern]
    first, last = match.groups()
    if not 0 <= int(last) - int(first) < MAX_NAMES:
        raise ValueError(f"{pattern}: a range counts upwards, over at most {MAX_NAMES} names")
    names = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
    return [name for number in names for name in expand(pattern[: match.start()] + number + pattern[match.end() :])]


def _split(name: str) -> tuple[str, str]:
    """dir/key.a.b to (dir/key, a.b)."""
    folder, base = os.path.split(name)
    key, _, extension = base.partition(".")
    return os.path.join(folder, key), extension.lower()


def _decode(extension: str, data: bytes) -> Any:
    last = extension.rpartition(".")[2]
    if last in TEXT:
        return int(data)
    if last in ("txt", "text"):
        return data.decode()
    if last in ("json", "jsn"):
        return json.loads(data)
    if last == "npy":
        return np.load(io.BytesIO(data), allow_pickle=False)
    return data


class Shards:
    """The samples of the shards in order, as dicts {"__key__": KEY, EXTENSION: bytes}.

    `decode`, `rename`, `to_tuple`, `map_tuple` and `map` give a new object that does more to each sample.
    """

    def __init__(
        self,
        shards: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        steps: Sequence[Callable[[Any], Any]] = (),
    ):
        given = [shards] if isinstance(shards, str | os.PathLike) else list(shards)
        self.shards = [name for item in given for name in expand(os.fspath(item))]
        self.steps = tuple(steps)

    def map(self, function: Callable[[Any], Any]) -> Shards:
        return Shards(self.shards, (*self.steps, function))

    def decode(self, *_: Any) -> Shards:
        """cls, index, id: int; txt: str; json: parsed; npy: an array; all else stays bytes."""

        def decoded(sample: dict[str, Any]) -> dict[str, Any]:
            try:
                return {k: v if k.startswith("__") else _decode(k, v) for k, v in sample.items()}
            except ValueError as error:
                raise ValueError(f"sample {sample['__key__']!r}: {error}") from error

        return self.map(decoded)

    def to_tuple(self, *names: str) -> Shards:
        """The values under these extensions, also if one text names several, with spaces between them; "jpg;jpeg;png"
        takes the first that the sample has."""
        choices = [name.split(";") for text in names for name in text.split()]

        def pick(sample: dict[str, Any]) -> tuple[Any, ...]:
            found = []
            for choice in choices:
                known = [name for name in choice if name in sample]
                if not known:
                    has = ", ".join(k for k in sample if not k.startswith("__"))
                    raise ValueError(f"sample {sample['__key__']!r} has no {' or '.join(choice)}, only {has}")
                found.append(sample[known[0]])
            return tuple(found)

        return self.map(pick)

    def map_tuple(self, *functions: Callable[[Any], Any]) -> Shards:
        """A function for each value; values that have none stay."""
        return self.map(
            lambda sample: (*(f(v) for f, v in zip(functions, sample, strict=False)), *sample[len(functions) :])
        )

    def rename(self, **names: str) -> Shards:
        """NEW="old;older": the first of the old names that a sample has becomes NEW."""

        def renamed(sample: dict[str, Any]) -> dict[str, Any]:
            found = {new: next((o for o in old.split(";") if o in sample), None) for new, old in names.items()}
            kept = {name: value for name, value in sample.items() if name not in found.values()}
            return {**kept, **{new: sample[old] for new, old in found.items() if old is not None}}

        return self.map(renamed)

    def __iter__(self) -> Iterator[Any]:
        for shard in self.shards:
            for sample in self._raw(shard):
                for step in self.steps:
                    sample = step(sample)
                yield sample

    @staticmethod
    def _raw(shard: str) -> Iterator[dict[str, Any]]:
        sample: dict[str, Any] = {}
        with tarfile.open(shard, "r|*") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                key, extension = _split(member.name)
                if sample and sample["__key__"] != key:
                    yield sample
                    sample = {}
                file = tar.extractfile(member)
                sample.setdefault("__key__", key)
                sample[extension] = b"" if file is None else file.read()
        if sample:
            yield sample

    def count(self) -> int:
        """How many samples the shards hold, from their members' names alone."""
        return sum(self._count(shard) for shard in self.shards)

    @staticmethod
    def _count(shard: str) -> int:
        with tarfile.open(shard) as tar:
            return _runs(_split(member.name)[0] for member in tar if member.isfile())


def _runs(keys: Iterable[str]) -> int:
    """How often the value changes, counting the first."""
    count, last = 0, None
    for key in keys:
        count += key != last
        last = key
    return count
