"""What a checkpoint holds of a training, and which other trainings may load it.

A trainer core's buffers are named tensors there; what each rank kept for itself is one entry per rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from cgxffcv.checkpoint import CheckpointError
from cgxffcv.train.tally import EpochSums
from cgxffcv.wording import counted

__all__ = ["FORMAT", "compare", "core_state", "fill_core", "my_residual", "my_sums"]

FORMAT = 2  # of the state
NO_PART = ("summary", "target")  # fields of a recipe that do not affect a training
# Fields that older checkpoints' recipes lack, and what they were.
ADDED = {"classes": 10, "side": 32, "decay_on": "all", "nesterov": False}
LENGTH = ("epochs", "lr_peak_epoch")  # that may differ in a resumed training
NOW, SLOW = ("parameters", "statistics"), ("slow_parameters", "slow_statistics")


def _tensors(core: Any, parameters: np.ndarray, statistics: np.ndarray, prefix: str) -> dict[str, np.ndarray]:
    """Flat buffers as named tensors: views of them."""
    out = {}
    for name, _, _, _, shape, offset in core.layers():
        out[prefix + name] = parameters[offset : offset + math.prod(shape)].reshape(shape)
    for name, channels, mean, variance in core.norms():
        out[f"{prefix}{name}.running_mean"] = statistics[mean : mean + channels]
        out[f"{prefix}{name}.running_variance"] = statistics[variance : variance + channels]
    return out


def core_state(core: Any) -> dict[str, np.ndarray]:
    """A tensor for each layer and norm, also of the slow copy if the optimizer has one; the momenta, flat."""
    state = _tensors(core, *(core.read(name) for name in NOW), "")
    state["momentum"] = core.read("momentum")
    if core.read(SLOW[0]) is not None:
        state |= _tensors(core, *(core.read(name) for name in SLOW), "slow.")
    return state


def fill_core(core: Any, state: Mapping[str, Any]) -> None:
    """Writes back what `core_state` has read. CheckpointError for a tensor that is missing or has another shape."""
    _fill(core, state, NOW, "")
    core.write("momentum", state["momentum"])
    if core.read(SLOW[0]) is not None:
        _fill(core, state, SLOW, "slow.")


def _fill(core: Any, state: Mapping[str, Any], names: tuple[str, str], prefix: str) -> None:
    parameters, statistics = (core.read(name) for name in names)
    for name, array in _tensors(core, parameters, statistics, prefix).items():
        if name not in state or state[name].shape != array.shape:
            found = "is missing" if name not in state else f"has the shape {state[name].shape}, not {array.shape}"
            raise CheckpointError(f"the state does not fit this network: {name} {found}")
        array[...] = state[name]
    for name, array in zip(names, (parameters, statistics), strict=True):
        core.write(name, array)


def compare(identity: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """CheckpointError if the state is of another training than that of this identity. Another number of epochs does not
    make it another one, nor does another number of ranks if all share one batch."""
    for name, mine in identity.items():
        theirs = state.get(name)
        if isinstance(theirs, np.ndarray):
            raise CheckpointError(f"the checkpoint is damaged: its {name} is a tensor")
        if name == "recipe" and isinstance(theirs, dict):
            name, theirs, mine = _other_field(theirs, mine)
        if theirs == mine:
            continue
        if name == "ranks":
            _check_ranks(theirs, mine, identity["recipe"])
            continue
        what = "checksum of all labels" if name == "labels" else name
        raise CheckpointError(
            f"the checkpoint is of another training: its {what} is {theirs!r}, this one's {mine!r}; resume with "
            "the same settings, or start over"
        )


def _other_field(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> tuple[str, Any, Any]:
    """The first field that makes it another training, if there is one: its name, and both values."""
    theirs = ADDED | theirs
    free = NO_PART if theirs.get("epochs") == mine["epochs"] else NO_PART + LENGTH
    for key, value in mine.items():
        if theirs.get(key) != value and key not in free:
            return f"recipe field {key}", theirs.get(key), value
    return "recipe", mine, mine


def _check_ranks(theirs: Any, mine: int, recipe: Mapping[str, Any]) -> None:
    if type(theirs) is not int or theirs < 1:
        raise CheckpointError(f"the checkpoint is damaged: its ranks are {theirs!r}")
    if recipe["batch_scope"] == "process":
        batch = recipe["batch_size"]
        raise CheckpointError(
            f"the checkpoint is of a training on {counted(theirs, 'process')}, not on {mine}: "
            f"recipe {recipe['name']} takes {batch} images per step on each, so this would be another training, with "
            f"{mine * batch} images per step instead of {theirs * batch}; start {theirs}, or start over (recipes whose "
            "batch_scope is global can be resumed with any number)"
        )


def my_sums(everyone: list[Mapping[str, Any]], rank: int, ranks: int) -> EpochSums:
    """The sums that this rank continues from: those it had, or, with another number of ranks, on rank 0 those of all
    together."""
    sums = [EpochSums(**theirs) for theirs in everyone]
    if len(sums) == ranks:
        return sums[rank]
    together = EpochSums(skipped=sums[0].skipped)  # all ranks leave out the same steps
    if rank == 0:
        for name in ("images", "correct", "loss", "wire_bytes"):
            setattr(together, name, sum(getattr(theirs, name) for theirs in sums))
    return together


def my_residual(everyone: np.ndarray, rank: int, ranks: int, loss_sum: bool) -> np.ndarray:
    """The residual of error feedback on this rank: the one it had, or, with another number of ranks, as much on each as
    leaves the total owed to the sum of gradients (or their mean) the same."""
    if len(everyone) == ranks:
        return np.ascontiguousarray(everyone[rank])
    return everyone.sum(axis=0, dtype=np.float32) / np.float32(ranks if loss_sum else len(everyone))
