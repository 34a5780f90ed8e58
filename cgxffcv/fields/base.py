"""What every field of a .beton file has in common, and how a user's own field is made."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from cgxffcv.decoders import FieldDecoder

ARGUMENT_BYTES = 1024
MAX_NAME = 16  # bytes of a field's name in a file

# What the C core takes for one field: see csrc/python/beton_values.c.
Spec = dict[str, Any]
LAYOUT = ("record_bytes", "record_alignment", "pointer_offset", "size_offset")


def spec(
    kind: str,
    name: str,
    *,
    write_mode: str = "raw",
    max_resolution: int = 0,
    smart_threshold: int = -1,
    jpeg_quality: int = 90,
    compress_probability: float = 0.5,
    dtype: str = "uint8",
    shape: tuple[int, ...] = (),
    record_bytes: int = 0,
    record_alignment: int = 1,
    pointer_offset: int = -1,
    size_offset: int = -1,
    arguments: bytes = b"",
) -> Spec:
    return dict(locals())


class Field:
    """One column of a data set.

    The fields of this package (IntField, RGBImageField...) override `describe` and `convert`. A field of your own
    (type 255) subclasses this and defines, as with FFCV:

    - `metadata_type`: the NumPy dtype of its record, a class attribute or property. Its entry `pointer_field` (default
      "ptr", u8) holds the position of the sample's data, its entry `size_field` (default "size", u8), if any, the
      number of bytes. Without a pointer entry the record holds everything.
    - `encode(destination, value, malloc)`: fills `destination`, an array of one record; `malloc(n)` returns (pointer,
      uint8 array of n) for the data, at most once per sample. The pointer is a placeholder: the writer stores the real
      one in `pointer_field`.
    - optionally `to_binary()` -> at most 1,024 bytes kept in the file's header, `from_binary(arguments)` -> the field,
      `decode(record, data)` -> the value, which `Reader` then gives instead of (record, data), and
      `get_decoder_class()` -> the class of decoder that a `Loader` uses, made without arguments.
    """

    metadata_type: Any = None
    pointer_field: ClassVar[str] = "ptr"
    size_field: ClassVar[str] = "size"

    def to_binary(self) -> bytes | np.ndarray:
        """The bytes that the file's header keeps for this field, at most 1,024."""
        return b""

    def check(self) -> None:
        """Raises TypeError if anything that this field defines would be ignored."""

    def converter(self) -> Callable[[Any], Any]:
        """The function that turns values into what the core takes; it checks what a user's `convert` of a core field
        returns."""
        return self.convert

    @classmethod
    def from_binary(cls, arguments: np.ndarray) -> Field:
        """The field whose `to_binary` gave these 1,024 bytes (uint8, zero-padded)."""
        return cls()

    def get_decoder_class(self) -> type:
        """The class of the field's decoder in a Loader: cgxffcv.decoders.FieldDecoder or a subclass."""
        return FieldDecoder

    def encode(self, destination: np.ndarray, value: Any, malloc: Callable[[int], tuple[int, np.ndarray]]) -> None:
        """Writes a value: its record into `destination`, of `metadata_type`, other bytes into memory from
        malloc(count), which returns their position in the file and that memory."""
        raise TypeError(f"{type(self).__name__} must define encode(destination, value, malloc)")

    def layout(self) -> tuple[int, int, int, int]:
        """(record bytes, alignment, offset of the pointer or -1, offset of the size or -1) of a custom field."""
        if self.metadata_type is None:
            raise TypeError(f"{type(self).__name__} must define metadata_type, the NumPy dtype of its record")
        dtype = np.dtype(self.metadata_type)
        offsets = {}
        for role, entry in (("pointer", self.pointer_field), ("size", self.size_field)):
            known = (dtype.fields or {}).get(entry)
            if known is not None and known[0] != np.dtype("<u8"):
                raise TypeError(
                    f"{type(self).__name__}: entry {entry!r} of metadata_type must be '<u8', not {known[0]}"
                )
            offsets[role] = -1 if known is None else int(known[1])
        if offsets["pointer"] < 0:
            offsets["size"] = -1
        return dtype.itemsize, dtype.alignment, offsets["pointer"], offsets["size"]

    def describe(self, name: str) -> Spec:
        """What the C core has to know about the field."""
        binary = self.to_binary()
        arguments = binary.tobytes() if isinstance(binary, np.ndarray) else bytes(binary)
        return spec("custom", name, arguments=arguments, **dict(zip(LAYOUT, self.layout(), strict=True)))

    def convert(self, value: Any) -> Any:
        """The value as the C core takes it; TypeError or ValueError says what is wrong with it."""
        record = np.zeros(1, np.dtype(self.metadata_type))
        regions: list[np.ndarray] = []

        def malloc(size: int) -> tuple[int, np.ndarray]:
            if regions:
                raise ValueError(f"{type(self).__name__}.encode called malloc twice; a sample has one data region")
            regions.append(np.zeros(int(size), np.uint8))
            return 0, regions[0]

        self.encode(record, value, malloc)
        has_pointer = self.layout()[2] >= 0
        if has_pointer != bool(regions):
            need, there = ("must", "a") if has_pointer else ("must not", "no")
            raise ValueError(f"{type(self).__name__}.encode {need} call malloc: its record has {there} pointer")
        return record.tobytes(), regions[0] if regions else None

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


