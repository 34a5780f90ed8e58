"""A trainer core's buffers as named tensors and back: what a checkpoint holds of the network and its optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from cgxffcv.checkpoint import CheckpointError

__all__ = ["FORMAT", "compare", "core_state", "fill_core"]

FORMAT = 1  # of the state
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
    """A tensor for each layer and norm, also of the slow copy where the optimizer has one; the momenta, flat."""
    state = _tensors(core, *(core.read(name) for name in NOW), "")
    state["momentum"] = core.read("momentum")
    if core.read(SLOW[0]) is not None:
        state |= _tensors(core, *(core.read(name) for name in SLOW), "slow.")
    return state


def fill_core(core: Any, state: Mapping[str, Any]) -> None:
    """Writes what `core_state` has read. CheckpointError for a tensor that is missing or has another shape."""
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
    """CheckpointError if the state is of another training than that of this identity."""
    for name, mine in identity.items():
        theirs = state.get(name)
        if theirs == mine:
            continue
        if name == "recipe" and isinstance(theirs, dict):
            name, theirs, mine = next(
                (f"recipe field {key}", theirs.get(key), value)
                for key, value in mine.items()
                if theirs.get(key) != value
            )
        raise CheckpointError(
            f"the checkpoint is of another training: its {name} is {theirs!r}, this one's {mine!r}; resume with "
            "the same settings, or start anew"
        )
