"""Compressed allreduce: gradients averaged over ranks in 1 to 8 bits per element.

    from cgxffcv import allreduce, comm

    with comm.world() as world:
        plan = allreduce.AllreducePlan(world, [("conv.weight", (64, 3, 3, 3)), ("conv.bias", (64,))], bits=4)
        plan.run(gradients)  # float32, all layers, one after the other; the average of all ranks, in place
        print(plan.explain())

The quantiser follows QSGD (Alistarh et al., 2017) in the max-min form of CGX (Markov et al., Middleware 2022);
docs/WIRE.md states every operation and every byte. bfloat16 arrays are taken as `uint16`, or as an array whose dtype is
named "bfloat16" (ml_dtypes).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import _cgxffcv
import numpy as np

from cgxffcv import costs
from cgxffcv.lengths import taken
from cgxffcv.tensors import stream_number, take
from cgxffcv.wording import NotebookText, as_table, brief, counted, whole_number

#: The values that these arguments may take, as the core spells them.
ALGORITHMS, DTYPES, OPS = _cgxffcv.ALLREDUCE_ALGORITHMS, _cgxffcv.ALLREDUCE_DTYPES, _cgxffcv.ALLREDUCE_OPS
FEEDBACKS = _cgxffcv.ALLREDUCE_FEEDBACKS
#: The same for a QuantSpec.
CODECS, QUANTIZED_DTYPES, ROUNDINGS = _cgxffcv.CODECS, _cgxffcv.QUANTIZED_DTYPES, _cgxffcv.ROUNDINGS
#: The most bits that each codec supports; the fewest is 1.
CODEC_BITS = _cgxffcv.CODEC_BITS
UNCOMPRESSED = 32
MAX_LAYERS = 1 << 24  # of a plan
MAX_DIMS = 64  # of a layer, as of NumPy's arrays

__all__ = [
    "ALGORITHMS",
    "CODECS",
    "AllreducePlan",
    "QuantSpec",
    "allreduce",
    "check_replicas",
    "dequantize",
    "quantize",
]


def dtype_name(dtype: object) -> str:
    """The name of a dtype given as a name, a NumPy dtype or type, or ml_dtypes' bfloat16."""
    if isinstance(dtype, str):
        return dtype
    name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or np.dtype(dtype).name
    return str(name)


def _plain(array: np.ndarray, argument: str) -> tuple[np.ndarray, str]:
    """The array in a type that the buffer protocol supports, and its dtype's name."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{argument} must be a NumPy array, not {type(array).__name__}")
    name = array.dtype.name
    return (array.view(np.uint16), name) if name == "bfloat16" else (array, name)


@dataclass(frozen=True)
class QuantSpec:
    """How a tensor is quantised; both ends must agree on all of it.

    bits: 1..8 (1 with the codec "sign", at most 4 with "rotated"). bucket_size: elements that share a range. dtype: the
    tensor's, "float32", "float16" or "bfloat16". codec: "maxmin" (uniform between the bucket's extremes), "sign" (1 bit
    with the mean magnitude), "maxmin_spikes" (the `spikes` elements of greatest magnitude are sent separately; default
    one per 128), "rotated" (random signs and a Hadamard transform, then levels for a Gaussian: the error does not
    depend on the data; buckets of 64, 128 .. 4096). rounding: "nearest" or "stochastic". half_metadata: ranges in the
    tensor's own 16-bit type. scale: with "rotated", "mse" for the least error or "unbiased" for an error whose mean is
    nearly zero ("auto": the latter).
    """

    bits: int = 4
    bucket_size: int = 1024
    dtype: str = "float32"
    codec: str = "maxmin"
    rounding: str = "nearest"
    half_metadata: bool = False
    spikes: int | None = None
    scale: str = "auto"
    _core: dict = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", whole_number(self.bits, "bits"))
        object.__setattr__(self, "dtype", dtype_name(self.dtype))
        object.__setattr__(self, "_core", dict(vars(self)))
        _cgxffcv.quantize_wire_bytes(self._core, 0)  # raises for fields that do not go together

    def wire_bytes(self, elems: int) -> int:
        """Bytes that a run of `elems` elements takes: all ranges, padded to 16 bytes, then all codes, padded to 16."""
        return _cgxffcv.quantize_wire_bytes(self._core, elems)


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
    quantised under the spec of a 16-bit tensor (as a sum of such tensors). Stochastic rounding and the codec "rotated"
    draw from Philox keyed by `seed`, `call`, `rank` (rounding only) and the element's position, where `quad` is the
    number of the array's first group of four elements. `out` receives the bytes. Raises ValueError naming the argument
    that is out of range.
    """
    plain, name = _plain(array, "array")
    if spec is None:
        inferred = "bfloat16" if name == "uint16" else name
        spec = QuantSpec(**{"dtype": inferred, **options})  # type: ignore[arg-type]
    elif options:
        raise TypeError(f"give a spec or its fields, not both: {', '.join(options)}")
    kind = spec.dtype if name == "uint16" and spec.dtype == "bfloat16" else name
    if out is None:
        out = np.empty(spec.wire_bytes(plain.size), np.uint8)
    random = {"seed": seed, "call": call, "rank": rank, "quad": quad}
    _cgxffcv.quantize(plain, kind, spec._core, random, threads, out)
    return out


