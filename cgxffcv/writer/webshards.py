"""Tar files of samples (the layout of WebDataset): members KEY.EXTENSION, one sample being all files of one KEY."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import lzma
import os
import random
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from cgxffcv import files
from cgxffcv.lengths import taken
from cgxffcv.wording import add_note, brief

TEXT = ("cls", "cls2", "index", "inx", "id", "count")
IMAGES = ("jpg", "jpeg", "png", "ppm", "pgm", "pbm", "bmp", "webp")
CHANNELS = {"l": "L", "rgb": "RGB"}
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
MAX_NAMES = 1 << 20  # of one pattern
MAX_DIGITS = 18
MAX_MEMBER_BYTES = 1 << 32
DAMAGE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError)


def expand(pattern: str) -> list[str]:
    """part-{00..12}.tar to its thirteen names. ValueError for a range that has none, or for too many names."""
    texts, count, parts = BRACES.split(pattern), 1, []
    for before, first, last in zip(texts[::3], texts[1::3], texts[2::3], strict=False):
        if len(last) > MAX_DIGITS or not 0 <= int(last) - int(first) < MAX_NAMES:
            raise ValueError(f"{brief(pattern)}: a range counts upwards, over at most {MAX_NAMES:,} names")
        numbers = range(int(first), int(last) + 1)
        count *= len(numbers)
        parts += [[before], [f"{number:0{len(first)}d}" for number in numbers]]
        if count > MAX_NAMES:
            raise ValueError(f"{brief(pattern)}: its ranges are more than {MAX_NAMES:,} names together; give fewer")
    return ["".join(name) for name in itertools.product(*parts, [texts[-1]])]


def _split(name: str) -> tuple[str, str]:
    """dir/key.a.b to (dir/key, a.b)."""
    folder, base = os.path.split(name)
    key, _, extension = base.partition(".")
    return os.path.join(folder, key), extension.lower()


def _decode(extension: str, data: bytes) -> Any:
    last = extension.rpartition(".")[2]
    if last in TEXT:
        try:
            return int(data)
        except ValueError:
            raise ValueError(f"{extension}: expected a whole number, not {brief(data)}") from None
    if last in ("txt", "text"):
        return data.decode()
    if last in ("json", "jsn"):
        return json.loads(data)
    if last == "npy":
        return np.load(io.BytesIO(data), allow_pickle=False)
    return data


@contextlib.contextmanager
def _opened(shard: str, mode: str) -> Iterator[tarfile.TarFile]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(files.naming(shard))
        file = stack.enter_context(files.open_plain(shard, "rb"))
        try:
            tar = stack.enter_context(tarfile.open(fileobj=file, mode=mode))
        except DAMAGE:  # its message has a line for each compression that was tried
            raise tarfile.ReadError(f"{shard}: not a tar file, plain or compressed with gzip, bzip2 or xz") from None
        try:
            yield tar
        except (*DAMAGE, OSError) as error:
            if getattr(error, "errno", None) is not None:  # the system's; those of gzip and bz2 have no number
                raise
            raise tarfile.ReadError(f"{shard}: damaged, or not all of it: {error}") from None


def _image(kind: str) -> Callable[[bytes], Any]:
    """The function that decodes images for `decode(kind)`, in WebDataset's terms."""
    known = re.fullmatch("(pil)(l|rgb)?()|()(l|rgb)(8)?", kind)
    if known is None:
        raise ValueError(
            f"decode({kind!r}): images become arrays with 'rgb8', 'rgb', 'l8' or 'l', and Pillow's with 'pil', "
            "'pilrgb' or 'pill'; a function of ('.EXTENSION', data) may decode anything"
        )

    opened, channels, eight = known.groups()[:3] if kind.startswith("pil") else known.groups()[3:]

    def decode(data: bytes) -> Any:
        from PIL import Image  # ImportError names it

        with Image.open(io.BytesIO(data)) as image:
            image.load()
            converted = image.convert(CHANNELS[channels or "rgb"])
        if opened:
            return converted
        return np.asarray(converted) if eight else np.asarray(converted, np.float32) / 255

    return decode


Samples = Iterator[Any]


