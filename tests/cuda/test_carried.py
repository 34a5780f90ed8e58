"""Sums on GPUs whose messages the caller moves: all ranks in one process, which moves them itself, against the
byte-level model."""

import _cgxffcv
import numpy as np
import pytest
from allreduce_model import Case, simulate
from gpus import needs_gpu
from quant_model import complete, from_float32

from cgxffcv import allreduce, comm

pytestmark = needs_gpu
LAYERS = [(5000, 2), (30, 1), (1100, 2), (7, 2)]
ELEMS = sum(n for n, _ in LAYERS)


def on_gpu(array, dtype=None):
    return _cgxffcv.tensor_of_buffer(array, dtype).copy(0)


def on_host(tensor):
    return tensor.copy(-1).numpy()


class Rank:
    """A rank's plan with its memory; collectives give it new memory that contains what they have moved."""

    def __init__(self, rank, size, **options):
        shapes = [(n,) + (1,) * (d - 1) for n, d in LAYERS]
        self.comm = comm.apart(rank, list(range(size)))
        self.plan = allreduce.AllreducePlan(
            self.comm, shapes, bits=3, bucket_size=256, device=0, compare=False, **options
        )._plan
        self.bytes, self.rows, self.outgoing_rows = self.plan.external_space()
        self.bind(np.zeros(self.rows * self.bytes, np.uint8))

    def bind(self, window):
        self.window = on_gpu(window)
        self.outgoing = on_gpu(np.zeros(self.outgoing_rows * self.bytes, np.uint8))
        self.plan.external_bind(self.window, self.outgoing)

    def row(self, tensor, index):
        return on_host(tensor)[index * self.bytes : (index + 1) * self.bytes]


def run(ranks, buffers):
    """Makes buffers on the GPU the average."""

    def all_do(step):
        for rank, buffer in zip(ranks, buffers, strict=True):
            rank.plan.external_step(step, buffer, 0)

    size, blank = len(ranks), np.zeros(ranks[0].bytes, np.uint8)
    all_do("push")
    if ranks[0].outgoing_rows == 0:
        terms = [rank.row(rank.window, me) for me, rank in enumerate(ranks)]
        for rank in ranks:
            rank.bind(np.concatenate(terms))
    else:
        sent = [[rank.row(rank.outgoing, to) for to in range(size)] for rank in ranks]
        for me, rank in enumerate(ranks):
            rank.bind(np.concatenate([sent[other][me] for other in range(size)] + [blank] * size))
        all_do("reduce")
        results = [rank.row(rank.window, size + me) for me, rank in enumerate(ranks)]
        for rank in ranks:
            rank.bind(np.concatenate([blank] * size + results))
    all_do("gather")


@pytest.mark.parametrize(("size", "algorithm"), [(2, "one_shot"), (3, "sra")])
@pytest.mark.parametrize(("dtype", "feedback"), [("float32", True), ("bfloat16", False), ("float32", "int8")])
def test_carried_sums_are_the_models(size, algorithm, dtype, feedback):
    options = {"algorithm": algorithm, "dtype": dtype, "error_feedback": feedback}
    ranks = [Rank(rank, size, rounding="stochastic", seed=4, **options) for rank in range(size)]
    specs = [complete(3, 256, dtype, rounding="stochastic") if d > 1 and n >= 1024 else None for n, d in LAYERS]
    layers = [(n, spec) for (n, _), spec in zip(LAYERS, specs, strict=True)]
    case = Case(layers, dtype, "average", algorithm, feedback=feedback, seed=4)
    for step in range(2):
        random = np.random.default_rng(step)
        arrays = [from_float32(random.standard_normal(ELEMS).astype(np.float32), dtype) for _ in range(size)]
        expected = simulate(case, arrays)
        buffers = [on_gpu(array, dtype) for array in arrays]
        run(ranks, buffers)
        for rank, buffer in zip(ranks, buffers, strict=True):
            rank.plan.wait(0)
            assert on_host(buffer).view(expected.dtype).tobytes() == expected.tobytes()


def test_what_does_not_fit_is_refused():
    rank = Rank(0, 2, algorithm="sra")
    plan, buffer = rank.plan, on_gpu(np.ones(ELEMS, np.float32))
    with pytest.raises(ValueError, match="step must be push, reduce or gather, not 'pull'"):
        plan.external_step("pull", buffer, 0)
    with pytest.raises(ValueError, match=f"tensor must have {ELEMS} elements of float32 on the plan's device"):
        plan.external_step("push", on_gpu(np.ones(7, np.float32)), 0)
    with pytest.raises(ValueError, match="on the plan's device"):
        plan.external_step("push", _cgxffcv.tensor_of_buffer(np.ones(ELEMS, np.float32)), 0)
    with pytest.raises(ValueError, match=f"window must have {4 * rank.bytes} elements of uint8"):
        plan.external_bind(rank.outgoing, rank.outgoing)
    with pytest.raises(comm.CommError, match="no connection to its other ranks"):
        plan.put([buffer], 0)
    with pytest.raises(ValueError, match="cannot run on a GPU here: only one_shot and sra run on GPUs"):
        Rank(0, 2, algorithm="two_level")
    unbound = allreduce.AllreducePlan(rank.comm, [(64, 64)], bits=4, algorithm="sra", device=0, compare=False)._plan
    with pytest.raises(ValueError, match="no memory for messages has been bound yet"):
        unbound.external_step("push", on_gpu(np.ones(4096, np.float32)), 0)
    host = allreduce.AllreducePlan(rank.comm, [(64, 64)], bits=4, algorithm="sra")._plan
    with pytest.raises(ValueError, match="not moved by its caller, or not on a GPU"):
        host.external_space()
