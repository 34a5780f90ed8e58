"""How gradients travel between ranks, as a script says it and as the C core takes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Compression"]

ALGORITHMS = {"auto": 0, "one_shot": 1, "sra": 2, "ring": 3, "two_level": 4}
ROUNDINGS = {"nearest": 0, "stochastic": 1}
CODECS = {"maxmin": 0, "sign": 1, "maxmin_spikes": 2}


@dataclass(frozen=True)
class Compression:
    """How gradients travel between ranks. `bits` 32 is uncompressed; `layers` gives bits to single layers by name."""

    bits: int = 32
    bucket_size: int = 1024
    layer_min_size: int = 1024
    algorithm: str = "auto"  # one_shot, sra, ring, two_level
    codec: str = "maxmin"  # sign, maxmin_spikes
    rounding: str = "nearest"  # stochastic
    error_feedback: bool = False
    layers: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self):
        for name, table in (("algorithm", ALGORITHMS), ("codec", CODECS), ("rounding", ROUNDINGS)):
            value = getattr(self, name)
            if value not in table:
                raise ValueError(f"compression {name} must be one of {', '.join(table)}, not {value!r}")

    def core(self, seed: int, threads: int) -> tuple:
        """As the C core takes it."""
        special = tuple((name, bits, 0) for name, bits in self.layers.items())
        return (
            self.bits, self.bucket_size, self.layer_min_size, ALGORITHMS[self.algorithm], CODECS[self.codec],
            ROUNDINGS[self.rounding], self.error_feedback, seed, threads, special,
        )  # fmt: skip
