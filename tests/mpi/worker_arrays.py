"""The ranks of tests/mpi/test_arrays_ranks.py and of tests/cuda/test_arrays.py: worker_arrays.py CASE OUT [ARGUMENTS],
as in worker_comm.py."""

import os
import signal
import sys
import threading
import time

import _cgxffcv
import numpy as np
from foreign_arrays import CudaArray, Jax
from worker_comm import ARGUMENTS, CASE, caught, join, leave, result

from cgxffcv import allreduce as ar

F = np.float32


def noise(rank, shape, dtype=F):
    return (np.random.default_rng(rank).standard_normal(shape) * 50).astype(dtype)


def tensor(array, device, dtype=None):
    return _cgxffcv.tensor_of_buffer(array, dtype).copy(device)


def back(x):
    return x.copy(-1).numpy()


# ---- in host memory ----


def host():
    world = join(timeout=100)
    inputs = [{"w": noise(r, (70, 50)), "b": noise(r + 9, 60), "n": np.arange(4) * r} for r in range(world.size)]
    own = {name: x.copy() for name, x in inputs[world.rank].items()}
    handle = world.allreduce_async(own, op="sum")
    narrow = world.allreduce(inputs[world.rank]["w"].copy(), bits=4)
    world.barrier()
    handle.wait()
    total = {name: sum(x[name].astype(np.float64) for x in inputs) for name in own}
    worst = max(float(np.abs(own[name] - total[name]).max()) for name in own)
    step = max(float(np.ptp(x["w"])) for x in inputs) / 15
    lost = float(np.abs(narrow - total["w"] / world.size).max()) / step
    ar.check_replicas(world, np.concatenate([narrow.ravel(), own["w"].ravel(), own["b"]]))
    part = world.split(world.rank % 2)
    alone = part.allreduce(np.full(3, world.rank), op="max").tolist()
    result(world.rank, worst=worst, lost=lost, alone=alone)
    world.close()


def ends():
    """Rank 0 ends while two calls are under way, of which rank 1 makes only one, and later."""
    world = join(timeout=50)
    world.allreduce_async(np.ones(3, F)).wait()
    x = np.full(1000, world.rank, F)
    if world.rank == 0:
        world.allreduce_async(x)
        world.allreduce_async(x)
        result(0)
        sys.exit(0)
    time.sleep(0.5)
    result(1, second=float(world.allreduce_async(x).wait()[0]))
    sys.exit(0)


def killed():
    """The victim dies while the others wait for calls in the background."""
    victim = int(ARGUMENTS[0])
    world = join(timeout=100)
    world.allreduce_async(np.ones(3, F)).wait()
    if world.rank == victim:
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()

    def endless():
        while True:
            world.allreduce_async(np.ones(1_000_000, F), bits=8).wait()

    result(world.rank, **caught(world, endless))
    leave(world.size, victim)


# ---- on GPUs ----


def device_of(world):
    return world.rank % len(_cgxffcv.devices())


def gpu():
    """Every kind of array and of call gives the bytes of the same calls in host memory."""
    world = join(timeout=100)
    device, explained = device_of(world), {}

    def same(kind, make, **options):
        """An array on the GPU, one in host memory, through the same call."""
        x = noise(world.rank, (60, 70), kind)
        keys = [{"key": place} if "rounding" in options else {} for place in ("host", "gpu")]  # the same draws
        on_gpu, in_host = make(x), world.allreduce(x.copy(), **options, **keys[0])
        options |= keys[1]
        assert world.allreduce(on_gpu, **options) is on_gpu
        shown = on_gpu.numpy() if isinstance(on_gpu, CudaArray) else back(on_gpu)
        assert shown.tobytes() == in_host.tobytes(), (kind, options)
        name = f"{kind} {options.get('op', 'average')} {options.get('bits', 32)}"
        explained[name] = world.allreduce_plans(on_gpu, **options)[0].explain()

    for make in (lambda x: tensor(x, device), lambda x: CudaArray(x, device)):
        same("float32", make)
        same("float32", make, op="sum")
        same("float32", make, bits=4, algorithm="one_shot")
        same("float32", make, bits=3, algorithm="sra", rounding="stochastic", seed=5)
        same("float16", make, bits=8, algorithm="one_shot")
        same("float64", make)
        same("int64", make, op="sum")
        same("uint8", make, op="max")
        same("float32", make, op="prod")
    several(world, device)
    background(world, device)
    others(world, device)
    result(world.rank, explained=explained)
    world.close()


