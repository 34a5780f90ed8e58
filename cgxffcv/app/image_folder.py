"""Makes two .beton files for training of a folder of the user's own images, one sub-folder per class, and keeps them.

They are stored under data.root, in a folder whose name contains a hash of everything that they depend on: every image's
path, size and time of modification, and how they are made square and split.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import _cgxffcv
import numpy as np

from cgxffcv import files
from cgxffcv.app import process
from cgxffcv.app.config import Config
from cgxffcv.classes import names_file, plain_names, write_names
from cgxffcv.errors import ConfigError, DataError
from cgxffcv.fields import IntField, RGBImageField
from cgxffcv.rank_claim import is_stopped
from cgxffcv.recipes import CLASSES
from cgxffcv.wording import counted
from cgxffcv.writer import DatasetWriter
from cgxffcv.writer.writer import IMAGE_SUFFIXES, WriteReport

__all__ = ["ClassFolder", "Squares", "alone", "prepare", "split", "square"]

FORMAT = 1  # version of the files made of a folder; those of another version are made again
LISTED = 5  # files of a kind that are listed
LOOK_SECONDS = 0.2  # between two looks at a lock that another process holds
MOST_LOCKS = 20  # how often a lock is taken again when others remove the file
NOTICE_SECONDS = 3.0  # after which the user is told of the wait
STOPPED_SECONDS = 60.0  # for which the process that holds the lock may be stopped
NO_IMAGES = ("thumbs.db", "desktop.ini")  # files that systems leave in folders, besides hidden ones
PARTS = ("train", "training", "test", "testing", "val", "valid", "validation")  # that many data sets are split into


@dataclass(frozen=True)
class ClassFolder:
    """FOLDER/CLASS/**/IMAGE: the classes by name, each image's path and class number, and everything else: other files,
    images outside any class, links to folders (which are not followed: they may form cycles)."""

    root: Path
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: tuple[int, ...]
    others: tuple[str, ...]

    @classmethod
    def read(cls, folder: str, key: str, classes: Sequence[str] | None = None) -> ClassFolder:
        """classes: those of the training folder, if this is the test's. DataError names what is missing; OSError if a
        folder cannot be read."""
        root = Path(folder)
        if not root.is_dir():
            raise DataError(f"{folder}: {'not a folder' if root.exists() else 'no such folder'} ({key})")
        entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
        found = [entry.name for entry in entries if entry.is_dir()]
        names = _checked_classes(folder, key, found, classes)
        plain_names(names, f"{folder} ({key})")  # before any image is read
        paths: list[str] = []
        labels: list[int] = []
        others = [str(entry) for entry in entries if _is_image(entry.name) and entry.name not in found]
        for label, name in enumerate(names):
            images, rest = _images_below(root / name) if name in found else ([], [])
            if not images and classes is None:
                raise DataError(
                    f"{root / name}: a class without images (files that end in {', '.join(IMAGE_SUFFIXES)}); put some "
                    "into it, or, if it is no class, remove it"
                )
            paths, labels, others = paths + images, labels + [label] * len(images), others + rest
        if not paths:
            raise DataError(f"{folder}: no images in it ({key})")
        return cls(root, tuple(names), tuple(paths), tuple(labels), tuple(others))

    def listing(self) -> list[Any]:
        """A value that changes when an image does."""
        return [list(self.classes), [[os.path.relpath(path, self.root), *_state(path)] for path in self.paths]]


def _state(path: str) -> tuple[int | None, int | None]:
    """Size and time of modification; None for a file that does not exist (a broken link): the writer reports it."""
    try:
        found = os.stat(path)
    except OSError:
        return None, None
    return found.st_size, found.st_mtime_ns


def _checked_classes(folder: str, key: str, found: list[str], wanted: Sequence[str] | None) -> Sequence[str]:
    if wanted is not None:
        unknown = [name for name in found if name not in wanted]
        if unknown:
            raise DataError(
                f"{folder}: class {unknown[0]!r} ({key}) is not among the training images' classes: "
                f"{', '.join(wanted[:20])}{', ...' if len(wanted) > 20 else ''}"
            )
        return wanted
    if not CLASSES[0] <= len(found) <= CLASSES[1]:
        seen = "one class only" if len(found) == 1 else f"{len(found):,} sub-folders"
        raise DataError(
            f"{folder}: {seen} ({key}); expected one sub-folder per class, {CLASSES[0]} to {CLASSES[1]:,} of them, as "
            f"in {Path(folder) / 'cat' / 'tom.jpg'}"
        )
    if all(name.lower() in PARTS for name in found):
        first, *rest = sorted(found, key=lambda name: not name.lower().startswith("train"))
        raise DataError(
            f"{folder}: its sub-folders {', '.join(found)} look like parts of a data set, not like classes ({key}); "
            f"name the parts: --data.folder={Path(folder) / first} --data.val_folder={Path(folder) / rest[-1]}"
        )
    return found


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _images_below(folder: Path) -> tuple[list[str], list[str]]:
    def unreadable(error: OSError) -> None:
        raise error

    images, others = [], []
    for parent, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        others += [path for name in folders if os.path.islink(path := os.path.join(parent, name))]
        for name in names:
            if name.startswith(".") or name.lower() in NO_IMAGES:
                continue
            (images if _is_image(name) else others).append(os.path.join(parent, name))
    return sorted(images), sorted(others)


def square(image: np.ndarray, side: int) -> np.ndarray:
    """The square in the middle of uint8 (h, w, 3), scaled by area to (side, side, 3)."""
    height, width = image.shape[:2]
    least = min(height, width)
    top, left = (height - least) // 2, (width - least) // 2
    middle = np.ascontiguousarray(image[top : top + least, left : left + least])
    return middle if least == side else _cgxffcv.resize_area(middle, side, side)


class Squares(Sequence[tuple[np.ndarray, int]]):
    """Images of one size with their labels, decoded on access."""

    def __init__(self, paths: Sequence[str], labels: Sequence[int], side: int):
        self.paths, self.labels, self.side = paths, labels, side
        self._field = RGBImageField()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        found = self._field.convert(self.paths[index])
        try:
            pixels = _cgxffcv.jpeg_decode(found) if isinstance(found, bytes) else found
        except ValueError as error:
            raise ValueError(f"{self.paths[index]}: {error}") from None
        return square(pixels, self.side), self.labels[index]


def split(labels: Sequence[int], share: float, seed: int) -> np.ndarray:
    """A mask of the images kept for the test: that share of each class's images, drawn by the seed, at least one, but
    never a class's only image."""
    values = np.asarray(labels)
    random = np.random.default_rng(seed)
    chosen = np.zeros(len(values), bool)
    for label in np.unique(values):
        numbers = np.flatnonzero(values == label)
        count = min(max(round(share * len(numbers)), 1), len(numbers) - 1)
        chosen[random.permutation(numbers)[:count]] = True
    return chosen


