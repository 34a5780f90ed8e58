"""Chooses the bits of each layer by what quantisation loses of it, again after every so many runs of a plan.

    plan = AllreducePlan(world, layers, bits=4, error_feedback=True)
    adaptive = AdaptiveBits(plan, every=500)
    adaptive.run(gradients)  # in place of plan.run

Layers whose gradients quantise well give bits to those that do not: the fewest bytes whose error energy, summed over
layers and ranks, stays within a budget (the idea of L-GreCo, arXiv 2210.17357).
"""

from __future__ import annotations

import json
import numbers
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import _cgxffcv
import numpy as np

from cgxffcv.allreduce import CODEC_BITS, AllreducePlan
from cgxffcv.lengths import taken
from cgxffcv.wording import brief

__all__ = ["AdaptiveBits", "Policy"]

MAX_WIDTHS = 64


@dataclass(frozen=True)
class Policy:
    """How bits are chosen. widths: bits to choose from, ascending. every: runs from one choice to the next. budget: the
    share of the elements' energy that may be lost; None: what `usual` bits for all layers would lose."""

    widths: tuple[int, ...]
    every: int
    budget: float | None
    usual: int

    @classmethod
    def of(
        cls,
        codec: str,
        usual: int,
        *,
        widths: Sequence[int] | None = None,
        every: int = 1000,
        budget: float | None = None,
    ) -> Policy:
        """See AdaptiveBits. Raises TypeError or ValueError naming the argument."""
        most = CODEC_BITS[codec]
        if most == 1:
            raise ValueError(f"the codec {codec} has one width: there is nothing to choose")
        if not _is_number(every, numbers.Integral):
            raise TypeError(f"every must be a number of runs, at least 1, not {every!r}")
        if every < 1:
            raise ValueError(f"every must be a number of runs, at least 1, not {every!r}")
        share = _checked_budget(budget)
        if share is None and usual > 8:
            raise ValueError("budget must be given for a plan whose own bits quantise nothing")
        given = range(1 if codec == "rotated" else 2, most + 1) if widths is None else _checked_widths(widths, most)
        chosen = {*given} | ({usual} if share is None else set())
        return cls(tuple(sorted(chosen)), int(every), share, usual)

    def choose(self, lost: np.ndarray, sizes: np.ndarray) -> list[int]:
        """The width of each layer, from the losses (summed over ranks) and bytes that `AllreducePlan.losses`
        returns."""
        losses, energy = np.ascontiguousarray(lost[:, :-1]), lost[:, -1].sum()
        usual = losses[:, self.widths.index(self.usual)].sum() if self.budget is None else 0.0
        budget = usual if self.budget is None else self.budget * energy
        chosen = _cgxffcv.allreduce_choose_widths(losses, np.ascontiguousarray(sizes), float(budget))
        return [self.widths[index] for index in chosen]

    def choose_for_all(self, lost: np.ndarray, sizes: np.ndarray, rank: int, tell: Callable[[Any], Any]) -> list[int]:
        """Rank 0's choice, shared through `tell`, which broadcasts rank 0's value. If choosing fails, rank 0 raises the
        error and the others, which would wait for it, a ValueError with the same text."""
        mine: Any = None
        failure: Exception | None = None
        if rank == 0:
            try:
                mine = self.choose(lost, sizes)
            except Exception as error:
                failure = error
                mine = str(error) if isinstance(error, ValueError) else f"on rank 0: {type(error).__name__}: {error}"
        chosen = tell(mine)
        if failure is not None:
            raise failure
        if isinstance(chosen, str):
            raise ValueError(chosen)
        return chosen


def can_choose(lost: np.ndarray) -> bool:
    """Whether the losses of all ranks tell anything: they are numbers, and not all gradients are zero."""
    return bool(np.isfinite(lost).all() and (lost[:, -1] > 0).any())


