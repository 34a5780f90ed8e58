"""The kinds of field of a .beton file."""

from cgxffcv.fields.base import Field
from cgxffcv.fields.basics import FloatField, IntField
from cgxffcv.fields.bytes import BytesField
from cgxffcv.fields.json import JSONField
from cgxffcv.fields.ndarray import NDArrayField, TorchTensorField
from cgxffcv.fields.rgb_image import RGBImageField

__all__ = [
    "BytesField",
    "Field",
    "FloatField",
    "IntField",
    "JSONField",
    "NDArrayField",
    "RGBImageField",
    "TorchTensorField",
]
