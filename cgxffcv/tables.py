"""The tables of a .beton file as NumPy arrays, under the names that FFCV's Reader has for them. The core has already
opened the file, and so checked it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import _cgxffcv
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


def beton_error(
    reason: str, path: str | None = None, field: str | None = None, sample: int | None = None, offset: int | None = None
) -> _cgxffcv.BetonError:
    """A BetonError as the C core makes them: message and attributes."""
    where = [] if path is None else [f"{path}: "]
    where += [] if sample is None else [f"sample {sample}: "]
    where += [] if not field else [f"field '{field}': "]
    error = _cgxffcv.BetonError("".join(where) + reason)
    error.path, error.offset, error.field, error.sample, error.reason = path, offset, field or None, sample, reason
    return error


def status_of(path: str) -> os.stat_result | None:
    """The status of a file that is about to be opened; None if opening will fail, and say why."""
    try:
        return os.stat(path)
    except (OSError, ValueError):
        return None


def check_same(path: str, now: os.stat_result, then: os.stat_result | None) -> None:
    """BetonError where `path`, of status `now`, is another file than the one that was opened, of status `then`."""
    if then is None or (now.st_dev, now.st_ino) != (then.st_dev, then.st_ino):
        raise beton_error("another file has taken its place since it was opened; open it again", path)


class Tables:
    """`infos`: of each field its kind, dtype and shape; `custom`: those of a user's own type; `opened`: the file's
    status when the core opened it. BetonError if the name is another file's now, or the file is shorter."""

    def __init__(self, path: str, infos: Mapping[str, Any], custom: Mapping[str, fields.Field], opened: Any):
        self.infos, self.custom, self.opened = infos, custom, opened
        self.path = os.path.abspath(path)  # so that it is also found from another folder

    def check_same(self) -> None:
        """BetonError if the name is another file's now. One that is gone says so when it is opened."""
        now = status_of(self.path)
        if now is not None:
            check_same(self.path, now, self.opened)

    def _table(self, dtype: np.dtype, count: int, offset: int) -> np.ndarray:
        """A table of `count` entries, or of as many as the rest of the file had room for when it was opened (-1)."""
        with files.open_plain(self.path, "rb") as file:
            then = self.opened
            check_same(self.path, os.fstat(file.fileno()), then)
            if count < 0:
                count = max(then.st_size - offset, 0) // dtype.itemsize
            size = dtype.itemsize * count
            file.seek(min(offset, then.st_size))
            data = np.frombuffer(file.read(min(size, then.st_size)), np.uint8)
        if len(data) < size:
            raise beton_error("the file has become shorter since it was opened; write it again", self.path)
        return data.view(dtype)

    @cached_property
    def header(self) -> np.void:
        return self._table(HEADER, 1, 0)[0]

    @cached_property
    def field_descriptors(self) -> np.ndarray:
        return self._table(DESCRIPTOR, len(self.infos), HEADER.itemsize)

    @cached_property
    def handlers(self) -> dict[str, fields.Field]:
        """A field for each, as it would be written."""
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
        """The dtype of a sample's record, one entry per field: f0, f1..."""
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
