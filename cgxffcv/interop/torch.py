"""Torch, where it is installed; nothing here needs it but CGXState and cgx_hook, which come with the first use of their
names."""

from __future__ import annotations

import contextlib
import functools
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from cgxffcv.interop.ddp.state import CGXState, cgx_hook

__all__ = ["CGXState", "cgx_hook", "find_torch", "is_tensor", "to_bfloat16", "without_gradients"]


def __getattr__(name: str) -> Any:
    if name not in ("CGXState", "cgx_hook"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cgxffcv.interop.ddp import state

    return getattr(state, name)


@functools.cache
def find_torch() -> ModuleType | None:
    """The torch module, or None where it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    return torch


def is_tensor(batch: Any) -> bool:
    torch = find_torch()
    return torch is not None and isinstance(batch, torch.Tensor)


def to_bfloat16(batch: np.ndarray) -> Any:
    """bfloat16 bits in uint16 to a torch tensor of that type."""
    torch = find_torch()
    return torch.from_numpy(batch.view(np.int16)).view(torch.bfloat16)


def without_gradients() -> contextlib.AbstractContextManager:
    """Modules of torch, and whatever calls them, would else tie each batch to a graph of all that made it."""
    torch = sys.modules.get("torch")
    return contextlib.nullcontext() if torch is None else torch.no_grad()
