"""Bytes of any length."""

from __future__ import annotations

from typing import Any

import numpy as np

from cgxffcv.decoders import BytesDecoder  # noqa: F401 (where FFCV has them)
from cgxffcv.fields.base import CoreField, Spec, refuse_masked, spec


class BytesField(CoreField):
    """Any number of bytes. Takes bytes, bytearray, memoryview, and arrays (their elements' bytes)."""

    def describe(self, name: str) -> Spec:
        return spec("bytes", name)

    def convert(self, value: Any) -> Any:
        if isinstance(value, bytes):
            return value
        if isinstance(value, str):
            raise TypeError("bytes were expected, not str; encode it first")
        if isinstance(value, np.ndarray):
            refuse_masked(value)
            if value.dtype.hasobject:
                raise TypeError("bytes were expected, not an array of objects")
            return np.ascontiguousarray(value).reshape(-1).view(np.uint8) if value.size else b""
        if hasattr(value, "numpy") and hasattr(value, "cpu"):
            return self.convert(value.detach().cpu().numpy())
        try:
            view = memoryview(value)
        except TypeError:
            raise TypeError(f"bytes were expected, not {type(value).__name__}") from None
        return view if view.c_contiguous else view.tobytes()
