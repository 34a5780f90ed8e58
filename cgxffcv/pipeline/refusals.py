"""Orders of a pipeline's steps that have no meaning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cgxffcv import transforms as tf


def refuse_late(name: str, step: tf.SampleFunction, other: Any) -> None:
    """Raises TypeError if another step comes before a C function, which works in the workers."""
    if other is not None:
        raise TypeError(
            f"pipeline '{name}': {step!r} must come before {other!r}: it works on each sample's row, in the workers"
        )


def refuse_second_turn(name: str, transforms: Sequence) -> None:
    """Raises TypeError if ToTorchImage comes twice and no step of the user's, which may turn images back, between."""
    turned = None
    for step in transforms:
        if not isinstance(step, tf.Transform) or isinstance(step, tf.ModuleWrapper):
            turned = None
        elif isinstance(step, tf.ToTorchImage):
            if turned is not None:
                raise TypeError(
                    f"pipeline '{name}' has ToTorchImage twice: images that are (channels, height, width) by then "
                    f"would become (width, channels, height); leave out {step!r}"
                )
            turned = step
