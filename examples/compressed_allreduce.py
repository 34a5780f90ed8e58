"""Averages gradients over ranks in few bits per element: the error, the bytes sent, and equal results on every rank.

mpirun -np 2 python examples/compressed_allreduce.py
"""

from __future__ import annotations

import numpy as np

from cgxffcv import comm
from cgxffcv.allreduce import AllreducePlan, check_replicas

# name and shape of each layer, in the order of the flat gradient buffer; the last two are small and sent uncompressed
LAYERS = [
    ("conv1", (64, 3, 3, 3)),
    ("conv2", (256, 64, 3, 3)),
    ("linear", (10, 256)),
    ("norm", (256,)),
    ("bias", (10,)),
]


def main() -> None:
    with comm.world() as world:
        elems = sum(int(np.prod(shape)) for _, shape in LAYERS)
        everyone = [np.random.default_rng(rank).standard_normal(elems, np.float32) for rank in range(world.size)]
        exact = np.mean(everyone, axis=0, dtype=np.float64)

        def report(text: str) -> None:
            if world.rank == 0:
                print(text, flush=True)

        if world.size == 1:
            report("one rank has nobody to send to: start this with mpirun -np 2")
        report(f"{world.size} ranks, {elems:,} gradients in {len(LAYERS)} layers")
        for bits in (32, 8, 4, 2):
            # "auto" would measure both, and send small gradients uncompressed where that is faster
            plan = AllreducePlan(world, LAYERS, bits=bits, bucket_size=1024, algorithm="sra")
            gradients = everyone[world.rank].copy()
            plan.run(gradients)  # in place; collective
            check_replicas(world, gradients)  # CommError if the bytes of any rank differ
            error = np.linalg.norm(gradients - exact) / np.linalg.norm(exact)
            report(
                f"{bits:>2} bits: {plan.algorithm}, {plan.wire_bytes:>9,} bytes sent per rank "
                f"({plan.wire_bytes / max(plan.plain_bytes, 1):5.1%} of uncompressed), relative error {error:.4f}"
            )
        # layers may have bits of their own, and what is lost can be added in the next step
        plan = AllreducePlan(world, LAYERS, bits={"default": 4, "linear": 8}, algorithm="sra", error_feedback=True)
        total = np.zeros(elems)
        for _ in range(20):
            total += plan.run(everyone[world.rank].copy())
        error = np.linalg.norm(total / 20 - exact) / np.linalg.norm(exact)
        report(f"the mean of 20 steps of 4 bits with error feedback: relative error {error:.4f}")


if __name__ == "__main__":
    main()
