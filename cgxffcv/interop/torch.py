"""Torch, for programs that use it: they have imported it, or ask for its tensors. Only CGXState and cgx_hook need it,
which are imported, like Loader, with the first use of their names."""

from __future__ import annotations

import collections
import contextlib
import functools
import importlib
import importlib.util
import sys
import threading
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import _cgxffcv
import numpy as np

from cgxffcv.tensors import current_stream

if TYPE_CHECKING:
    from cgxffcv.interop.ddp.state import CGXState, cgx_hook
    from cgxffcv.loader.lightning import Loader

__all__ = [
    "CGXState",
    "FromGPU",
    "Loader",
    "cgx_hook",
    "find_torch",
    "is_tensor",
    "is_installed",
    "loaded_torch",
    "move",
    "to_bfloat16",
    "without_gradients",
]

_HOOK = "cgxffcv.interop.ddp.state"
_LATER = {"CGXState": _HOOK, "Loader": "cgxffcv.loader.lightning", "cgx_hook": _HOOK}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LATER[name]), name)


def loaded_torch() -> ModuleType | None:
    """The torch module, if the program has imported it."""
    return sys.modules.get("torch")


@functools.cache
def find_torch() -> ModuleType | None:
    """The torch module, or None where it is not installed: imported now, since the program asks for its tensors."""
    try:
        import torch
    except ImportError:
        return None
    return torch


def is_installed() -> bool:
    """True if torch could be imported, or has been."""
    return loaded_torch() is not None or importlib.util.find_spec("torch") is not None


def is_tensor(batch: Any) -> bool:
    """True if it is a torch tensor. Torch is not imported for this: without it there are none."""
    return isinstance(batch, getattr(loaded_torch(), "Tensor", ()))


def to_bfloat16(batch: np.ndarray) -> Any:
    """A torch tensor of bfloat16 from the type's bits in uint16."""
    torch = find_torch()
    return torch.from_numpy(batch.view(np.int16)).view(torch.bfloat16)


@dataclass(frozen=True)
class FromGPU:
    """Turns what a loader's core has made on a GPU into a torch tensor in torch's own memory: copied there on torch's
    current stream, so that torch's allocator knows who uses it, and the loader has its own memory back after the copy.

    Args:
        bits: the elements are the bits of bfloat16 in uint16.
        follow: the tensor is moved on to torch's current GPU, if that is another one by now.
        wait: it is complete when the call returns; else only in the order of the current stream.
    """

    bits: bool = False
    follow: bool = False
    wait: bool = False

    def __repr__(self) -> str:
        return "a copy in torch's memory"

    def __call__(self, batch: Any) -> Any:
        cuda = find_torch().cuda
        with cuda.device(batch.device):  # or a copy on GPU 1 would also set up GPU 0, if that is the current one
            tensor = find_torch().from_dlpack(batch.view("bfloat16") if self.bits else batch).clone()
            _cgxffcv.loader_batch_read(batch, current_stream("torch", batch.device))
        if self.follow and cuda.current_device() != batch.device:
            tensor = tensor.to("cuda", non_blocking=True)
        if self.wait:
            cuda.current_stream(tensor.device).synchronize()
        return tensor


class Copies:
    """Copies by GPUs that overlap the program's work: page-locked memory is kept until its copy is done, since a Loader
    would write its next batch there. The caller waits if more than `most` are in progress."""

    def __init__(self, most: int = 4):
        self.most = most
        self._lock = threading.Lock()
        self._kept: collections.deque[tuple[Any, Any]] = collections.deque()

    def keep(self, source: Any, event: Any) -> None:
        """`event` (of torch.cuda) comes after the copy of `source`."""
        with self._lock:
            self._kept.append((source, event))
            while self._kept and (len(self._kept) > self.most or self._kept[0][1].query()):
                self._kept.popleft()[1].synchronize()


_copies = Copies()


def move(batch: Any, device: str, non_blocking: bool) -> Any:
    """A torch tensor on another device; on a GPU, its copy may still be in progress."""
    moved = batch.to(device, non_blocking=non_blocking)
    if non_blocking and moved.is_cuda and not batch.is_cuda and batch.is_pinned():
        event = find_torch().cuda.Event()
        event.record(find_torch().cuda.current_stream(moved.device))
        _copies.keep(batch, event)
    return moved


def without_gradients() -> contextlib.AbstractContextManager:
    """Modules of torch, and whatever calls them, would otherwise tie each batch to a graph of everything that made
    it."""
    torch = loaded_torch()
    return contextlib.nullcontext() if torch is None else torch.no_grad()
