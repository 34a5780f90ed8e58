"""Writing .beton files from data sets, iterables, arrays, tar shards and folders of images.

The bytes of a file depend on the samples, their order and the fields only: never on the number of workers or on chunk
sizes (except for what a data set draws at random, see from_indexed_dataset). The file appears under its name when it is
complete; until then, and after any failure, what was there before stays.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _cgxffcv
import numpy as np

from cgxffcv import files, lengths
from cgxffcv.fields import Field, FloatField, IntField, NDArrayField, RGBImageField
from cgxffcv.fields.base import MAX_NAME, CoreField, refuse_masked
from cgxffcv.progress import Progress, is_watched
from cgxffcv.reader import beton_error
from cgxffcv.wording import counted, noted, size, whole_number
from cgxffcv.writer.draws import Draws
from cgxffcv.writer.rows import Rows
from cgxffcv.writer.workers import Job, SampleError, run_workers

MIN_PAGE_SIZE = 2 << 20
DEFAULT_PAGE_SIZE = 8 << 20
BATCH_BYTES = 64 << 20
FILES_LEFT, FILES_OF_WORKER = 64, 4
ORDER_BYTES = 16  # of a sample's number, also while the order is shuffled
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp")


def stored_names(names: Iterable[str]) -> list[str]:
    """Names of fields as a file has them; ValueError if two are the same there."""
    stored: dict[str, str] = {}
    for name in names:
        short = name[:MAX_NAME] if name.isascii() else name  # which the core refuses
        if short in stored:
            raise ValueError(
                f"fields {stored[short]!r} and {name!r} begin with the same {MAX_NAME} bytes, which are all that the "
                "file keeps of a name"
            )
        if short != name:
            warnings.warn(f"field {name!r} is {short!r} in the file, which keeps {MAX_NAME} bytes", stacklevel=3)
        stored[short] = name
    return list(stored)


@dataclass(frozen=True)
class Skipped:
    """A sample that was left out: its index in the data set, the field at fault if there is one, the reason."""

    index: int
    field: str
    reason: str


@dataclass(frozen=True)
class WriteReport:
    """What was written."""

    path: str
    num_samples: int
    num_bytes: int
    page_size: int
    seconds: float
    skipped: tuple[Skipped, ...] = ()

    def __str__(self) -> str:
        rate = size(self.num_bytes / self.seconds) if self.seconds > 0 else "?"
        text = f"{self.path}: {counted(self.num_samples, 'sample')}, {size(self.num_bytes)}"
        text += f" in {self.seconds:.2f} s ({rate}/s)"
        return text + (f"; {counted(len(self.skipped), 'sample')} left out" if self.skipped else "")


def _asked(samples: Iterable[Any]) -> Iterator[Any]:
    """The samples; an exception from their iteration says how far it got."""
    iterator, end = iter(samples), object()
    for number in itertools.count():
        with noted(f"sample {number} was asked for"):
            sample = next(iterator, end)
        if sample is end:
            return
        yield sample


def usual_workers() -> int:
    """One per core, as far as this process may open their pipes."""
    cores, limit = _cgxffcv.build_info()["cpus"], resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return cores
    return max(1, min(cores, (limit - FILES_LEFT) // FILES_OF_WORKER))


class DatasetWriter:
    """Writes one .beton file.

    fname: the file; an existing one is replaced once the new one is complete.
    fields: {name: Field}, in the order of a sample's values. Names are printable ASCII, 1 to 16 bytes. Of longer ones
        the file keeps the first 16 bytes, as with FFCV; a warning says so, and they must differ from all others.
    page_size: a power of two from 2 MiB to 1 GiB; it grows by itself when one sample needs more.
    num_workers: processes (or threads, see `worker_kind`) that make samples; -1: one per core.

    Keyword arguments:
    checksums: add XXH64 checksums of all data, in room that FFCV ignores (docs/FORMAT.md); `Reader` then refuses a file
        whose metadata is damaged, and `cgxffcv verify` finds any changed byte of its values. Off by default, so that
        the bytes are those that FFCV would write.
    seed: of the draws of write_mode="proportion", of shuffle_indices, and of the data set (from_indexed_dataset).
    on_error: "raise" stops at the first bad sample with BetonError (its index, field and reason as attributes, the
        cause attached) and leaves no file; "skip" leaves bad samples out and lists them in the report.
    durable: sync the file to the disk before it appears.
    worker_kind: "process" (forked: the data set's Python code runs in parallel), "thread" (only the encoding runs in
        parallel), "auto": processes if there are more than one worker and enough samples. In a daemonic process (a
        worker of multiprocessing.Pool, of a torch DataLoader), which may not have children, threads. In a worker
        process torch and OpenMP use one thread.
    worker_timeout: seconds for which a worker process may hang (finish no sample and use less than a hundredth of a
        core) or be stopped (SIGSTOP) before the writing fails with RuntimeError. One that is only slow is waited for as
        long as it lives; a warning names it after a minute.
    progress: a progress line on stderr; by default only in a terminal or a notebook.
    allow_small_pages: page sizes below 2 MiB, for tests.

    One DatasetWriter writes one file: call one of the from_... methods, once.
    """

    def __init__(
        self,
        fname: str | os.PathLike[str],
        fields: Mapping[str, Field],
        page_size: int = DEFAULT_PAGE_SIZE,
        num_workers: int = -1,
        *,
        checksums: bool = False,
        seed: int = 0,
        on_error: str = "raise",
        durable: bool = True,
        worker_kind: str = "auto",
        worker_timeout: float = 300.0,
        progress: bool | None = None,
        allow_small_pages: bool = False,
    ):
        if not isinstance(fields, Mapping) or not fields:
            raise ValueError("fields must be a dict with at least one {name: Field}")
        for name, field in fields.items():
            if not isinstance(name, str) or not isinstance(field, Field):
                raise TypeError(f"fields must map names to fields, not {name!r} to {type(field).__name__}")
            field.check()
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', not {on_error!r}")
        if worker_kind not in ("auto", "process", "thread"):
            raise ValueError(f"worker_kind must be 'auto', 'process' or 'thread', not {worker_kind!r}")
        if not worker_timeout > 0:
            raise ValueError(f"worker_timeout must be a positive number of seconds, not {worker_timeout!r}")
        seed, num_workers = whole_number(seed, "seed"), whole_number(num_workers, "num_workers")
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"seed must be in 0..2^64-1, not {seed}")
        self.fname = os.fspath(fname)
        self.fields = dict(fields)
        self.page_size = int(page_size)
        self.num_workers = num_workers if num_workers > 0 else usual_workers()
        self.checksums, self.seed, self.on_error, self.durable = bool(checksums), seed, on_error, bool(durable)
        self.worker_timeout = float(worker_timeout)
        self.worker_kind, self.progress, self.allow_small_pages = worker_kind, progress, bool(allow_small_pages)
        self._specs = [
            field.describe(name) for name, field in zip(stored_names(self.fields), self.fields.values(), strict=True)
        ]
        self._used = False
        _cgxffcv.Encoder(self._specs, seed=0, threads=1, skip_bad=False)  # refuses bad names, shapes and modes now
        usual = MIN_PAGE_SIZE <= self.page_size <= 1 << 30 and self.page_size & (self.page_size - 1) == 0
        if not usual and not self.allow_small_pages:
            raise ValueError(f"page_size must be a power of two from 2 MiB to 1 GiB, not {page_size}")

    def from_indexed_dataset(
        self,
        dataset: Any,
        indices: Sequence[int] | np.ndarray | None = None,
        chunksize: int = 100,
        shuffle_indices: bool = False,
    ) -> WriteReport:
        """Writes dataset[i] for each i.

        dataset: anything with len() and []; a sample is a tuple in the order of the fields, or a dict by their names;
            with one field only, anything but a tuple is the value itself.
        indices: which samples, in which order; default all. chunksize: samples that a worker makes per turn.
        shuffle_indices: write them in an order drawn from `seed`.

        The data set's random numbers start afresh in each chunk from (`seed`, where the chunk begins), in whatever
        process: those of `random`, `numpy.random`, torch, OpenCV, and of generators in its attributes and its class, in
        its module, and in what its functions name (not of those that it makes only while a sample is made). So the file
        is the same with any number of workers (but not with another chunksize), and the caller's generators are
        afterwards as they were (except OpenCV's, whose state cannot be read).
        """
        needs, kind = ("__getitem__",) if indices is not None else ("__len__", "__getitem__"), type(dataset)
        if not all(hasattr(kind, name) for name in needs):
            raise TypeError(
                f"from_indexed_dataset takes a data set with len() and [], which {kind.__name__} lacks; from_iterable "
                "writes what can only be iterated"
            )
        if indices is None:
            lengths.check_fits(dataset, "the data set", ORDER_BYTES)
        else:
            lengths.check_fits(indices, "indices")
        order = np.arange(len(dataset)) if indices is None else np.asarray(indices)
        if order.ndim != 1 or (order.size and not np.issubdtype(order.dtype, np.integer)):
            raise ValueError(f"indices must be a list of whole numbers, not of shape {order.shape} and {order.dtype}")
        if chunksize < 1:
            raise ValueError(f"chunksize must be at least 1, not {chunksize}")
        if shuffle_indices:
            order = order[np.random.Generator(np.random.Philox(key=self.seed)).permutation(len(order))]
        processes = min(self.num_workers, -(-len(order) // chunksize))
        draws = Draws(dataset, self.seed)
        if self._in_this_process(processes):
            with draws:
                samples = draws.samples(order, chunksize)
                return self._write(len(order), lambda run: run.from_samples(samples, chunksize), order)
        processes = max(processes, 1)
        return self._write(len(order), lambda run: run.from_processes(draws, chunksize, processes), order, threads=1)

    def _in_this_process(self, processes: int) -> bool:
        """True if no worker processes are wanted or allowed: a worker of multiprocessing.Pool may not have children."""
        few = self.worker_kind == "auto" and processes < 2
        return few or self.worker_kind == "thread" or multiprocessing.current_process().daemon

    def from_iterable(self, samples: Iterable[Any], length: int | None = None) -> WriteReport:
        """Writes what an iterable gives. length: how many samples that will be, if known."""
        produce = (lambda value=value: value for value in _asked(samples))
        return self._write(length or 0, lambda run: run.from_samples(produce, 100), total=length)

    def from_arrays(self, /, *columns: Any, **named: Any) -> WriteReport:
        """Writes whole columns, without Python code for each sample.

        One array per field, in their order or by name, all of the same length N: images uint8 (N, H, W, 3), ints and
        floats (N,), arrays (N, *shape). Fields of other kinds take any sequence of N values, which is slower.
        """
        ordered = self._columns(columns, named)
        lengths = {name: len(column) for name, column in zip(self.fields, ordered, strict=True)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the columns must have the same length, not {lengths}")
        count = next(iter(lengths.values()))
        fields = zip(self.fields.items(), ordered, strict=True)
        arrays = [_as_column(name, field, column) for (name, field), column in fields]
        if any(array is None for array in arrays):
            samples = (lambda i=i: tuple(column[i] for column in ordered) for i in range(count))
            return self._write(count, lambda run: run.from_samples(samples, 100))
        return self._write(count, lambda run: run.from_columns(tuple(arrays), count))

    def _columns(self, columns: tuple[Any, ...], named: Mapping[str, Any]) -> list[Any]:
        if columns and named:
            raise TypeError("give the columns either in the order of the fields or by name")
        if named:
            if set(named) != set(self.fields):
                raise ValueError(f"columns {', '.join(named)} were given for fields {', '.join(self.fields)}")
            return [named[name] for name in self.fields]
        if len(columns) != len(self.fields):
            raise ValueError(f"{len(columns)} columns were given for {len(self.fields)} fields")
        return list(columns)

    def from_webdataset(
        self, shards: str | Sequence[str | os.PathLike[str]], pipeline: Callable[[Any], Iterable[Any]]
    ) -> WriteReport:
        """Writes the samples of tar files whose members are named KEY.EXTENSION, files with one KEY being one sample.

        shards: a file, a pattern with {000..012}, or a list of these. pipeline: makes an iterable of samples from a
        `cgxffcv.writer.webshards.Shards`, for example lambda shards: shards.decode().to_tuple("jpg;jpeg;png", "cls").
        The `webdataset` package is not needed.
        """
        from cgxffcv.writer.webshards import Shards

        source = Shards(shards)

        def produce(run: _Run) -> None:
            run.from_samples((lambda value=value: value for value in _asked(pipeline(source))), 100)

        return self._write(source.count(), produce)

    def from_image_folder(
        self, folder: str | os.PathLike[str], suffixes: Sequence[str] = IMAGE_SUFFIXES, **options: Any
    ) -> WriteReport:
        """Writes FOLDER/CLASS/**/IMAGE: one image field, and an int field (optional) for the class's number.

        Classes are numbered by name, images come by class and path; hidden files and folders are skipped. options:
        those of from_indexed_dataset. JPEG files are stored unchanged if the field's write_mode stores JPEG and no
        reduction is asked for.
        """
        kinds = [spec["kind"] for spec in self._specs]
        if sorted(kinds) not in (["image"], ["image", "int"]):
            raise ValueError("from_image_folder needs one RGBImageField and at most one IntField")
        dataset = ImageFolder(folder, suffixes, [kind == "image" for kind in kinds])
        return self.from_indexed_dataset(dataset, **options)

    def _write(
        self,
        expected: int,
        produce: Callable[[_Run], None],
        order: np.ndarray | None = None,
        threads: int | None = None,
        total: int | None = None,
    ) -> WriteReport:
        if self._used:
            raise ValueError("this DatasetWriter has written its file; make another one for another file")
        self._used = True
        run = _Run(self, expected, order, threads or self.num_workers, total)
        try:
            produce(run)
            return run.finish()
        except BaseException:
            run.abort()
            raise


class _Run:
    """One file being written."""

    def __init__(self, owner: DatasetWriter, expected: int, order: np.ndarray | None, threads: int, total: int | None):
        self.owner, self.order = owner, order
        self.started = time.perf_counter()
        pages = {"page_size": owner.page_size, "small_pages": owner.allow_small_pages}
        ways = {"checksums": owner.checksums, "durable": owner.durable, "skip_bad": owner.on_error == "skip"}
        counts = {"expected_samples": expected, "threads": threads, "seed": owner.seed}
        self.core = _cgxffcv.Writer(owner.fname, owner._specs, **pages, **ways, **counts)
        self.skipped: list[Skipped] = []
        self.done = 0
        total = total or expected
        wanted = is_watched(sys.stderr) if owner.progress is None else owner.progress
        self.progress = Progress(f"writing {os.path.basename(owner.fname)}", max(total, 1), "auto" if wanted else "off")

    def index(self, position: int) -> int:
        """The sample's index in the data set."""
        return int(self.order[position]) if self.order is not None else position

    def note(self, count: int, skips: Iterable[tuple[int, str, str]]) -> None:
        self.skipped += [Skipped(self.index(position), field, reason) for position, field, reason in skips]
        self.done += count
        self.progress.update(self.done, counted(self.done, "sample"))

    def raise_sample(self, error: BaseException, cause: BaseException | None) -> None:
        """Raises `error`, a bad sample's, with the sample's index in the data set, from its cause."""
        position = getattr(error, "sample", None)
        if position is None:
            raise error
        reason, field = error.reason, error.field
        raise beton_error(reason, self.owner.fname, field, self.index(position)) from cause

    def from_samples(self, samples: Iterable[Callable[[], Any]], chunksize: int) -> None:
        """Samples come as functions, so that what they raise can be told apart from what the iteration raises."""
        rows = Rows(self.owner.fields, skip=self.owner.on_error == "skip")
        for chunk in rows.chunks(samples, chunksize, BATCH_BYTES):
            try:
                skips = self.core.append(chunk.first, chunk.rows)
            except _cgxffcv.BetonError as error:
                self.raise_sample(error, chunk.causes.get(error.sample))
            self.note(len(chunk.rows), skips)

    def from_columns(self, columns: tuple[np.ndarray, ...], count: int) -> None:
        row_bytes = sum(column.nbytes for column in columns) // max(count, 1)
        step = max(1, BATCH_BYTES // max(row_bytes, 1))
        for begin in range(0, count, step):
            end = min(begin + step, count)
            self.note(end - begin, self.core.append_arrays(begin, columns, begin, end))

    def from_processes(self, draws: Draws, chunksize: int, processes: int) -> None:
        owner = self.owner
        try:
            skip = owner.on_error == "skip"
            job = Job(draws, self.order, owner.fields, owner._specs, chunksize, processes, skip, BATCH_BYTES)
            for count, packed, skips in run_workers(job, owner.worker_timeout):
                self.core.append_packed(packed)
                self.note(count, skips)
        except SampleError as error:
            self.raise_sample(error, error.__cause__)

    def finish(self) -> WriteReport:
        num_samples, num_bytes, page_size, unsynced = self.core.commit()
        files.warn_unsynced(self.owner.fname, unsynced)
        seconds = time.perf_counter() - self.started
        report = WriteReport(self.owner.fname, num_samples, num_bytes, page_size, seconds, tuple(self.skipped))
        self.progress.finish(f"{counted(num_samples, 'sample')}, {size(num_bytes)}")
        return report

    def abort(self) -> None:
        self.core.abort()


def _as_column(name: str, field: Field, column: Any) -> np.ndarray | None:
    """The column as the core takes it whole, or None if values must be taken one by one."""
    if not isinstance(field, CoreField) or field.converts_itself():
        return None
    lengths.check_fits(column, f"field '{name}'")
    with noted(f"field '{name}'"):
        for part in column if isinstance(field, NDArrayField) and isinstance(column, list | tuple) else [column]:
            refuse_masked(part)
    if isinstance(field, IntField):
        array = np.asarray(column)
        if array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if array.ndim != 1 or array.dtype.kind not in "iub":
            raise TypeError(f"field '{name}': a column of whole numbers was expected, not {array.dtype} {array.shape}")
        if array.dtype == np.uint64 and array.size and int(array.max()) > np.iinfo(np.int64).max:
            raise ValueError(f"field '{name}': {array.max()} does not fit int64")
        return np.ascontiguousarray(array, np.int64)
    if isinstance(field, FloatField):
        array = np.asarray(column)
        if array.ndim != 1 or array.dtype.kind not in "iubf":
            raise TypeError(f"field '{name}': a column of numbers was expected, not {array.dtype} {array.shape}")
        return np.ascontiguousarray(array, np.float64)
    if isinstance(field, NDArrayField):
        array = np.asarray(column.detach().cpu().numpy() if hasattr(column, "cpu") else column)
        if array.dtype != field.dtype or array.shape[1:] != field.shape:
            wanted = f"{field.dtype} (N, {str(field.shape)[1:]}"
            raise TypeError(f"field '{name}': a column of {wanted} was expected, not {array.dtype} {array.shape}")
        return np.ascontiguousarray(array)
    if isinstance(field, RGBImageField) and isinstance(column, np.ndarray) and column.dtype != object:
        if column.dtype != np.uint8 or column.ndim != 4 or column.shape[3] != 3:
            found = f"{column.dtype} {column.shape}"
            raise TypeError(f"field '{name}': a column of uint8 (N, H, W, 3) was expected, not {found}")
        return np.ascontiguousarray(column)
    return None


class ImageFolder(Sequence[tuple[Any, ...]]):
    """FOLDER/CLASS/**/IMAGE as a data set of paths and class numbers; hidden files and folders are ignored. Attributes:
    classes, paths, labels."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        suffixes: Sequence[str] = IMAGE_SUFFIXES,
        order: Sequence[bool] = (True, False),
    ):
        """Raises ValueError if there is no image, OSError if a folder cannot be read."""
        root = Path(folder)
        self.classes = sorted(
            entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")
        )
        if not self.classes:
            raise ValueError(f"{root} has no folders; FOLDER/CLASS/IMAGE was expected")
        self.paths: list[str] = []
        self.labels: list[int] = []
        self._order = tuple(order)
        wanted = tuple(suffix.lower() for suffix in suffixes)
        for label, name in enumerate(self.classes):
            found = sorted(_files(root / name, wanted))
            self.paths += found
            self.labels += [label] * len(found)
        if not self.paths:
            raise ValueError(f"{root} has no files that end in {', '.join(wanted)}")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return tuple(self.paths[index] if image else self.labels[index] for image in self._order)


def _files(folder: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    def unreadable(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(suffixes) and not name.startswith("."):
                yield os.path.join(parent, name)
