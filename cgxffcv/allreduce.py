"""Compressed allreduce: gradients averaged over ranks in 1 to 8 bits an element.

The quantiser follows QSGD (Alistarh et al., 2017) in the max-min form of CGX (Markov et al., Middleware 2022);
docs/WIRE.md states every operation and every byte. bfloat16 arrays are taken as `uint16`, or as an array whose dtype is
named "bfloat16" (ml_dtypes).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import _cgxffcv
import numpy as np

CODECS = ("maxmin", "sign", "maxmin_spikes")
ROUNDINGS = ("nearest", "stochastic")
QUANTIZED_DTYPES = ("float32", "float16", "bfloat16")


def choose(argument: str, value: object, allowed: tuple[str, ...]) -> int:
    """The index of `value` among the allowed names; ValueError naming them."""
    if value in allowed:
        return allowed.index(value)
    raise ValueError(f"{argument} must be one of {', '.join(map(repr, allowed))}, not {value!r}")


def dtype_name(dtype: object) -> str:
    """The name of a dtype given as a name, a NumPy dtype or type, or ml_dtypes' bfloat16."""
    if isinstance(dtype, str):
        return dtype
    name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or np.dtype(dtype).name
    return str(name)


def _plain(array: np.ndarray, argument: str) -> tuple[np.ndarray, str]:
    """The array in a type that the buffer protocol knows, and its dtype's name."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{argument} must be a NumPy array, not {type(array).__name__}")
    name = array.dtype.name
    return (array.view(np.uint16), name) if name == "bfloat16" else (array, name)


@dataclass(frozen=True)
class QuantSpec:
    """How a tensor is quantised; both ends must agree on all of it.

    bits: 1..8 (1 with the codec "sign"). bucket_size: elements that share a range. dtype: of the tensor, "float32",
    "float16" or "bfloat16". codec: "maxmin" (uniform between the bucket's extremes), "sign" (1 bit with the mean
    magnitude), "maxmin_spikes" (`spikes` elements of greatest magnitude travel apart; default one for each 128).
    rounding: "nearest" or "stochastic". half_metadata: ranges in the tensor's own 16-bit type.
    """

    bits: int = 4
    bucket_size: int = 1024
    dtype: str = "float32"
    codec: str = "maxmin"
    rounding: str = "nearest"
    half_metadata: bool = False
    spikes: int | None = None
    _numbers: tuple = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        name = dtype_name(self.dtype)
        object.__setattr__(self, "dtype", name)
        spikes = self.spikes
        if spikes is None:
            spikes = min(256, -(-int(self.bucket_size) // 128)) if self.codec == "maxmin_spikes" else 0
        numbers = (
            self.bits,
            self.bucket_size,
            choose("dtype", name, QUANTIZED_DTYPES),
            choose("codec", self.codec, CODECS),
            choose("rounding", self.rounding, ROUNDINGS),
            self.half_metadata,
            spikes,
        )
        object.__setattr__(self, "_numbers", numbers)
        _cgxffcv.quantize_wire_bytes(numbers, 0)  # refuses what is out of range

    def wire_bytes(self, elems: int) -> int:
        """Bytes that a run of `elems` elements takes: all ranges, padded to 16 bytes, then all codes, padded to 16."""
        return _cgxffcv.quantize_wire_bytes(self._numbers, elems)


def quantize(
    array: np.ndarray,
    spec: QuantSpec | None = None,
    *,
    seed: int = 0,
    call: int = 0,
    rank: int = 0,
    quad: int = 0,
    threads: int = 1,
    out: np.ndarray | None = None,
    **options: object,
) -> np.ndarray:
    """Quantises a C-contiguous array to its bytes on the wire (uint8, `spec.wire_bytes(array.size)` of them).

    Without a `spec` one is made of `options` (QuantSpec's fields) with the array's dtype. A float32 array may be
    quantised under the spec of a 16-bit tensor (a sum of such). Stochastic rounding draws from Philox keyed by `seed`,
    `call`, `rank` and the element's place, `quad` being the number of its first group of four. `out` receives the
    bytes. Raises ValueError naming the argument that is out of range.
    """
    plain, name = _plain(array, "array")
    if spec is None:
        inferred = "bfloat16" if name == "uint16" else name
        spec = QuantSpec(**{"dtype": inferred, **options})  # type: ignore[arg-type]
    elif options:
        raise TypeError(f"give a spec or its fields, not both: {', '.join(options)}")
    kind = spec.dtype if name == "uint16" and spec.dtype == "bfloat16" else name
    number = choose("the dtype of array", kind, QUANTIZED_DTYPES)
    if out is None:
        out = np.empty(spec.wire_bytes(plain.size), np.uint8)
    _cgxffcv.quantize(plain, number, spec._numbers, (seed, call, rank, quad), threads, out)
    return out


def dequantize(
    wire: np.ndarray,
    elems: int | tuple[int, ...],
    spec: QuantSpec,
    *,
    out: np.ndarray | None = None,
    accumulate: np.ndarray | None = None,
    divisor: float = 1.0,
    threads: int = 1,
) -> np.ndarray:
    """Decodes `quantize`'s bytes to an array of the given shape: (accumulate + x') / divisor, rounded to out's dtype.

    `out` defaults to a new array of the spec's dtype (uint16 for bfloat16); `accumulate` is float32 and may be `out`
    itself. Raises CommError if the bytes are damaged in a way that shows.
    """
    if out is None:
        out = np.empty(elems, np.uint16 if spec.dtype == "bfloat16" else spec.dtype)
    plain, name = _plain(out, "out")
    number = choose("the dtype of out", "bfloat16" if name == "uint16" else name, QUANTIZED_DTYPES)
    if plain.size != int(np.prod(elems)):
        raise ValueError(f"out must have {int(np.prod(elems))} elements, not {plain.size}")
    _cgxffcv.dequantize(wire, spec._numbers, plain, number, accumulate, divisor, threads)
    return out
