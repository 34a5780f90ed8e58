"""What an operation asks for, in FFCV's terms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class AllocationQuery:
    """Memory for a batch of arrays (or tensors, if the dtype is torch's) of this shape."""

    shape: tuple[int, ...]
    dtype: Any
    device: Any = None