class Shards:
    """The samples of the shards in order, as dicts {"__key__": KEY, EXTENSION: bytes}.

    `decode`, `rename`, `select`, `shuffle`, `to_tuple`, `map_tuple` and `map` return a new object with that stage
    added.
    """

    def __init__(
        self,
        shards: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        stages: Sequence[Callable[[Samples], Samples]] = (),
        images: tuple[int, Callable[[bytes], Any]] | None = None,
    ):
        """images: after how many stages images are decoded, and how, if a function of the user's looks at them."""
        too_many = f"there may be at most {MAX_NAMES:,} shards, not "
        one = isinstance(shards, str | os.PathLike)
        given = [shards] if one else taken(shards, MAX_NAMES, lambda: too_many + brief(shards))
        self.shards = [name for item in given for name in expand(os.fspath(item))]
        self.stages, self.images = tuple(stages), images

    def _then(self, stage: Callable[[Samples], Samples]) -> Shards:
        return Shards(self.shards, (*self.stages, stage), self.images)

    def _each(self, function: Callable[[Any], Any]) -> Shards:
        """A generator, since a StopIteration of the function's would end a `map` as if there were no more samples."""
        return self._then(lambda samples: (function(sample) for sample in samples))

    def _looked_at(self) -> Shards:
        """The same with images decoded. If nobody looks at them they stay bytes, which the file can hold unchanged."""
        if self.images is None:
            return self
        at, decode = self.images

        def decoded(sample: dict[str, Any]) -> dict[str, Any]:
            return {k: decode(v) if k.rpartition(".")[2] in IMAGES else v for k, v in sample.items()}

        return Shards(self.shards, (*self.stages[:at], lambda samples: map(decoded, samples), *self.stages[at:]))

    def map(self, function: Callable[[Any], Any]) -> Shards:
        return self._looked_at()._each(function)

    def select(self, predicate: Callable[[Any], Any]) -> Shards:
        """Only the samples for which it holds."""
        return self._looked_at()._then(lambda samples: (sample for sample in samples if predicate(sample)))

    def shuffle(self, size: int = 1000, *_: Any, seed: int = 0, **__: Any) -> Shards:
        """Draws each sample from the next `size` that there are. (A Loader shuffles every epoch in any case.)"""

        def shuffled(samples: Samples) -> Samples:
            draws, waiting = random.Random(seed), list(itertools.islice(samples, max(size, 1) - 1))
            for sample in samples:
                waiting.append(sample)
                at = draws.randrange(len(waiting))
                waiting[at], waiting[-1] = waiting[-1], waiting[at]
                yield waiting.pop()
            draws.shuffle(waiting)
            yield from waiting

        return self._then(shuffled)

    def decode(self, *ways: str | Callable[[str, bytes], Any]) -> Shards:
        """cls, index, id: int; txt: str; json: parsed; npy: an array; anything else stays bytes, also images, unless a
        way names what they become ("rgb8", "pil"...) and a function looks at them before they are written.

        ways: names of ways for images, or functions (".EXTENSION", data) that are asked first and return None for what
        they do not handle.
        """
        asked = [way for way in ways if callable(way)]
        kinds = [_image(way) for way in ways if not callable(way)]

        def value_of(extension: str, data: bytes) -> Any:
            answers = (way(f".{extension}", data) for way in asked)
            found = next((answer for answer in answers if answer is not None), None)
            return _decode(extension, data) if found is None else found

        def decoded(sample: dict[str, Any]) -> dict[str, Any]:
            try:
                return {k: v if k.startswith("__") else value_of(k, v) for k, v in sample.items()}
            except ValueError as error:
                raise ValueError(f"sample {sample['__key__']!r}: {error}") from error

        done = self._each(decoded)
        return Shards(done.shards, done.stages, (len(done.stages), kinds[0])) if kinds else done

    def to_tuple(self, *names: str) -> Shards:
        """The values under these extensions; one string may also name several, with spaces between them. "jpg;jpeg;png"
        takes the first that the sample has (also with ":" for ";", as in FFCV's documentation)."""
        choices = [re.split("[;:]", name) for text in names for name in text.split()]

        def pick(sample: dict[str, Any]) -> tuple[Any, ...]:
            found = []
            for choice in choices:
                known = [name for name in choice if name in sample]
                if not known:
                    has = ", ".join(k for k in sample if not k.startswith("__"))
                    raise ValueError(f"sample {sample['__key__']!r} has no {' or '.join(choice)}, only {has}")
                found.append(sample[known[0]])
            return tuple(found)

        return self._each(pick)

    def map_tuple(self, *functions: Callable[[Any], Any]) -> Shards:
        """Applies a function to each value; values without one stay as they are."""
        return self._looked_at()._each(
            lambda sample: (*(f(v) for f, v in zip(functions, sample, strict=False)), *sample[len(functions) :])
        )

    def rename(self, **names: str) -> Shards:
        """NEW="old;older": the first of the old names that a sample has becomes NEW."""

        def renamed(sample: dict[str, Any]) -> dict[str, Any]:
            found = {new: next((o for o in old.split(";") if o in sample), None) for new, old in names.items()}
            kept = {name: value for name, value in sample.items() if name not in found.values()}
            return {**kept, **{new: sample[old] for new, old in found.items() if old is not None}}

        return self._each(renamed)

    def __iter__(self) -> Iterator[Any]:
        last = ["no sample yet"]

        def read() -> Samples:
            for shard in self.shards:
                for sample in self._raw(shard):
                    last[0] = f"sample {sample['__key__']!r} of {shard}"
                    yield sample

        samples: Samples = read()
        for stage in self.stages:
            samples = stage(samples)
        try:
            yield from samples
        except Exception as error:
            add_note(error, f"the last one read: {last[0]}")
            raise

    @staticmethod
    def _raw(shard: str) -> Iterator[dict[str, Any]]:
        sample: dict[str, Any] = {}
        with _opened(shard, "r|*") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                if member.size > MAX_MEMBER_BYTES:  # a sparse one may say so in a few bytes
                    raise ValueError(f"{shard}: {member.name} has {member.size:,} bytes: more than 4 GiB are not read")
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
        """How many samples the shards hold, judging by their members' names."""
        return sum(self._count(shard) for shard in self.shards)

    @staticmethod
    def _count(shard: str) -> int:
        with _opened(shard, "r:*") as tar:
            return _runs(_split(member.name)[0] for member in tar if member.isfile())


def _runs(keys: Iterable[str]) -> int:
    """How often the value changes, counting the first."""
    count, last = 0, None
    for key in keys:
        count += key != last
        last = key
    return count
