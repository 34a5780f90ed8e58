"""FFCV's module of this name."""

from __future__ import annotations

import numpy as np

from cgxffcv.traversal_order.base import TraversalOrder


class Sequential(TraversalOrder):
    """The order of OrderOption.SEQUENTIAL, for subclasses to build on."""

    def sample_order(self, epoch: int) -> np.ndarray:
        return self.indices
