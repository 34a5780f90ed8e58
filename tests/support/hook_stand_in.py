"""For tests/py/test_ddp_hook.py: the hook under the stand-in for PyTorch, ranks as threads, against the byte-level
model."""

from contextlib import contextmanager
from itertools import product
from types import SimpleNamespace

import numpy as np
import torch
from hook_model import FIRST, LATER, MIXED, SHAPES, Expected, drawn
from quant_model import dequantize_values, quantize_values
from thread_ranks import on_threads
from torch import _hooks
from torch import distributed as dist

from cgxffcv.comm import CommError
from cgxffcv.interop.ddp.worker import Worker
from cgxffcv.interop.torch import CGXState, cgx_hook


def on_ranks(size, function):
    """function(group) on each rank; what they return, or raise."""
    store = _hooks.Store()
    return on_threads(size, lambda rank: function(dist.ProcessGroup(rank, size, store)))


BUCKETS = [FIRST, LATER, LATER]  # of the first steps


def new_state(group, bits=MIXED, feedback=True, **options):
    """A state that knows the parameters by name."""
    parameters = {name: _hooks.Parameter(*shape) for name, shape in SHAPES.items()}
    options |= {"model": parameters.items(), "error_feedback": feedback, "algorithm": "sra"}
    return CGXState(group, 1024, {"bits": bits, "bucket_size": 256}, **options), parameters


def run_step(state, parameters, buckets, named):
    """The hook's results for a step's buckets."""
    gradients = {parameters[name]: array for name, array in named.items()}
    futures = []
    for index, names in enumerate(buckets):
        bucket = dist.GradBucket([parameters[n] for n in names], gradients, index == len(buckets) - 1, index)
        futures.append(cgx_hook(state, bucket))
    return [future.wait().tobytes() for future in futures]


def averages(group, feedback):
    """The hook's results for the buckets of all steps."""
    state, parameters = new_state(group, feedback=feedback)
    results = []
    for step, buckets in enumerate(BUCKETS):
        results += run_step(state, parameters, buckets, drawn(group.rank, step))
    assert "3 bits" in state.explain() and state.wire_bytes > 0
    return results


class Adapting(Expected):
    """With bits that are chosen."""

    def step(self, buckets, everyones):
        return [self.average(names, everyones) for names in buckets]

    def lost(self, name, bits, everyones):
        """The energy that quantising all ranks' elements with these bits loses."""
        total, spec = 0.0, self.spec(name, bits)
        for kept, gradients in zip(self.kept[name], everyones, strict=True):
            x = gradients[name].ravel() + kept
            wire = quantize_values(x, spec, x.size, 0, 0, 0, 0)
            total += ((x.astype(np.float64) - dequantize_values(wire, spec, x.size)) ** 2).sum()
        return total

    def adapt(self, names, widths, everyones):
        """Of all choices, the one with the fewest bits that loses no more than the usual bits do."""
        lost = {(n, w): self.lost(n, w, everyones) for n in names for w in widths}
        budget = sum(lost[n, self.bits["default"]] for n in names)
        choices = [list(zip(names, c, strict=True)) for c in product(widths, repeat=len(names))]
        fits = [choice for choice in choices if sum(lost[pair] for pair in choice) <= budget]
        return dict(min(fits, key=lambda choice: sum(w * np.prod(SHAPES[n]) for n, w in choice)))


def expected(size, feedback):
    model, results = Adapting(size, feedback, MIXED), []
    for step, buckets in enumerate(BUCKETS):
        results += model.step(buckets, [drawn(rank, step) for rank in range(size)])
    return results


STEPS = 8


def uneven(rank, step):
    """Gradients of which one is far larger than the other, then the other way round; one of the fourth step is a
    NaN."""
    named = drawn(rank, step)
    named["a" if step < 3 else "b"] *= np.float32(20)
    if step == 3:
        named["b"][0, 0] = np.nan
    return named


def adapted(group, feedback):
    """Results and bits of steps in which bits are chosen: in the first, in the fifth, since the fourth has a NaN, and
    in the seventh; and those of a run that continues from its state."""
    state, parameters = new_state(group, 4, feedback, adaptive_bits={"every": 3})
    results, bits, saved = [], [], None
    for step in range(STEPS):
        if step == STEPS - 1:
            saved = state.state_dict()
        results += run_step(state, parameters, BUCKETS[min(step, 2)], uneven(group.rank, step))
        bits.append(state.adapted_bits)
    assert "again every 3 steps: " in state.explain()
    other, own = new_state(group, 4, feedback, adaptive_bits={"every": 3})
    other.load_state_dict(saved)
    assert other.adapted_bits == bits[-2] != bits[0]
    again = run_step(other, own, BUCKETS[2], uneven(group.rank, STEPS - 1))
    assert again == results[-2:]
    return results, bits


def expected_adapted(size, feedback):
    model, results, bits, chosen = Adapting(size, feedback, {"default": 4}), [], [], {}
    for step in range(STEPS):
        everyones = [uneven(rank, step) for rank in range(size)]
        model.bits.update(chosen)
        if step in (0, 4, 6):
            chosen = model.adapt(["a", "b"], range(2, 9), everyones)
        bits.append(dict(chosen))
        results += model.step(BUCKETS[min(step, 2)], everyones)
    assert bits[0] == bits[3] != bits[4] and bits[6] == bits[7], bits
    return results, bits


