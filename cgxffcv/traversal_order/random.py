"""FFCV's module of this name."""

from __future__ import annotations

import _cgxffcv
import numpy as np

from cgxffcv.traversal_order.base import TraversalOrder


class Random(TraversalOrder):
    """The order of OrderOption.RANDOM, for subclasses to build on."""

    def sample_order(self, epoch: int) -> np.ndarray:
        return _cgxffcv.loader_shuffled(self.indices, self.seed, epoch)