def _write(
    path: Path, squares: Squares, names: Sequence[str], config: Config, say: process.Say, whole: bool = False
) -> None:
    """whole: at least one image of each class must be readable."""
    fields = {"image": RGBImageField(), "label": IntField()}
    ways = {"on_error": config.data.on_error, "checksums": config.data.checksums}
    writer = DatasetWriter(path, fields, num_workers=config.data.num_workers, **ways)
    try:
        report = writer.from_indexed_dataset(squares)
    except _cgxffcv.BetonError as error:
        reason = error.reason if error.reason.startswith(str(squares.paths[error.sample])) else str(error)
        raise DataError(f"{reason}; fix or remove it, or leave such images out: --data.on_error=skip") from error
    _tell(report, say)
    bad = {skipped.index for skipped in report.skipped}
    kept = {label for index, label in enumerate(squares.labels) if index not in bad}
    lost = set(squares.labels) - kept
    if lost and (whole or not kept):
        path.unlink()
        of_class = f" of class {names[min(lost)]!r}" if kept else ""
        raise DataError(f"{path}: none of the images{of_class} can be read")
    write_names(path, names)


def _tell(report: WriteReport, say: process.Say) -> None:
    say(str(report))
    for bad in report.skipped[:LISTED]:
        say(f"left out: {bad.reason}")
    if len(report.skipped) > LISTED:
        say(f"left out: {len(report.skipped) - LISTED:,} more")


def _wait_for(file: IO[str], folder: Path, say: process.Say) -> bool:
    """Waits until nobody else holds the lock. Its holder may take hours, but may not be stopped. Returns False if there
    are no locks there: then each process makes the files, and each file appears whole."""
    waited = stopped = 0.0
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            holder = os.pread(file.fileno(), 20, 0).decode("ascii", "replace")
        except OSError:
            return False
        if holder.isdecimal() and is_stopped(int(holder)):
            stopped += LOOK_SECONDS
        else:
            stopped = 0.0
        if stopped >= STOPPED_SECONDS:
            raise DataError(
                f"{folder}: process {holder}, which makes the files there, is stopped (SIGSTOP): kill -CONT {holder} "
                "lets it continue, kill -9 lets this one make them"
            )
        if waited < NOTICE_SECONDS <= waited + LOOK_SECONDS:
            say(
                f"{folder}: another process{f' ({holder})' if holder else ''} is making the files there; waiting for it"
            )
        time.sleep(LOOK_SECONDS)
        waited += LOOK_SECONDS


def _held_lock(folder: Path, say: process.Say) -> tuple[IO[str], bool]:
    """The folder's lock, and whether it is held. A process that fails may remove both while others wait: then they are
    made again."""
    path = folder / ".lock"
    for _ in range(MOST_LOCKS):
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack, contextlib.suppress(FileNotFoundError):
            file = stack.enter_context(files.open_plain(path, "a+", follow=False))
            held = _wait_for(file, folder, say)
            if not held or os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                stack.pop_all()
                return file, held
        time.sleep(LOOK_SECONDS)
    raise DataError(f"{path}: it keeps being replaced while it is being locked; name another folder (--data.root=DIR)")


