"""The allreduce algorithms in NumPy, written from docs/WIRE.md alone: what every rank must hold after a run.

`simulate` takes all ranks' buffers and gives the one result; slices, slots and transports do not exist here."""

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
    feedback: bool = False
    seed: int = 0
    call: int = 0
    residual: list = field(default_factory=list)  # of each rank, in and out

    def table(self):
        result, first, quad = [], 0, 0
        for elems, spec in self.layers:
            layer = Layer(first, elems, spec, quad)
            result.append(layer)
            first += elems
            quad += layer.buckets * ((layer.bucket + 3) // 4)
        return result


def pieces(case, low, high):
    """Buckets [low, high) of the call as (layer, first element, end, quad)."""
    base = 0
    for layer in case.table():
        a, b = max(low, base) - base, min(high, base + layer.buckets) - base
        if a < b:
            end = min(b * layer.bucket, layer.elems)
            quad = layer.quad + a * ((layer.bucket + 3) // 4)
            yield layer, layer.first + a * layer.bucket, layer.first + end, quad
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
        """The i-th of `parts` shares of buckets [low, high)."""
        n = high - low
        return low + i * n // parts, low + (i + 1) * n // parts

    def sent(self, rank, values, piece, first_sent=True):
        """What others decode of a piece that `rank` quantises; moves the residual it keeps. `values` are of the wide
        type; `first_sent` adds the residual before (a term), else it is in them already (a result)."""
        layer, first, end, quad = piece
        if layer.spec is None:
            return values
        if self.case.feedback and first_sent:
            values = self.case.residual[rank][first:end] * F(self.scale) + values
        typed, kind = values, "float32"
        if layer.spec["half_metadata"]:
            typed, kind = model.from_float32(values, self.case.dtype), self.case.dtype
        wire = model.quantize(typed, layer.spec, kind, self.case.seed, self.case.call, rank, quad)
        decoded = model.dequantize32(wire, layer.spec, end - first)
        if self.case.feedback:
            with np.errstate(invalid="ignore"):
                lost = (values - decoded) * F(1 / self.scale)
            self.case.residual[rank][first:end] = np.where(np.isfinite(lost), lost, F(0))
        return decoded

    def publish(self, rank, total, piece):
        """The owner's sum of a piece to the result that everybody gets."""
        layer, first, end, _ = piece
        decoded = self.sent(rank, total, piece, first_sent=False)
        with np.errstate(all="ignore"):
            value = decoded / np.asarray(self.divisor, decoded.dtype) if self.divisor != 1 else decoded
        self.result[first:end] = narrow(value, self.case.dtype)

    def own(self, rank, values, piece):
        """A rank's exact part of what it owns."""
        layer, first, end, _ = piece
        if not self.case.feedback or layer.spec is None:
            return values
        return self.case.residual[rank][first:end] * F(self.scale) + values

    def sum_of(self, terms):
        total = terms[0]
        for term in terms[1:]:
            total = combine(self.case.op, total, term)
        return total

    def sra(self, ranks, sources, low, high):
        """Scatter-reduce-allgather of buckets [low, high) over some ranks, whose summands are `sources`."""
        for i, owner in enumerate(ranks):
            for piece in pieces(self.case, *self.chunk(low, high, i, len(ranks))):
                _, first, end, _ = piece
                terms = []
                for rank, source in zip(ranks, sources, strict=True):
                    x = source[first:end]
                    terms.append(self.own(rank, x, piece) if rank == owner else self.sent(rank, x, piece))
                self.publish(owner, self.sum_of(terms), piece)

    def one_shot(self):
        for piece in pieces(self.case, 0, self.buckets):
            _, first, end, _ = piece
            total = self.sum_of([self.sent(r, self.x[r][first:end], piece) for r in range(self.size)])
            with np.errstate(all="ignore"):
                value = total / np.asarray(self.divisor, total.dtype) if self.divisor != 1 else total
            self.result[first:end] = narrow(value, self.case.dtype)

    def ring(self):
        for c in range(self.size):
            for piece in pieces(self.case, *self.chunk(0, self.buckets, c, self.size)):
                _, first, end, _ = piece
                total = self.x[c][first:end]
                for hop in range(1, self.size):
                    sender, receiver = (c + hop - 1) % self.size, (c + hop) % self.size
                    total = combine(self.case.op, self.sent(sender, total, piece), self.x[receiver][first:end])
                owner = (c + self.size - 1) % self.size
                self.publish(owner, self.own(owner, total, piece), piece)

    def two_level(self):
        node_of = [r * self.case.nodes // self.size for r in range(self.size)]
        nodes = [[r for r in range(self.size) if node_of[r] == m] for m in range(self.case.nodes)]
        seats = len(nodes[0])
        for j in range(seats):
            low, high = self.chunk(0, self.buckets, j, seats)
            sums = []
            for members in nodes:
                total = np.empty_like(self.x[0])
                for piece in pieces(self.case, low, high):
                    _, first, end, _ = piece
                    terms = [self.x[r][first:end] if r == members[j] else self.sent(r, self.x[r][first:end], piece)
                             for r in members]  # fmt: skip
                    total[first:end] = self.sum_of(terms)
                sums.append(total)
            self.sra([members[j] for members in nodes], sums, low, high)


def simulate(case, buffers):
    """The result of all ranks; the residuals in `case` move on."""
    if len(buffers) == 1:
        return buffers[0]
    run = Simulation(case, buffers)
    if case.feedback and not case.residual:
        case.residual[:] = [np.zeros(buffers[0].size, F) for _ in buffers]
    if case.algorithm in ("sra", "exact"):
        run.sra(list(range(run.size)), run.x, 0, run.buckets)
    else:
        getattr(run, case.algorithm)()
    case.call += 1
    return run.result
