"""The transforms of a pipeline as users give them, and as the compiler knows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cgxffcv import decoders as dec
from cgxffcv import transforms as tf


class Derived:
    """A transform of a class that a user has derived from one of ours, with a `__call__` or a `generate_code` of its
    own, which works on whole batches like any step of the user's: what the core does for our class would ignore it."""

    def __init__(self, given: tf.Transform):
        self.given = given

    @property
    def with_indices(self) -> bool:
        return getattr(self.given, "with_indices", False)

    def __call__(self, *given: Any) -> Any:
        return self.given(*given)

    def __repr__(self) -> str:
        return repr(self.given)


def calls_users_code(step: tf.Transform) -> bool:
    """True if calling it calls what is written outside of this package."""
    owner = next((kind for kind in type(step).__mro__ if "__call__" in vars(kind)), tf.Transform)
    return owner.__module__.partition(".")[0] != "cgxffcv"


def as_known(transforms: Sequence) -> list:
    """Wraps what needs it: C functions, as they are given, and transforms that users have derived from ours."""
    return [_wrapped(step) for step in transforms]


def _wrapped(step: Any) -> Any:
    if isinstance(step, tf.Transform):
        return Derived(step) if hasattr(step, "generate_code") or calls_users_code(step) else step
    if not isinstance(step, dec.Decoder) and dec.found_address(step) is not None:
        return tf.SampleFunction(step)
    return step