# What FFCV, or this package for a field of type 255, calls to write and read a value.
HOOKS = ["metadata_type", "decode", "to_binary", "from_binary", "get_decoder_class"]
HOOKS += ["pointer_field", "size_field", "layout"]


# Records of the fields that the core stores, as FFCV's `encode` fills them.
BYTES_RECORD = np.dtype([("ptr", "<u8"), ("size", "<u8")])
RECORDS = {
    "int": np.dtype("<i8"),
    "float": np.dtype("<f8"),
    "bytes": BYTES_RECORD,
    "json": BYTES_RECORD,
    "image": np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")]),
    "array": np.dtype("<u8"),
    "tensor": np.dtype("<u8"),
}


class Encoded:
    """What a user's `encode` of a core field does with its `malloc`: the value that it passes to super().encode, or the
    memory that it fills itself."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.regions: list[np.ndarray] = []

    def __call__(self, size: int) -> tuple[int, np.ndarray]:
        self.regions.append(np.zeros(size, np.uint8))
        return 0, self.regions[-1]


class CoreField(Field):
    """A kind of field that the C core encodes and decodes itself. A subclass may override `convert`, which returns the
    value to store, or, as with FFCV, `encode`, which passes that value to super().encode, or fills destination and
    memory itself. The other hooks of a field of type 255 are never called, so a subclass that overrides them is
    refused."""

    def encode(self, destination: np.ndarray, value: Any, malloc: Callable[[int], tuple[int, np.ndarray]]) -> None:
        if not isinstance(malloc, Encoded):
            raise TypeError(f"{type(self).__name__}.encode is called only by the writer")
        malloc.values.append(value)

    def _encoded(self, value: Any) -> Any:
        """The value that a user's `encode` stores for this one."""
        encoded, kind = Encoded(), self.describe("field")["kind"]
        destination = np.zeros(1, RECORDS[kind])
        self.encode(destination, value, encoded)
        if encoded.values:
            return encoded.values[-1]
        if kind in ("int", "float"):
            return destination[0]
        if len(encoded.regions) != 1 or kind == "image":
            raise ValueError(f"{type(self).__name__}.encode must call super().encode, or malloc once")
        return self._of_bytes(encoded.regions[0])

    def _of_bytes(self, data: np.ndarray) -> Any:
        """The value whose stored bytes these are."""
        return data.tobytes()

    def _kind(self) -> type[CoreField]:
        """The class of this package that the field derives from."""
        return next(base for base in type(self).__mro__ if base.__module__.startswith("cgxffcv."))

    def check(self) -> None:
        for hook in HOOKS:
            own = inspect.getattr_static(type(self), hook, None)
            if hook in vars(self) or own is not inspect.getattr_static(CoreField, hook, None):
                raise TypeError(
                    f"{type(self).__name__} overrides {hook}, which is never called for a {self._kind().__name__}: the "
                    "core stores and reads it. Override convert(value), which gives the value to store, or make a "
                    "field of your own: a subclass of Field with metadata_type and encode"
                )

    def _overrides(self, hook: str) -> bool:
        return hook in vars(self) or getattr(type(self), hook) is not getattr(self._kind(), hook)

    def converts_itself(self) -> bool:
        """True if `convert` or `encode` is not this package's, so that each value must go through it."""
        return self._overrides("convert") or self._overrides("encode")

    def converter(self) -> Callable[[Any], Any]:
        check = self._kind().convert.__get__(self)
        if self._overrides("encode"):
            return lambda value: check(self._encoded(value))
        if self._overrides("convert"):
            return lambda value: check(self.convert(value))
        return self.convert


def refuse_masked(value: Any) -> None:
    """Raises ValueError if elements are masked: a file cannot hold a mask."""
    if np.ma.is_masked(value):
        raise ValueError("a masked array has elements without a value: give them one with filled()")


def _check_int(name: str, value: Any, least: int, most: int | None = None) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    number = int(value)
    if number < least or (most is not None and number > most):
        wanted = f"in {least}..{most}" if most is not None else f"at least {least}"
        raise ValueError(f"{name} must be {wanted}, not {number}")
    return number