def kept_bits(group):
    """Bits given by name or by pattern stay, and so does what is not compressed."""
    state, parameters = new_state(group, {"default": 4, "a": 5, "sm*": 3}, adaptive_bits={"every": 1, "budget": 1.0})
    for step in range(3):
        run_step(state, parameters, FIRST, uneven(group.rank, 0 if step < 2 else step))
    return state.adapted_bits


def loaded_bits(group):
    """Bits taken from a saved state: not for parameters that now have their own, nor for exact ones, nor without
    adaptive_bits; and a state of the first version, which has none."""
    saved = new_state(group, 4, adaptive_bits={})[0].state_dict() | {"call": 1, "bits": {"a": 7, "b": 3, "small": 2}}
    taken = []
    for bits in (4, {"default": 4, "a": 5}, {"default": 4, "a*": 5}):
        state, parameters = new_state(group, bits, adaptive_bits={"every": 1000})
        state.load_state_dict(saved)
        run_step(state, parameters, FIRST, drawn(group.rank, 0))
        told = state.explain()
        taken.append((state.adapted_bits, "5 bits" in told, "7 bits" in told, "3 bits" in told, "2 bits" in told))
    state, _ = new_state(group, 4)
    first = {name: value for name, value in saved.items() if name != "bits"} | {"version": 1}
    state.load_state_dict(first)
    assert state.state_dict() == saved | {"bits": {}}
    for wrong, words in (
        (saved, "give CGXState adaptive_bits"),
        (saved | {"version": 3}, "version 1 or 2 is expected"),
    ):
        try:
            state.load_state_dict(wrong)
        except ValueError as error:
            assert words in str(error), error
        else:
            raise AssertionError(words)
    assert state.state_dict() == saved | {"bits": {}}
    return taken


LOADED = [
    ({"a": 7, "b": 3}, False, True, True, False),
    ({"b": 3}, True, False, True, False),
    ({"b": 3}, True, False, True, False),
]


REFUSED = [
    ({"adaptive_bits": {"every": 0}}, "every must be a number of steps of at least 1"),
    ({"adaptive_bits": {"every": "5"}}, "every must be a number of steps"),
    ({"adaptive_bits": {"each": 5}}, "adaptive_bits has 'each'; it may only have every, budget, widths"),
    ({"adaptive_bits": {"budget": -1}}, "budget must be a share"),
    ({"adaptive_bits": {"budget": "1"}}, "adaptive_bits: budget must be a share"),
    ({"adaptive_bits": {"widths": 4}}, "adaptive_bits: widths must be"),
    ({"adaptive_bits": {"widths": ()}}, "adaptive_bits: widths must be"),
    ({"adaptive_bits": {"widths": (4, 9)}}, "a width must be in 1..8, not 9"),
    ({"adaptive_bits": 500}, "adaptive_bits must be a mapping"),
    ({"adaptive_bits": {}, "compression_params": {"bits": 32}}, 'needs "bits" of 1 to 8'),
    ({"adaptive_bits": {}, "codec": "sign"}, "the codec sign has one width"),
    ({"error_feedback": "int4"}, "error_feedback must be"),
]


def disagree(group):
    """Ranks that ask for different bits."""
    parameter = _hooks.Parameter(64, 64)
    state = CGXState(group, compression_params={"bits": 4 - group.rank}, timeout=20)
    cgx_hook(state, dist.GradBucket([parameter], {parameter: np.ones((64, 64), np.float32)}))


class Cuda:
    """Streams: those that were current when a future was completed, and those that were waited for."""

    def __init__(self):
        self.current, self.waited = 0, []

    def current_stream(self):
        return SimpleNamespace(cuda_stream=self.current)

    @contextmanager
    def stream(self, number):
        before, self.current = self.current, number
        yield
        self.current = before

    def order(self, _, first):
        self.waited.append(first)


def results_wait_for_the_stream():
    """A future remembers the stream of a tensor that completes it, and no stream of anything else."""
    before, torch.cuda = torch.cuda, Cuda()
    try:
        result = SimpleNamespace(device="cuda:0")
        assert Worker().submit(lambda: None, result, 7).wait() is result
        assert torch.cuda.waited == [7], torch.cuda.waited
    finally:
        torch.cuda = before


def main():
    results_wait_for_the_stream()
    dist.is_initialized = lambda: True
    for size, feedback in ((2, True), (3, True), (3, "int8")):
        for found in on_ranks(size, lambda group: averages(group, feedback)):  # noqa: B023
            assert found == expected(size, feedback), found
    for size, feedback in ((2, False), (3, True), (2, "int8")):
        for found in on_ranks(size, lambda group: adapted(group, feedback)):  # noqa: B023
            assert found == expected_adapted(size, feedback), found
    assert on_ranks(2, kept_bits) == [{"b": 2}] * 2
    for found in on_ranks(2, loaded_bits):
        assert found == LOADED, found
    for refused, words in REFUSED:
        try:
            CGXState(None, **{"compression_params": {"bits": 4}} | refused)
        except (TypeError, ValueError) as error:
            assert words in str(error), error
        else:
            raise AssertionError(words)
    for rank, error in enumerate(on_ranks(2, disagree)):
        assert isinstance(error, CommError) and error.rank == 1 - rank, error
        assert "disagree on bits" in str(error), error
    try:
        dist.Backend.CGX(None)
    except ValueError as error:
        assert 'init_process_group("nccl")' in str(error)
    print("all good")


main()
