"""RGB images, stored raw or as JPEG."""

from __future__ import annotations

import io
import os
from typing import Any

import _cgxffcv
import numpy as np
from _cgxffcv import WRITE_MODES

from cgxffcv import files
from cgxffcv.decoders import (  # noqa: F401 (where FFCV has them)
    CenterCropRGBImageDecoder,
    RandomResizedCropRGBImageDecoder,
    SimpleRGBImageDecoder,
)
from cgxffcv.fields.base import CoreField, Spec, _check_int, refuse_masked, spec

# Pillow's modes that turn into RGB without losing anything but a palette or an ink model.
PLAIN_MODES = ("RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV")
ALPHA_MODES = ("RGBA", "LA", "PA")


def _pixels(value: Any) -> np.ndarray:
    """A writable or read-only uint8 (height, width, 3) array whose rows are contiguous."""
    refuse_masked(value)
    array = np.asarray(value)
    if array.dtype != np.uint8:
        raise TypeError(f"an image must be uint8, not {array.dtype}")
    if array.ndim != 3 or array.shape[2] != 3:
        hint = "; np.moveaxis(image, 0, -1) turns CHW into HWC" if array.ndim == 3 and array.shape[0] == 3 else ""
        raise ValueError(f"an image must have shape (height, width, 3), not {array.shape}{hint}")
    if array.strides[1:] != (3, 1) or array.strides[0] < 3 * array.shape[1]:
        array = np.ascontiguousarray(array)
    return array


def _from_pillow(image: Any) -> np.ndarray:
    """The pixels of an opened image, if RGB can hold them: what is transparent, or deeper than 8 bits, is refused."""
    if image.mode in ALPHA_MODES or (image.mode in PLAIN_MODES and "transparency" in image.info):
        mode, image = image.mode, image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] < 255:
            raise ValueError(
                f"an image with transparency (Pillow's mode {mode}), which RGB cannot hold; put it on a background, or "
                "drop the transparency with image.convert('RGBA').convert('RGB')"
            )
    elif image.mode not in PLAIN_MODES:
        raise ValueError(
            f"an image of Pillow's mode {image.mode}, which has no 8-bit red, green and blue; scale or convert it: a "
            "uint8 array of shape (height, width, 3), or an image of mode RGB or L, can be stored"
        )
    return _pixels(image if image.mode == "RGB" else image.convert("RGB"))


def _check_resolution(resolution: Any) -> int:
    """From one number, or from two equal ones, as in FFCV's documentation; 0 if there is none."""
    if resolution is None:
        return 0
    sides = tuple(resolution) if isinstance(resolution, tuple | list) else (resolution,)
    if len(sides) == 2 and sides[0] == sides[1]:
        sides = sides[:1]
    if len(sides) != 1:
        raise ValueError(f"max_resolution must be one number, for the longer side, not {resolution!r}")
    return _check_int("max_resolution", sides[0], 1, 65535)


def _check_pixels(width: int, height: int) -> None:
    """Checks, before anything is decoded, what the core checks of JPEG streams by itself."""
    limit = _cgxffcv.max_image_pixels()
    if limit and width * height > limit:
        raise ValueError(
            f"{width} x {height} pixels are over the limit of {limit:,} (CGXFFCV_MAX_IMAGE_PIXELS, "
            "cgxffcv.set_max_image_pixels)"
        )


def _from_file(data: bytes, what: str) -> Any:
    """JPEG as it is if the format can hold it, anything else through Pillow."""
    try:
        _cgxffcv.jpeg_header(data)
        return data
    except _cgxffcv.BetonError as error:
        reason = str(error)
    try:
        from PIL import Image
    except ImportError:
        raise ValueError(
            f"{what}: {reason}; with Pillow installed (pip install Pillow) other images work too"
        ) from None
    try:
        image = Image.open(io.BytesIO(data))
        _check_pixels(*image.size)
        if getattr(image, "n_frames", 1) > 1:
            raise ValueError(f"{image.n_frames} pictures in one file; save the one that you mean by itself")
        image.load()
    # also UnidentifiedImageError
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        own = isinstance(error, Image.DecompressionBombError)  # the limit is half of what the error names
        remedy = f" PIL.Image.MAX_IMAGE_PIXELS, now {Image.MAX_IMAGE_PIXELS}, sets it" if own else ""
        message = str(error).partition(" <")[0]  # not the object in memory that Pillow was given
        raise ValueError(f"{what}: not a readable image ({reason}; Pillow: {message}{remedy})") from None
    with image:
        try:
            return _from_pillow(image)
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from None


class RGBImageField(CoreField):
    """Images of any size up to 65,535 x 65,535 (JPEG: 65,500).

    write_mode: "raw" (pixels), "jpg", "proportion" (each image JPEG with `compress_probability`, a pure function of the
    writer's seed and the sample's index), "smart" (JPEG if height * width * 3 > `smart_threshold`, in bytes; None means
    never), "given" (JPEG if it comes as JPEG).
    max_resolution: images whose longer side exceeds it are reduced to it by area resampling; (n, n) means the same.
    jpeg_quality: 1..100, for what is encoded here (baseline 4:2:0).

    Takes uint8 arrays and tensors (height, width, 3), Pillow images, and image files as bytes or by their path (all but
    JPEG through Pillow). Whichever way it comes, an image with transparent pixels, or with more than 8 bits per channel
    where Pillow keeps them (modes I;16, I, F), is refused rather than changed. JPEG data that is stored as JPEG at its
    own size is stored unchanged.
    """

    def __init__(
        self,
        write_mode: str = "raw",
        max_resolution: int | tuple[int, int] | None = None,
        smart_threshold: int | None = None,
        jpeg_quality: int = 90,
        compress_probability: float = 0.5,
    ):
        if write_mode not in WRITE_MODES:
            raise ValueError(f"write_mode must be one of {', '.join(WRITE_MODES)}, not {write_mode!r}")
        self.write_mode = write_mode
        self.max_resolution = _check_resolution(max_resolution)
        self.smart_threshold = -1 if smart_threshold is None else _check_int("smart_threshold", smart_threshold, 0)
        self.jpeg_quality = _check_int("jpeg_quality", jpeg_quality, 1, 100)
        self.compress_probability = float(compress_probability)
        if not 0 <= self.compress_probability <= 1:
            raise ValueError(f"compress_probability must be in 0..1, not {compress_probability}")

    def describe(self, name: str) -> Spec:
        jpeg = {"jpeg_quality": self.jpeg_quality, "compress_probability": self.compress_probability}
        sizes = {"max_resolution": self.max_resolution, "smart_threshold": self.smart_threshold}
        return spec("image", name, write_mode=self.write_mode, **sizes, **jpeg)

    def convert(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return _pixels(value)
        if isinstance(value, bytes | bytearray | memoryview):
            return _from_file(bytes(value), "the image's bytes")
        if isinstance(value, str | os.PathLike):
            with files.open_plain(value, "rb") as file:
                return _from_file(file.read(), os.fspath(value))
        if hasattr(value, "mode") and hasattr(value, "convert"):
            return _from_pillow(value)
        if hasattr(value, "cpu"):
            value = value.detach().cpu().numpy()
        if not hasattr(value, "__array__") and not hasattr(value, "__array_interface__"):
            kind = type(value).__name__
            raise TypeError(f"an image must be a uint8 array, a Pillow image, JPEG bytes or a path, not {kind}")
        return _pixels(value)

    def __repr__(self) -> str:
        return f"RGBImageField(write_mode={self.write_mode!r})"
