"""For tests/py/test_ddp_hook.py: the hook under the stand-in for PyTorch, ranks as threads, against the byte-level
model."""

import numpy as np
from allreduce_model import Case, simulate
from quant_model import complete
from thread_ranks import on_threads
from torch import _hooks
from torch import distributed as dist

from cgxffcv.comm import CommError
from cgxffcv.interop.torch import CGXState, cgx_hook

SHAPES = {"a": (40, 50), "bias": (60,), "b": (30, 40), "small": (7, 9)}


def on_ranks(size, function):
    """function(group) on each; what they return, or raise."""
    store = _hooks.Store()
    return on_threads(size, lambda rank: function(dist.ProcessGroup(rank, size, store)))


def drawn(rank, step):
    random = np.random.default_rng([rank, step])
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def buckets_of_steps():
    """Buckets as DDP makes them at first, and rebuilt in another order."""
    return [[["a", "bias", "b", "small"]], [["small", "b"], ["bias", "a"]], [["small", "b"], ["bias", "a"]]]


def averages(group):
    """What the hook makes of all steps' buckets."""
    parameters = {name: _hooks.Parameter(*shape) for name, shape in SHAPES.items()}
    bits = {"default": 3, "b": 8}
    state = CGXState(
        group, 1024, {"bits": bits, "bucket_size": 256}, model=parameters.items(), error_feedback=True, algorithm="sra"
    )
    results = []
    for step, buckets in enumerate(buckets_of_steps()):
        gradients = {parameters[name]: array for name, array in drawn(group.rank, step).items()}
        futures = []
        for index, names in enumerate(buckets):
            bucket = dist.GradBucket([parameters[n] for n in names], gradients, index == len(buckets) - 1)
            futures.append(cgx_hook(state, bucket))
        results += [future.wait().tobytes() for future in futures]
    assert "3 bits" in state.explain() and state.wire_bytes > 0
    return results


def expected(size):
    specs = {"a": complete(3, 256), "b": complete(8, 256), "bias": None, "small": None}
    kept = {n: [np.zeros(int(np.prod(s)), np.float32) for _ in range(size)] for n, s in SHAPES.items()}
    results = []
    for step, buckets in enumerate(buckets_of_steps()):
        everyones = [drawn(rank, step) for rank in range(size)]
        for names in buckets:
            case = Case([(int(np.prod(SHAPES[n])), specs[n]) for n in names], feedback=True)
            case.residual = [np.concatenate([kept[n][r] for n in names]) for r in range(size)]
            flat = [np.concatenate([g[n].ravel() for n in names]) for g in everyones]
            results.append(simulate(case, flat).tobytes())
            ends = np.cumsum([np.prod(SHAPES[n]) for n in names])[:-1]
            for rank in range(size):
                for name, part in zip(names, np.split(case.residual[rank], ends), strict=True):
                    kept[name][rank] = part
    return results


def disagree(group):
    """Ranks that ask for different bits."""
    parameter = _hooks.Parameter(64, 64)
    state = CGXState(group, compression_params={"bits": 4 - group.rank}, timeout=20)
    cgx_hook(state, dist.GradBucket([parameter], {parameter: np.ones((64, 64), np.float32)}))


def main():
    for size in (2, 3):
        for found in on_ranks(size, averages):
            assert found == expected(size), found
    for rank, error in enumerate(on_ranks(2, disagree)):
        assert isinstance(error, CommError) and error.rank == 1 - rank, error
        assert "disagree on bits" in str(error), error
    try:
        dist.Backend.CGX(None)
    except ValueError as error:
        assert 'init_process_group("nccl")' in str(error)
    print("all good")


main()
