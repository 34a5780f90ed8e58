"""The ranks of tests/cuda/test_allreduce_gpu.py: worker_device.py CASE OUT [ARGUMENTS], as in worker_comm.py."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import _cgxffcv
import numpy as np
from foreign_arrays import CudaArray, Forged, address_of
from quant_model import from_float32
from worker_comm import ARGUMENTS, CASE, caught, join, result

from cgxffcv.adaptive import AdaptiveBits
from cgxffcv.allreduce import AllreducePlan, check_replicas

# Buckets that begin at any element, layers that are sent uncompressed, one with separate bits and buckets.
LAYERS = [("a", (2000, 2)), ("bias", (101,)), ("b", (1500, 1)), ("c", (7, 1)), ("d", (900, 1)), ("e", (3333,))]
OWN = {"bits": {"e": 5}, "bucket_size": {"e": 70}}


def inputs(world, dtype, seed):
    """This rank's buffer: once with a NaN of rank 1 and an infinity of rank 0, once with zeros of both signs, a bucket
    of equal values, subnormal numbers, and a number that is too large for a grid."""
    elems = sum(int(np.prod(shape)) for _, shape in LAYERS)
    x = np.random.default_rng(10 * seed + world.rank).standard_normal(elems).astype(np.float32)
    if seed == 1:
        x[3000 if world.rank == 1 else 5000] = np.nan if world.rank == 1 else np.inf
    if seed == 2:
        x[:300], x[300:600], x[700:800] = -0.0, 5.0, 0.0
        x[1024:1600] *= np.float32(1e-41)
        x[2500] = 1e38 * (1 - 2 * world.rank)
    return from_float32(x, dtype)


def enter(**options):
    """The communicator of the job, and the number of this rank's GPU, which is selected."""
    world = join(**options)
    device = world.rank % len(_cgxffcv.devices())
    _cgxffcv.select_device(device)
    return world, device


def first_run(world, device, **options):
    """A plan, a buffer on the GPU, and a run that is complete."""
    plan = AllreducePlan(world, LAYERS, device=device, layer_min_size=500, **options)
    x = CudaArray(inputs(world, "float32", 0), device)
    plan.run(x)
    plan.wait()
    return plan, x


def check_sent(plan):
    """The bytes that `explain()` shows are those that a run sends."""
    line = f"sent by this rank: {plan.wire_bytes} bytes, {plan.plain_bytes} without quantisation"
    assert line in plan.explain().splitlines(), (line, plan.explain())


def match():
    """Each of the plans in the arguments, on the GPU: the CPU's bytes, run after run, and its residual."""
    world, device = enter(timeout=60)
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
        check_sent(there)
        check_sent(here)
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
        there.call = 7  # while that run, which counts itself, may be under way
        there.wait()
        assert there.call == 7
    result(world.rank, kinds=sorted(kinds), rounds=there.explain().splitlines()[0])
    os._exit(0) if ARGUMENTS[1:] == ["leave"] else world.close()


