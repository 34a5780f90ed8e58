"""Chooses the bits of each parameter by what quantisation loses of its gradients, over all buckets of a state: measured
in a step, chosen after its last bucket, applied in the next step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from cgxffcv.adaptive import Policy, can_choose
from cgxffcv.interop.ddp.layout import Layout

Gather = Callable[[str, Any], list[Any]]


class Adapter:
    """All ranks count the same steps, and measure in the same ones.

    gather: returns every rank's value for a topic. bits: of parameters, by identity, as an earlier choice left them;
    modified in place. step: the number of the next step."""

    def __init__(self, policy: Policy, gather: Gather, rank: int, bits: dict[int, int], step: int) -> None:
        self.policy, self.bits = policy, bits
        self._gather, self._rank = gather, rank
        self.stopped = False
        self.resume(bits, step)

    def resume(self, bits: dict[int, int], step: int) -> None:
        """Starts over, as if made with these."""
        self.bits, self._step = bits, step
        self.measuring = self._changed = False
        self._due = not bits  # a choice is due, and stays so until it has been made
        self._before: dict[int, int] = {}  # the bits before the last choice
        self._measured: dict[int, tuple[list[float], list[int]]] = {}  # losses and bytes of a parameter

    def begin(self, compresses: bool) -> bool:
        """Begins a step; `compresses`: its sums are compressed. Returns True if parameters have new bits."""
        if self.stopped:
            return False
        self.decide()  # in case the last bucket was not one of ours
        changed, self._changed = self._changed, False
        self._due = self._due or self._step % self.policy.every == 0
        self.measuring = self._due and compresses
        self._step += 1
        return changed

    def stop(self) -> None:
        """Stops for good, with the bits that buckets have now: a graph in which they were recorded holds their
        plans."""
        if self._changed:  # by a choice that no bucket has applied
            self.bits.clear()
            self.bits.update(self._before)
        self.stopped, self.measuring, self._changed = True, False, False
        self._measured.clear()

    def add(self, layout: Layout, fixed: set[int], lost: np.ndarray, sizes: np.ndarray) -> None:
        """Adds what a bucket's layers lose in this step, from `AllreducePlan.losses`; those with the numbers `fixed`
        keep their bits, as do those that are not quantised."""
        for index, identity in enumerate(layout.key):
            if index not in fixed and sizes[index, 0] > 0:
                self._measured[identity] = (lost[index].tolist(), sizes[index].tolist())

    def of(self, layout: Layout, bits: int | dict[Any, int]) -> int | dict[Any, int]:
        """A bucket's bits, with those that were chosen."""
        chosen = {index: self.bits[identity] for index, identity in enumerate(layout.key) if identity in self.bits}
        own = bits if isinstance(bits, dict) else {"default": bits}
        return own | chosen if chosen else bits

    def decide(self) -> None:
        """By what was measured, if anything was, on rank 0 for all. Collective. Bits stay where losses are no numbers,
        as of gradients that are none, or where all gradients are zero, and the next step tries again; parameters whose
        gradients are zero, as in front of a layer that begins with zeros, keep theirs until the next choice."""
        if not self.measuring:
            return
        self.measuring = False
        measured, self._measured = self._measured, {}
        if not measured:
            self._due = False
            return
        lost = np.zeros((len(measured), len(self.policy.widths) + 1))
        for theirs in self._gather("losses of each width", [losses for losses, _ in measured.values()]):
            lost += np.array(theirs)
        if not can_choose(lost):
            return
        self._due = False
        nonzero = lost[:, -1] > 0
        sizes = np.array([each for _, each in measured.values()], np.uint64)
        keys = [identity for identity, some in zip(measured, nonzero, strict=True) if some]
        chosen = dict(zip(keys, self._choose(lost[nonzero], sizes[nonzero]), strict=True))
        self._changed = any(self.bits.get(identity, self.policy.usual) != width for identity, width in chosen.items())
        self._before = dict(self.bits)
        self.bits.update(chosen)

    def _choose(self, lost: np.ndarray, sizes: np.ndarray) -> list[int]:
        try:
            return self.policy.choose_for_all(
                lost, sizes, self._rank, lambda mine: self._gather("bits of layers", mine)[0]
            )
        except ValueError as error:
            raise ValueError(f"adaptive_bits: {error}") from None

    def explain(self) -> str:
        """Describes the choice in words."""
        often = f"again every {self.policy.every} steps"
        when = (
            "no longer, since a step was recorded in a CUDA graph, which holds their plans" if self.stopped else often
        )
        counts = sorted(Counter(self.bits.values()).items())
        widths = ", ".join(f"{bits} bits for {count}" for bits, count in counts) or "none yet"
        return f"bits of parameters chosen by what quantisation loses, {when}: {widths}"
