"""Optimizers on NumPy arrays, in place: the ones that the trainer runs on a model's parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import _cgxffcv
import numpy as np
from _cgxffcv import patch_moments, whitening_filters

__all__ = ["Muon", "Optimizer", "Rate", "Sgd", "patch_moments", "whitening_filters"]


@dataclass(frozen=True)
class Sgd:
    """SGD with momentum and coupled weight decay; the rate is applied outside the buffer.

    ``g += decay p; v = momentum v + g; p -= rate v``, or with ``nesterov`` ``p -= rate (g + momentum v)``.
    """

    momentum: float = 0.9
    decay: float = 0.0
    nesterov: bool = False

    def group(self) -> dict[str, Any]:
        """The group as the C core takes it."""
        return {"rule": "nesterov" if self.nesterov else "sgd", "momentum": self.momentum, "decay": self.decay}


@dataclass(frozen=True)
class Muon:
    """Muon (Jordan et al. 2024) on tensors seen as matrices (first dimension x all others).

    ``v = momentum v + g; u = g + momentum v; [p *= sqrt(rows) / ||p||]; p = (p - rate NS(u)) (1 - rate decay)``, where
    NS takes ``iterations`` Newton-Schulz steps ``X = a X + (b A + c A A) X, A = X X'`` from ``u / (||u|| + epsilon)``.
    """

    momentum: float = 0.6
    decay: float = 0.0
    iterations: int = 3
    coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315)
    epsilon: float = 1e-7

    def group(self) -> dict[str, Any]:
        """The group as the C core takes it."""
        group = vars(self) | {"rule": "muon"} | dict(zip("abc", self.coefficients, strict=True))
        del group["coefficients"]
        return group


class Rate(NamedTuple):
    """What one step does to one group: its learning rate, whether it is touched at all, Muon's norm projection."""

    rate: float
    active: bool = True
    project: bool = False


class Optimizer:
    """Applies Sgd and Muon groups to float32 NumPy arrays in place.

    ``tensors`` is a sequence of (value, gradient, group index): C-contiguous float32 arrays of equal size, which must
    not move in memory. The result does not depend on ``threads``. With ``device="gpu"`` the first GPU computes: values
    and gradients are copied there with each call, and the values back (a convenience for tests and trials; a training's
    arrays stay on the GPU), and Muon's iterations multiply in float16. Raises ValueError or TypeError for arrays and
    settings that do not fit, NotBuiltError or CudaError without a GPU.
    """

    def __init__(
        self,
        groups: Sequence[Sgd | Muon],
        tensors: Sequence[tuple[np.ndarray, np.ndarray, int]],
        threads: int = 1,
        device: str = "cpu",
    ):
        self._core = _cgxffcv.Optimizer([group.group() for group in groups], tensors, threads=threads, device=device)

    def step(self, rates: Sequence[Rate]) -> None:
        """One step with a rate for each group; the gradients are read, not changed."""
        self._core.step(rates)

    def gradients_finite(self, rates: Sequence[Rate] | None = None) -> bool:
        """True if every element of every gradient is finite; with ``rates`` only of the groups that are active
        there."""
        return self._core.gradients_finite(rates)

    def load_rates(self, table: Sequence[Sequence[Rate]]) -> None:
        """The rates of all steps, a sequence of what ``step`` takes, for ``step_scheduled``. GPU only."""
        self._core.load_rates(table)

    def step_scheduled(self, step: int, enabled: Sequence[bool] | None = None, skip: bool = False) -> bool:
        """One step with row ``step`` of ``load_rates``, as a recorded CUDA graph: gradients checked, then the step.

        Nothing is touched if ``skip``, or if a gradient of an active group is not finite; returns whether that was so.
        ``enabled``: for each group, whether the graph contains its work (None: all). GPU only.
        """
        return self._core.step_scheduled(step, enabled, skip)

    def pull(self, slow: np.ndarray, value: np.ndarray, keep: float) -> None:
        """``slow = value = keep * slow + (1 - keep) * value`` in place, on float32 arrays of equal size."""
        self._core.pull(slow, value, keep)

    @property
    def momentum(self) -> np.ndarray:
        """All momentum buffers, one after another in the tensors' order: a writable float32 view; on the GPU a copy."""
        return self._core.momentum

    @property
    def step_flops(self) -> float:
        """Floating-point operations of the matrix products of one step (Muon's)."""
        return self._core.step_flops
