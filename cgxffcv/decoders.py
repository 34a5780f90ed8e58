"""Decoders: the first step of a pipeline, from a field's bytes to an array. Names and arguments as in FFCV 1.0.2."""

from __future__ import annotations

__all__ = [
    "BytesDecoder",
    "CenterCropRGBImageDecoder",
    "Decoder",
    "FloatDecoder",
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
