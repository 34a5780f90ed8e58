"""Decoders: the first step of a pipeline, from a field's bytes to an array. Names and arguments as in FFCV 1.0.2."""

from __future__ import annotations

import ctypes
import itertools
import math
import operator
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from cgxffcv.checked import Checked
from cgxffcv.wording import whole_number

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

    With `lengths=True` the output is a pair (values, lengths), lengths int64 of shape (batch,). With `offsets=True` it
    is (values, offsets), the values one after the other in one dimension, value i from offsets[i] to offsets[i + 1],
    int64 of shape (batch + 1,): that takes only the memory of the batch's values, while rows are as wide as the file's
    longest. JSON text comes without its final NUL.
    """

    kinds, code = ("bytes", "json"), "bytes"

    def __init__(self, lengths: bool = False, offsets: bool = False):
        if lengths and offsets:
            raise ValueError("BytesDecoder gives lengths or offsets, not both")
        self.lengths, self.offsets = bool(lengths), bool(offsets)

    def __repr__(self) -> str:
        return f"BytesDecoder(lengths={self.lengths}, offsets={self.offsets})"


def in_pieces(values: np.ndarray, offsets: np.ndarray) -> list[np.ndarray]:
    """The single values of a one-dimensional output."""
    return [values[begin:end] for begin, end in itertools.pairwise(offsets.tolist())]


class JSONDecoder(Decoder):
    """JSON fields: a list of the batch's values, parsed by the json module in the consumer's thread.

    Raises BetonError, naming field and sample, for text that does not parse.
    """

    kinds, code = ("json",), "bytes"


class ImageDecoder(Checked, Decoder):
    """Base of the decoders of images."""

    kinds = ("image",)

    modes: tuple[str, ...] = ("accurate", "fast")

    def __init__(self, jpeg_mode: str):
        self.jpeg_mode = jpeg_mode

    def _kept_jpeg_mode(self, jpeg_mode: str) -> str:
        if jpeg_mode not in self.modes:
            raise ValueError(f"jpeg_mode must be {' or '.join(map(repr, self.modes))}, not {jpeg_mode!r}")
        return jpeg_mode

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def crop(self, draws: int) -> dict[str, Any] | None:
        """The rectangle of each image, as the core takes it; `draws` numbers the output's draws. None: all of it."""
        return None


class SimpleRGBImageDecoder(ImageDecoder):
    """RGBImage fields whose images in use have one size: uint8, shape (batch, height, width, 3).

    Args:
        jpeg_mode: "accurate" (default), or "fast": libjpeg-turbo's fast inverse DCT, whose pixels equal FFCV's.
    """

    code = "image"

    def __init__(self, jpeg_mode: str = "accurate"):
        super().__init__(jpeg_mode)


def _two(values: Any, name: str) -> tuple[Any, Any]:
    try:
        first, second = values
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be two numbers, not {values!r}") from None
    return first, second


def _pair(values: Any, name: str) -> tuple[float, float]:
    low, high = map(float, _two(values, name))
    if not 0 <= low <= high or not math.isfinite(high):
        raise ValueError(f"{name} must be two numbers from 0 on, the lower one first, not {values!r}")
    return low, high


FILTERS = ("area", "bilinear_antialias", "nearest")


class _CropDecoder(ImageDecoder):
    """A rectangle of each image, resampled to `output_size`."""

    modes = ("accurate", "fast", "scaled")

    def __init__(self, output_size: tuple[int, int], interpolation: str, jpeg_mode: str):
        self.output_size, self.interpolation = output_size, interpolation
        super().__init__(jpeg_mode)

    def _kept_output_size(self, output_size: Any) -> tuple[int, int]:
        sides = _two(output_size, "output_size (height, width)")
        height, width = (whole_number(side, "a side of output_size") for side in sides)
        if not (1 <= height <= 65535 and 1 <= width <= 65535):
            raise ValueError(f"output_size must be (height, width), each in 1..65535, not {output_size!r}")
        return height, width

    def _kept_interpolation(self, interpolation: str) -> str:
        if interpolation not in FILTERS:
            raise ValueError(f"interpolation must be one of {', '.join(map(repr, FILTERS))}, not {interpolation!r}")
        return interpolation

    def _rectangle(self, draws: int, scale: tuple[float, float], ratio: tuple[float, float]) -> dict[str, Any]:
        height, width = self.output_size
        how = {"filter": self.interpolation, "shrinks": self.jpeg_mode == "scaled"}
        return {"height": height, "width": width, "scale": scale, "ratio": ratio, "list": draws, **how}


class CenterCropRGBImageDecoder(_CropDecoder):
    """RGBImage fields of any sizes: the central square, resampled: uint8, shape (batch, *output_size, 3).

    Args:
        output_size: (height, width).
        ratio: the square's side as a share of the image's shorter side, above 0 and at most 1; rounded down.
        interpolation: "area" (averages), "bilinear_antialias" (as Pillow's BILINEAR, to within one step of 255), or
            "nearest" (the pixel under the centre, as Pillow's NEAREST: for masks, whose numbers are classes).
        jpeg_mode: as SimpleRGBImageDecoder's; or "scaled": as "accurate", but where a JPEG's rectangle is at least 2, 4
            or 8 times as large as `output_size` it is decoded at that part of its size, from each block's low
            frequencies. That is faster, and its pixels are some steps away from the average of the whole image's.
    """

    code = "center_crop"

    def __init__(
        self,
        output_size: tuple[int, int],
        ratio: float,
        interpolation: str = "area",
        jpeg_mode: str = "accurate",
    ):
        self.ratio = ratio
        super().__init__(output_size, interpolation, jpeg_mode)

    def _kept_ratio(self, ratio: float) -> float:
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio must be above 0 and at most 1, not {ratio!r}")
        return float(ratio)

    def crop(self, draws: int) -> dict[str, Any]:
        return self._rectangle(draws, (1.0, 1.0), (self.ratio, self.ratio))


