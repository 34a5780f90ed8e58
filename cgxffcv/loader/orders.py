"""The orders in which an epoch visits samples: the core's own, and those that a user gives."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from cgxffcv.loader.loader import Loader


class OrderOption(Enum):
    """The order in which an epoch visits the samples.

    SEQUENTIAL: as in the file, or in `indices`. RANDOM: a permutation drawn from (seed, epoch). QUASI_RANDOM: the
    file's pages in random order, samples shuffled within windows of `window_pages` pages (order_kwargs, default 8),
    for data larger than memory.
    """

    SEQUENTIAL = 0
    RANDOM = 1
    QUASI_RANDOM = 2


def as_ids(values: Any, name: str, in_file: int) -> np.ndarray:
    """Sample numbers as a contiguous int64 array; a boolean mask of one entry for each sample of the file selects."""
    array = np.asarray(values)
    if array.dtype == bool and array.ndim == 1:
        if len(array) != in_file:
            raise IndexError(
                f"{name} is a boolean mask of {len(array)} entries, but the file has {in_file} samples; give one entry "
                "for each, or sample numbers"
            )
        array = np.flatnonzero(array)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TypeError(
            f"{name} must be a list of whole numbers, not an array of {array.dtype} with shape {array.shape}"
        )
    if array.size and int(array.min()) < 0:
        raise IndexError(f"{name} holds {int(array.min())}: sample numbers start at 0")
    return np.ascontiguousarray(array, dtype=np.int64)


def choose_order(order: Any, kwargs: dict[str, Any], loader: Loader):
    """(the core's order, the function from epoch to sample numbers or None, window of pages)."""
    if isinstance(order, OrderOption):
        window = kwargs.pop("window_pages", 8) if order is OrderOption.QUASI_RANDOM else 8
        if kwargs:
            raise TypeError(f"order_kwargs: {order} does not take {', '.join(kwargs)}")
        return order, None, window
    if getattr(order, "num_replicas", 1) > 1 and loader.world_size > 1:
        raise ValueError(
            "order: this sampler splits the samples over ranks itself; pass one that gives all samples, or leave rank "
            "and world_size out"
        )
    if isinstance(order, type):
        order = order(loader, **kwargs)
    elif kwargs:
        raise TypeError(f"order_kwargs ({', '.join(kwargs)}) are for QUASI_RANDOM or a class")
    if hasattr(order, "sample_order"):
        source = order.sample_order
    elif callable(order):
        source = order
    elif hasattr(order, "__iter__") and not isinstance(order, (str, bytes)):
        source = SamplerOrder(order)
    else:
        raise TypeError(
            f"order must be an OrderOption, an array of sample numbers, a sampler, or have sample_order(epoch), not "
            f"{order!r}"
        )
    return OrderOption.SEQUENTIAL, lambda epoch: as_ids(source(epoch), "order", loader._core.in_file), 8


class SamplerOrder:
    """An array, or a sampler in torch's manner: iterable, perhaps with set_epoch."""

    def __init__(self, sampler):
        self.sampler = sampler

    def __call__(self, epoch: int):
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)
        return self.sampler if isinstance(self.sampler, np.ndarray) else list(self.sampler)
