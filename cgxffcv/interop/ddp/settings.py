"""The settings of a hook: the arguments of CGXState, and CGX's environment variables as their defaults."""

from __future__ import annotations

import fnmatch
import numbers
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cgxffcv.adaptive import Policy
from cgxffcv.allreduce import UNCOMPRESSED, QuantSpec
from cgxffcv.nearest import suggest

BUCKET_SIZE, LAYER_MIN_SIZE = 1024, 1024
MOST_THREADS = 256  # that a plan takes
PARAMETERS = ("bits", "bucket_size")
ADAPTIVE = ("every", "budget", "widths")
_REDUCTIONS = {"SRA": "sra", "RING": "ring"}


def _whole(value: object, what: str, allowed: Callable[[int], bool], expected: str) -> int:
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole or not allowed(int(value)):  # type: ignore[call-overload]
        raise ValueError(f"{what} must be {expected}, not {value!r}")
    return int(value)  # type: ignore[call-overload]


def check_bits(value: object, what: str = "bits") -> int:
    expected = f"1 to 8, or {UNCOMPRESSED} for no compression"
    return _whole(value, what, lambda n: 1 <= n <= 8 or n == UNCOMPRESSED, expected)


def check_bucket_size(value: object, what: str = "bucket_size") -> int:
    return _whole(value, what, lambda n: n >= 1, "a number of elements of at least 1")


def check_min_size(value: object, what: str = "layer_min_size") -> int:
    return _whole(value, what, lambda n: n >= 0, "a number of elements of at least 0")


def check_seed(value: object) -> int:
    return _whole(value, "seed", lambda n: 0 <= n < 1 << 64, "a number in 0..2^64-1")


def check_threads(value: object) -> int:
    return _whole(value, "threads", lambda n: 1 <= n <= MOST_THREADS, f"a number in 1..{MOST_THREADS}")


# ---- the environment ----


def _number(name: str, check: Callable[[object, str], int], default: int) -> int:
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    return check(int(text) if text.removeprefix("-").isdecimal() else text, f"the environment variable {name}")


def _word(name: str, allowed: tuple[str, ...], default: str) -> str:
    text = os.environ.get(name, "").strip()
    if text and text.upper() not in allowed:
        raise ValueError(f"the environment variable {name} must be one of {', '.join(allowed)}, not {text!r}")
    return text.upper() or default


@dataclass(frozen=True)
class Environment:
    """CGX's variables, each with its default if it is not set."""

    bits: int
    bucket_size: int
    layer_min_size: int
    algorithm: str
    shares_memory: bool  # inside a node; else everything goes through the process group
    compresses_inside: bool  # inside a node

    @classmethod
    def read(cls) -> Environment:
        """Raises ValueError naming a variable that has an unusable value."""
        inner = _word("CGX_INNER_REDUCTION_TYPE", tuple(_REDUCTIONS), "")
        _word("CGX_CROSS_REDUCTION_TYPE", tuple(_REDUCTIONS), "")
        _word("CGX_CROSS_COMMUNICATOR_TYPE", ("MPI", "NCCL"), "")
        for ignored in ("CGX_COMPRESSION_SKIP_INCOMPLETE_BUCKETS", "CGX_INTRA_BROADCAST"):
            _word(ignored, ("0", "1"), "")
        _number("CGX_FUSION_BUFFER_SIZE_MB", check_bucket_size, 1)
        return cls(
            bits=_number("CGX_COMPRESSION_QUANTIZATION_BITS", check_bits, UNCOMPRESSED),
            bucket_size=_number("CGX_COMPRESSION_BUCKET_SIZE", check_bucket_size, BUCKET_SIZE),
            layer_min_size=_number("CGX_COMPRESSION_MINIMAL_SIZE", check_min_size, LAYER_MIN_SIZE),
            algorithm=_REDUCTIONS.get(inner, "auto"),
            shares_memory=_word("CGX_INNER_COMMUNICATOR_TYPE", ("SHM", "MPI", "NCCL"), "SHM") == "SHM",
            compresses_inside=_word("CGX_INTRA_COMPRESS", ("0", "1"), "1") == "1",
        )


# ---- values of layers ----


class PerLayer:
    """A number for every layer: one for all, or a mapping with "default", names of parameters, and patterns of names.

    A name takes precedence over a pattern, a later pattern over an earlier one."""

    def __init__(self, argument: str, value: object, default: int, check: Callable[[object, str], int]) -> None:
        self.argument = argument
        self.own: dict[str, int] = {}
        if isinstance(value, Mapping):
            for name, item in value.items():
                if not isinstance(name, str):
                    raise TypeError(f"{argument} is keyed by parameters' names, patterns and 'default', not {name!r}")
                self.own[name] = check(item, f"{argument} of {name!r}")
            self.default = self.own.pop("default", default)
        else:
            self.default = default if value is None else check(value, argument)

    def of(self, name: str | None) -> tuple[int | None, bool]:
        """The layer's own value, None without; and whether it is given by the name itself, not by a pattern."""
        if name is None or not self.own:
            return None, False
        if name in self.own:
            return self.own[name], True
        matching = [value for pattern, value in self.own.items() if fnmatch.fnmatchcase(name, pattern)]
        return (matching[-1] if matching else None), False

    def check_names(self, names: list[str]) -> None:
        """Raises ValueError for a name or a pattern that matches no parameter."""
        for pattern in self.own:
            if not fnmatch.filter(names, pattern) and pattern not in names:
                hint = suggest(pattern, names)
                raise ValueError(f"{self.argument} names {pattern!r}, which no parameter of the model has{hint}")


def adaptive_policy(given: Mapping[str, Any] | None, codec: str, bits: int) -> Policy | None:
    """The policy of CGXState's adaptive_bits, for parameters that have these bits at first; None if it is not asked
    for. Raises TypeError or ValueError for invalid values."""
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise TypeError(f"adaptive_bits must be a mapping with {', '.join(ADAPTIVE)}, or None, not {given!r}")
    unknown = [name for name in given if name not in ADAPTIVE]
    if unknown:
        raise ValueError(f"adaptive_bits has {unknown[0]!r}; it may only have {', '.join(ADAPTIVE)}")
    if bits == UNCOMPRESSED:
        raise ValueError('adaptive_bits needs "bits" of 1 to 8 in compression_params: uncompressed gradients stay so')
    _whole(given.get("every", 1), "adaptive_bits: every", lambda n: n >= 1, "a number of steps of at least 1")
    try:
        return Policy.of(codec, bits, **given)
    except (TypeError, ValueError) as error:
        raise type(error)(f"adaptive_bits: {error}") from None


def check_codec(codec: str, bits: PerLayer, sizes: PerLayer) -> None:
    """ValueError for bits and sizes of buckets that the codec does not have."""
    widths = {bits.default, *bits.own.values()} - {UNCOMPRESSED}
    for width in widths:
        QuantSpec(width, codec=codec)
    for size in {sizes.default, *sizes.own.values()} if widths else ():
        QuantSpec(1, size, codec=codec)


def check_parameters(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """compression_params as a dict of those that exist."""
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(f"compression_params must be a mapping with {' and '.join(PARAMETERS)}, or None, not {given!r}")
    params = dict(given or {})
    unknown = [name for name in params if name not in PARAMETERS]
    if unknown:
        raise ValueError(f"compression_params has {unknown[0]!r}; it may only have {', '.join(PARAMETERS)}")
    return params
