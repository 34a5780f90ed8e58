"""Decoders: the first step of a pipeline, from a field's bytes to an array. Names and arguments as in FFCV 1.0.2."""

from __future__ import annotations

import ctypes
import operator
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from cgxffcv.fields.base import Field

__all__ = [
    "BytesDecoder",
    "CenterCropRGBImageDecoder",
    "Decoder",
    "FieldDecoder",
    "FloatDecoder",
    "FunctionDecoder",
    "IntDecoder",
    "JSONDecoder",
    "NDArrayDecoder",
    "RandomResizedCropRGBImageDecoder",
    "SimpleRGBImageDecoder",
]


class Decoder:
    """Base of all decoders. `kinds` are the kinds of fields it reads."""

    kinds: tuple[str, ...] = ()
    code: str = ""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class IntDecoder(Decoder):
    """Int fields: int64, shape (batch, 1)."""

    kinds, code = ("int",), "int"


class FloatDecoder(Decoder):
    """Float fields: float64, shape (batch, 1)."""

    kinds, code = ("float",), "float"


class NDArrayDecoder(Decoder):
    """NDArray and TorchTensor fields: the field's dtype, shape (batch, *shape)."""

    kinds, code = ("array", "tensor"), "array"


class BytesDecoder(Decoder):
    """Bytes and JSON fields: uint8, shape (batch, longest value of the file), each row padded with zeros.

    With `lengths=True` the output is a pair (values, lengths), lengths int64 of shape (batch,). JSON text comes
    without its final NUL.
    """

    kinds, code = ("bytes", "json"), "bytes"

    def __init__(self, lengths: bool = False):
        self.lengths = bool(lengths)

    def __repr__(self) -> str:
        return f"BytesDecoder(lengths={self.lengths})"


class JSONDecoder(Decoder):
    """JSON fields: a list of the batch's values, parsed by the json module in the consumer's thread.

    Raises BetonError, naming field and sample, for text that does not parse.
    """

    kinds, code = ("json",), "bytes"


class SimpleRGBImageDecoder(Decoder):
    """RGBImage fields whose images in use have one size: uint8, shape (batch, height, width, 3).

    Args:
        jpeg_mode: "accurate" (default), or "fast": libjpeg-turbo's fast inverse DCT, whose pixels equal FFCV's.
    """

    kinds, code = ("image",), "image"

    def __init__(self, jpeg_mode: str = "accurate"):
        if jpeg_mode not in ("accurate", "fast"):
            raise ValueError(f"jpeg_mode must be 'accurate' or 'fast', not {jpeg_mode!r}")
        self.jpeg_mode = jpeg_mode

    def __repr__(self) -> str:
        return f"SimpleRGBImageDecoder(jpeg_mode={self.jpeg_mode!r})"


class FieldDecoder(Decoder):
    """Fields of a user's own type (`custom_fields`), decoded once a batch in the thread that iterates: by default a
    list of what the field's `decode(record, data)` gives for each sample, or of (record, data) without a decode.

    A subclass, which the field's `get_decoder_class` returns or which stands in a pipeline, may override decode_batch.
    """

    kinds, code = ("custom",), "record"

    def decode_batch(self, field: Field, records: np.ndarray, data: list[np.ndarray] | None, ids: np.ndarray) -> Any:
        """The batch's entry. records: (batch,) of the field's metadata_type; data: each sample's bytes, uint8, None
        where the records are all there is; ids: the sample numbers, int64 (batch,). All of it goes with the batch."""
        rows = [None] * len(records) if data is None else [row.tobytes() for row in data]
        decode = getattr(field, "decode", None)
        pairs = zip(records, rows, strict=True)
        return list(pairs) if decode is None else [decode(record, row) for record, row in pairs]


def function_address(function: Any) -> int:
    """Where the machine code of a C function begins: of a numba.cfunc, a function of ctypes or cffi, or a number."""
    if hasattr(function, "address"):
        return operator.index(function.address)
    if isinstance(function, ctypes._CFuncPtr):
        return ctypes.cast(function, ctypes.c_void_p).value or 0
    cffi = sys.modules.get("_cffi_backend")
    if cffi is not None and isinstance(function, cffi.FFI.CData):
        return int(cffi.FFI().cast("uintptr_t", function))
    try:
        return operator.index(function)
    except TypeError:
        raise TypeError(
            f"{function!r} is no C function: give one of numba.cfunc, ctypes or cffi, or its address"
        ) from None


class FunctionDecoder(Decoder):
    """Any field: rows that a C function makes in the worker threads, any number of which call it at once.

        int32_t function(void *row, const void *record, const void *data, uint64_t size, uint64_t sample)

    fills `row`, whose bytes are zero before, from the sample's record and its `size` bytes of data as they are stored
    (NULL and 0 for a field without data). Another answer than 0 ends the pass with BetonError.

    Args:
        function: from numba.cfunc, ctypes or cffi, or its address. It must not touch Python objects.
        shape: of a row; the output's is (batch, *shape).
        dtype: of the rows.
    """

    kinds, code = ("int", "float", "image", "bytes", "array", "json", "tensor", "custom"), "function"

    def __init__(self, function: Any, shape: tuple[int, ...] = (), dtype: Any = np.uint8):
        self.function, self.address = function, function_address(function)
        self.shape, self.dtype = tuple(operator.index(side) for side in np.atleast_1d(shape)), np.dtype(dtype).name
        if self.address == 0:
            raise ValueError(f"{function!r} is a null pointer")

    def __repr__(self) -> str:
        return f"FunctionDecoder({self.function!r}, shape={self.shape}, dtype={self.dtype})"


class _Later(Decoder):
    def __init__(self, *args, **kwargs):
        raise NotImplementedError(
            f"{type(self).__name__} is not supported yet; the image decoder of this version is SimpleRGBImageDecoder "
            "(images of one size: write the file with images resized beforehand)"
        )


class CenterCropRGBImageDecoder(_Later):
    """Not supported yet: raises NotImplementedError."""


class RandomResizedCropRGBImageDecoder(_Later):
    """Not supported yet: raises NotImplementedError."""
