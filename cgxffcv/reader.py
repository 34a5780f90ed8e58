"""Reading .beton files sample by sample and column by column. (Training reads batches: cgxffcv.Loader.)"""

from __future__ import annotations

import functools
import json
import operator
import os
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import _cgxffcv
import numpy as np

from cgxffcv import files
from cgxffcv.fields.base import ARGUMENT_BYTES, LAYOUT, CoreField, Field
from cgxffcv.sheet import as_html
from cgxffcv.tables import Tables, beton_error, status_of
from cgxffcv.wording import as_table, brief, counted, noted, size

DESCRIPTOR_BYTES = 17 + ARGUMENT_BYTES
CUSTOM_TYPE = 255
FFCV_TABLES = ("header", "field_descriptors", "handlers", "metadata_type", "metadata", "alloc_table")


@dataclass(frozen=True)
class FieldInfo:
    """One field of an open file.

    kind: int, float, image, bytes, array, json, tensor or custom. Arrays and tensors have `dtype` and `shape`. The
    extremes are over all samples: bytes of data, and for images sides and the numbers of JPEG and raw ones.
    """

    name: str
    kind: str
    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    min_bytes: int = 0
    max_bytes: int = 0
    min_width: int | None = None
    max_width: int | None = None
    min_height: int | None = None
    max_height: int | None = None
    num_jpeg: int | None = None
    num_raw: int | None = None

    def summary(self) -> str:
        """What is known besides the kind: "32 x 24 to 32 pixels (width x height), 12 JPEG, 0 raw, 1 kB to 2 kB"."""
        parts: list[str] = []
        if self.dtype is not None and self.shape is not None:
            parts.append(f"{self.dtype} {self.shape}")
        if self.kind == "image":
            ranges = ((self.min_width, self.max_width), (self.min_height, self.max_height))
            sides = [f"{low}" if low == high else f"{low} to {high}" for low, high in ranges]
            parts += [f"{sides[0]} x {sides[1]} pixels (width x height)", f"{self.num_jpeg} JPEG, {self.num_raw} raw"]
        if self.kind in ("image", "bytes", "json", "custom"):
            low, high = size(self.min_bytes), size(self.max_bytes)
            parts.append(f"{low} each" if self.min_bytes == self.max_bytes else f"{low} to {high}")
        return ", ".join(parts)


def custom_fields_of(path: str, classes: Mapping[str, Any]) -> dict[str, Field]:
    """The user's own fields of the file, made from the arguments in its header. Lenient: the core checks the file."""
    if not isinstance(classes, Mapping):
        raise TypeError(f"custom_fields must be a dict or None, not {brief(classes)}")
    found: dict[str, Field] = {}
    with files.open_plain(path, "rb") as file:
        head = file.read(24)
        count = struct.unpack_from("<H", head, 2)[0] if len(head) == 24 else 0
        for _ in range(count):
            descriptor = file.read(DESCRIPTOR_BYTES)
            if len(descriptor) < DESCRIPTOR_BYTES:
                break
            name = descriptor[1:17].split(b"\0")[0].decode("ascii", "replace")
            if descriptor[0] == CUSTOM_TYPE and name in classes:
                given = classes[name]
                arguments = np.frombuffer(descriptor, np.uint8, ARGUMENT_BYTES, 17)
                found[name] = given.from_binary(arguments) if isinstance(given, type) else given
                if not isinstance(found[name], Field):
                    raise TypeError(f"custom_fields[{name!r}] must be a Field, its class or one, not {given!r}")
    return found


def layouts_of(custom: Mapping[str, Field]) -> list[dict[str, Any]]:
    """What the core has to know about a user's own fields."""
    return [{"name": name, **dict(zip(LAYOUT, field.layout(), strict=True))} for name, field in custom.items()]


def check_custom_names(path: str, custom: Mapping[str, Any], kinds: Mapping[str, str]) -> None:
    """Raises KeyError or ValueError if custom_fields has a name that is not in the file, or one whose kind the core
    reads itself. A subclass of a core field may be named: what it stores, the core reads."""
    for name, given in custom.items():
        if name not in kinds:
            raise KeyError(f"{path} has no field {name!r}; it has {', '.join(kinds)}")
        if kinds[name] != "custom" and not issubclass(given if isinstance(given, type) else type(given), CoreField):
            raise ValueError(f"{path}: custom_fields names {name!r}, whose kind {kinds[name]} the core reads itself")


