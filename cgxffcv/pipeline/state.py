"""What an operation receives, in FFCV's terms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class State:
    """jit_mode: NumPy arrays, not tensors. shape and dtype of one sample."""

    jit_mode: bool
    device: Any
    shape: tuple[int, ...]
    dtype: Any