def dequantize(
    wire: np.ndarray,
    elems: int | tuple[int, ...],
    spec: QuantSpec,
    *,
    out: np.ndarray | None = None,
    accumulate: np.ndarray | None = None,
    divisor: float = 1.0,
    seed: int = 0,
    call: int = 0,
    quad: int = 0,
    threads: int = 1,
) -> np.ndarray:
    """Decodes `quantize`'s bytes to an array of the given shape: (accumulate + x') / divisor, rounded to out's dtype.

    `out` defaults to a new array of the spec's dtype (uint16 for bfloat16); `accumulate` is float32 and may be
    `out` itself (not with "rotated", whose sums are of transformed values). "rotated" needs `quantize`'s seed, call and
    quad. Raises CommError if the bytes are detectably damaged.
    """
    if out is None:
        out = np.empty(elems, np.uint16 if spec.dtype == "bfloat16" else spec.dtype)
    plain, name = _plain(out, "out")
    kind = "bfloat16" if name == "uint16" else name
    count = elems if isinstance(elems, int) else int(np.prod(elems))
    if plain.size != count:
        raise ValueError(f"out must have {count} elements, not {plain.size}")
    random = {"seed": seed, "call": call, "rank": 0, "quad": quad}
    _cgxffcv.dequantize(wire, spec._core, random, plain, kind, accumulate, divisor, threads)
    return out


LayerShape = int | Sequence[int]


def check_timeout(value: object) -> None:
    """Raises TypeError or ValueError for anything but None or a number of seconds above 0."""
    if value is None:
        return
    expected = "timeout must be a number of seconds above 0, or None"
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{expected}, not {value!r}")
    if not value > 0:
        raise ValueError(f"{expected}, not {value!r}")


def check_switch(argument: str, value: object) -> None:
    """Raises TypeError for anything but True or False: a string, say, would count as True whatever it says."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{argument} must be True or False, not {value!r}")


def feedback_of(value: object) -> bool | str:
    """How error feedback keeps what was lost: False (not at all, "none"), True (in float32, "float32") or "int8".
    Raises TypeError or ValueError for anything else."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, str) and value in FEEDBACKS:
        return {"none": False, "float32": True}.get(value, value)
    error = ValueError if isinstance(value, str) else TypeError
    raise error(f"error_feedback must be True, False or one of {', '.join(FEEDBACKS)}, not {value!r}")


def _count(argument: str, value: object, bits: int) -> int:
    """A whole number that fits into that many bits."""
    number = whole_number(value, argument)
    if not 0 <= number < 1 << bits:
        raise ValueError(f"{argument} must be in 0..2^{bits}-1, not {number}")
    return number


def _core_layer(name: str | None, shape: LayerShape, bits: int, bucket_size: int) -> dict[str, Any]:
    """A layer as the core takes it; a count has no known dimensions."""
    what = f"the shape of layer {name!r}" if name is not None else "a layer's shape"
    if isinstance(shape, Sequence) and not isinstance(shape, str):
        dims = f"{what} must have at most {MAX_DIMS} dimensions, not "
        sizes = tuple(_count(what, n, 63) for n in taken(shape, MAX_DIMS, lambda: dims + brief(shape)))
        size = {"shape": str(sizes), "elems": math.prod(sizes), "dims": max(1, len(sizes))}
    else:
        elems = whole_number(shape, what)
        size = {"shape": str(elems), "elems": elems, "dims": 0}
    return {"name": name, "bits": bits, "bucket_size": bucket_size, **size}


