"""Checkpoints in the safetensors format: 8 bytes of header length, a JSON header, the tensors' bytes.

A state is a flat dict from names to NumPy arrays and JSON values; arrays become tensors, everything else goes as JSON
text into the header's ``__metadata__``, so any safetensors reader sees the tensors by their names. Files are written
whole or not at all, and equal states give equal bytes. Format: https://github.com/huggingface/safetensors (README).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
from collections.abc import Iterator
from os import PathLike
from typing import IO, Any, NamedTuple

import numpy as np

from cgxffcv import files, lengths
from cgxffcv.errors import UserError

__all__ = ["CheckpointError", "load", "save"]

_TYPES = {"BOOL": "|b1", "I8": "|i1", "U8": "|u1", "I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4"}
_TYPES |= {"I64": "<i8", "U64": "<u8", "F16": "<f2", "F32": "<f4", "F64": "<f8"}
_NAMES = {np.dtype(code): name for name, code in _TYPES.items()}
_METADATA = "__metadata__"
_ALIGNMENT = 8
_MAX_HEADER_BYTES = 100_000_000
_MAX_DEPTH = 100  # of a JSON value


class CheckpointError(UserError, ValueError):
    """A file is not a checkpoint, is damaged, or does not fit; the message names the file and the reason."""


def save(path: str | PathLike[str], state: dict[str, Any]) -> None:
    """Writes `state` to `path`, whole or not at all. OSError if that fails (disk full, no permission)."""
    tensors = {name: np.ascontiguousarray(value) for name, value in state.items() if isinstance(value, np.ndarray)}
    if not all(isinstance(name, str) for name in state) or _METADATA in state:
        raise TypeError(f"the names of a checkpoint's entries must be strings other than {_METADATA!r}")
    header: dict[str, Any] = {
        _METADATA: {
            name: json.dumps(value, sort_keys=True, allow_nan=True)
            for name, value in state.items()
            if name not in tensors
        }
    }
    at = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise TypeError(f"checkpoint entry {name!r}: {tensor.dtype} arrays cannot be saved")
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


class _Tensor(NamedTuple):
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class _Wrong(Exception):
    """Why a file is not a checkpoint."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Wrong("a name occurs twice in its header")
    return found


def _tensor(name: str, entry: Any) -> _Tensor:
    """What the header says about a tensor, as far as it can be checked by itself."""

    def counts(value: Any) -> bool:
        return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)

    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str) or entry["dtype"] not in _TYPES:
        raise _Wrong(f"tensor {name!r} does not have one of the types {', '.join(_TYPES)}")
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not counts(shape) or not counts(offsets) or len(offsets) != 2:
        raise _Wrong(f"tensor {name!r} has no shape or no offsets")
    dtype, (begin, end) = np.dtype(_TYPES[entry["dtype"]]), offsets
    try:
        np.empty(0, dtype).reshape([*shape, 0])  # NumPy's limits of sides, of their number and of their product
    except (ValueError, OverflowError):
        raise _Wrong(f"tensor {name!r} has too many or too long sides") from None
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise _Wrong(f"tensor {name!r} does not fill the {end - begin} bytes between its offsets")
    return _Tensor(name, dtype, tuple(shape), begin, end)


def _check_places(tensors: list[_Tensor], size: int) -> None:
    """Checks that the tensors are contiguous and fill the file."""
    at = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.begin, tensor.end)):
        if tensor.begin != at:
            raise _Wrong(f"tensor {tensor.name!r} does not begin at byte {at} of the data, where it should")
        at = tensor.end
    if at != size:
        raise _Wrong(f"its tensors take {at} bytes, but there are {size}")


def _depth_exceeds(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        inner = [item for item in level if isinstance(item, dict | list)]
        level = [x for item in inner for x in (item.values() if isinstance(item, dict) else item)]
    return bool(level)


def _value(name: str, text: Any) -> Any:
    """A JSON value of ours, or the plain text of other metadata."""
    if not isinstance(text, str):
        raise _Wrong(f"metadata {name!r} is not text")
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except ValueError:
        return text
    if _depth_exceeds(value, _MAX_DEPTH):
        raise RecursionError
    return value


def _read_start(file: IO[bytes]) -> tuple[dict[str, Any], list[_Tensor], int]:
    """The JSON values, the tensors, the bytes of data; leaves the file where the data begins."""
    size, start = os.fstat(file.fileno()).st_size, file.read(8)
    if len(start) < 8:
        raise _Wrong(f"{size} bytes are too few")
    (length,) = struct.unpack("<Q", start)
    if length > min(size - 8, _MAX_HEADER_BYTES):
        raise _Wrong(f"its header says {length} bytes, but the file has {size}")
    text = file.read(length)
    try:
        header = json.loads(text.decode(), object_pairs_hook=_unique)
    except ValueError as error:  # also UnicodeDecodeError
        raise _Wrong(f"its header is not JSON ({error})") from None
    if not isinstance(header, dict) or not isinstance(header.get(_METADATA, {}), dict):
        raise _Wrong("its header is not a JSON object")
    values = {name: _value(name, text) for name, text in header.pop(_METADATA, {}).items()}
    tensors = [_tensor(name, entry) for name, entry in header.items()]
    if _METADATA in values:
        raise _Wrong(f"a value has the name {_METADATA!r}")
    if not values.keys().isdisjoint(header):
        raise _Wrong("a name is used for both a value and a tensor")
    _check_places(tensors, size - 8 - length)
    return values, tensors, size - 8 - length


@contextlib.contextmanager
def _opened(path: str | PathLike[str]) -> Iterator[IO[bytes]]:
    """The file; anything wrong with it raises CheckpointError."""
    with files.naming(path), files.open_plain(path, "rb") as file:
        try:
            yield file
        except _Wrong as error:
            reason = str(error)
        except RecursionError:
            reason = "its header is nested too deeply"
        except MemoryError:
            reason = "it claims to hold more than fits into memory"
        else:
            return
    raise CheckpointError(f"{os.fspath(path)}: not a usable checkpoint: {reason}") from None


def load(path: str | PathLike[str]) -> dict[str, Any]:
    """The state that `save` wrote. OSError if it cannot be read, CheckpointError if it is not a checkpoint."""
    with _opened(path) as file:
        state, tensors, size = _read_start(file)
        if size > lengths.machine_bytes():
            raise MemoryError  # raised here, as a system that overcommits memory would notice too late
        data = np.empty(size, np.uint8)
        if file.readinto(memoryview(data)) != size:
            raise _Wrong("it was truncated while it was read")
        for tensor in tensors:
            part = data[tensor.begin : tensor.end]
            state[tensor.name] = np.frombuffer(part, tensor.dtype).reshape(tensor.shape).copy()
    return state
