"""The allreduce algorithms in NumPy, written from docs/WIRE.md alone: what every rank must hold after a run.

`simulate` takes all ranks' buffers and returns the common result; there are no slices, slots or transports here.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import quant_model as model

F = np.float32
RAW_BUCKET = 512
KINDS = {"bfloat16": np.uint16}


@dataclass
class Layer:
    first: int
    elems: int
    spec: dict | None  # None: not quantised
    quad: int
    first_value: int

    def values(self, elems):
        return elems if self.spec is None else model.values_of(self.spec, elems)

    @property
    def bucket(self):
        return RAW_BUCKET if self.spec is None else self.spec["bucket_size"]

    @property
    def buckets(self):
        return -(-self.elems // self.bucket)


@dataclass
class Case:
    layers: list  # (elems, spec or None)
    dtype: str = "float32"
    op: str = "average"
    algorithm: str = "sra"
    nodes: int = 1
    feedback: bool | str = False  # "int8": the residual is kept in 8 bits
    seed: int = 0
    call: int = 0
    residual: list = field(default_factory=list)  # of each rank, in and out

    def table(self):
        result, first, quad, value = [], 0, 0, 0
        for elems, spec in self.layers:
            layer = Layer(first, elems, spec, quad, value)
            result.append(layer)
            first += elems
            value += layer.values(elems)
            quad += layer.buckets * ((layer.bucket + 3) // 4)
        return result


@dataclass(frozen=True)
class Piece:
    """Some buckets of a layer: their elements in the buffer, and the values in which they are added up."""

    layer: Layer
    elems: slice
    values: slice
    quad: int

    @property
    def count(self):
        return self.elems.stop - self.elems.start


def pieces(case, low, high):
    """Buckets [low, high) of the call."""
    base = 0
    for layer in case.table():
        a, b = max(low, base) - base, min(high, base + layer.buckets) - base
        if a < b:
            start, end = a * layer.bucket, min(b * layer.bucket, layer.elems)
            quad = layer.quad + a * ((layer.bucket + 3) // 4)
            elems = slice(layer.first + start, layer.first + end)
            values = slice(layer.first_value + start, layer.first_value + start + layer.values(end - start))
            yield Piece(layer, elems, values, quad)
        base += layer.buckets


def wide(x, dtype):
    return model.to_float32(x, dtype) if dtype in ("float32", "float16", "bfloat16") else x


def canonical(x):
    return model.from_float32(x, "float32") if x.dtype == F else x


def combine(op, a, b):
    with np.errstate(all="ignore"):
        if op in ("sum", "average"):
            return canonical(a + b)
        if op == "prod":
            return canonical(a * b)
        return canonical(np.minimum(a, b) if op == "min" else np.maximum(a, b))


def narrow(x, dtype):
    return model.from_float32(x, dtype) if dtype in ("float32", "float16", "bfloat16") else x


def in_8_bits(lost, bucket):
    """A residual of whole buckets, after it has been stored in 8 bits."""
    kept = np.empty_like(lost)
    for first in range(0, lost.size, bucket):
        part = lost[first : first + bucket].astype(np.float64)
        greatest, power = np.abs(part).max(), -126
        while 127 * 2.0**power < greatest and power < 121:
            power += 1
        kept[first : first + bucket] = np.clip(np.rint(part / 2.0**power), -127, 127) * 2.0**power + 0.0
    return kept


class Simulation:
    def __init__(self, case, buffers):
        self.case, self.size = case, len(buffers)
        scales = case.op == "average" and case.dtype != "float16"
        self.scale = 0.5 ** (math.ceil(math.log2(self.size)) + 4) if scales else 1.0
        self.x = [wide(b, case.dtype) for b in buffers]
        if scales:
            self.x = [x * x.dtype.type(self.scale) for x in self.x]
        self.result = np.empty_like(buffers[0])
        self.divisor = self.size * self.scale if case.op == "average" else 1
        self.table = case.table()
        self.buckets = sum(layer.buckets for layer in self.table)

    def chunk(self, low, high, i, parts):
        """The i-th of `parts` parts of buckets [low, high)."""
        n = high - low
        return low + i * n // parts, low + (i + 1) * n // parts

    def enter(self, x, piece):
        """Elements of a piece (already scaled) as values."""
        if piece.layer.spec is None:
            return x
        return model.enter(x, piece.layer.spec, self.case.seed, self.case.call, piece.quad)

    def leave(self, values, piece):
        if piece.layer.spec is None:
            return values
        return model.leave(values, piece.layer.spec, piece.count, self.case.seed, self.case.call, piece.quad)

    def residual(self, rank, piece):
        """The residual to be added to a piece; None without error feedback."""
        if not self.case.feedback or piece.layer.spec is None:
            return None
        return self.case.residual[rank][piece.elems] * F(self.scale)

    def own(self, rank, piece, feedback=True):
        """A rank's exact elements of a piece as values."""
        x, residual = self.x[rank][piece.elems], self.residual(rank, piece) if feedback else None
        return self.enter(x if residual is None else residual + x, piece)

    def corrected(self, rank, values, piece):
        """A sum of values plus a rank's residual."""
        residual = self.residual(rank, piece)
        return values if residual is None else values + self.enter(residual, piece)

    def sent(self, rank, values, piece):
        """What others decode of values that `rank` quantises; updates the residual it keeps."""
        spec = piece.layer.spec
        if spec is None:
            return values
        typed = values
        if spec["half_metadata"]:
            typed = model.to_float32(model.from_float32(values, self.case.dtype), self.case.dtype)
        wire = model.quantize_values(typed, spec, piece.count, self.case.seed, self.case.call, rank, piece.quad)
        decoded = model.dequantize_values(wire, spec, piece.count)
        if self.case.feedback:
            with np.errstate(invalid="ignore"):
                lost = self.leave(values - decoded, piece) / F(self.scale)
            lost = np.where(np.isfinite(lost), lost, F(0))
            if self.case.feedback == "int8":
                lost = in_8_bits(lost, piece.layer.bucket)
            self.case.residual[rank][piece.elems] = lost
        return decoded

    def finish(self, values, piece):
        """Turns decoded values into the result that every rank gets."""
        x = self.leave(values, piece)
        with np.errstate(all="ignore"):
            value = x / np.asarray(self.divisor, x.dtype) if self.divisor != 1 else x
        self.result[piece.elems] = narrow(value, self.case.dtype)

    def sum_of(self, terms):
        total = terms[0]
        for term in terms[1:]:
            total = combine(self.case.op, total, term)
        return total

    def sra(self, ranks, low, high, sums=None):
        """Scatter-reduce-allgather of buckets [low, high) over some ranks, of their elements or of `sums`, values."""
        for i, owner in enumerate(ranks):
            for piece in pieces(self.case, *self.chunk(low, high, i, len(ranks))):
                terms = []
                for k, rank in enumerate(ranks):
                    if sums is None:
                        values = self.own(rank, piece)
                    else:
                        values = self.corrected(rank, sums[k][piece.values], piece)
                    terms.append(values if rank == owner else self.sent(rank, values, piece))
                self.finish(self.sent(owner, self.sum_of(terms), piece), piece)

    def one_shot(self):
        for piece in pieces(self.case, 0, self.buckets):
            self.finish(self.sum_of([self.sent(r, self.own(r, piece), piece) for r in range(self.size)]), piece)

    def ring(self):
        for c in range(self.size):
            for piece in pieces(self.case, *self.chunk(0, self.buckets, c, self.size)):
                total = self.own(c, piece)
                for hop in range(1, self.size):
                    sender, receiver = (c + hop - 1) % self.size, (c + hop) % self.size
                    if hop > 1:
                        total = self.corrected(sender, total, piece)
                    total = combine(self.case.op, self.sent(sender, total, piece), self.own(receiver, piece, False))
                owner = (c + self.size - 1) % self.size
                self.finish(self.sent(owner, self.corrected(owner, total, piece), piece), piece)

    def two_level(self):
        node_of = [r * self.case.nodes // self.size for r in range(self.size)]
        nodes = [[r for r in range(self.size) if node_of[r] == m] for m in range(self.case.nodes)]
        seats = len(nodes[0])
        for j in range(seats):
            low, high = self.chunk(0, self.buckets, j, seats)
            sums = []
            for members in nodes:
                total = np.empty(sum(layer.values(layer.elems) for layer in self.table), self.x[0].dtype)
                for piece in pieces(self.case, low, high):
                    terms = [
                        self.own(r, piece, False) if r == members[j] else self.sent(r, self.own(r, piece), piece)
                        for r in members
                    ]
                    total[piece.values] = self.sum_of(terms)
                sums.append(total)
            self.sra([members[j] for members in nodes], low, high, sums)


def simulate(case, buffers):
    """The result of all ranks; updates the residuals in `case`."""
    if len(buffers) == 1:
        return buffers[0]
    run = Simulation(case, buffers)
    if case.feedback and not case.residual:
        case.residual[:] = [np.zeros(buffers[0].size, F) for _ in buffers]
    if case.algorithm in ("sra", "exact"):
        run.sra(list(range(run.size)), 0, run.buckets)
    else:
        getattr(run, case.algorithm)()
    case.call += 1
    return run.result