def _per_layer(argument: str, value: int | Mapping, default: int, names: list[str | None]) -> tuple[int, list[int]]:
    """The plan's value and each layer's own (0: the plan's) from a number, or from a mapping of names or indices."""
    own = [0] * len(names)
    if not isinstance(value, Mapping):
        return whole_number(value, argument), own
    for key, item in value.items():
        if key == "default":
            default = whole_number(item, argument)
        elif isinstance(key, int) and -len(names) <= key < len(names):
            own[key] = whole_number(item, argument)
        elif isinstance(key, str) and key in names:
            own[names.index(key)] = whole_number(item, argument)
        else:
            raise ValueError(f"{argument} names a layer {key!r} that the table of {len(names)} layers does not have")
    return default, own


def _named(layers: Iterable) -> list[tuple[str | None, LayerShape]]:
    result: list[tuple[str | None, LayerShape]] = []
    for layer in taken(layers, MAX_LAYERS, lambda: f"a plan has at most {MAX_LAYERS:,} layers, not {brief(layers)}"):
        named = isinstance(layer, (tuple, list)) and len(layer) == 2 and (layer[0] is None or isinstance(layer[0], str))
        result.append((layer[0], layer[1]) if named else (None, layer))
    known: set[str] = set()
    for name, _ in result:
        if name in known:
            raise ValueError(f"two layers have the name {name!r}")
        if name is not None:
            known.add(name)
    return result


@dataclass(frozen=True)
class _Table:
    """The layers of a plan; bits and bucket sizes are each layer's own, 0 where the default applies."""

    layers: list[tuple[str | None, LayerShape]]
    default_bits: int
    bits: tuple[int, ...]
    default_bucket_size: int
    bucket_sizes: tuple[int, ...]

    @classmethod
    def of(cls, layers: Iterable, bits: int | Mapping, bucket_size: int | Mapping) -> _Table:
        table = _named(layers)
        names = [name for name, _ in table]
        default_bits, own_bits = _per_layer("bits", bits, 4, names)
        default_size, own_sizes = _per_layer("bucket_size", bucket_size, 1024, names)
        return cls(table, default_bits, tuple(own_bits), default_size, tuple(own_sizes))

    @property
    def quantized(self) -> bool:
        """True if any layer may be quantised."""
        return any(width not in (0, UNCOMPRESSED) for width in (self.default_bits, *self.bits))

    def core(self, bits: Iterable[int]) -> list[dict[str, Any]]:
        """The table as the core takes it, with these bits for the layers."""
        own = zip(self.layers, bits, self.bucket_sizes, strict=True)
        return [_core_layer(name, shape, width, size) for (name, shape), width, size in own]


