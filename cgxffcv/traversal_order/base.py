"""FFCV's module of this name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cgxffcv.loader import Loader


class TraversalOrder(ABC):
    """A subclass is given to a Loader as its `order`; the Loader calls it with itself. `self.indices` are the samples
    in use, `self.seed` is the loader's. Unlike FFCV's, one order is for all ranks: the loader divides it among them."""

    def __init__(self, loader: Loader):
        self.loader, self.indices = loader, loader.indices
        self.seed, self.distributed = loader.seed, loader.distributed

    @abstractmethod
    def sample_order(self, epoch: int) -> Sequence[int]:
        """The samples of an epoch, in order."""
