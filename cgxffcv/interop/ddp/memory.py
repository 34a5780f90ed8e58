"""What a state keeps from step to step: residuals and chosen bits, by parameter, the number of the next run, and what
a trial has found. With names for the parameters it can be saved, and restored by another run of the training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from cgxffcv.interop.ddp.buckets import Bucket
from cgxffcv.interop.ddp.layout import Names, Rules
from cgxffcv.interop.ddp.settings import check_bits

VERSION = 2
MOST_CALLS = 1 << 32
_MEMBERS = {
    "version": int,
    "rank": int,
    "ranks": int,
    "call": int,
    "plain": (bool, type(None)),
    "bits": dict,
    "residuals": dict,
}


class Memory:
    def __init__(self) -> None:
        self.call = 0
        self.plain: bool | None = None  # what a trial has found
        self.bits: dict[int, int] = {}  # by parameter, as they were chosen
        self._residuals: dict[int, np.ndarray] = {}  # by parameter, of those that are in no bucket now

    def save(self, bucket: Bucket) -> None:
        """Saves what a bucket holds that is about to go."""
        if bucket.plan is not None:
            bucket.finish()
            self.call = max(self.call, bucket.plan.call)
            self._residuals |= _residuals_of(bucket)

    def restore(self, bucket: Bucket) -> None:
        """Restores what a bucket needs, which is then in no other one."""
        if bucket.plan is None:
            return
        bucket.finish()
        bucket.plan.call = self.call
        if not bucket.plan.feeds_back:
            return
        residual = np.zeros(bucket.layout.elems, np.float32)
        for identity, first, elems in bucket.layout.spans():
            saved = self._residuals.pop(identity, None)
            if saved is not None:
                residual[first : first + elems] = saved
        bucket.plan.restore(residual)

    def shared(self) -> dict[str, Any]:
        """What has to be the same on all ranks."""
        return {
            "the number of the next run": self.call,
            "what a trial of plain sums has found": self.plain,
            "the bits that were chosen": list(self.bits.values()),
        }

    # ---- saved and restored ----

    def write(self, buckets: Iterable[Bucket], names: Names, rank: int, ranks: int) -> dict[str, Any]:
        """Everything, including what is in the buckets now; tensors are in host memory."""
        found, call = dict(self._residuals), self.call
        for bucket in buckets:
            if bucket.plan is not None:
                bucket.finish()
                call = max(call, bucket.plan.call)
                found |= _residuals_of(bucket)
        residuals = {}
        for identity, lost in found.items():
            name, parameter = _named(identity, names)
            residuals[name] = torch.from_numpy(lost).reshape(parameter.shape)
        bits = {_named(identity, names)[0]: width for identity, width in self.bits.items()}
        held = {"version": VERSION, "rank": rank, "ranks": ranks, "call": call, "plain": self.plain}
        return held | {"bits": bits, "residuals": residuals}

    def read(
        self, held: Mapping[str, Any], rules: Rules, rank: int, ranks: int, *, adapts: bool, recorded: bool
    ) -> None:
        """Restores everything. ValueError, and nothing is changed, if it was not written for this rank and this model,
        or has chosen bits that cannot be used: because none are chosen here, or plans can no longer change. Parameters
        whose bits the user sets keep those."""
        held = _of_this_version(held)
        _check(held, rank, ranks)
        names, found = rules.names, {}
        bits = {_identity_of(name, names): check_bits(width) for name, width in held["bits"].items()}
        bits = {identity: width for identity, width in bits.items() if rules.chooses(identity)}
        if bits and not adapts:
            raise ValueError(
                "load_state_dict: the state has bits that adaptive_bits has chosen: give CGXState adaptive_bits, too, "
                'or drop them: state["bits"] = {}'
            )
        if recorded and bits != self.bits:
            raise ValueError(
                "load_state_dict: the state has other chosen bits, and a CUDA graph holds plans with these: load it "
                "before a step is recorded"
            )
        for name, residual in held["residuals"].items():
            identity = _identity_of(name, names)
            found[identity] = _checked(name, residual, tuple(names.parameter(identity).shape))
        self._residuals, self.call, self.plain, self.bits = found, held["call"], held["plain"], bits


def _named(identity: int, names: Names) -> tuple[str, Any]:
    """A parameter with its name."""
    parameter = names.parameter(identity)
    if parameter is None:
        raise ValueError(
            "state_dict: residuals of error feedback and chosen bits are saved by the names of their parameters: give "
            "CGXState the model that has the names, model=..."
        )
    return str(names.of(identity)), parameter


def _identity_of(name: str, names: Names) -> int:
    identity = names.identity(name)
    if identity is None:
        hint = "" if names.all() else ": give CGXState the model that has the names, model=..."
        raise ValueError(f"load_state_dict: no parameter of the model is called {name!r}{hint}")
    return identity


def _checked(name: str, residual: Any, shape: tuple[int, ...]) -> np.ndarray:
    if not isinstance(residual, torch.Tensor) or not residual.is_floating_point():
        theirs = getattr(residual, "dtype", type(residual).__name__)
        raise ValueError(f"load_state_dict: the residual of {name!r} must be a tensor of floating point, not {theirs}")
    if tuple(residual.shape) != shape:
        rule = f"must have the shape {shape}, not {tuple(residual.shape)}"
        raise ValueError(f"load_state_dict: the residual of {name!r} {rule}")
    flat = residual.detach().cpu().float().reshape(-1).numpy().copy()
    if not np.isfinite(flat).all():
        raise ValueError(
            f"load_state_dict: the residual of {name!r} has elements that are not finite: no run leaves that"
        )
    return flat


def _residuals_of(bucket: Bucket) -> dict[int, np.ndarray]:
    """The residuals by parameter, of a plan with no run in progress."""
    if bucket.plan is None or not bucket.plan.feeds_back:
        return {}
    residual = bucket.plan.residual
    return {identity: residual[first : first + elems].copy() for identity, first, elems in bucket.layout.spans()}


def _of_this_version(held: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first version had no chosen bits."""
    version = held.get("version") if isinstance(held, Mapping) else None
    if version == 1 and "bits" not in held:
        return {**held, "version": VERSION, "bits": {}}
    if isinstance(version, int) and version != VERSION:
        raise ValueError(f"load_state_dict: a state of version 1 or {VERSION} is expected, not {version}")
    return held


def _check(held: Mapping[str, Any], rank: int, ranks: int) -> None:
    if not isinstance(held, Mapping) or held.keys() != _MEMBERS.keys():
        raise ValueError("load_state_dict: what CGXState.state_dict() returned is expected")
    for name, kind in _MEMBERS.items():
        if not isinstance(held[name], kind) or (kind is int and isinstance(held[name], bool)):
            raise ValueError(f"load_state_dict: {name} cannot be {held[name]!r}")
    if not 0 <= held["call"] < MOST_CALLS:
        raise ValueError(f"load_state_dict: call must be in 0..2^32-1, not {held['call']}")
    if (held["rank"], held["ranks"]) != (rank, ranks):
        raise ValueError(
            f"load_state_dict: this is rank {rank} of {ranks}, and the state is that of rank {held['rank']} of "
            f"{held['ranks']}: residuals are each rank's own; with other ranks drop them, and they start at zero"
        )
