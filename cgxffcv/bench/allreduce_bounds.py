"""How far an allreduce's result may be from the exact one, element by element, according to its arithmetic.

The data of every rank is a block of random elements, repeated; so are the exact result and its bound. Each quantisation
of a rank's elements or of a sum adds what its codec may lose: maxmin half a unit (a whole one when stochastic); sign,
whose decoded values are plus or minus the bucket's mean magnitude, at most the bucket's greatest magnitude;
maxmin_spikes half a unit of the elements other than the spikes, and the rounding of a spike to bfloat16. What rotated
loses is spread over its bucket like Gaussian noise of a known energy: eight standard deviations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

BLOCK = 1 << 18  # elements, a multiple of all usual buckets
FLOATS = ("float32", "float16", "bfloat16", "float64")
ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8, "float64": 2.0**-53}
SUBNORMAL = {"float32": 2.0**-126, "float16": 2.0**-24, "bfloat16": 2.0**-126, "float64": 2.0**-1000}
ROTATED_LOSS = {1: 0.571, 2: 0.1332, 3: 0.0358, 4: 0.0096}  # error energy of a unit Gaussian, scale unbiased
QUANTIZED_AGAIN = {"one_shot": 0, "sra": 1, "two_level": 2}  # a ring: at each further hop, and at its end


def typed(x: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values in another type (bfloat16 as uint16, by truncation: any value of the type will do)."""
    return (x.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bfloat16" else x.astype(dtype)


@cache
def block_of(rank: int, dtype: str) -> np.ndarray:
    """This rank's random elements in the type (bfloat16 as uint16): Gaussian, or whole numbers of two digits."""
    rng = np.random.default_rng(1000 + rank)
    if dtype not in FLOATS:
        return rng.integers(0 if dtype.startswith("u") else -99, 100, BLOCK).astype(dtype)
    x = rng.standard_normal(BLOCK).astype(np.float32)
    return typed(x, dtype)


def widened(x: np.ndarray, dtype: str) -> np.ndarray:
    """Floats as float64, whole numbers as they are."""
    if dtype == "bfloat16":
        return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return x.astype(np.float64) if dtype in FLOATS else x


@dataclass(frozen=True)
class Reduction:
    """What a call does with its elements: the numbers of its options that decide its error."""

    dtype: str
    op: str
    ranks: int
    algorithm: str
    quantized: bool
    bits: int = 4
    bucket_size: int = 1024
    codec: str = "maxmin"
    stochastic: bool = False
    half_metadata: bool = False

    @property
    def spikes(self) -> int:
        return min(256, -(-self.bucket_size // 128))


@cache
def exact_of(reduction: Reduction) -> np.ndarray:
    """The result without any error: float64, or the type's own whole numbers, which wrap."""
    blocks = [widened(block_of(rank, reduction.dtype), reduction.dtype) for rank in range(reduction.ranks)]
    combine = {"min": np.minimum, "max": np.maximum, "prod": np.multiply}.get(reduction.op, np.add)
    total = blocks[0]
    for block in blocks[1:]:
        total = combine(total, block)
    return total / reduction.ranks if reduction.op == "average" else total


def _each_bucket(x: np.ndarray, reduction: Reduction, measure: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """A measure of each row of buckets, at each of its elements. Buckets that do not divide the block may be anywhere
    in it: then the measure of all elements counts, which is no less."""
    size = reduction.bucket_size if BLOCK % reduction.bucket_size == 0 else BLOCK
    return np.repeat(measure(x.reshape(-1, size)), size)


def _magnitude(rows: np.ndarray) -> np.ndarray:
    return np.abs(rows).max(axis=1)


def _width(rows: np.ndarray) -> np.ndarray:
    return np.ptp(rows, axis=1)


def _rms(rows: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(rows).mean(axis=1))


def _width_of_the_rest(rows: np.ndarray, spikes: int) -> np.ndarray:
    """Twice the greatest magnitude apart from the spikes."""
    if spikes >= rows.shape[1]:
        return np.zeros(len(rows))
    return 2 * np.partition(np.abs(rows), -spikes - 1, axis=1)[:, -spikes - 1]


def _lost(reduction: Reduction, width: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    """What one quantisation may lose of elements in buckets of this width (rotated: root mean square) and greatest
    magnitude."""
    if reduction.codec == "rotated":
        return (8 * ROTATED_LOSS[reduction.bits] ** 0.5 + 2.0**-20) * width
    unit = width / (2**reduction.bits - 1) * (1.0 if reduction.stochastic else 0.5)
    lost = {"maxmin": unit, "sign": magnitude, "maxmin_spikes": np.maximum(unit, 2.0**-8 * magnitude)}[reduction.codec]
    return lost + (ROUNDING[reduction.dtype] * magnitude if reduction.half_metadata else 0) + 2.0**-22 * magnitude


def _quantized_bound(reduction: Reduction, blocks: list[np.ndarray]) -> np.ndarray:
    """The bound for the sum: every rank's own loss, then that of each quantisation of a sum, whose width and magnitude
    are at most those of all summands together: what is decoded is within its bucket's range, except for the rounding of
    spikes and the noise of rotated, which adds its share to the energy."""
    growths = {"maxmin_spikes": 1 + 2.0**-7, "rotated": (1 + ROTATED_LOSS.get(reduction.bits, 0)) ** 0.5}
    magnitudes = [_each_bucket(x, reduction, _magnitude) for x in blocks]
    widths = [_each_bucket(x, reduction, _rms if reduction.codec == "rotated" else _width) for x in blocks]
    first = widths
    if reduction.codec == "maxmin_spikes":
        first = [_each_bucket(x, reduction, lambda rows: _width_of_the_rest(rows, reduction.spikes)) for x in blocks]
    error = sum(_lost(reduction, width, magnitude) for width, magnitude in zip(first, magnitudes, strict=True))
    width, magnitude = sum(widths), sum(magnitudes)
    for hop in range(QUANTIZED_AGAIN.get(reduction.algorithm, reduction.ranks - 1)):
        growth = growths.get(reduction.codec, 1) ** (hop + 1)
        error = error + _lost(reduction, width * growth, magnitude * growth)
    return error


@cache
def bound_of(reduction: Reduction) -> np.ndarray:
    """The greatest error of each element of the block."""
    if reduction.dtype not in FLOATS or reduction.op in ("min", "max") or reduction.ranks == 1:
        return np.zeros(BLOCK)
    exact, blocks = (
        exact_of(reduction),
        [widened(block_of(rank, reduction.dtype), reduction.dtype) for rank in range(reduction.ranks)],
    )
    divisor = reduction.ranks if reduction.op == "average" else 1
    inner = ROUNDING["float64" if reduction.dtype == "float64" else "float32"]
    size = np.abs(exact) if reduction.op == "prod" else sum(np.abs(x) for x in blocks) / divisor
    error = reduction.ranks * inner * size  # one rounding for each addition or product, and for the division
    if reduction.quantized:
        error = error + _quantized_bound(reduction, blocks) / divisor
    steps = reduction.ranks if reduction.op == "prod" and reduction.algorithm != "ring" else 1
    return error + steps * ROUNDING[reduction.dtype] * (np.abs(exact) + error) + SUBNORMAL[reduction.dtype]


def count_wrong(out: np.ndarray, reduction: Reduction) -> tuple[int, float]:
    """(elements out of bounds, ||out - exact||^2 / ||exact||^2)."""
    exact, bound = exact_of(reduction), bound_of(reduction)
    wrong, error, energy = 0, 0.0, 0.0
    for at in range(0, out.size, BLOCK):
        part = widened(out[at : at + BLOCK], reduction.dtype)
        lost = part.astype(np.float64) - exact[: part.size].astype(np.float64)
        inside = part == exact[: part.size] if reduction.dtype not in FLOATS else np.abs(lost) <= bound[: part.size]
        wrong += int((~inside).sum())
        error += float(lost @ lost)
        energy += float(np.square(exact[: part.size].astype(np.float64)).sum())
    return wrong, error / energy if energy else error
