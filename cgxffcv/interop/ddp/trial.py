"""Finds out, in the first steps of a training, which of two ways makes its steps shorter: a sum that is fast by itself
may still slow down the backward pass alongside it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

GAIN = 0.01  # the share of a step that compression has to gain: plain sums have no error
_COMPRESSED, _PLAIN = False, True
# Each way once before anything is measured, then in turns, so that slow changes affect both alike.
_ORDER = (_COMPRESSED, _PLAIN) + (_COMPRESSED, _PLAIN, _PLAIN, _COMPRESSED) * 2 + (_COMPRESSED, _PLAIN)
_UNMEASURED = 2
STEPS = len(_ORDER)

Gather = Callable[[list[float]], list[list[float]]]


class Trial:
    """All ranks count the same steps, so that they take the same way in each, and decide together.

    gather: returns every rank's value. `decision` is that of an earlier run, with which there is no trial."""

    def __init__(self, gather: Gather, decision: bool | None = None) -> None:
        self.plain = bool(decision)
        self.decision = decision
        self.medians: list[float] = []  # seconds per step, compressed and plain, once decided
        self._gather, self._step = gather, 0
        self._marks: list[Any] = []  # the end of the step before each; None if it was not marked
        self._last: Any = None

    def resume(self, decision: bool | None) -> None:
        """Starts over, as if made with that decision."""
        self.plain, self.decision, self.medians = bool(decision), decision, []
        self._step, self._last = 0, None
        self._marks.clear()

    def begin(self) -> None:
        """Begins a step, when its first bucket is there."""
        if self.decision is not None:
            return
        self._marks.append(self._last)
        self._last = None
        if self._step < STEPS:
            self.plain = _ORDER[self._step]
            self._step += 1
        else:
            self._decide()

    def end(self, mark: Callable[[], Any]) -> None:
        """Ends a backward pass; `mark` records an event that can be timed."""
        if self.decision is None:
            self._last = mark()

    def _times(self, way: bool) -> list[float]:
        """Seconds of the measured steps of a way, each from mark to mark."""
        numbered = [n for n in range(_UNMEASURED, STEPS) if _ORDER[n] is way]
        pairs = [(self._marks[n], self._marks[n + 1]) for n in numbered]
        return [before.elapsed_time(after) / 1e3 for before, after in pairs if before is not None and after is not None]

    def _decide(self) -> None:
        if self._marks[-1] is not None:
            self._marks[-1].synchronize()
        mine = [statistics.median(self._times(way) or [0.0]) for way in (_COMPRESSED, _PLAIN)]
        self.medians = [max(times) for times in zip(*self._gather(mine), strict=True)]
        compressed, plain = self.medians
        self.plain = self.decision = plain > 0 and compressed >= (1 - GAIN) * plain
        self._marks.clear()

    def explain(self) -> str:
        """Describes the trial in words."""
        if self.decision is None:
            return f"after {self._step} of {STEPS} steps that try plain sums and compressed ones in turns"
        way = "not compressed: by the process group's allreduce" if self.plain else "compressed"
        if not self.medians:
            return f"{way}, as an earlier run of this training has found"
        compressed, plain = (1e3 * seconds for seconds in self.medians)
        return f"{way}: steps took {compressed:.2f} ms with compressed sums and {plain:.2f} ms with plain ones"
