"""The ranks of tests/mpi/test_allreduce_ranks.py: worker_allreduce.py CASE OUT [ARGUMENTS], as in worker_comm.py."""

import os
import signal
import threading

import numpy as np
from allreduce_model import Case, simulate
from quant_model import complete, from_float32
from worker_comm import ARGUMENTS, CASE, caught, join, leave, put, result

from cgxffcv import allreduce as ar

ALGORITHMS = ("one_shot", "sra", "ring", "two_level", "exact")
LAYERS = [(20_000, 2), (100, 1), (3000, 2), (7, 2), (5000, 1)]


def inputs(size, dtype, seed):
    """Every rank's buffer; rank 1 has a NaN in one bucket and rank 0 an infinity in another."""
    elems = sum(n for n, _ in LAYERS)
    buffers = [np.random.default_rng(10 * seed + r).standard_normal(elems).astype(np.float32) for r in range(size)]
    buffers[min(1, size - 1)][3000] = np.nan
    buffers[0][21_000] = np.inf
    return [from_float32(b, dtype) for b in buffers]


def match():
    """Each algorithm on each type: equal to the simulation on every rank."""
    world = join(timeout=100)
    checked = 0
    for dtype in ("float32", "bfloat16"):
        for algorithm in ALGORITHMS:
            for feedback in (False, True):
                table = [
                    (n, None if d < 2 or n < 1024 or algorithm == "exact" else complete(3, 512, dtype))
                    for n, d in LAYERS
                ]
                case = Case(table, dtype, "average", algorithm, world.nodes, feedback and algorithm != "exact")
                plan = ar.AllreducePlan(
                    world,
                    [(n,) + (1,) * (d - 1) for n, d in LAYERS],
                    bits=3,
                    bucket_size=512,
                    dtype=dtype,
                    algorithm=algorithm,
                    error_feedback=feedback,
                )
                for seed in range(2):
                    buffers = inputs(world.size, dtype, seed)
                    expected = simulate(case, buffers)
                    x = buffers[world.rank].copy()
                    plan.run(x)
                    assert x.tobytes() == expected.tobytes(), (algorithm, dtype, feedback, seed)
                    assert world.size == 1 or np.isnan(np.float32(x[3000]) if dtype == "float32" else np.nan)
                    ar.check_replicas(world, x)
                    checked += 1
    result(world.rank, checked=checked, nodes=world.nodes)
    world.close()


def large():
    """Many slices under way at once: the sum of small integers, which every algorithm must give to within its step, and
    exact exactly."""
    world = join(timeout=100)
    n = 3_000_000
    x = ((np.arange(n) * (world.rank + 1)) % 16).astype(np.float32)
    total = sum((np.arange(n) * (r + 1)) % 16 for r in range(world.size)).astype(np.float32)
    worst = {}
    for algorithm in ALGORITHMS:
        out = ar.AllreducePlan(world, [(n, 1)], bits=8, op="sum", algorithm=algorithm).run(x.copy())
        ar.check_replicas(world, out)
        worst[algorithm] = float(np.abs(out - total).max())
    result(world.rank, worst=worst)
    world.close()


def automatic():
    world = join(timeout=100)
    plan = ar.AllreducePlan(world, [(100_000, 2)])
    out = plan.run(np.full(200_000, world.rank, np.float32))
    assert (out == out[0]).all()
    result(world.rank, algorithm=plan.algorithm, text=plan.explain(), value=float(out[0]))
    world.close()


def endless(world, algorithm):
    """Runs until something happens."""
    plan = ar.AllreducePlan(world, [(2_000_000, 1)], algorithm=algorithm)
    x = np.ones(2_000_000, np.float32)
    while True:
        plan.run(x)


def killed():
    """The victim dies in the middle of a run."""
    algorithm, victim = ARGUMENTS[0], int(ARGUMENTS[1])
    world = join(timeout=100)
    world.barrier()
    if world.rank == victim:
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    values = caught(world, lambda: endless(world, algorithm))
    result(world.rank, **values, again=caught(world, world.barrier))
    leave(world.size, victim)


def until_lost():
    """Runs until the link is gone."""
    world = join()
    world.barrier()
    put(f"running.{world.rank}")
    result(world.rank, **caught(world, lambda: endless(world, ARGUMENTS[0])))
    os._exit(0)


def stopped():
    world = join(timeout=3, stall=0.6)
    world.barrier()
    if world.rank == 1:
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGSTOP)).start()
    result(world.rank, **caught(world, lambda: endless(world, "sra")))
    os._exit(0)


def mismatched():
    """The ranks' bits differ; afterwards a new communicator works."""
    world = join(timeout=100)
    bits = 4 - (world.rank == world.size - 1)
    plan = ar.AllreducePlan(world, [(64, 64)], bits=bits, algorithm="sra")
    x = np.ones(4096, np.float32)
    values = caught(world, lambda: plan.run(x))
    put(f"untouched.{world.rank}", int((x == 1).all()))
    result(world.rank, **values, untouched=bool((x == 1).all()))
    leave(world.size)


def interrupted():
    """Ctrl-C on one rank in the middle of a run."""
    world = join(timeout=100)
    world.barrier()
    if world.rank == 0:
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    values = caught(world, lambda: endless(world, "one_shot"))
    if world.broken is None:  # the signal came between two runs
        world.abort("rank 0 was interrupted")
    result(world.rank, **values)
    leave(world.size)


if __name__ == "__main__":
    globals()[CASE]()
