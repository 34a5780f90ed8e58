"""How gradients are sent between ranks, as a script says it and as the C core takes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from _cgxffcv import ALLREDUCE_ALGORITHMS, CODECS, ROUNDINGS

from cgxffcv.allreduce import feedback_of
from cgxffcv.costs import Lines

__all__ = ["Compression"]

NAMES = {
    "algorithm": tuple(name for name in ALLREDUCE_ALGORITHMS if name != "exact"),  # bits say that
    "codec": CODECS,
    "rounding": ROUNDINGS,
}


@dataclass(frozen=True)
class Compression:
    """How gradients are sent between ranks. `bits` 32 is uncompressed; `layers` gives bits to single layers by name.
    `algorithm`, `codec` and `rounding` are names from ALGORITHMS, CODECS and ROUNDINGS of `cgxffcv.allreduce`."""

    bits: int = 32
    bucket_size: int = 1024
    layer_min_size: int = 1024
    algorithm: str = "auto"
    codec: str = "maxmin"
    rounding: str = "nearest"
    error_feedback: bool | str = False  # "int8": what was lost is kept in a quarter of the memory
    layers: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "error_feedback", feedback_of(self.error_feedback))
        for name, names in NAMES.items():
            value = getattr(self, name)
            if value not in names:
                raise ValueError(f"compression {name} must be one of {', '.join(names)}, not {value!r}")

    def core(self, seed: int, threads: int, lines: Lines | None = None) -> dict[str, Any]:
        """As the C core takes it, with the cost lines by which "auto" chooses; None: by a rule."""
        more = {"layers": list(self.layers.items()), "seed": seed, "threads": threads, "costs": lines}
        return vars(self) | more