def hostile(rank, elems, dtype, seed):
    """Numbers of all magnitudes, from the smallest to infinities and NaN."""
    random = np.random.default_rng(10 * seed + rank)
    x = random.standard_normal(elems) * 10.0 ** random.integers(-6, 4, elems)
    x[random.integers(0, elems, elems // 50 + 1)] = random.choice([np.nan, np.inf, -np.inf, -0.0, 65504.0, 1e-7])
    return from_float32(x.astype(np.float32), dtype)


def exact():
    """Each of the plans in the arguments: what is not quantised, on the GPU and on the CPU."""
    world, device = enter(timeout=60)
    lines, plans, few = [], [], world.rank + 1
    for number, (elems, offset, runs, options) in enumerate(json.loads(ARGUMENTS[0])):
        beside = options.pop("beside", False)
        layers = [("a", (elems - elems // 3,)), ("b", (elems // 3, 1))]
        there, here = (AllreducePlan(world, layers, bits=32, device=d, **options) for d in (device, None))
        plans.append(there)
        kind = {"code": 4} if there.dtype == "bfloat16" else {}
        for run in range(runs):
            whole = hostile(world.rank, elems + offset, there.dtype, 100 * number + run)
            on_gpu, x = CudaArray(whole, device), whole[offset:]
            at = address_of(on_gpu.tensor) + offset * x.itemsize
            if beside:  # in fewer blocks than the sum has places, and in others on each rank
                tensor = _cgxffcv.tensor_of_address(None, at, x.shape, None, there.dtype, True)
                there._plan.enqueue_on_lane(tensor, 0, 0, few)
            else:
                there.run(Forged(at, x.shape, device=(2, device), bits=8 * x.itemsize, **kind))
            there.wait()
            here.run(x)
            got = on_gpu.numpy()
            assert got.tobytes() == whole.tobytes(), (elems, options, run, np.flatnonzero(got != whole)[:9])
            check_replicas(world, got[offset:])
        assert there.call == here.call == runs
        lines.append(there.explain().splitlines()[0])
        check_sent(there)
    result(world.rank, lines=lines, bytes=[[plan.wire_bytes, plan.plain_bytes] for plan in plans])
    world.close()


def unwatched():
    """Rank 1 dies before it takes part in a sum for which rank 0 waits only through CUDA."""
    world, device = enter(timeout=100)
    plan = AllreducePlan(world, LAYERS, device=device, algorithm="one_shot", **json.loads(ARGUMENTS[0]))
    x = CudaArray(inputs(world, "float32", 0), device)
    plan.run(x)
    plan.wait()
    plan.run(x)  # put on the stream; emulated streams are late, so rank 1's never runs
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    x.numpy()
    first, second = (caught(world, lambda: plan.run(x)) for _ in range(2))
    result(0, line=plan.explain().splitlines()[0], first=first, second=second)
    os._exit(0)


def lost():
    """The last rank is killed, or stopped, before it takes part in a run of all; each of the others reports how that
    ended."""
    world, device = enter()
    plan, x = first_run(world, device, **json.loads(ARGUMENTS[0]))
    world.barrier()  # the last rank's messages of this run have also arrived
    if world.rank == world.size - 1:
        os.kill(os.getpid(), signal.SIGKILL if ARGUMENTS[1] == "kill" else signal.SIGSTOP)
    found = caught(world, lambda: (plan.run(x), plan.wait()))
    began = time.monotonic()
    plan = None
    result(world.rank, **found, end_s=time.monotonic() - began)
    os._exit(0)


def midway():
    """The last rank is killed while all run a plan over and over; every other says how that ended."""
    world, device = enter()
    plan = AllreducePlan(world, LAYERS, device=device, layer_min_size=500, **json.loads(ARGUMENTS[0]))
    x = CudaArray(inputs(world, "float32", 0), device)
    runs = []
    if world.rank == world.size - 1:
        threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()

    def endless():
        while True:
            plan.run(x)
            plan.wait()
            runs.append(1)

    found = caught(world, endless)
    result(world.rank, **found, runs=len(runs))
    os._exit(0)


def forked():
    """The memory shared by the ranks that a forked child still maps after it has dropped a plan and the
    communicator."""
    world, device = enter(timeout=60)
    plan, x = first_run(world, device, algorithm="sra")
    end, start = os.pipe()
    if os.fork() == 0:
        plan = None
        world.close()
        maps = Path("/proc/self/maps").read_text().splitlines()
        os.write(start, json.dumps([line for line in maps if "memfd:cgxffcv" in line]).encode())
        os._exit(0)
    os.close(start)
    with open(end) as pipe:
        left = json.load(pipe)
    os.wait()
    result(world.rank, left=left, kind=plan.explain().splitlines()[0].split(", in ")[0])
    world.barrier()
    os._exit(0)


def scarce():
    """The last rank's GPU has no memory for the residual of a plan; all others have, and continue."""
    if int(os.environ["TEST_RANK"]) == int(ARGUMENTS[0]):
        os.environ["CGXFFCV_EMULATED_MEMORY"] = ARGUMENTS[1]
    world, device = enter(timeout=60)

    def make():
        plan = AllreducePlan(world, [(4000, 2000)], device=device, algorithm="sra", error_feedback=True)  # 32 MB
        world.barrier()
        return plan

    began = time.monotonic()
    found = caught(world, make)
    result(world.rank, **found, seconds=time.monotonic() - began)
    os._exit(0)


def malformed():
    """One rank's variable, which is read when a plan is made, says what cannot be followed."""
    variable, bits, rank = ARGUMENTS
    if int(os.environ["TEST_RANK"]) == int(rank):
        os.environ[variable] = "many"
    world, device = enter(timeout=20)
    began = time.monotonic()
    found = caught(world, lambda: AllreducePlan(world, [(400, 200)], bits=int(bits), device=device))
    result(world.rank, **found, seconds=time.monotonic() - began)
    os._exit(0)


def adapt():
    """Bits that are chosen again at every second run are the same on the GPU and in host memory, and so are the
    sums."""
    world, device = enter(timeout=100)
    chosen = []
    for options in json.loads(ARGUMENTS[0]):
        common = {"bits": 4, "layer_min_size": 500, "algorithm": "one_shot", "bucket_size": 256} | options
        there, here = (AdaptiveBits(AllreducePlan(world, LAYERS, device=d, **common), every=2) for d in (device, None))
        for seed in (2, 3, 4, 5):
            x = inputs(world, there.plan.dtype, seed)
            x[:4000] *= seed
            on_gpu = CudaArray(x, device)
            there.run(on_gpu)
            there.plan.wait()
            here.run(x)
            assert on_gpu.numpy().tobytes() == x.tobytes() and there.bits == here.bits, (options, seed)
            if here.plan.residual is not None:
                np.testing.assert_array_equal(there.plan.residual, here.plan.residual)
            chosen.append(here.bits)
        assert there.plan.call == here.plan.call == 4
    result(world.rank, chosen=chosen)
    world.close()


def choose():
    """The choice for buffers of that many elements and bits, before anything runs."""
    world, device = enter(timeout=60)
    chosen, plans = [], []
    for elems, bits, algorithm in json.loads(ARGUMENTS[0]):
        plans.append(AllreducePlan(world, [("a", (elems, 1))], bits=bits, algorithm=algorithm, device=device))
        lines = plans[-1].explain().splitlines()
        chosen.append([lines[0].split(", in ")[0], next(x for x in lines if x.startswith("algorithm: "))])
    result(world.rank, chosen=chosen)
    world.close()


CASES = (match, exact, adapt, choose, lost, midway, forked, scarce, malformed, unwatched)
{case.__name__: case for case in CASES}[CASE]()