class AllreducePlan:
    """An allreduce of a flat buffer of layers over a communicator: made once, run at every step, in place.

    comm: a `cgxffcv.comm.Comm`. layers: for each layer (name, shape), or a shape or a number of elements alone, in
    the order of the flat buffer. bits: 1..8, or 32 for none; bucket_size: elements that share a range; both also as
    a mapping from layer names or indices (and "default") to values. Layers of one dimension, and layers of fewer
    than `layer_min_size` elements, are not quantised unless `bits` names them. dtype: any of DTYPES; types other than
    float32, float16 and bfloat16 (taken as uint16), and ops other than "sum" and "average", are sent exactly. codec,
    rounding, half_metadata, spikes, scale: see QuantSpec, where scale "auto" is "mse" with error feedback. algorithm:
    one of ALGORITHMS; "auto" chooses by measured costs (collective; see cgxffcv.costs); where sending uncompressed is
    faster on this link it does that, and `explain` says so. average: False gives the sum; `op`, unless it is None,
    names any operation. error_feedback: what quantisation lost is added at the next run; until then it is kept in
    float32 (True), or in a quarter of the memory ("int8": docs/ALLREDUCE.md). seed: of stochastic rounding, equal on
    all ranks. threads: how many quantise. timeout: seconds that a run may take; by default the communicator's. device:
    the number of the GPU that holds the buffers; None: host memory. compare: on a GPU, too, the ranks compare before
    every run what they are about to do; False: only when the plan is made.

    After a run the buffers of all ranks are equal bit for bit. All ranks make and run their plans in the same order.
    Raises ValueError naming the layer or the option.
    """

    def __init__(
        self,
        comm: _cgxffcv.Comm,
        layers: Iterable,
        *,
        bits: int | Mapping = 4,
        bucket_size: int | Mapping = 1024,
        layer_min_size: int = 1024,
        dtype: object = "float32",
        codec: str = "maxmin",
        rounding: str = "nearest",
        half_metadata: bool = False,
        spikes: int | None = None,
        scale: str = "auto",
        algorithm: str = "auto",
        average: bool = True,
        op: str | None = None,
        error_feedback: bool | str = False,
        seed: int = 0,
        threads: int = 1,
        timeout: float | None = None,
        device: int | None = None,
        compare: bool = True,
    ) -> None:
        if not isinstance(comm, _cgxffcv.Comm):
            raise TypeError(f"comm must be a cgxffcv.comm.Comm, not {type(comm).__name__}")
        check_timeout(timeout)
        for argument, value in (("average", average), ("half_metadata", half_metadata), ("compare", compare)):
            check_switch(argument, value)
        self.comm, self.codec, self.device, self.dtype = comm, codec, device, dtype_name(dtype)
        self.op = op if op is not None else "average" if average else "sum"
        self._table = _Table.of(layers, bits, bucket_size)
        self.bits, self.layer_bits = self._table.default_bits, self._table.bits
        quantizes = self._table.quantized and self.dtype in QUANTIZED_DTYPES and self.op in ("sum", "average")
        lines = costs.of(comm, device) if algorithm == "auto" and quantizes and comm.size > 1 else None
        self._where = (-1 if device is None else device, compare)
        self._options = {
            "dtype": self.dtype,
            "op": self.op,
            "bits": self.bits,
            "bucket_size": self._table.default_bucket_size,
            "layer_min_size": layer_min_size,
            "codec": codec,
            "rounding": rounding,
            "half_metadata": half_metadata,
            "spikes": spikes or 0,
            "scale": scale,
            "algorithm": algorithm,
            "error_feedback": feedback_of(error_feedback),
            "seed": seed,
            "threads": threads,
            "timeout": timeout or 0.0,
            "costs": lines,
        }
        self._plan = self._make(self.layer_bits)
        if algorithm == "ring" and quantizes and comm.size > 4:
            message = f"a ring of {comm.size} ranks quantises {comm.size} times along the way: sra does so twice"
            warnings.warn(message, RuntimeWarning, stacklevel=2)

    def _make(self, bits: Iterable[int]) -> _cgxffcv.AllreducePlan:
        """The core's plan, with these bits for the layers (0: the plan's own)."""
        return _cgxffcv.AllreducePlan(self.comm, self._table.core(bits), *self._where, **self._options)

    def run(self, buffer: Any, stream: object = None) -> Any:
        """Reduces `buffer` in place (C-contiguous, the plan's dtype and number of elements) and returns it. Collective:
        the ranks first compare what they are about to do. Raises CommError on all of them if that differs, PeerLost,
        CommTimeout; after any of these the contents of the buffer are unspecified.

        A buffer of any framework will do. On a GPU the run is ordered on `stream`, by default the stream that its
        framework uses, and may return before the sums are complete; `wait` waits for them."""
        if isinstance(buffer, np.ndarray):
            self._plan.run(_plain(buffer, "buffer")[0])
        else:
            taken = take(buffer, "buffer", stream=stream)
            self._plan.put([taken.tensor], taken.stream)
        return buffer

    def wait(self, stream: object = None) -> None:
        """Waits until a GPU's stream (None: the default one) has finished its work, with the timeout of a run. Raises
        what `run` raises."""
        self._plan.wait(0 if stream is None else stream_number(stream))

    # Runs whose messages the caller sends, on a communicator that `comm.apart` made: first "inside" (two_level), then
    # "across". Arrays of bytes are uint8, and buffers as for `run`.

    def stage_messages(self, stage: str) -> tuple[int, tuple[int, ...], int, int]:
        """This rank's number in the stage; the sizes in bytes of its messages to the members, which `stage_encode`
        writes one after the other, 0 for itself (one_shot: one message for all); of each member's message to it; and of
        a result, 0 if there is none. Without members the stage is left out."""
        return self._plan.stage_messages(stage)

    def stage_encode(self, stage: str, buffer: np.ndarray, messages: np.ndarray) -> None:
        """Writes this rank's messages, for an all-to-all (one_shot: for an all-gather)."""
        self._plan.stage_encode(stage, _plain(buffer, "buffer")[0], messages)

    def stage_reduce(self, stage: str, buffer: np.ndarray, messages: np.ndarray, result: np.ndarray) -> None:
        """Reduces the messages of the other members, given one after the other, and writes the result, for an
        all-gather among the stage's members and then (two_level) among those of "inside". Not for one_shot."""
        self._plan.stage_reduce(stage, _plain(buffer, "buffer")[0], messages, result)

    def stage_finish(self, buffer: np.ndarray, gathered: np.ndarray) -> None:
        """Writes what was gathered to the buffer. Raises CommError if a rank was in another run."""
        self._plan.stage_finish(_plain(buffer, "buffer")[0], gathered)

    def set_bits(self, bits: Sequence[int], stream: object = None) -> None:
        """Sets the bits of each layer from the next run on, 0 for the plan's own rule; `call` and `residual` are kept.
        All ranks call it together, with the same bits. On a GPU it waits for the runs on `stream` (None: the default
        one)."""
        if len(bits) != len(self.layer_bits):
            raise ValueError(f"bits must be one number for each of {len(self.layer_bits)} layers, not {len(bits)}")
        if self.device is not None:
            self.wait(stream)
        residual = self._plan.residual
        plan = self._make([whole_number(each, "bits") for each in bits])
        plan.call = self._plan.call
        if residual is not None and plan.feeds_back:
            plan.restore(residual)
        self._plan, self.layer_bits = plan, tuple(bits)

    def losses(self, buffer: Any, widths: Sequence[int], stream: object = None) -> tuple[np.ndarray, np.ndarray]:
        """What quantising this rank's elements (with the residual) would lose at each width: ||x - x'||^2 of each layer
        with each of the widths and, in the last column, ||x||^2; and the bytes of each layer with each of the widths.
        Zeros for layers that are not quantised. The CPU measures; a buffer on a GPU, which is complete on `stream` as
        for `run`, is copied."""
        if isinstance(buffer, np.ndarray):
            here = _plain(buffer, "buffer")[0]
        else:
            taken = take(buffer, "buffer", stream=stream)
            if self.device is not None:
                self._plan.wait(taken.stream)
            here = taken.tensor.copy(-1, taken.stream).numpy()
        return self._plan.losses(here, self._plan.residual, widths)

    def explain(self) -> str:
        """What was chosen and why, how each layer is sent, and what it is predicted to cost."""
        return NotebookText(self._plan.explain())

    def _repr_html_(self) -> str:
        rows = [line.partition(":")[::2] for line in self.explain().strip().splitlines()]
        return as_table(f"AllreducePlan of {counted(self.elems, 'element')}", rows)

    @property
    def elems(self) -> int:
        """Elements of the flat buffer."""
        return self._plan.elems

    @property
    def algorithm(self) -> str:
        """The algorithm that runs."""
        return self._plan.algorithm

    @property
    def recordable(self) -> bool:
        """True if runs on a GPU are put on its stream without waiting for it."""
        return self._plan.recordable

    @property
    def wire_bytes(self) -> int:
        """Bytes that this rank sends in a run; a slice that goes to several ranks counts once for each."""
        return self._plan.wire_bytes

    @property
    def plain_bytes(self) -> int:
        """What `wire_bytes` would be if nothing were quantised."""
        return self._plan.plain_bytes

    @property
    def call(self) -> int:
        """The number of the next run; all ranks have the same. With `residual` it is the plan's whole state."""
        return self._plan.call

    @call.setter
    def call(self, value: int) -> None:
        self._plan.call = value

    @property
    def feeds_back(self) -> bool:
        """True if there is a residual."""
        return self._plan.feeds_back

    @property
    def residual(self) -> np.ndarray | None:
        """What quantisation has lost so far, float32: a writable view, or a copy if it is on a GPU or kept in 8 bits
        (not while runs are in progress). None without error feedback."""
        return self._plan.residual

    def restore(self, residual: np.ndarray) -> None:
        """Restores what `residual` returned, perhaps that of another plan over the same elements. In 8 bits it is
        rounded, unless it comes from 8 bits of the same layers and bucket sizes. Not while runs are in progress.
        ValueError without error feedback, for another number of elements, and for values that are not finite."""
        self._plan.restore(residual)


def allreduce(array: Any, comm: _cgxffcv.Comm, bits: int | Mapping = UNCOMPRESSED, **options: Any) -> Any:
    """`comm.allreduce(array, ...)`: reduces an array in place as one layer; see cgxffcv.arrays.reduce."""
    return comm.allreduce(array, bits=bits, **options)


def check_replicas(comm: _cgxffcv.Comm, array: np.ndarray) -> None:
    """Raises CommError on every rank unless all hold the same bytes (their XXH64 sums are compared). Collective."""
    _cgxffcv.allreduce_check_replicas(comm, _plain(array, "array")[0])
