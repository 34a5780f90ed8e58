"""Passes over the images whose loss was highest when they were last trained on.

No image is evaluated just for the choice: the loss that every step computes anyway is remembered. Images left out keep
their old loss, so they come back when others have fallen below. Images never seen count as the hardest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["HardestImages"]


class HardestImages:
    """The samples of each pass, the same for all ranks.

    `fractions`: of each pass; `permutation(epoch)`: all samples in use in that epoch's random order (int64);
    `exchange`: takes this rank's bytes and returns every rank's, in rank order.
    """

    def __init__(
        self,
        fractions: tuple[float, ...],
        permutation: Callable[[int], np.ndarray],
        exchange: Callable[[bytes], list[bytes]],
    ):
        self._fractions, self._permutation, self._exchange = fractions, permutation, exchange
        self._ids = np.sort(permutation(0))
        self.restart()

    def restart(self) -> None:
        """Forgets all losses: no image has been seen."""
        self.losses = np.full(len(self._ids), np.inf, np.float32)  # of the samples in the order of their numbers
        self._changed = np.zeros(len(self._ids), bool)
        self.order = np.zeros(0, np.int64)  # of the pass in progress
        self._order_epoch = -1

    def record(self, ids: np.ndarray, losses: np.ndarray) -> None:
        """Remembers the losses of samples just trained on; those that are not finite are left out."""
        finite = np.isfinite(losses)
        positions = np.searchsorted(self._ids, ids[finite])
        self.losses[positions] = losses[finite]
        self._changed[positions] = True

    def merge(self) -> None:
        """Shares what each rank has recorded with all. Collective."""
        changed = np.flatnonzero(self._changed)
        mine = np.rec.fromarrays([changed, self.losses[changed]], names="position,loss")
        for piece in self._exchange(mine.tobytes()):
            theirs = np.frombuffer(piece, mine.dtype)
            self.losses[theirs["position"]] = theirs["loss"]
        self._changed[:] = False

    def begin(self, epoch: int) -> None:
        """Chooses the samples of a pass. Collective."""
        self.merge()
        order = self._permutation(epoch)
        count = int(self._fractions[epoch] * len(self._ids))
        if count < len(self._ids):
            chosen = np.zeros(len(self._ids), bool)
            chosen[np.argsort(-self.losses, kind="stable")[:count]] = True
            order = order[chosen[np.searchsorted(self._ids, order)]]
        self.order, self._order_epoch = order, epoch

    def sample_order(self, epoch: int) -> np.ndarray:
        """The samples of a pass, which the loader asks for at its start."""
        if epoch != self._order_epoch:
            raise RuntimeError(f"pass {epoch} has not begun")
        return self.order

    def state_dict(self) -> dict[str, Any]:
        """Collective."""
        self.merge()
        return {"losses": self.losses.copy(), "order": self.order.copy(), "order_epoch": self._order_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """ValueError if it is of another data set."""
        if state["losses"].shape != self.losses.shape:
            raise ValueError(
                f"the state has losses of {len(state['losses'])} samples, but {len(self.losses)} are in use"
            )
        self.losses[:] = state["losses"]
        self._changed[:] = False
        self.order, self._order_epoch = state["order"].copy(), int(state["order_epoch"])
