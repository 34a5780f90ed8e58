"""Whole .beton files: what is in them, whether they are valid, several merged into one."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import _cgxffcv
import numpy as np

from cgxffcv.classes import common_names, keep_names
from cgxffcv.fields import (
    BytesField,
    Field,
    FloatField,
    IntField,
    JSONField,
    NDArrayField,
    RGBImageField,
    TorchTensorField,
)
from cgxffcv.reader import FieldInfo, Reader, beton_error
from cgxffcv.wording import counted, duration, size
from cgxffcv.writer import DatasetWriter, WriteReport

VERIFY_BYTES = 256 << 20


@dataclass(frozen=True)
class FileInfo:
    """What `info` returns; `str()` of it is a text to print, `as_dict()` is for JSON."""

    path: str
    num_bytes: int
    num_samples: int
    page_size: int
    num_pages: int
    data_begin: int
    data_end: int
    has_checksums: bool
    fields: tuple[FieldInfo, ...]

    def as_dict(self) -> dict[str, Any]:
        result = asdict(self)
        result["fields"] = [{k: v for k, v in entry.items() if v is not None} for entry in result["fields"]]
        return result

    def __str__(self) -> str:
        width = max(len(entry.name) for entry in self.fields)
        lines = [
            f"{self.path}",
            f"  {counted(self.num_samples, 'sample')} in {self.num_bytes:,} bytes ({size(self.num_bytes)}): "
            f"{counted(self.num_pages, 'page')} of {self.page_size:,} bytes",
            f"  checksums: {'yes' if self.has_checksums else 'no'}",
            f"  {counted(len(self.fields), 'field')}:",
        ]
        return "\n".join(
            lines + [f"    {entry.name:<{width}}  {entry.kind:<7}{entry.summary()}".rstrip() for entry in self.fields]
        )


def info(path: str | os.PathLike[str], custom_fields: Mapping[str, Any] | None = None) -> FileInfo:
    """What is in a .beton file. Raises BetonError if the header, the records or the allocation table are not valid."""
    with Reader(path, custom_fields) as reader:
        begin, end = reader._open().data_span
        return FileInfo(
            path=reader.path,
            num_bytes=os.stat(path).st_size,
            num_samples=reader.num_samples,
            page_size=reader.page_size,
            num_pages=-(-(end - begin) // reader.page_size),
            data_begin=begin,
            data_end=end,
            has_checksums=reader.has_checksums,
            fields=tuple(reader.fields.values()),
        )


@dataclass(frozen=True)
class Problem:
    """Something wrong with the data of one sample, or with the file as a whole (sample None)."""

    reason: str
    sample: int | None = None
    field: str | None = None
    offset: int | None = None

    def __str__(self) -> str:
        where = [] if self.sample is None else [f"sample {self.sample}"]
        where += [] if not self.field else [f"field '{self.field}'"]
        where += [] if self.offset is None else [f"byte {self.offset}"]
        return f"{', '.join(where)}: {self.reason}" if where else self.reason


@dataclass
class VerifyReport:
    """What `verify` found; `ok`: no problems; `str()` is a text to print, `as_dict()` is for JSON."""

    path: str
    num_samples: int = 0
    num_regions: int = 0
    num_bytes: int = 0
    num_jpeg: int = 0
    has_checksums: bool = False
    num_problems: int = 0
    problems: list[Problem] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.num_problems == 0

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok}

    def __str__(self) -> str:
        lines = [f"{self.path}: {'no problems' if self.ok else counted(self.num_problems, 'problem')}"]
        lines += [f"  {problem}" for problem in self.problems]
        if self.num_problems > len(self.problems):
            lines.append(f"  ... and {self.num_problems - len(self.problems)} more")
        lines.append(
            f"  read {counted(self.num_samples, 'sample')}, {counted(self.num_regions, 'region')}, "
            f"{size(self.num_bytes)} in {duration(self.seconds)}; {counted(self.num_jpeg, 'JPEG image')} decoded"
        )
        if not self.has_checksums and self.num_samples:
            lines.append(
                "  the file has no checksums: changed pixels, numbers and array contents cannot be detected "
                "(DatasetWriter(checksums=True) and `cgxffcv convert --checksums` write them)"
            )
        return "\n".join(lines)


def _verify_json(reader: Reader, first: int, last: int, report: VerifyReport) -> None:
    """Parses the JSON texts in which the core found no problem. If checksums agree there is no need to."""
    names = [name for name, entry in reader.fields.items() if entry.kind == "json" and not reader.has_checksums]
    for sample in range(first, last) if names else ():
        for name in names:
            try:
                text = reader._open().value(reader._field(name), sample)
            except _cgxffcv.BetonError:
                continue  # the core has counted it
            try:
                json.loads(text)
            except (ValueError, RecursionError) as error:
                report.num_problems += 1
                report.problems.append(Problem(f"JSON that does not parse: {error}; write it again", sample, name))


def verify(
    path: str | os.PathLike[str],
    custom_fields: Mapping[str, Any] | None = None,
    *,
    decode_jpeg: bool = True,
    num_workers: int = -1,
    max_problems: int = 100,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Reads all of a .beton file: its structure, its checksums if it has them, every JPEG stream and JSON text.

    A file whose structure is broken gives a report with that one problem; OSError if it cannot be read at all.
    decode_jpeg: decode every JPEG (else only compare its header with the record). num_workers: threads; -1: one per
    core. max_problems: how many problems are kept, the first ones; all are counted. ValueError below 0. progress:
    called with (samples done, samples in all).
    """
    if max_problems < 0:
        raise ValueError(f"max_problems must be 0 or more, not {max_problems}")
    threads = num_workers if num_workers > 0 else _cgxffcv.build_info()["cpus"]
    started = time.perf_counter()
    report = VerifyReport(os.fspath(path))
    try:
        reader = Reader(path, custom_fields)
    except _cgxffcv.BetonError as error:
        report.num_problems, report.problems = 1, [Problem(error.reason, error.sample, error.field, error.offset)]
        report.seconds = time.perf_counter() - started
        return report
    with reader:
        report.num_samples, report.has_checksums = len(reader), reader.has_checksums
        largest = sum(entry.max_bytes for entry in reader.fields.values())
        step = max(1, min(1 << 16, VERIFY_BYTES // max(largest, 1)))
        for first in range(0, len(reader), step):
            last = min(first + step, len(reader))
            room = min(max_problems - len(report.problems), sys.maxsize)
            regions, count, jpegs, num_problems, problems = reader._open().verify(
                first, last, threads=threads, decode_jpeg=decode_jpeg, max_problems=room
            )
            report.num_regions += regions
            report.num_bytes += count
            report.num_jpeg += jpegs
            report.num_problems += num_problems
            for sample, name, offset, reason in problems:
                report.problems.append(Problem(reason, sample, name, None if offset < 0 else offset))
            _verify_json(reader, first, last, report)
            report.problems.sort(key=lambda problem: (problem.sample, problem.field))
            del report.problems[max_problems:]
            if progress is not None:
                progress(last, len(reader))
    report.seconds = time.perf_counter() - started
    return report


def _field_like(reader: Reader, entry: FieldInfo) -> Field:
    """A field that stores what this one holds again, unchanged."""
    if entry.kind in ("array", "tensor"):
        return (NDArrayField if entry.kind == "array" else TorchTensorField)(entry.dtype, entry.shape)
    if entry.kind == "image":
        return RGBImageField(write_mode="given")
    if entry.kind == "custom":
        return _Stored(reader._custom[entry.name])
    return {"int": IntField, "float": FloatField, "bytes": BytesField, "json": _StoredJSON}[entry.kind]()


class _Stored(Field):
    """A custom field whose values are already records and data."""

    def __init__(self, inner: Field):
        self.inner = inner

    def describe(self, name: str) -> Any:
        return self.inner.describe(name)

    def convert(self, value: Any) -> Any:
        return value


class _StoredJSON(JSONField):
    """JSON whose values are already text."""

    def convert(self, value: Any) -> bytes:
        return value + b"\0"


class _Samples:
    """The stored values of samples of several files, as a data set for the writer."""

    def __init__(self, readers: Sequence[Reader]):
        self.readers = readers
        self.ends = np.cumsum([len(reader) for reader in readers])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        part = int(np.searchsorted(self.ends, index, side="right"))
        reader = self.readers[part]
        sample = index - (int(self.ends[part - 1]) if part else 0)
        return tuple(self._stored(reader, i, entry, sample) for i, entry in enumerate(reader.fields.values()))

    @staticmethod
    def _stored(reader: Reader, field_index: int, entry: FieldInfo, sample: int) -> Any:
        if entry.kind != "image":
            return reader._open().value(field_index, sample)
        mode, width, height, data = reader._open().stored_image(field_index, sample)
        return data if mode == "jpg" else np.frombuffer(data, np.uint8).reshape(height, width, 3)


def _check_alike(first: Reader, other: Reader) -> None:
    def key(reader: Reader) -> list[tuple[Any, ...]]:
        return [(entry.name, entry.kind, entry.dtype, entry.shape) for entry in reader.fields.values()]

    if key(first) != key(other):
        raise beton_error(f"its fields {key(other)} are not those of {first.path}: {key(first)}", other.path)


def _as_list(files: Any) -> list[Any]:
    """One path is a list of one file: its letters are none."""
    return [files] if isinstance(files, str | bytes | os.PathLike) else list(files)


def merge(
    fname: str | os.PathLike[str],
    files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    indices: Sequence[int] | np.ndarray | None = None,
    custom_fields: Mapping[str, Any] | None = None,
    **options: Any,
) -> WriteReport:
    """Writes the samples of several .beton files with the same fields, one file after the other, into one.

    indices: which samples of all of them, in which order; all by default. So a single file can also be cut or
    reordered. options: those of DatasetWriter (page_size, checksums, ...). What is stored is copied, nothing is encoded
    again. `fname` may be one of the files: it is replaced only when the new one is complete. The names of the classes
    (FILE.classes) are kept; DataError if a label has different names in two files.
    """
    paths = _as_list(files)
    if not paths:
        raise ValueError("merge needs at least one file")
    readers = [Reader(path, custom_fields) for path in paths]
    try:
        for reader in readers[1:]:
            _check_alike(readers[0], reader)
        fields = {entry.name: _field_like(readers[0], entry) for entry in readers[0].fields.values()}
        options.setdefault("num_workers", 1)
        names = common_names(paths)
        writer = DatasetWriter(fname, fields, **options)
        report = writer.from_indexed_dataset(_Samples(readers), indices=indices)
        keep_names(fname, names)
        return report
    finally:
        for reader in readers:
            reader.close()


def append(
    fname: str | os.PathLike[str],
    files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    custom_fields: Mapping[str, Any] | None = None,
    **options: Any,
) -> WriteReport:
    """Adds the samples of `files` to those of `fname`, which is replaced by the longer file when that is complete."""
    return merge(fname, [fname, *_as_list(files)], custom_fields=custom_fields, **options)


def to_json(report: FileInfo | VerifyReport) -> str:
    """A report for programs."""
    return json.dumps(report.as_dict(), indent=2)
