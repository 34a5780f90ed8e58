"""The tables of a .beton file as NumPy arrays, under the names that FFCV's Reader has for them. The core has opened the
file before, and so checked it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from cgxffcv import fields, files
from cgxffcv.fields.base import ARGUMENT_BYTES, RECORDS

HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ]
)
DESCRIPTOR = np.dtype([("type_id", "u1"), ("name", "u1", 16), ("arguments", "u1", ARGUMENT_BYTES)])
REGION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
PACKED = ("image", "bytes", "json")
PLAIN = {
    "int": fields.IntField,
    "float": fields.FloatField,
    "image": fields.RGBImageField,
    "bytes": fields.BytesField,
    "json": fields.JSONField,
}
SHAPED = {"array": fields.NDArrayField, "tensor": fields.TorchTensorField}


class Tables:
    """`infos`: of each field its kind, dtype and shape; `custom`: those of a user's own type."""

    def __init__(self, path: str, infos: Mapping[str, Any], custom: Mapping[str, fields.Field]):
        self.path, self.infos, self.custom = path, infos, custom

    def _table(self, dtype: np.dtype, count: int, offset: int) -> np.ndarray:
        """Of `count` entries, or of as many as the rest of the file has room for (-1)."""
        with files.open_plain(self.path, "rb") as file:
            file.seek(offset)
            data = np.frombuffer(file.read(dtype.itemsize * count if count >= 0 else -1), np.uint8)
        whole = len(data) // dtype.itemsize
        if whole < count:
            raise ValueError(f"{self.path} is shorter than when it was opened")
        return data[: whole * dtype.itemsize].view(dtype)

    @cached_property
    def header(self) -> np.void:
        return self._table(HEADER, 1, 0)[0]

    @cached_property
    def field_descriptors(self) -> np.ndarray:
        return self._table(DESCRIPTOR, len(self.infos), HEADER.itemsize)

    @cached_property
    def handlers(self) -> dict[str, fields.Field]:
        """A field of each, as it would be written."""
        made = {}
        for name, info in self.infos.items():
            if info.kind in SHAPED:
                made[name] = SHAPED[info.kind](info.dtype, info.shape)
            elif info.kind in PLAIN:
                made[name] = PLAIN[info.kind]()
            else:
                made[name] = self.custom.get(name)
        return made

    @cached_property
    def metadata_type(self) -> np.dtype:
        """Of a sample's record, one entry a field: f0, f1..."""
        names, formats, offsets, offset, largest = [], [], [], 0, 1
        for number, (name, info) in enumerate(self.infos.items()):
            if info.kind in RECORDS:
                dtype, alignment = RECORDS[info.kind], 1 if info.kind in PACKED else 8
            else:
                dtype, alignment = np.dtype(self.custom[name].metadata_type), self.custom[name].layout()[1]
            offset = -(-offset // alignment) * alignment
            names, formats, offsets = [*names, f"f{number}"], [*formats, dtype], [*offsets, offset]
            offset, largest = offset + dtype.itemsize, max(largest, alignment)
        size = -(-offset // largest) * largest
        return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": size})

    @cached_property
    def metadata(self) -> np.ndarray:
        begin = HEADER.itemsize + DESCRIPTOR.itemsize * len(self.infos)
        return self._table(self.metadata_type, int(self.header["num_samples"]), begin)

    @cached_property
    def alloc_table(self) -> np.ndarray:
        return self._table(REGION, -1, int(self.header["alloc_table_ptr"]))
