"""Checkpoints in the safetensors format: 8 bytes of header length, a JSON header, the tensors' bytes.

A state is a flat dict from names to NumPy arrays and JSON values; arrays become tensors, everything else goes as JSON
text into the header's ``__metadata__``, so any safetensors reader sees the tensors by their names. Files are written
whole or not at all, and equal states give equal bytes. Format: https://github.com/huggingface/safetensors (README).
"""

from __future__ import annotations

import json
import os
import struct
from os import PathLike
from typing import Any

import numpy as np

from cgxffcv import files
from cgxffcv.errors import UserError

__all__ = ["CheckpointError", "load", "read_header", "save"]

_TYPES = {
    "BOOL": "|b1", "I8": "|i1", "U8": "|u1", "I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4", "I64": "<i8",
    "U64": "<u8", "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip
_NAMES = {np.dtype(code): name for name, code in _TYPES.items()}
_ALIGNMENT = 8
_MAX_HEADER_BYTES = 100_000_000


class CheckpointError(UserError, ValueError):
    """A file is no checkpoint, is damaged, or does not fit; the message names file and reason."""


def save(path: str | PathLike[str], state: dict[str, Any]) -> None:
    """Writes `state` to `path`, whole or not at all. OSError if that fails (disk full, no permission)."""
    tensors = {name: np.ascontiguousarray(value) for name, value in state.items() if isinstance(value, np.ndarray)}
    header: dict[str, Any] = {
        "__metadata__": {
            name: json.dumps(value, sort_keys=True, allow_nan=True)
            for name, value in state.items()
            if name not in tensors
        }
    }
    at = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise TypeError(f"checkpoint entry {name!r}: {tensor.dtype} arrays cannot be kept")
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(state[name].shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    pieces = [struct.pack("<Q", len(text)), text]
    pieces += [memoryview(tensor.reshape(-1)).cast("B") for tensor in tensors.values() if tensor.nbytes]
    files.write(path, pieces)


def _fail(path: str | PathLike[str], reason: str) -> CheckpointError:
    return CheckpointError(f"{os.fspath(path)}: not a usable checkpoint: {reason}")


def _parse_header(path: str | PathLike[str], data: bytes | memoryview, size: int) -> dict[str, Any]:
    if size < 8:
        raise _fail(path, f"{size} bytes are too few")
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(size - 8, _MAX_HEADER_BYTES):
        raise _fail(path, f"its header says {length} bytes, but the file has {size}")
    try:
        header = json.loads(bytes(data[8 : 8 + length]).decode())
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise _fail(path, f"its header is not JSON ({error})") from None
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        raise _fail(path, "its header is not a JSON object")
    return header


def _tensor(path: str | PathLike[str], name: str, entry: Any, body: memoryview) -> np.ndarray:
    try:
        dtype, shape = np.dtype(_TYPES[entry["dtype"]]), tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        elems = 1
        for n in shape:
            if type(n) is not int or n < 0:
                raise ValueError
            elems *= n
        if type(begin) is not int or type(end) is not int or not 0 <= begin <= end <= len(body):
            raise ValueError
        if end - begin != elems * dtype.itemsize:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise _fail(path, f"tensor {name!r} does not fit into the file ({json.dumps(entry)[:120]})") from None
    return np.frombuffer(body[begin:end], dtype).reshape(shape).copy()


def load(path: str | PathLike[str]) -> dict[str, Any]:
    """The state that `save` wrote. OSError if it cannot be read, CheckpointError if it is not a checkpoint."""
    with files.naming(path), open(path, "rb") as file:
        data = memoryview(file.read())
    header = _parse_header(path, data, len(data))
    (length,) = struct.unpack("<Q", data[:8])
    body = data[8 + length :]
    state: dict[str, Any] = {}
    for name, text in header.pop("__metadata__", {}).items():
        try:
            state[name] = json.loads(text)
        except (TypeError, ValueError):
            state[name] = text
    covered = 0
    for name, entry in header.items():
        state[name] = _tensor(path, name, entry, body)
        covered += state[name].nbytes
    if covered != len(body):
        raise _fail(path, f"its tensors take {covered} bytes, but {len(body)} are there")
    return state


def read_header(path: str | PathLike[str]) -> dict[str, Any]:
    """Only the JSON values of a checkpoint (recipe, step, accuracy), without its tensors."""
    with files.naming(path), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        data = start + file.read(min(length, _MAX_HEADER_BYTES))
    values = {}
    for name, text in _parse_header(path, data, size).get("__metadata__", {}).items():
        try:
            values[name] = json.loads(text)
        except (TypeError, ValueError):
            values[name] = text
    return values