def several(world, device):
    """Several arrays in one call: separate, one after the other in one memory, of several types and places, of
    bfloat16."""
    options = {"bits": 4, "bucket_size": 128, "algorithm": "one_shot"}
    w, b, n = noise(world.rank, (40, 50)), noise(world.rank, 300), noise(world.rank, 50, np.int32)
    expected = world.allreduce({"w": w.copy(), "b": b.copy()}, **options)
    ours = {"w": CudaArray(w, device), "b": tensor(b, device)}
    world.allreduce(ours, **options)
    assert ours["w"].numpy().tobytes() == expected["w"].tobytes()
    assert back(ours["b"]).tobytes() == expected["b"].tobytes()
    mixed = [tensor(w, device), n.copy(), tensor(n, device), w.copy()]
    world.allreduce(mixed, op="sum")
    assert back(mixed[0]).tobytes() == mixed[3].tobytes() and (back(mixed[2]) == mixed[1]).all()
    halves = tensor((w.view(np.uint32) >> 16).astype(np.uint16), device, "bfloat16")
    in_host = world.allreduce(halves.copy(-1), bits=4, algorithm="one_shot")
    world.allreduce(halves, bits=4, algorithm="one_shot")
    assert back(halves).tobytes() == in_host.numpy().tobytes()
    for kept in range(3):  # error feedback by key, next to the same in host memory
        fed = {"bits": 2, "error_feedback": True, "algorithm": "one_shot"}
        x = world.allreduce(tensor(w * kept, device), key="fed on a GPU", **fed)
        assert back(x).tobytes() == world.allreduce(w * kept, key="fed", **fed).tobytes()


def background(world, device):
    """Calls on separate streams, ordered after what came before them and before what comes after."""
    narrow = {"bits": 8, "algorithm": "one_shot"}
    xs = [noise(world.rank + 7 * i, 3000 + 100 * i) for i in range(3)]  # three plans, three streams
    expected = [world.allreduce(x.copy(), **narrow) for x in xs]
    ours = [tensor(x, device) for x in xs]
    handles = [world.allreduce_async(x, **narrow) for x in ours]
    world.barrier()
    for i in (2, 0, 1):
        assert handles[i].wait() is ours[i]
        assert back(ours[i]).tobytes() == expected[i].tobytes()
    assert handles[0].synchronize() is ours[0] and handles[0].done()
    world.allreduce_async(tensor(xs[0], device), **narrow)  # nothing waits for it or keeps the array
    last = world.allreduce_async(tensor(xs[1], device), **narrow)
    assert back(last.synchronize()).tobytes() == expected[1].tobytes()


def others(world, device):
    """Arrays that can never be changed; arrays whose framework works on another stream."""
    x = noise(world.rank, 500)
    expected = world.allreduce(x.copy())
    frozen = Jax(tensor(x, device))
    new = world.allreduce(frozen)
    assert isinstance(new, Jax) and new.numpy().tobytes() == expected.tobytes()
    assert frozen.numpy().tobytes() == x.tobytes()
    later = world.allreduce_async(frozen).wait()
    assert later.numpy().tobytes() == expected.tobytes()
    streamed = CudaArray(x, device, stream=2)
    world.allreduce(streamed, stream=1)
    assert streamed.numpy().tobytes() == expected.tobytes()


def differ():
    """Each rank asks for something else: first another place, then something that only the second call has."""
    world = join(timeout=60)
    x = noise(0, 100)
    same = world.split(0)
    world.allreduce(tensor(x, device_of(world)))
    mine = tensor(x, device_of(world)) if world.rank == 0 else x
    first = caught(world, lambda: world.allreduce(mine))
    same.allreduce(tensor(x, device_of(world)))
    second = caught(same, lambda: same.allreduce(tensor(x, device_of(world)), op="sum" if world.rank else "average"))
    plans = caught(world, lambda: None)
    result(world.rank, first=first, second=second, plans=plans)
    leave(world.size)


def killed_on_gpu():
    """The victim dies between two sums of device memory; the others learn of it within the deadline."""
    victim = int(ARGUMENTS[0])
    world = join(timeout=20)
    x = tensor(np.ones(5000, F), device_of(world))
    world.allreduce(x)
    world.barrier()  # the victim's messages of this sum have also arrived
    if world.rank == victim:
        os.kill(os.getpid(), signal.SIGKILL)
    values = caught(world, lambda: world.allreduce_async(x).synchronize())
    rank, size = world.rank, world.size
    world.close()
    result(rank, **values)
    leave(size, victim)


if __name__ == "__main__":
    globals()[CASE]()
