"""The ranks of tests/cuda/test_hook.py: worker_hook.py CASE OUT, under the stand-in for PyTorch on an emulated GPU."""

import os
import sys
import time
from typing import ClassVar

import numpy as np
import torch
from hook_model import FIRST, LATER, MIXED, SHAPES, Expected, drawn
from torch import _gpu, _hooks
from torch import distributed as dist
from worker_comm import CASE, OUT, put, result

from cgxffcv.interop.ddp import trial as trials
from cgxffcv.interop.ddp.adapter import Adapter
from cgxffcv.interop.torch import CGXState, cgx_hook

RANK, SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


class Store:
    """A store of files that all ranks see."""

    counts: ClassVar = {}

    def set(self, key, value):
        put(f"store {key.replace('/', '|')}", value)

    def add(self, key, amount):
        self.counts[key] = self.counts.get(key, 0) + amount
        return self.counts[key]

    def check(self, keys):
        return all((OUT / f"store {key.replace('/', '|')}").exists() for key in keys)

    def get(self, key):
        return (OUT / f"store {key.replace('/', '|')}").read_bytes()


class Work:
    """An average that a process group has begun: it is complete when something waits for it."""

    def __init__(self, group, buffer):
        self._group, self._buffer = group, buffer

    def wait(self):
        self._group.waited += 1
        values = self._buffer.read()
        name = f"plain/{self._group.store.add('plain', 1)}"
        self._group.store.set(f"{name}/{RANK}", values.astype(np.float32).tobytes().hex())
        keys = [f"{name}/{rank}" for rank in range(SIZE)]
        while not self._group.store.check(keys):
            time.sleep(0.001)
        everyones = [np.frombuffer(bytes.fromhex(self._group.store.get(key).decode()), np.float32) for key in keys]
        self._buffer.write(sum(everyones) / np.float32(SIZE))


class Group(_hooks.ProcessGroup):
    def __init__(self):
        super().__init__(RANK, SIZE, Store())
        self.begun = self.waited = 0

    def allreduce(self, tensors, options):
        assert options.reduceOp == "average" and options.asyncOp
        self.begun += 1
        return Work(self, tensors[0])


class Options:
    asyncOp = False


class Usual:
    """default_hooks.allreduce_hook, for a bucket that is left to the group before its buffer has come again."""

    def __call__(self, group, bucket):
        group.allreduce([bucket.buffer()], self.options).wait()
        future = _hooks.Future(devices=[_gpu.DEVICE])
        future.set_result(bucket.buffer())
        return future

    def __init__(self):
        self.options = Options()
        self.options.reduceOp, self.options.asyncOp = "average", True


class Model:
    """Parameters with random gradients, and DistributedDataParallel's buckets of them."""

    def __init__(self, state, group):
        self.parameters = {name: _hooks.Parameter(*shape) for name, shape in SHAPES.items()}
        self.state, self.group, self.step = state, group, 0
        self.buckets = []

    def build(self, names):
        self.buckets = []
        for index, own in enumerate(names):
            buffer = _gpu.Buffer(sum(int(np.prod(SHAPES[name])) for name in own))
            parameters = [self.parameters[name] for name in own]
            self.buckets.append((own, _hooks.GpuBucket(parameters, buffer, index, index == len(names) - 1)))

    def backward(self, hook=cgx_hook, takes=lambda: 0.0):
        """The buckets after a step that `takes` that many seconds, as the optimiser would read them."""
        with _gpu.engine.backward():
            futures = []
            for names, bucket in self.buckets:
                bucket.buffer().write(np.concatenate([drawn(RANK, self.step)[n].ravel() for n in names]))
                futures.append(hook(self.state, bucket))
            _gpu.Event.clock += takes()
        assert all(type(future).__mro__[-2] is _hooks.Future for future in futures)
        for future in futures:  # as DistributedDataParallel's core does, which is not Python
            _hooks.Future.wait(future)
        self.step += 1
        return {tuple(names): bucket.buffer().read() for names, bucket in self.buckets}


def check(expected, found, step):
    for names, values in found.items():
        everyones = [drawn(rank, step) for rank in range(SIZE)]
        assert values.tobytes() == expected.average(list(names), everyones), (names, step)


def new(group, **options):
    """A model with its state, in 3 and 8 bits."""
    model = Model(None, group)
    params = {"bits": MIXED, "bucket_size": 256}
    model.state = CGXState(group, 1024, params, model=model.parameters.items(), **options)
    return model


# --- cases ---------------------------------------------------------------------------------------------------------


