"""CIFAR-10, from wherever it is available: local files of either version, the official archive, the shipped sample.

Nothing that is read is trusted: sizes and labels are checked, checksums of the official files are compared, the
Python version's pickles are read without running them, archives are read in memory and never unpacked to disk.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import hashlib
import io
import os
import re
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cgxffcv import files
from cgxffcv.cifar import plainpickle, sample
from cgxffcv.errors import DataError
from cgxffcv.progress import Progress
from cgxffcv.wording import size

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
RECORD = 3073  # a label and three planes of 32 x 32
RECORDS = 10_000  # per file
# MD5 of the six files of the binary version; the Python version holds the same records.
BATCH_MD5 = {
    "data_batch_1": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
MAX_MEMBER_BYTES = 64 << 20
MAX_ARCHIVE_BYTES = 6 * MAX_MEMBER_BYTES  # uncompressed
NET_TIMEOUT = 20.0
TRIES = 3
DOWNLOAD = "--data.source=auto to download it"  # what to use instead

Say = Callable[[str], None]


@dataclass(frozen=True)
class Archive:
    """An archive of the official site."""

    name: str
    bytes: int
    sha256: str


BINARY = Archive(
    "cifar-10-binary.tar.gz", 170_052_171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
)
OFFICIAL_URL = f"https://www.cs.toronto.edu/~kriz/{BINARY.name}"


@dataclass(frozen=True)
class Cifar10:
    """Images (n, 32, 32, 3) uint8, C-contiguous, labels (n,) int64, and where they came from."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    origin: str
    complete: bool  # False: the shipped sample


# --- reading -------------------------------------------------------------------------------------------------------


def _check(records: np.ndarray, name: str, where: str, say: Say) -> np.ndarray:
    """(10000, 3073) records with labels below 10; says so if they are not the official ones."""
    if records.shape != (RECORDS, RECORD):
        raise DataError(f"{where}: {len(records):,} images; expected {RECORDS:,}. Get the file again")
    if records[:, 0].max() > 9:
        found = f"record {int(np.argmax(records[:, 0] > 9))} has label {records[:, 0].max()}"
        raise DataError(f"{where}: {found}; expected 0 to 9. Is it CIFAR-10 (not CIFAR-100)?")
    if hashlib.md5(records.tobytes(), usedforsecurity=False).hexdigest() != BATCH_MD5[name]:
        say(f"note: {where} is well formed but differs from the official file (its MD5 is different)")
    return records


def from_binary(data: bytes, name: str, where: str, say: Say) -> np.ndarray:
    """The records of one file of the binary version."""
    expected = RECORDS * RECORD
    if len(data) != expected:
        raise DataError(f"{where}: {len(data):,} bytes; expected {expected:,}. Is it cut off? Get the file again")
    return _check(np.frombuffer(data, np.uint8).reshape(-1, RECORD), name, where, say)


def from_python(data: bytes, name: str, where: str, say: Say) -> np.ndarray:
    """The records of one file of the Python version, a pickle, none of which is executed."""
    try:
        batch = plainpickle.parse(data)
        if not isinstance(batch, dict):
            raise plainpickle.PickleError("it does not hold a dict")
        plain = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
        pixels = plainpickle.uint8_array(plain.get("data"), RECORD - 1)
        labels = plain.get("labels")
        if not isinstance(labels, list) or not all(type(label) is int and 0 <= label <= 255 for label in labels):
            raise plainpickle.PickleError("its labels are not a list of whole numbers")
        if len(labels) != len(pixels):
            raise plainpickle.PickleError(f"{len(labels)} labels for {len(pixels)} images")
    except plainpickle.PickleError as error:
        raise DataError(f"{where}: not a batch of CIFAR-10's Python version: {error}") from error
    return _check(np.column_stack([np.array(labels, np.uint8), pixels]), name, where, say)


def _data_set(records: dict[str, np.ndarray], origin: str) -> Cifar10:
    missing = [name for name in BATCHES if name not in records]
    if missing:
        raise DataError(f"{origin}: {', '.join(missing)} not found. Get CIFAR-10 again, all six files")
    train = np.concatenate([records[name] for name in BATCHES[:5]])
    return _split(train, records["test_batch"], origin, complete=True)


def _split(train: np.ndarray, test: np.ndarray, origin: str, complete: bool) -> Cifar10:
    def images(records: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))

    return Cifar10(
        images(train), train[:, 0].astype(np.int64), images(test), test[:, 0].astype(np.int64), origin, complete
    )


