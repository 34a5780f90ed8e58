"""The orders in which an epoch visits samples: the core's own, and those that a user gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

import _cgxffcv
import numpy as np

from cgxffcv import lengths

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
    lengths.check_fits(values, name)
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise TypeError(f"{name} must be a list of whole numbers ({error})") from None
    if array.dtype == bool and array.ndim == 1:
        if len(array) != in_file:
            raise IndexError(
                f"{name} is a boolean mask of {len(array)} entries, but the file has {in_file} samples; give one entry "
                "for each, or sample numbers"
            )
        array = np.flatnonzero(array)
    if array.size == 0 and array.ndim == 1:
        array = array.astype(np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TypeError(
            f"{name} must be a list of whole numbers, not an array of {array.dtype} with shape {array.shape}"
        )
    if array.size and int(array.min()) < 0:
        raise IndexError(f"{name} holds {int(array.min())}: sample numbers start at 0")
    if array.size and int(array.max()) >= in_file:
        at = int(array.argmax())
        raise IndexError(f"{name}[{at}] is {int(array[at])}, but the file has {in_file} samples")
    return np.ascontiguousarray(array, dtype=np.int64)


def is_array_like(values: Any) -> bool:
    return hasattr(values, "__array__") or isinstance(values, Sequence)


def random_order(samples: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """These samples as a Loader with OrderOption.RANDOM visits them in an epoch, for all ranks."""
    return _cgxffcv.loader_shuffled(samples, seed, epoch)


def share_of_order(
    order: np.ndarray, batch_size: int, rank: int, world_size: int, drop_last: bool = False
) -> np.ndarray:
    """What a rank's batches take from an epoch's order, one batch after the other."""
    return _cgxffcv.loader_share(order, batch_size, world_size, rank, drop_last)


class OwnOrder:
    """An order that a user gives: a function from epoch to sample numbers, or a sampler in torch's manner (iterable,
    perhaps with set_epoch). What it gives is restricted to the samples in use.

    `lasting`: asking it draws nothing, as it is a plain sequence.
    """

    def __init__(self, source: Any, indices: np.ndarray | None, in_file: int):
        self.source, self.in_file = source, in_file
        self.lasting = is_array_like(source) and not hasattr(source, "set_epoch")
        self._in_use: np.ndarray | None = None
        if indices is not None:
            self._in_use = np.zeros(in_file, bool)
            self._in_use[indices] = True

    def known_length(self) -> int | None:
        """The number of samples of an epoch, if the order knows it without being asked for them."""
        if self._in_use is not None or self.lasting or callable(self.source):
            return None
        try:
            return len(self.source)
        except (TypeError, NotImplementedError):
            return None

    def draw(self, epoch: int) -> np.ndarray:
        """The samples of an epoch, for all ranks. May draw from the user's random numbers."""
        given = self._finite(self._values(epoch))
        ids = self.restrict(as_ids(given, "order", self.in_file))
        if np.may_share_memory(ids, given):  # the user's own may change while the epoch, and its state, go on
            ids = ids.copy()
        if len(ids) == 0 and self.in_file > 0:
            raise ValueError(
                f"order gives no samples in epoch {epoch} (an iterator that can be read only once?): give a list, a "
                "sampler, or a function of the epoch"
            )
        return ids

    def restrict(self, ids: np.ndarray) -> np.ndarray:
        if self._in_use is None or len(ids) == 0:
            return ids
        kept = ids[self._in_use[ids]]
        if len(kept) == 0:
            raise ValueError(f"order: none of its {len(ids)} sample numbers is among the loader's indices")
        return kept

    def _values(self, epoch: int) -> Any:
        if callable(self.source):
            return self.source(epoch)
        if hasattr(self.source, "set_epoch"):
            self.source.set_epoch(epoch)
        return self.source

    def _finite(self, values: Any) -> Any:
        """Arrays and sequences as they are; anything that can only be iterated as a list, which must end."""
        if is_array_like(values) or not hasattr(values, "__iter__"):
            return values
        most = 100 * self.in_file + (1 << 20)
        return lengths.taken(
            values,
            most,
            f"order gives more than {most:,} sample numbers for one epoch of a file with {self.in_file:,}: "
            "does its iteration ever end?",
        )


class OrderInForce:
    """FFCV's `loader.traversal_order` if the order is not the user's object: a view of the Loader."""

    def __init__(self, loader: Loader):
        self._loader = loader

    @property
    def indices(self) -> np.ndarray:
        """The Loader's; can also be assigned to."""
        return self._loader.indices

    @indices.setter
    def indices(self, indices: Any) -> None:
        self._loader.indices = indices

    def sample_order(self, epoch: int) -> np.ndarray:
        """The samples of an epoch, in order, for all ranks."""
        return self._loader._order_of(epoch)


def choose_order(order: Any, kwargs: dict[str, Any], loader: Loader) -> tuple[OrderOption, Any, int]:
    """(the core's order, what OwnOrder takes or None, window of pages)."""
    if isinstance(order, OrderOption):
        window = kwargs.pop("window_pages", 8) if order is OrderOption.QUASI_RANDOM else 8
        if kwargs:
            raise TypeError(f"order_kwargs: {order} does not take {', '.join(map(str, kwargs))}")
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
    if isinstance(order, Iterator):
        raise TypeError(
            f"order: {order!r} can be read only once, so that a second epoch would be empty; give a list, a sampler, "
            "or a function of the epoch"
        )
    if hasattr(order, "sample_order"):
        return OrderOption.SEQUENTIAL, order.sample_order, 8
    if callable(order) or (hasattr(order, "__iter__") and not isinstance(order, (str, bytes))):
        return OrderOption.SEQUENTIAL, order, 8
    raise TypeError(
        f"order must be an OrderOption, an array of sample numbers, a sampler, or have sample_order(epoch), not "
        f"{order!r}"
    )