def values():
    """Steps before and after the buckets are rebuilt, also on the fast path; a hook around ours; a resumed run."""
    group, expected = Group(), Expected(SIZE, True, MIXED)
    model = new(group, error_feedback=True, algorithm="sra")
    model.build(FIRST)
    check(expected, model.backward(), 0)
    model.build(LATER)
    for step in range(1, 5):
        check(expected, model.backward(), step)
    assert len(model.state._recurring) == 2

    seen = {}

    def around(state, bucket):
        future = cgx_hook(state, bucket)
        return future.then(lambda done: seen.setdefault(bucket.index(), done.wait().read()) is None or done.wait())

    found = model.backward(around)
    assert [seen[i].tobytes() for i in range(2)] == [values.tobytes() for values in found.values()]
    check(expected, found, 5)

    saved = model.state.state_dict()
    assert saved["call"] == 6 and set(saved["residuals"]) == set(SHAPES)
    other = new(Group(), error_feedback=True, algorithm="sra")
    other.state.load_state_dict(saved)
    other.step = 6
    other.build(LATER)
    check(expected, other.backward(), 6)
    other.state.load_state_dict(saved)  # in the middle of a run
    mine = other.state.state_dict()
    assert mine["call"] == 6
    for name, residual in mine["residuals"].items():
        assert residual.tobytes() == saved["residuals"][name].tobytes()


def adapted():
    """Bits that are chosen in the first and the fourth step; residuals of 8 bits are carried over; in between, the fast
    path."""
    group, expected = Group(), Expected(SIZE, "int8", MIXED)
    model = new(group, error_feedback="int8", algorithm="sra", adaptive_bits={"every": 3, "budget": 1e-3})
    chosen = []
    for step in range(7):
        if step < 2:
            model.build(FIRST if step == 0 else LATER)
        check(expected, model.backward(), step)
        assert (len(model.state._recurring) == 2) == (step >= 2) or step > 3  # other bits make other plans
        chosen.append(model.state.adapted_bits)
        expected.bits["a"] = chosen[-1]["a"]
    return chosen


def recording(at):
    """Steps of which one is recorded in a graph, as the stream reports: its plans are those of all later steps, and of
    a loaded state; a choice without such plans is ignored."""
    group, expected = Group(), Expected(SIZE, "int8", MIXED)
    model = new(group, error_feedback="int8", algorithm="sra", adaptive_bits={"every": 2, "budget": 1e-3})
    model.build(FIRST)
    for step in range(6):
        if step == at + 1:
            plans = [bucket.plan for bucket in model.state._buckets]
        torch.cuda.is_current_stream_capturing = lambda now=step == at: now
        check(expected, model.backward(), step)
        if step < at - 1:
            expected.bits["a"] = model.state.adapted_bits["a"]
    saved, bits = model.state.state_dict(), model.state.adapted_bits
    try:
        model.state.load_state_dict(saved | {"bits": {"a": 2}})
    except ValueError as error:
        assert "a CUDA graph holds plans" in str(error), error
    else:
        raise AssertionError("bits of recorded plans have changed")
    model.state.load_state_dict(saved)
    check(expected, model.backward(), 6)
    assert [bucket.plan for bucket in model.state._buckets] == plans and model.state.adapted_bits == bits
    assert "no longer, since a step was recorded in a CUDA graph" in model.state.explain()
    return bits


def recorded():
    return [recording(at) for at in range(3)]


def tried(compressed, plain, **options):
    """A trial of steps that take so long by the clock; the ways of all steps, and what was decided."""
    group = Group()
    model = new(group, **options)
    model.build(LATER)
    ways = []
    while model.state._buckets is None or model.state._buckets.trial.decision is None:
        before = group.begun
        model.backward(takes=lambda before=before: plain if group.begun > before else compressed)
        ways.append(group.begun > before)
        assert group.begun == group.waited and len(ways) < 2 * trials.STEPS
    after = []
    for _ in range(2):
        before = group.begun
        found = model.backward()
        after.append(group.begun - before)
    exact = [
        np.mean([np.concatenate([drawn(r, model.step - 1)[n].ravel() for n in names]) for r in range(SIZE)], 0)
        for names in found
    ]
    error = max(np.abs(x - y).max() for x, y in zip(found.values(), exact, strict=True))
    state = model.state.state_dict()
    return {
        "ways": ways,
        "after": after,
        "error": float(error),
        "text": model.state.explain(),
        "plain": state["plain"],
        "sent": model.state.wire_bytes,
    }


def trial():
    return {"slow": tried(3.0, 2.0), "fast": tried(2.0, 3.0)}


def trial_and_bits():
    """With the steps in which bits were chosen."""
    found, choose = {}, Adapter._choose
    for case, times in (("slow", (3.0, 2.0)), ("fast", (2.0, 3.0))):
        chosen = []
        Adapter._choose = lambda self, *of, kept=chosen: kept.append(self._step) or choose(self, *of)
        found[case] = tried(*times, adaptive_bits={"every": 7, "budget": 1e-3}) | {"chosen": chosen}
    return found


def install():
    usual = sys.modules["torch.distributed.algorithms.ddp_comm_hooks.default_hooks"]
    usual.allreduce_hook = Usual()
    dist.AllreduceOptions = Options
    dist.ReduceOp = type("ReduceOp", (), {"AVG": "average"})
    dist.get_backend = lambda group: "nccl"
    dist.is_initialized = lambda: True


def main():
    install()
    value = globals()[CASE]()
    result(RANK, value=value)


main()