def _is_number(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _checked_budget(budget: object) -> float | None:
    if budget is None:
        return None
    expected = f"budget must be a share of at least 0, or None, not {budget!r}"
    if not _is_number(budget, numbers.Real):
        raise TypeError(expected)
    share = float(budget)  # type: ignore[arg-type]
    if not 0 <= share < float("inf"):
        raise ValueError(expected)
    return share


def _checked_widths(widths: object, most: int) -> list[int]:
    expected = f"widths must be one or more numbers of bits, such as (2, 4, 8), or None, not {brief(widths)}"
    if isinstance(widths, (str, bytes)) or not isinstance(widths, Iterable):
        raise TypeError(expected)
    given = taken(widths, MAX_WIDTHS, expected)
    if not given:
        raise ValueError(expected)
    for width in given:
        if not _is_number(width, numbers.Integral):
            raise TypeError(f"a width must be a whole number in 1..{most}, not {width!r}")
        if width not in range(1, most + 1):
            raise ValueError(f"a width must be in 1..{most}, not {width!r}")
    return [int(width) for width in given]


class AdaptiveBits:
    """Runs a plan and, before every `every`-th run, chooses the bits of each layer again.

    plan: an AllreducePlan, in host memory or on a GPU; its runs are counted from its current `call`. The CPU measures
    the losses in both cases; a GPU's buffer is copied to host memory for that. widths: bits to choose from; default 2
    to 8, with the codec "rotated" 1 to 4. budget: the share of the elements' energy that quantisation may lose; None:
    as much as the plan's own bits for all layers would lose at that time. Layers to which the plan's `bits` gives a
    number by name or index keep it, and layers that are not quantised stay so.

    Raises TypeError or ValueError naming the argument.
    """

    def __init__(
        self,
        plan: AllreducePlan,
        *,
        widths: Sequence[int] | None = None,
        every: int = 1000,
        budget: float | None = None,
    ) -> None:
        self.policy = Policy.of(plan.codec, plan.bits, widths=widths, every=every, budget=budget)
        self._runs = plan.call
        self.plan, self.every, self.budget = plan, self.policy.every, self.policy.budget
        self.widths = self.policy.widths
        self._due = False  # a choice is due, and stays so until it has been made
        self._fixed = np.array(plan.layer_bits) != 0

    @property
    def bits(self) -> tuple[int, ...]:
        """The bits of each layer; 0 where the plan's own rule applies."""
        return self.plan.layer_bits

    def run(self, buffer: Any, stream: object = None) -> Any:
        """The plan's run. Collective."""
        if self.plan.device is None:
            self._runs = self.plan.call  # on a GPU, `call` counts only the runs that have ended
        self._due = self._due or self._runs % self.every == 0
        if self._due and self.plan.comm.size > 1:
            self.measure(buffer, stream)
        self._runs += 1
        return self.plan.run(buffer, stream)

    def measure(self, buffer: Any, stream: object = None) -> None:
        """Chooses the bits for this buffer, on rank 0, for all. Where the losses are no numbers, or everything is
        zero, the bits stay, and the next run tries again; layers that are zero keep theirs. Collective; ValueError on
        all ranks where there are too many layers to choose for."""
        comm = self.plan.comm
        lost, sizes = self.plan.losses(buffer, self.widths, stream)
        rows = (sizes[:, 0] > 0) & ~self._fixed
        comm.allreduce(lost, op="sum")
        if rows.any() and not can_choose(lost[rows]):
            return
        self._due = False
        rows &= lost[:, -1] > 0
        if not rows.any():
            return

        def tell(mine: Any) -> Any:
            return json.loads(comm.broadcast(json.dumps(mine).encode() if comm.rank == 0 else None))

        bits = np.array(self.plan.layer_bits)
        bits[rows] = self.policy.choose_for_all(lost[rows], sizes[rows], comm.rank, tell)
        if tuple(bits.tolist()) != self.plan.layer_bits:
            self.plan.set_bits(bits.tolist(), stream)
