"""Moves of batches to a GPU: which ones the core makes while batches come, with what follows them, and which are
steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cgxffcv import transforms as tf
from cgxffcv.interop.torch import find_torch
from cgxffcv.pipeline.later import OperateOnBatch
from cgxffcv.pipeline.operation import RunOperation
from cgxffcv.pipeline.steps import called, own_of


@dataclass
class Moved:
    """An output whose batches the core can bring to GPU `gpu` by itself. Its column of the core then is `column`, and
    `steps` are the steps on its result. `there` is what the GPU is to do, `worker` what the threads do before; they do
    both if the GPU cannot."""

    gpu: int
    column: dict[str, Any]
    steps: list[Callable]
    worker: list[Any] = field(default_factory=list)
    there: list[Any] = field(default_factory=list)


def works_on_gpu(step: Callable) -> bool:
    """True if it is a callable of the user's; our steps work on NumPy arrays and torch tensors, but ToTensor leaves
    anything else as it is."""
    own = own_of(step)
    return isinstance(own, (tf.ModuleWrapper, tf.ToTensor)) or not isinstance(
        own, (tf.Transform, OperateOnBatch, RunOperation)
    )


def only_looks(step: Callable) -> bool:
    """True if it changes only how an array is viewed, also on a GPU."""
    return isinstance(own_of(step), (tf.ToTensor, tf.Squeeze))


def can_follow(steps: Sequence[Callable]) -> bool:
    """True if they can work after a move that gives no torch tensors."""
    first = next((i for i, step in enumerate(steps) if not only_looks(step)), len(steps))
    return all(map(works_on_gpu, steps[first:]))


def move_of(before: Sequence = (), process_on_device: bool = False, only_if_processed: bool = False) -> dict[str, Any]:
    """A move as the core takes it: the operations before it, whether it is to do the rest on the GPU, and whether
    otherwise the batch is to stay."""
    return {"before": tuple(before), "process_on_device": process_on_device, "only_if_processed": only_if_processed}


def torch_moves(step: tf.ToDevice) -> bool:
    """True if torch can take what is on the GPU to which the step moves."""
    torch = find_torch()
    return torch is not None and torch.cuda.is_available() and step.gpu is not None


def moved_steps(steps: Sequence[Callable]) -> tuple[int, list[Callable]] | None:
    """For steps of which one is a move that comes last: the GPU, and the other steps, if all of ours can work after the
    move."""
    at = next((i for i, step in enumerate(steps) if getattr(own_of(step), "comes_last", False)), None)
    if at is None or not all(map(only_looks, steps[:at])):
        return None
    behind = steps[at + 1 :]
    return (own_of(steps[at]).gpu, [*steps[:at], *behind]) if can_follow(behind) else None


def settle_moves(transforms: Sequence, torch: bool) -> list:
    """The transforms of a pipeline; each ToDevice among them is one for torch's tensors if the Loader uses torch, or
    ToTensor asks for it, and else for arrays."""
    tensors = torch or (any(isinstance(step, tf.ToTensor) for step in transforms) and find_torch() is not None)
    return [step.settled(tensors) if isinstance(step, tf.ToDevice) else step for step in transforms]


def moves_last(name: str, steps: list[Callable]) -> list[Callable]:
    """Puts a move to a GPU that gives no torch tensors after all steps of ours, which could not work on its arrays.
    These go to callables of the user's after it; TypeError if a step of ours comes after one of them."""
    at = next((i for i, step in enumerate(steps) if getattr(own_of(step), "comes_last", False)), None)
    if at is None:
        return steps
    before, behind = steps[:at], steps[at + 1 :]
    while behind and not works_on_gpu(behind[0]):
        before.append(behind.pop(0))
    late = next((step for step in behind if not works_on_gpu(step)), None)
    if late is not None:
        raise TypeError(
            f"pipeline '{name}': {called(late)} must come before {called(behind[0])}, which gets arrays on a GPU: "
            f"after {called(steps[at])}, without torch, only callables of your own work on what those give"
        )
    return [*before, steps[at], *behind]


def moved_to(outputs: Sequence[Any]) -> int | None:
    """The GPU to which the core is to move batches, the first one asked for; None if it moves none."""
    return next((output.moved.gpu for output in outputs if output.moved is not None), None)


def refuse_types(name: str, dtype: str | None) -> None:
    """Raises TypeError if arrays of that type cannot be on a GPU without torch."""
    if dtype is not None and np.dtype(dtype).kind in "bc":
        raise TypeError(
            f"pipeline '{name}': arrays of {np.dtype(dtype)} cannot go to a GPU without torch: put Convert after "
            "ToDevice, which then changes them before they move"
        )


def choose_moves(outputs: Sequence[Any]) -> None:
    """The core moves batches to one GPU; moves to others stay steps."""
    gpu = moved_to(outputs)
    for output in outputs:
        if output.moved is not None and output.moved.gpu == gpu:
            output.columns = [output.moved.column]
        else:
            output.moved = None
