"""The file that a Loader reads, or several that it reads as one."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from cgxffcv.reader import FieldInfo, Reader, shown
from cgxffcv.tables import check_same, status_of


def _found_from_anywhere(path: Any) -> str | bytes:
    path = os.fspath(path)
    if not path:  # which would be the folder that we are in
        raise ValueError("fname: a path is empty")
    return os.path.abspath(path)


def absolute(fname: Any) -> Any:
    """An absolute path, or a tuple of them, so that they are also found from another folder."""
    if isinstance(fname, (str, bytes, os.PathLike)):
        return _found_from_anywhere(fname)
    if not isinstance(fname, Iterable) or hasattr(fname, "read"):  # an open file gives its lines
        raise TypeError(f"fname must be a path or a list of paths, not {fname!r}")
    paths = tuple(map(_found_from_anywhere, fname))
    if not paths:
        raise ValueError("fname: the list of files is empty")
    return paths


def all_paths(fname: Any) -> tuple:
    """The paths in what `absolute` returned."""
    return fname if isinstance(fname, tuple) else (fname,)


class Opened:
    """Which files the paths stood for when they were opened."""

    def __init__(self, paths: Iterable[Any]):
        self._files = {path: status_of(path) for path in paths}

    def check(self) -> None:
        """BetonError where another file has the name by now: what is asked of it would be told of the one that is
        open. One that is gone says so when it is opened."""
        for path, then in self._files.items():
            now = status_of(path)
            if now is not None:
                check_same(os.fsdecode(path), now, then)


class Sources:
    """The files of a Loader. firsts: the number of each file's first sample in the whole."""

    def __init__(self, fname: Any, firsts: Sequence[int]):
        self.paths, self.firsts = all_paths(fname), tuple(firsts)

    def path_of(self, sample: int) -> str:
        """The file that has the sample."""
        return self.paths[bisect_right(self.firsts, sample) - 1]

    def __str__(self) -> str:
        more = len(self.paths) - 1
        return f"{self.paths[0]}{f' (and {more} more)' if more else ''}"


class Readers(Sequence[dict[str, Any]]):
    """The Readers of several files, one after the other: sample numbers go on from file to file."""

    def __init__(self, sources: Sources, custom_fields: Mapping[str, Any] | None):
        self.path = str(sources)
        self._readers = [Reader(path, custom_fields) for path in sources.paths]
        self._firsts = sources.firsts
        self.num_samples: int = sum(reader.num_samples for reader in self._readers)

    @property
    def fields(self) -> dict[str, FieldInfo]:
        """As the first file describes them."""
        return self._readers[0].fields

    @property
    def field_names(self) -> list[str]:
        return list(self.fields)

    def _find(self, index: int) -> tuple[Reader, int]:
        sample = range(self.num_samples)[index]
        file = bisect_right(self._firsts, sample) - 1
        return self._readers[file], sample - self._firsts[file]

    def value(self, index: int, field: str) -> Any:
        """One field of one sample."""
        reader, sample = self._find(index)
        return reader.value(sample, field)

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.num_samples))]
        reader, sample = self._find(index)
        return reader[sample]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (sample for reader in self._readers for sample in reader)

    def close(self) -> None:
        for reader in self._readers:
            reader.close()

    @property
    def closed(self) -> bool:
        return self._readers[0].closed

    def _repr_html_(self) -> str:
        return shown(self)