def read_folder(folder: Path, suffix: str, say: Say) -> Cifar10:
    """The six batch files of `folder`: binary version (suffix ".bin") or Python version (suffix "")."""
    records = {}
    for name in BATCHES:
        path = folder / f"{name}{suffix}"
        if not path.exists():
            continue
        with files.open_plain(path, "rb") as file:
            data = file.read(MAX_MEMBER_BYTES + 1)
        if len(data) > MAX_MEMBER_BYTES:
            raise DataError(f"{path}: {path.stat().st_size:,} bytes; too large for a batch of CIFAR-10")
        read = from_binary if suffix else from_python
        records[name] = read(data, name, str(path), say)
    return _data_set(records, str(folder))


MEMBER = re.compile(r"(?:.*/)?(data_batch_[1-5]|test_batch)(\.bin)?")


class _Unpacked:
    """A decompressed archive of limited size, for tarfile, which reads a header of any size into memory."""

    def __init__(self, file: gzip.GzipFile, path: Path):
        self._file, self._path, self._left = file, path, MAX_ARCHIVE_BYTES

    def read(self, count: int) -> bytes:
        data = self._file.read(count)
        self._left -= len(data)
        if self._left < 0:
            raise DataError(
                f"{self._path}: not an official CIFAR-10 archive: more than {size(MAX_ARCHIVE_BYTES)} in it"
            )
        return data


def read_archive(path: Path, say: Say) -> Cifar10:
    """The batches inside an official archive of either version; nothing is written to disk."""
    records: dict[str, np.ndarray] = {}
    try:
        with (
            files.open_plain(path, "rb") as packed,
            gzip.GzipFile(fileobj=packed) as unpacked,
            tarfile.open(fileobj=_Unpacked(unpacked, path), mode="r|") as archive,  # type: ignore[call-overload]
        ):
            for count, member in enumerate(archive):
                match = MEMBER.fullmatch(member.name)
                if count > 64 or member.size > MAX_MEMBER_BYTES:
                    raise DataError(f"{path}: not an official CIFAR-10 archive: {member.name!r}, {member.size:,} bytes")
                if not match or not member.isfile() or match[1] in records:
                    continue
                file = archive.extractfile(member)
                data = file.read() if file is not None else b""
                read = from_binary if match[2] else from_python
                records[match[1]] = read(data, match[1], f"{path}: {member.name}", say)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(f"{path}: damaged or cut off ({error}). Delete it and try again") from error
    return _data_set(records, str(path))


def find(root: Path) -> Iterator[tuple[Path, Callable[[Path, Say], Cifar10]]]:
    """Where CIFAR-10 is under `root`: folders and archives of either version, the quickest to read first."""
    for folder in (root, root / "cifar-10-batches-bin"):
        if any((folder / f"{name}.bin").is_file() for name in BATCHES):
            yield folder, lambda path, say: read_folder(path, ".bin", say)
    for folder in (root, root / "cifar-10-batches-py"):
        if any((folder / name).is_file() for name in BATCHES):
            yield folder, lambda path, say: read_folder(path, "", say)
    for name in (BINARY.name, "cifar-10-python.tar.gz"):
        if (root / name).is_file():
            yield root / name, read_archive


# --- download ------------------------------------------------------------------------------------------------------


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _append(part: io.BufferedRandom, block: bytes) -> None:
    try:
        part.write(block)
        part.flush()
    except OSError as error:
        raise OSError(error.errno, error.strerror, part.name) from error


