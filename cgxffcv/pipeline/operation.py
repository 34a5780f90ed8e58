"""A user's own operations, written as for FFCV: run on whole batches as plain Python, without a compiler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cgxffcv.interop.torch import find_torch, is_tensor, loaded_torch
from cgxffcv.pipeline.allocation_query import AllocationQuery
from cgxffcv.pipeline.state import State
from cgxffcv.transforms import Transform
from cgxffcv.wording import brief

__all__ = ["AllocationQuery", "Operation", "State"]


class Operation(Transform):
    """Base of operations as FFCV has them.

    - `generate_code()` returns a function of (batch, destination), which is called once per batch in the thread that
      iterates and returns the next batch. If it has a true attribute `with_indices`, it also gets the batch's sample
      numbers.
    - `declare_state_and_memory(previous_state)` returns the State after it, and an AllocationQuery for the destination
      (or a sequence of them, or None), without the batch's dimension.
    """

    def generate_code(self) -> Callable:
        """Returns a function (batch, memory) that is called once per batch and returns the resulting batch."""
        raise TypeError(f"{type(self).__name__} must define generate_code()")

    def declare_state_and_memory(
        self, previous_state: State
    ) -> tuple[State, AllocationQuery | Sequence[AllocationQuery] | None]:
        """Returns what batches are like after this operation, and the memory that it needs."""
        raise TypeError(f"{type(self).__name__} must define declare_state_and_memory(previous_state)")


def state_of(batch: Any) -> State:
    """The batch's state as FFCV describes it: `jit_mode` is true for a NumPy array."""
    if is_tensor(batch):
        return State(False, batch.device, tuple(batch.shape[1:]), batch.dtype)
    torch = loaded_torch()
    device = "cpu" if torch is None else torch.device("cpu")
    return State(True, device, tuple(batch.shape[1:]), batch.dtype)


def allocated(query: Any, samples: int) -> Any:
    """New memory for each batch, so that batches that are kept stay as they are."""
    if query is None:
        return None
    if isinstance(query, Sequence):
        return tuple(allocated(part, samples) for part in query)
    shape = (samples, *query.shape)
    if str(query.dtype).startswith("torch."):
        return find_torch().empty(shape, dtype=query.dtype, device=query.device)
    return np.empty(shape, query.dtype)


@dataclass
class RunOperation:
    """A step of a pipeline that calls what an operation generates; it is asked again when batches change."""

    operation: Any
    state: State | None = None
    code: Callable | None = None
    query: Any = None

    def __call__(self, batch: Any, ids: np.ndarray) -> Any:
        if not is_tensor(batch) and not isinstance(batch, np.ndarray):
            raise TypeError(f"{self!r} works on arrays, not on {type(batch).__name__}")
        state = state_of(batch)
        if self.code is None or state != self.state:
            self.declare(state)
        given = (batch, self.destination(len(batch)))
        made = self.code(*given, ids) if getattr(self.code, "with_indices", False) else self.code(*given)
        if (is_tensor(made) or isinstance(made, np.ndarray)) and len(made) != len(batch):
            raise ValueError(f"what {self!r} generates returned {len(made)} rows of a batch of {len(batch)}")
        return made

    def declare(self, state: State) -> None:
        """Asks the operation what it does to batches of this state."""
        declared = self.ask("declare_state_and_memory", state)
        if not isinstance(declared, (tuple, list)) or len(declared) != 2:
            raise TypeError(
                f"{self!r}: declare_state_and_memory must return (state, AllocationQuery or None), not "
                f"{brief(declared)}"
            )
        code = self.ask("generate_code")
        if not callable(code):
            raise TypeError(f"{self!r}: generate_code must return a function, not {brief(code)}")
        self.code, self.query, self.state = code, declared[1], state

    def ask(self, name: str, *arguments: Any) -> Any:
        try:
            return getattr(self.operation, name)(*arguments)
        except Exception as error:
            raise TypeError(f"{self!r}: {name} failed: {type(error).__name__}: {error}") from error

    def destination(self, samples: int) -> Any:
        try:
            return allocated(self.query, samples)
        except (AttributeError, TypeError, ValueError, OverflowError, MemoryError) as error:
            raise TypeError(
                f"{self!r}: declare_state_and_memory asks for memory that is unavailable, {brief(self.query)}: {error}"
            ) from error

    def __repr__(self) -> str:
        return repr(self.operation)
