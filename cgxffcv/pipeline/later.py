"""Steps on whole batches for what is usually fused: image operations and NormalizeImage after a step of the user's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import _cgxffcv
import numpy as np

from cgxffcv import transforms as tf

PIXELS = ("uint8", "uint16", "float32")  # types of images


class Pass(NamedTuple):
    """What random choices depend on, besides the sample; with `evaluate` they are neutral."""

    seed: int
    epoch: int
    evaluate: bool


def core_operation(step: Any, draws: int, normalized: bool = False) -> dict[str, Any]:
    """An operation on images or labels as the core takes it."""
    return {"operation": step.operation, "draws": draws, "normalized": normalized, "values": step.values()}


class OperateOnBatch:
    """Image operations, with the draws that they have in the whole pipeline. `before`: those that came before them."""

    def __init__(self, name: str, draws: int, before: Sequence[tf.ImageOperation]):
        self.name, self.draws, self.before = name, draws, list(before)
        self.operations: list[tf.ImageOperation] = []

    def __call__(self, values: Any, ids: np.ndarray, when: Pass) -> np.ndarray:
        if not isinstance(values, np.ndarray) or values.dtype.name not in PIXELS or values.ndim not in (3, 4):
            array = isinstance(values, np.ndarray)
            what = f"{values.dtype} {values.shape}" if array else type(values).__name__
            raise TypeError(
                f"pipeline '{self.name}': {self!r} works on arrays of {', '.join(PIXELS)} (batch, height, width, "
                f"channels); the step before it gives {what}"
            )
        if values.ndim == 3:
            return self(values[..., None], ids, when)[..., 0]
        chain = tuple(core_operation(step, self.draws) for step in (*self.before, *self.operations))
        return _cgxffcv.augment_images(np.ascontiguousarray(values), ids, chain, len(self.before), *when)

    def __repr__(self) -> str:
        return " > ".join(map(repr, self.operations))


@dataclass(frozen=True)
class NormalizeBatch:
    """NormalizeImage; `channel` is the number of the channels' dimension."""

    step: tf.NormalizeImage
    channel: int

    def __call__(self, values: Any, ids: np.ndarray) -> Any:
        return self.step.of_batch(values, self.channel)

    def __repr__(self) -> str:
        return repr(self.step)
