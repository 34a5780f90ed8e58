"""Averages arrays over ranks: in place, several at once, in the background, in few bits.

mpirun -np 2 python examples/allreduce_arrays.py

The arrays here are NumPy's; those of PyTorch, CuPy and JAX, on CPUs or GPUs, work the same way (docs/ALLREDUCE.md).
"""

from __future__ import annotations

import numpy as np

from cgxffcv import comm
from cgxffcv.allreduce import check_replicas


def gradients_of(rank: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(rank)
    return {
        "weight": random.standard_normal((256, 1024), np.float32),
        "bias": random.standard_normal(1024, np.float32),
        "seen": np.array([rank + 1, 500]),
    }


def main() -> None:
    with comm.world() as world:
        mine = gradients_of(world.rank)
        exact = np.mean([gradients_of(rank)["weight"] for rank in range(world.size)], axis=0, dtype=np.float64)

        def report(text: str) -> None:
            if world.rank == 0:
                print(text, flush=True)

        # in place; integers can be summed, but not averaged
        world.allreduce(mine["seen"], op="sum")
        report(f"{world.size} ranks have seen {mine['seen'][1]} samples")

        # in the background: the communicator stays free; the array must not be touched before wait()
        handle = world.allreduce_async(mine["weight"].copy())
        world.barrier()
        plain = handle.wait()
        report(f"exact: off by {np.linalg.norm(plain - exact) / np.linalg.norm(exact):.1e}")

        # several at once, by name: one call, in which one-dimensional arrays stay exact
        narrow = {name: mine[name].copy() for name in ("bias", "weight")}
        world.allreduce(narrow, bits=4, algorithm="sra")
        check_replicas(world, narrow["weight"])  # the same bytes on every rank
        error = np.linalg.norm(narrow["weight"] - exact) / np.linalg.norm(exact)
        plan = world.allreduce_plans(narrow, bits=4, algorithm="sra")[0]
        report(f"4 bits: {plan.wire_bytes:,} bytes sent instead of {plan.plain_bytes:,}, relative error {error:.4f}")

        # what quantisation loses is kept under a key, and added in the next call
        total = np.zeros_like(exact)
        for _ in range(20):
            step = mine["weight"].copy()
            total += world.allreduce(step, bits=2, algorithm="sra", error_feedback=True, key="weight")
        error = np.linalg.norm(total / 20 - exact) / np.linalg.norm(exact)
        report(f"the mean of 20 steps of 2 bits with error feedback: relative error {error:.4f}")


if __name__ == "__main__":
    main()