@contextlib.contextmanager
def alone(folder: Path, say: process.Say) -> Iterator[bool]:
    """Lets in one process at a time: the others wait, and find what the first has made. Yields False where there are no
    locks, and others may be at work, too."""
    file, held = _held_lock(folder, say)
    with file:
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield held


def _left_out(on_error: str) -> list[Any]:
    """What else decides which images can be read, if the others are left out."""
    return [on_error, find_spec("PIL") is not None, _cgxffcv.max_image_pixels()] if on_error == "skip" else [on_error]


def _name(config: Config, training: ClassFolder, testing: ClassFolder | None) -> str:
    d = config.data
    parts: list[Any] = [FORMAT, d.side, *_left_out(d.on_error), training.listing()]
    parts.append([d.val_share, d.split_seed] if testing is None else testing.listing())
    if d.checksums:
        parts.append("checksums")
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    label = "".join(char if char.isalnum() else "_" for char in training.root.resolve().name)[:40] or "images"
    return f"{label}-{d.side}px-{digest}"


def _check(config: Config) -> None:
    if config.data.folder is None:
        raise ConfigError(
            ["data.source = folder needs data.folder, your images in one sub-folder per class: --data.folder=DIR"]
        )
    root = Path(config.data.root).resolve()
    for key, images in (("data.folder", config.data.folder), ("data.val_folder", config.data.val_folder)):
        if images is not None and root.is_relative_to(Path(images).resolve()):
            raise ConfigError(
                [
                    f"data.root = {config.data.root} ({config.origin('data.root')}) is inside {key} = {images} "
                    f"({config.origin(key)}): the .beton files made of these images would become a class; keep them "
                    "elsewhere: --data.root=DIR"
                ]
            )


def _make(folder: Path, config: Config, training: ClassFolder, testing: ClassFolder | None, say: process.Say) -> None:
    d = config.data
    paths, labels = np.array(training.paths), np.array(training.labels)
    held = np.zeros(len(labels), bool) if testing is not None else split(labels, d.val_share, d.split_seed)
    if testing is None and not held.any():
        raise DataError(
            f"{d.folder}: only one image in each class, which leaves none for the test. Add images, or name test "
            "images with --data.val_folder"
        )
    rest = Squares(paths[~held].tolist(), labels[~held].tolist(), d.side)
    if testing is not None:
        tested = Squares(testing.paths, testing.labels, d.side)
    else:
        tested = Squares(paths[held].tolist(), labels[held].tolist(), d.side)
    say(
        f"{d.folder}: {counted(len(training.classes), 'class')}, {len(rest):,} images for training and {len(tested):,} "
        f"for the test, as squares of {d.side} pixels, into {folder}/"
    )
    others = training.others + (() if testing is None else testing.others)
    if others:
        more = ", ..." if len(others) > LISTED else ""
        say(
            f"note: {len(others):,} left out (files without an image suffix, images of no class, links to folders): "
            f"{', '.join(others[:LISTED])}{more}"
        )
    _write(folder / "train.beton", rest, training.classes, config, say, whole=True)
    _write(folder / "test.beton", tested, training.classes, config, say)


def _read(config: Config, key: str, classes: Sequence[str] | None = None) -> ClassFolder:
    origin = f"{key}, {config.origin(key)}"
    try:
        return ClassFolder.read(getattr(config.data, key.removeprefix("data.")), origin, classes)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror} ({origin})") from error


def _made(folder: Path) -> bool:
    made = [folder / "train.beton", folder / "test.beton"]
    return all(file.is_file() and Path(names_file(file)).is_file() for file in made)


def prepare(config: Config, say: process.Say) -> None:
    """Makes the .beton files of data.folder unless they exist, and puts their names into the configuration. Every rank
    calls it; one makes them, the others wait.

    Raises ConfigError without data.folder, and with data.root inside the images' folders; DataError for folders that do
    not exist, cannot be read, or have no classes or images, for classes whose names would be the same in a file, and,
    unless data.on_error is skip, for the first image that cannot be read.
    """
    _check(config)
    training = _read(config, "data.folder")
    testing = None if config.data.val_folder is None else _read(config, "data.val_folder", training.classes)
    folder = Path(config.data.root) / _name(config, training, testing)
    try:
        with alone(folder, say) as held:
            if not _made(folder):
                try:
                    _make(folder, config, training, testing, say)
                except BaseException:
                    if held:
                        shutil.rmtree(folder, ignore_errors=True)
                    raise
    except OSError as error:
        if error.filename is None or not str(error.filename).startswith(str(folder)):
            raise
        raise DataError(
            f"{folder}: {error.strerror}; name a folder to keep .beton files in (--data.root=DIR)"
        ) from error
    found = {"data.train_dataset": str(folder / "train.beton"), "data.val_dataset": str(folder / "test.beton")}
    config.put(found, f"made of {config.data.folder}")
