"""FFCV's module of this name: the decoders."""

from cgxffcv.decoders import (
    BytesDecoder,
    CenterCropRGBImageDecoder,
    FieldDecoder,
    FloatDecoder,
    FunctionDecoder,
    IntDecoder,
    JSONDecoder,
    NDArrayDecoder,
    RandomResizedCropRGBImageDecoder,
    SimpleRGBImageDecoder,
)

__all__ = [
    "BytesDecoder",
    "CenterCropRGBImageDecoder",
    "FieldDecoder",
    "FloatDecoder",
    "FunctionDecoder",
    "IntDecoder",
    "JSONDecoder",
    "NDArrayDecoder",
    "RandomResizedCropRGBImageDecoder",
    "SimpleRGBImageDecoder",
]
