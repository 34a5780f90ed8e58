"""The ranks of tests/cuda/test_allreduce_gpu.py: worker_device.py CASE OUT [ARGUMENTS], as in worker_comm.py."""

import json
import os

import _cgxffcv
import numpy as np
from foreign_arrays import CudaArray, Forged, address_of
from quant_model import from_float32
from worker_comm import ARGUMENTS, CASE, join, result

from cgxffcv.allreduce import AllreducePlan, check_replicas

# Buckets that begin at any element, layers that travel as they are, one that has bits and buckets of its own.
LAYERS = [("a", (2000, 2)), ("bias", (101,)), ("b", (1500, 1)), ("c", (7, 1)), ("d", (900, 1)), ("e", (3333,))]
OWN = {"bits": {"e": 5}, "bucket_size": {"e": 70}}


def inputs(world, dtype, seed):
    """This rank's buffer: once with a NaN of rank 1 and an infinity of rank 0, once with zeros of both signs, a bucket
    of one value, subnormal numbers, and one that is too large for a grid."""
    elems = sum(int(np.prod(shape)) for _, shape in LAYERS)
    x = np.random.default_rng(10 * seed + world.rank).standard_normal(elems).astype(np.float32)
    if seed == 1:
        x[3000 if world.rank == 1 else 5000] = np.nan if world.rank == 1 else np.inf
    if seed == 2:
        x[:300], x[300:600], x[700:800] = -0.0, 5.0, 0.0
        x[1024:1600] *= np.float32(1e-41)
        x[2500] = 1e38 * (1 - 2 * world.rank)
    return from_float32(x, dtype)


def match():
    """Each way of the arguments on the GPU: the bytes of the processor, run after run, and its residual."""
    world = join(timeout=60)
    device = world.rank % len(_cgxffcv.devices())
    _cgxffcv.select_device(device)
    kinds = set()
    for options in json.loads(ARGUMENTS[0]):
        bits, bucket = options.pop("bits", 4), options.pop("bucket_size", 256)
        options |= {"bits": {"default": bits} | OWN["bits"], "bucket_size": {"default": bucket} | OWN["bucket_size"]}
        if options.get("codec") == "sign":
            options["bits"] = 1
        if options.get("codec") == "rotated":
            options["bits"]["e"], options["bucket_size"]["e"] = 3, 64
        there, here = (AllreducePlan(world, LAYERS, layer_min_size=500, device=d, **options) for d in (device, None))
        kinds.add(there.explain().splitlines()[0].split(", in ")[0])
        for seed in range(3):
            x = inputs(world, there.dtype, seed)
            on_gpu = CudaArray(x, device)
            bfloat16 = Forged(address_of(on_gpu.tensor), x.shape, device=(2, device), code=4, bits=16)
            there.run(bfloat16 if there.dtype == "bfloat16" else on_gpu)
            there.wait()
            here.run(x)
            got = on_gpu.numpy()
            assert got.tobytes() == x.tobytes(), (options, seed, np.flatnonzero(got != x)[:9])
            check_replicas(world, got)
            if here.residual is not None:
                np.testing.assert_array_equal(here.residual, there.residual)
        assert there.call == here.call == 3
        there.call = here.call = 7
        if there.dtype == "float32":
            there.run(CudaArray(x, device))
        there.call = 7  # while that run may be under way, which counts itself
        there.wait()
        assert there.call == 7
    result(world.rank, kinds=sorted(kinds), rounds=there.explain().splitlines()[0])
    os._exit(0) if ARGUMENTS[1:] == ["leave"] else world.close()


{"match": match}[CASE]()