class RandomResizedCropRGBImageDecoder(_CropDecoder):
    """RGBImage fields of any sizes: a random rectangle, as torchvision's RandomResizedCrop draws it, resampled: uint8,
    shape (batch, *output_size, 3). In evaluation it is the largest central rectangle within `ratio`.

    Args:
        output_size: (height, width).
        scale: limits of the rectangle's share of the image's area.
        ratio: limits of its width over its height.
        interpolation, jpeg_mode: as CenterCropRGBImageDecoder's.
    """

    code = "random_resized_crop"

    def __init__(
        self,
        output_size: tuple[int, int],
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (0.75, 4 / 3),
        interpolation: str = "area",
        jpeg_mode: str = "accurate",
    ):
        self.scale, self.ratio = scale, ratio
        super().__init__(output_size, interpolation, jpeg_mode)

    def _kept_scale(self, scale: Any) -> tuple[float, float]:
        low, high = _pair(scale, "scale")
        if high > 1:
            raise ValueError(f"scale must be within 0..1, not {scale!r}")
        return low, high

    def _kept_ratio(self, ratio: Any) -> tuple[float, float]:
        low, high = _pair(ratio, "ratio")
        if low == 0:
            raise ValueError(f"ratio must be above 0, not {ratio!r}")
        return low, high

    def crop(self, draws: int) -> dict[str, Any]:
        return self._rectangle(draws, self.scale, self.ratio)


class SampleError(Exception):
    """The cause is what went wrong with the sample; a Loader turns it into a BetonError that also names the field."""


class FieldDecoder(Decoder):
    """Fields of a user's own type (`custom_fields`), decoded once per batch in the thread that iterates: by default a
    list of what the field's `decode(record, data)` returns for each sample, or of (record, data) without a decode.

    A subclass, returned by the field's `get_decoder_class` or given in a pipeline, may override decode_batch.
    """

    kinds, code = ("custom",), "record"

    def decode_batch(self, field: Field, records: np.ndarray, data: list[np.ndarray] | None, ids: np.ndarray) -> Any:
        """The batch's entry. records: (batch,) of the field's metadata_type; data: each sample's bytes, uint8, None if
        there are only records; ids: the sample numbers, int64 (batch,). All of it is valid only as long as the
        batch."""
        rows = [None] * len(records) if data is None else [row.tobytes() for row in data]
        decode = getattr(field, "decode", None)
        if decode is None:
            return list(zip(records, rows, strict=True))
        values: list[Any] = []
        try:
            for record, row in zip(records, rows, strict=True):
                values.append(decode(record, row))
        except Exception as error:
            raise SampleError(int(ids[len(values)])) from error
        return values


class Address(int):
    """The address of a function; keeps the function alive wherever the core holds the address."""

    function: Any = None


def found_address(function: Any) -> int | None:
    """The address of a C function's machine code: of a numba.cfunc, or of a function of ctypes or cffi; None for
    anything else."""
    if hasattr(getattr(function, "address", None), "__index__"):
        return operator.index(function.address)
    if isinstance(function, ctypes._CFuncPtr):
        return ctypes.cast(function, ctypes.c_void_p).value or 0
    cffi = sys.modules.get("_cffi_backend")
    if cffi is not None and isinstance(function, cffi.FFI.CData):
        return int(cffi.FFI().cast("uintptr_t", function))
    return None


def function_address(function: Any) -> Address:
    """The same, or an address given as a number. Raises TypeError or ValueError if there is no function."""
    address = found_address(function)
    try:
        address = operator.index(function) if address is None else address
    except TypeError:
        raise TypeError(
            f"{function!r} is not a C function: give one of numba.cfunc, ctypes or cffi, or its address"
        ) from None
    if address == 0:
        raise ValueError(f"{function!r} is a null pointer")
    kept = Address(address)
    kept.function = function
    return kept


def row_shape(shape: Any) -> tuple[int, ...]:
    return tuple(whole_number(side, "a side of shape") for side in np.atleast_1d(shape))


def row_dtype(dtype: Any) -> str:
    if dtype is None or not np.dtype(dtype).isnative:
        raise ValueError(f"dtype must have this machine's byte order, not {dtype!r}")
    return np.dtype(dtype).name


class FunctionDecoder(Decoder):
    """Any field: rows made by a C function in the worker threads, any number of which call it at the same time.

        int32_t function(void *row, const void *record, const void *data, uint64_t size, uint64_t sample)

    fills `row`, whose bytes are zero at first, from the sample's record and its `size` bytes of data as they are stored
    (NULL and 0 for a field without data). A return value other than 0 ends the pass with BetonError.

    Args:
        function: from numba.cfunc, ctypes or cffi, or its address. It must not touch Python objects.
        shape: of a row; the output's is (batch, *shape).
        dtype: of the rows.
    """

    kinds, code = ("int", "float", "image", "bytes", "array", "json", "tensor", "custom"), "function"

    def __init__(self, function: Any, shape: tuple[int, ...] = (), dtype: Any = np.uint8):
        self.function, self.address = function, function_address(function)
        self.shape, self.dtype = row_shape(shape), row_dtype(dtype)

    def __repr__(self) -> str:
        return f"FunctionDecoder({self.function!r}, shape={self.shape}, dtype={self.dtype})"