class Reader(Sequence[dict[str, Any]]):
    """An open .beton file: `reader[i]` is sample i as a dict from field names to values.

    path: the file. All of it but the data is checked when it is opened: BetonError says what is wrong. custom_fields:
    for fields of a user's own type, {name: class or instance} of cgxffcv.fields.Field. FFCV calls it custom_handlers.
    jpeg_mode: "accurate" or "fast" (libjpeg-turbo's fast IDCT, which FFCV uses). view: give raw images and arrays as
    read-only views of the file rather than copies. A view stays valid after close(); the file stays mapped until the
    last view is gone. If the file is truncated meanwhile, touching a view of what is gone ends the process (SIGBUS);
    everything else gives BetonError.

    Values: int -> int, float -> float, image -> uint8 (height, width, 3), bytes -> bytes, array -> its dtype and shape,
    json -> what json.loads returns, tensor -> a torch tensor if the program has imported torch, else an array,
    custom -> what the class's `decode` returns, else (record, data).

    Any number of threads may read from one Reader. A sample that cannot be read raises BetonError with attributes path,
    sample, field, offset and reason.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        custom_fields: Mapping[str, Any] | None = None,
        *,
        jpeg_mode: str = "accurate",
        view: bool = False,
        custom_handlers: Mapping[str, Any] | None = None,
    ):
        custom_fields = self._given = {**(custom_fields or {}), **(custom_handlers or {})}
        if jpeg_mode not in ("accurate", "fast"):
            raise ValueError(f"jpeg_mode must be 'accurate' or 'fast', not {jpeg_mode!r}")
        self.path = os.fspath(path)
        self._fast, self._view = jpeg_mode == "fast", view
        self._custom = custom_fields_of(self.path, custom_fields) if custom_fields else {}
        opened = status_of(self.path)
        self._file: _cgxffcv.BetonFile | None = _cgxffcv.BetonFile(self.path, layouts_of(self._custom))
        known = {entry.name for entry in FieldInfo.__dataclass_fields__.values()}
        raw = self._file.fields
        self.fields = {f["name"]: FieldInfo(**{k: v for k, v in f.items() if k in known}) for f in raw}
        self._infos = list(self.fields.values())
        self._index = {name: i for i, name in enumerate(self.fields)}
        check_custom_names(self.path, custom_fields, {name: info.kind for name, info in self.fields.items()})
        self._tables = Tables(self.path, self.fields, self._custom, opened)
        self.num_samples: int = self._file.num_samples
        self.page_size: int = self._file.page_size
        self.has_checksums: bool = self._file.has_checksums

    def __getattr__(self, name: str) -> Any:
        """FFCV's names: the tables as arrays (header, field_descriptors, metadata, alloc_table), and handlers."""
        if name in FFCV_TABLES and "_tables" in vars(self):
            return getattr(self._tables, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def file_name(self) -> str:
        """The file's path, under FFCV's name."""
        return self.path

    @property
    def field_names(self) -> list[str]:
        """The fields' names, in their order."""
        return list(self.fields)

    @property
    def num_fields(self) -> int:
        """How many fields a sample has."""
        return len(self.fields)

    def _open(self) -> Any:
        if self._file is None:
            raise ValueError(f"{self.path}: this reader is closed")
        return self._file

    def _field(self, name: str) -> int:
        try:
            return self._index[name]
        except KeyError:
            raise KeyError(f"{self.path} has no field {name!r}; it has {', '.join(self._index)}") from None

    def _sample(self, index: Any) -> int:
        number = operator.index(index)
        if not -self.num_samples <= number < self.num_samples:
            raise IndexError(f"sample {number} of {self.path}, which has {self.num_samples}")
        return number + self.num_samples if number < 0 else number

    def _value(self, field: int, sample: int) -> Any:
        info = self._infos[field]
        value = self._open().value(field, sample, view=self._view, fast=self._fast)
        if info.kind == "json":
            try:
                return json.loads(value)
            except (ValueError, RecursionError) as error:
                raise beton_error(
                    f"JSON that does not parse: {error}; write it again", self.path, info.name, sample
                ) from None
        if info.kind == "tensor":
            return _tensor(value)
        if info.kind == "custom":
            return self._decode_custom(info.name, value, sample)
        return value

    def _decode_custom(self, name: str, value: tuple[bytes, bytes | None], sample: int) -> Any:
        field = self._custom[name]
        decode = getattr(field, "decode", None)
        record = np.frombuffer(value[0], np.dtype(field.metadata_type))[0]
        if decode is None:
            return record, value[1]
        with noted(f"{self.path}: sample {sample}: field '{name}': {type(field).__name__}.decode"):
            return decode(record, value[1])

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: Any) -> Any:
        """Sample `index` (negative ones count from the end) as a dict; for a slice a list of them."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.num_samples))]
        sample = self._sample(index)
        return {name: self._value(field, sample) for name, field in self._index.items()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(self.num_samples))

    def value(self, index: int, field: str) -> Any:
        """One field of one sample."""
        return self._value(self._field(field), self._sample(index))

    def stored_image(self, index: int, field: str) -> tuple[str, int, int, bytes]:
        """("jpg" or "raw", width, height, the bytes as they are stored) of one image."""
        return self._open().stored_image(self._field(field), self._sample(index))

    def column(self, field: str) -> np.ndarray:
        """All values of an int field (int64) or a float field (float64), shape (num_samples,)."""
        number = self._field(field)
        if self._infos[number].kind not in ("int", "float"):
            holds = self._infos[number].kind
            raise TypeError(f"{self.path}: column reads fields of int or float; field {field!r} holds {holds}")
        return self._open().column(number)

    def sample_span(self, index: int) -> tuple[int, int]:
        """(begin, end): the bytes of the file that hold the sample's data; begin == end if it has none."""
        return self._open().sample_span(self._sample(index))

    @property
    def closed(self) -> bool:
        """True if the file has been closed."""
        return self._file is None

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        self._file = None

    def __reduce__(self) -> tuple:
        """A copy, or what another process unpickles, opens the file again. BetonError where another file has the name
        by now."""
        self._tables.check_same()
        options = {"jpeg_mode": "fast" if self._fast else "accurate", "view": self._view}
        return functools.partial(type(self), **options), (self._tables.path, self._given)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _repr_html_(self) -> str:
        return shown(self)

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}: {info.kind}" for name, info in self.fields.items())
        return f"<Reader {self.path}: {counted(self.num_samples, 'sample')}; {fields}>"


def shown(reader: Any) -> str:
    """What notebooks show for a Reader, or for those of several files: the fields, and images of some samples."""
    rows = [(info.name, f"{info.kind} {info.summary()}".rstrip()) for info in reader.fields.values()]
    table = as_table(f"{reader.path}: {counted(reader.num_samples, 'sample')}", rows)
    return as_html(table, None if reader.closed else reader)


def _tensor(array: np.ndarray) -> Any:
    torch = sys.modules.get("torch")
    if torch is None:
        return array
    return torch.from_numpy(array if array.flags.writeable else array.copy())