def _fetch(url: str, part: io.BufferedRandom, archive: Archive, progress: Progress) -> None:
    """Appends to `part` what is missing, from where it ends if the server can do that."""
    part.seek(0, os.SEEK_END)
    have = part.tell()
    request = urllib.request.Request(url, headers={"User-Agent": "cgxffcv", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=NET_TIMEOUT)  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        part.truncate(0)  # there is nothing after what we have: it was another file
        raise ConnectionError("the server has no more bytes; starting afresh") from error
    with response:
        begins = re.match(r"bytes (\d+)-", response.headers.get("Content-Range") or "")
        if have and not (response.status == 206 and begins and int(begins[1]) == have):
            part.seek(0)
            part.truncate(0)
            have = 0
        progress.begin_at(have)
        while block := response.read(1 << 18):
            _append(part, block)
            have += len(block)
            if have > archive.bytes:
                return
            progress.update(have, f"{size(have)} of {size(archive.bytes)}")


@contextlib.contextmanager
def _told(root: Path, what: str) -> Iterator[None]:
    """Turns errors of the system under `root` into a DataError that says what to do."""
    try:
        yield
    except OSError as error:
        reason = f"{root} is not a folder" if root.exists() and not root.is_dir() else error.strerror
        raise DataError(
            f"data.root: cannot {what} {error.filename or root}: {reason}; name a folder where CIFAR-10 can be found "
            "or saved (--data.root=DIR), or use --data.source=sample to do without it"
        ) from error


def _open_part(root: Path, archive: Archive) -> io.BufferedRandom:
    target, partial = _places(root, archive)
    with _told(root, "write to"):
        root.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_file():
            raise OSError(errno.EINVAL, "is not a regular file", os.fspath(target))
        return files.open_plain(partial, "a+b", follow=False)


def _places(root: Path, archive: Archive) -> tuple[Path, Path]:
    """Where an archive goes, links followed, and where it is until it is complete."""
    target = Path(os.path.realpath(root / archive.name))
    return target, target.with_name(f"{target.name}.part")


def download(root: Path, url: str = OFFICIAL_URL, archive: Archive = BINARY, mode: str = "auto") -> Path:
    """Downloads the archive to `root`, continuing where an earlier attempt ended; it is kept only if its checksum is
    right.

    Raises DataError if it cannot be downloaded; what has arrived so far stays for the next attempt (as NAME.part).
    """
    target, partial = _places(root, archive)
    with _open_part(root, archive) as part:
        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(f"{partial}: another process is downloading; wait for it to end") from None
        try:
            _download_into(part, url, archive, mode)
        finally:
            if part.seek(0, os.SEEK_END) == 0:
                partial.unlink()
        os.fsync(part.fileno())
        if sha256_of(partial) != archive.sha256:
            have = partial.stat().st_size
            partial.unlink()
            raise DataError(
                f"{url}: the SHA-256 of the download ({have:,} bytes) is not the official archive's; discarded"
            )
        os.replace(partial, target)
    return root / archive.name


def _download_into(part: io.BufferedRandom, url: str, archive: Archive, mode: str) -> None:
    progress = Progress("downloading", archive.bytes, mode)
    problem: Exception | None = None
    for attempt in range(TRIES):
        try:
            _fetch(url, part, archive, progress)
            if part.seek(0, os.SEEK_END) >= archive.bytes:
                progress.finish(size(archive.bytes))
                return
            problem = ConnectionError(f"the connection ended after {size(part.tell())}")
        except urllib.error.HTTPError as error:
            raise DataError(f"{url}: the server says {error.code} {error.reason}") from error
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
                raise
            problem = error
            if isinstance(error, urllib.error.URLError) and part.seek(0, os.SEEK_END) == 0:
                break  # no connection at all: trying again will not help
        if attempt + 1 < TRIES:
            progress.note(f"{problem}; trying again")
            time.sleep(attempt + 1)
    reason = getattr(problem, "reason", problem)
    raise DataError(f"cannot download {url}: {reason}") from problem


# --- the one door --------------------------------------------------------------------------------------------------


def from_sample() -> Cifar10:
    """The 5,000 training and 1,000 test images that ship with the package."""
    images, labels = sample.load()
    records = np.column_stack([labels, images.reshape(len(images), -1)])
    return _split(records[: sample.TRAIN], records[sample.TRAIN :], "the sample shipped with cgxffcv", complete=False)


SAMPLE_NOTE = """\
**********************************************************************************************
*  CIFAR-10 is missing and cannot be downloaded: using the SAMPLE that ships with cgxffcv,   *
*  5,000 training and 1,000 test images. Everything runs, but accuracy will be FAR LOWER     *
*  than with the 50,000 + 10,000 images of the full data set.                                *
**********************************************************************************************"""


def obtain(
    root: str | Path,
    source: str = "auto",
    url: str = OFFICIAL_URL,
    say: Say = print,
    mode: str = "auto",
    archive: Archive = BINARY,
    remedy: str = DOWNLOAD,
) -> Cifar10:
    """CIFAR-10 from `source`: local (under `root`), download, sample, or auto: the first of these that is available.

    Local files that exist but are damaged are an error in auto, too, since somebody meant them to be used. So is a
    folder `root` that cannot be read or written.
    """
    root = Path(root)
    if source == "sample":
        return from_sample()
    if source in ("auto", "local"):
        with _told(root, "read"):
            found = list(find(root))
        for path, read in found[:1]:
            say(f"CIFAR-10: reading {path}")
            return read(path, say)
        if source == "local":
            raise DataError(
                f"no CIFAR-10 in {root}: expected cifar-10-batches-bin/, cifar-10-batches-py/, {BINARY.name} or "
                f"cifar-10-python.tar.gz there. Put one there, or use {remedy}"
            )
    _open_part(root, archive).close()
    say(f"CIFAR-10: nothing in {root}; downloading {url} ({size(archive.bytes)})")
    try:
        return read_archive(download(root, url, archive, mode), say)
    except DataError as error:
        if source == "download":
            raise
        say(f"CIFAR-10: {error}")
        say(SAMPLE_NOTE)
        say(f"To use the full data set, put {BINARY.name} into {root}/ and run this again.")
        return from_sample()
