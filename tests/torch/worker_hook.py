"""The ranks of tests/torch/test_hook.py: worker_hook.py CASES OUT. Each writes OUT/result.RANK: what each of the
comma-separated cases returned, or what it raised."""

import contextlib
import copy
import io
import json
import os
import signal
import sys
import time
import traceback
import warnings
import weakref

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ddp_training import (
    ALGORITHM,
    DEVICE,
    GPUS,
    OUT,
    SMALL,
    Model,
    Training,
    Weights,
    as_numpy,
    check_steps,
    digest,
    drawn,
    hooked,
    put,
    run_values,
    start,
)
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from cgxffcv.interop.ddp import overlap
from cgxffcv.interop.torch import CGXState, cgx_hook

CASES = sys.argv[1].split(",")


# --- what works ----------------------------------------------------------------------------------------------------


def values():
    """Every type, with and without residuals that follow their parameters when the buckets are rebuilt; other
    allreduces at the same time are not affected."""
    kinds = (False, True, "int8")
    buckets = [run_values(dtype, feedback=fb) for dtype in (torch.float32, torch.bfloat16) for fb in kinds]
    run_values(torch.float16, ALGORITHM if ALGORITHM == "two_level" else "one_shot")
    assert min(buckets) > 1
    numbers = torch.arange(5, dtype=torch.int64) + dist.get_rank()
    dist.all_reduce(numbers)
    assert numbers.tolist() == [sum(i + r for r in range(dist.get_world_size())) for i in range(5)]
    return buckets


def on_gpus():
    """The same bytes from the kernels; enough steps for buckets that come again."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for algorithm in ("one_shot", "sra"):
            for feedback in (False, True):
                assert run_values(dtype, algorithm, feedback, steps=6) > 1
    run_values(bits={"default": 3, "a_weight": 8, "c_weight": 32, "b_small": 2}, steps=5)
    run_values(bits=32, steps=5)
    settings()
    resumed()
    several()


def own_bits():
    """Bits of layers by name."""
    run_values(bits={"default": 3, "a_weight": 8, "c_weight": 32, "b_small": 2}, steps=3)


def settings():
    """Options of DistributedDataParallel."""
    run_values(ddp={"gradient_as_bucket_view": True}, steps=3)
    run_values(ddp={"static_graph": True}, steps=3)
    run_values(ddp={"find_unused_parameters": True}, steps=3, without=("b_weight", "a_bias"))


def frozen():
    """A parameter without gradients is in no bucket."""
    run_values(frozen=("b_weight",), feedback=True, steps=3)


def several():
    """Two models with separate states, in alternate steps."""
    one, other = Training(feedback=True), Training(torch.bfloat16, bits=3, ddp={"gradient_as_bucket_view": True})
    for step in range(4):
        one.check(first=step, steps=1)
        other.check(first=step, steps=1)
    assert one.state.explain() != other.state.explain()


def resumed():
    """A run that continues from a checkpoint does the same as one that was never interrupted: residuals, random
    numbers; a state of other ranks, or of another model, is refused."""
    options = {"feedback": True, "rounding": "stochastic"}
    first = Training(**options)
    first.check(steps=3)
    path = OUT / f"checkpoint.{dist.get_rank()}"
    torch.save(first.state.state_dict(), path)
    residual = {name: list(kept) for name, kept in first.model.residual.items()}
    first.check(first=3)

    saved = torch.load(path)
    again = Training(**options)
    again.state.load_state_dict(saved)
    again.model.residual, again.model.call = residual, 3
    again.check(first=3)
    mine, theirs = again.state.state_dict(), first.state.state_dict()
    assert mine["call"] == theirs["call"] == 7 and mine["residuals"].keys() == theirs["residuals"].keys()
    again.state.load_state_dict(mine)  # in the middle of a run
    again.check(first=7, steps=2)

    names = {f"other.{name}": value for name, value in saved["residuals"].items()}
    flat = {name: value.reshape(-1) for name, value in saved["residuals"].items()}
    wrong = [
        ({"rank": 7}, "that of rank 7"),
        ({"residuals": names}, "no parameter of the model is called 'other."),
        ({"version": 9}, "version 1 or 2 is expected"),
        ({"call": "3"}, "call cannot be '3'"),
        ({"call": True}, "call cannot be True"),
        ({"call": 2**32}, "call must be in 0"),
        ({"residuals": {"a_weight": torch.full((60, 50), torch.nan)}}, "not finite"),
        ({"residuals": {"a_weight": torch.zeros((60, 50), dtype=torch.complex64)}}, "floating point, not torch.comp"),
        ({"residuals": {"a_weight": np.zeros((60, 50))}}, "must be a tensor"),
        ({"residuals": flat}, "must have the shape"),
    ]
    for change, words in wrong:
        with pytest.raises(ValueError, match=words):
            again.state.load_state_dict(saved | change)
    with pytest.raises(ValueError, match="what CGXState.state_dict"):
        again.state.load_state_dict({"residuals": {}})


def adapted():
    """Bits that are chosen in every other step apply from the next one on, in buckets that are rebuilt meanwhile, and
    in a run that continues from a checkpoint; residuals are carried over."""
    bits = {"default": 4, "b_weight": 5}
    options = {"bits": bits, "adaptive": {"every": 2, "budget": 1e-3}, "ddp": {"find_unused_parameters": True}}
    told = []
    for dtype, feedback in ((torch.float32, "int8"), (torch.bfloat16, False)):
        training = Training(dtype, feedback=feedback, **options)
        for step in range(5):
            training.check(first=step, steps=1)
            chosen = training.state.adapted_bits
            assert set(chosen) == {"a_weight", "c_weight"} and min(chosen.values()) > 4, chosen
            training.model.bits = bits | chosen
        saved, before = training.state.state_dict(), (training.model.residual, training.model.bits)
        again = Training(dtype, feedback=feedback, **options)
        again.state.load_state_dict(saved)
        again.model.residual, again.model.bits, again.model.call = *before, 5
        again.check(first=5, steps=1)
        told.append(again.state.adapted_bits)
    return told


def without_names():
    """Residuals are saved by names: a state that has none says so. Without error feedback none are needed."""
    for feedback in (False, True):
        module = Weights(torch.float32)
        wrapped = DistributedDataParallel(module)
        state = CGXState(None, compression_params={"bits": 4}, error_feedback=feedback, algorithm=ALGORITHM)
        wrapped.register_comm_hook(state, cgx_hook)
        wrapped(drawn(module, dist.get_rank(), 0)).backward()
        if feedback:
            with pytest.raises(ValueError, match="give CGXState the model"):
                state.state_dict()
        else:
            assert state.state_dict()["call"] == 1


def groups_of_some():
    """Ranks that are in different numbers of groups, of the user's and of the hook's; those that the user makes later
    are what they would be."""
    me, last = dist.get_rank(), dist.get_world_size() - 1
    for members in ([0], [0, last], [last, 0]):
        group = dist.new_group(members)
        if me in members and len(members) > 1:
            module = nn.Linear(60, 60)
            wrapped = DistributedDataParallel(module, process_group=group)
            wrapped.register_comm_hook(CGXState(group, compression_params={"bits": 4}, timeout=20), cgx_hook)
            wrapped(torch.ones(2, 60) * (1 + me)).sum().backward()
            expected = 2 * (2 + last) / 2 * torch.ones(60, 60)
            assert (module.weight.grad - expected).abs().max() < 1e-5
    run_values(steps=3)
    dist.all_reduce(torch.ones(3))


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.turned = nn.Parameter(torch.ones(40, 40, dtype=torch.complex64))
        self.plain = nn.Parameter(torch.ones(40, 40))

    def forward(self, x):
        return ((x @ self.plain).to(torch.complex64) @ self.turned).abs().sum()


def complexes():
    """Gradients of complex numbers are averaged as they are, others beside them are compressed."""
    torch.manual_seed(3)
    module, x = Complex(), torch.randn(5, 40)
    wrapped = DistributedDataParallel(module)
    state = CGXState(None, compression_params={"bits": 4}, error_feedback=True, model=module, algorithm=ALGORITHM)
    wrapped.register_comm_hook(state, cgx_hook)
    size = dist.get_world_size()
    for step in range(3):
        everyones = [torch.autograd.grad(module(x * (1 + r + step)), module.turned)[0] for r in range(size)]
        module.zero_grad()
        wrapped(x * (1 + dist.get_rank() + step)).backward()
        assert torch.allclose(module.turned.grad, sum(everyones) / size, rtol=1e-5)
        digest([torch.view_as_real(module.turned.grad), module.plain.grad])
    assert "1600 elements of complex64, not compressed" in state.explain()
    assert set(state.state_dict()["residuals"]) == {"plain"}


def copies():
    """A model is copied, and saved as a whole, with the hook that it has: the copy's state begins anew, with the names
    of the copy's parameters."""
    bits = {"default": 3, "a_weight": 8, "c_weight": 32, "b_small": 2}
    module = Weights(torch.float32)
    wrapped = DistributedDataParallel(module, bucket_cap_mb=SMALL / 2**20)
    own = {"model": module, "error_feedback": True, "algorithm": ALGORITHM}
    wrapped.register_comm_hook(CGXState(None, 1024, {"bits": bits, "bucket_size": 512}, **own), cgx_hook)
    for step in range(3):
        file = io.BytesIO()
        torch.save(wrapped, file)
        file.seek(0)
        for made in (copy.deepcopy(wrapped), torch.load(file, weights_only=False)):
            ((_, state),) = made._comm_hooks
            assert state.state_dict()["call"] == 0 and not state.state_dict()["residuals"]
            model = Model(made.module, bits, algorithm=ALGORITHM, feedback=True)
            again = DistributedDataParallel(made.module, bucket_cap_mb=SMALL / 2**20)
            again.register_comm_hook(state, hooked(model))
            check_steps(model, made.module, again, steps=2)
        wrapped(drawn(module, dist.get_rank(), step)).backward()
    with pytest.raises(TypeError, match="other than the default one"):
        copy.deepcopy(CGXState(dist.new_group(), compression_params={"bits": 4}))


class NoLane:
    index = 0


def at_the_end():
    """The assumption behind what the hook does on GPUs: what it leaves to the end of a backward pass is complete when
    DistributedDataParallel looks at the gradients. Here it is sums of the process group, which are waited for then."""
    overlap._stream = lambda index: 0
    size, group = dist.get_world_size(), dist.group.WORLD
    for ddp in ({}, {"gradient_as_bucket_view": True}, {"static_graph": True}, {"find_unused_parameters": True}):
        module, known = Weights(torch.float32), {}
        wrapped = DistributedDataParallel(module, bucket_cap_mb=SMALL / 2**20, **ddp)
        passes = overlap.Overlap(NoLane(), group, None)
        passes._sums = dist.AllreduceOptions()  # a sum, which gloo has

        def hook(state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            buffer = bucket.buffer()
            came, known[bucket.index()] = known.get(bucket.index()), weakref.ref(buffer)  # noqa: B023
            if came is None or came() is not buffer:
                return default_hooks.allreduce_hook(group, bucket)
            buffer.div_(size)
            state.append(bucket.index())
            return overlap.RecurringBucket(buffer, bucket, passes, None, None).put()  # noqa: B023

        quick: list[int] = []
        wrapped.register_comm_hook(quick, hook)
        for step in range(5):
            everyones = [drawn(module, rank, step) for rank in range(size)]
            module.zero_grad()
            wrapped(everyones[dist.get_rank()]).backward()
            for name, parameter in module.named_parameters():
                expected = sum(gradients[name] for gradients in everyones) / size
                assert (parameter.grad - expected).abs().max() < 1e-5, (ddp, step, name)
            assert not passes.works
        assert len(quick) >= 4


def accumulated():
    """Under no_sync nothing is exchanged, and what was accumulated is in the next exchange."""
    module = Weights(torch.float32)
    wrapped = DistributedDataParallel(module)
    model = Model(module, {"default": 4}, algorithm=ALGORITHM)
    state = CGXState(None, compression_params={"bits": 4, "bucket_size": 512}, algorithm=ALGORITHM)
    wrapped.register_comm_hook(state, hooked(model))
    everyones = [[drawn(module, rank, step) for step in range(2)] for rank in range(dist.get_world_size())]
    with wrapped.no_sync():
        wrapped(everyones[dist.get_rank()][0]).backward()
    assert not model.seen
    wrapped(everyones[dist.get_rank()][1]).backward()
    sums = [{n: first[n] + second[n] for n in first} for first, second in everyones]
    for name, expected in model.expected(model.seen[0], sums).items():
        assert as_numpy(dict(module.named_parameters())[name].grad).tobytes() == expected.tobytes()


def uneven():
    """Ranks with different numbers of batches under join()."""
    module = nn.Linear(64, 64).to(DEVICE)
    wrapped = DistributedDataParallel(module)
    wrapped.register_comm_hook(CGXState(None, compression_params={"bits": 4}, algorithm=ALGORITHM), cgx_hook)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with wrapped.join():
        for _ in range(3 + 2 * dist.get_rank()):
            optimizer.zero_grad()
            wrapped(torch.ones(4, 64, device=DEVICE) * (1 + dist.get_rank())).square().mean().backward()
            optimizer.step()
    digest(module.parameters())


def sparse():
    """Sparse gradients are averaged as they are, while dense ones are compressed."""
    module = nn.Sequential(nn.Embedding(50, 64, sparse=True), nn.Linear(64, 64))
    wrapped = DistributedDataParallel(module)
    wrapped.register_comm_hook(CGXState(None, compression_params={"bits": 4}), cgx_hook)
    wrapped(torch.tensor([dist.get_rank(), 7])).sum().backward()
    dense = module[0].weight.grad.to_dense()
    assert dense[7].abs().sum() > 0 and dense[0].abs().sum() > 0 and dense[20].abs().sum() == 0
    digest([dense, module[1].weight.grad])


def not_a_number():
    """A NaN on one rank becomes a NaN on all, but only in its bucket of elements; the next step is clean."""
    module = Weights(torch.float32)
    wrapped = DistributedDataParallel(module)
    state = CGXState(None, compression_params={"bits": 4, "bucket_size": 512}, error_feedback=True, algorithm=ALGORITHM)
    wrapped.register_comm_hook(state, cgx_hook)
    gradients = drawn(module, dist.get_rank(), 0)
    if dist.get_rank() == 1:
        gradients["a_weight"].view(-1)[600] = torch.nan
    wrapped(gradients).backward()
    bad = module.a_weight.grad.view(-1).isnan()
    assert bad[512:1024].all() and bad.sum() == 512
    assert not any(p.grad.isnan().any() for n, p in module.named_parameters() if n != "a_weight")
    module.zero_grad()
    wrapped(drawn(module, dist.get_rank(), 1)).backward()
    assert not any(p.grad.isnan().any() for p in module.parameters())
    digest(p.grad for p in module.parameters())


def trained(hook):
    """The loss of a small classifier before and after some steps."""
    torch.manual_seed(5)
    module = nn.Sequential(
        nn.Linear(32, 128), nn.LayerNorm(128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 8)
    )
    wrapped = DistributedDataParallel(module, bucket_cap_mb=SMALL / 2**20)
    if hook is not None:
        wrapped.register_comm_hook(hook, cgx_hook)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.2, momentum=0.9)
    random = torch.Generator().manual_seed(dist.get_rank())
    losses = []
    for _ in range(120):
        x = torch.randn(64, 32, generator=random)
        loss = nn.functional.cross_entropy(wrapped(x), x[:, :8].argmax(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    digest(module.parameters())
    mean = torch.stack(losses[-10:]).mean()
    dist.all_reduce(mean)
    return losses[0].item(), mean.item() / dist.get_world_size()


def convergence():
    """Losses: plain, 4 bits, 2 bits with error feedback."""
    four = CGXState(None, 512, {"bits": 4, "bucket_size": 128}, algorithm=ALGORITHM)
    two = CGXState(None, 512, {"bits": 2, "bucket_size": 64}, algorithm=ALGORITHM, error_feedback=True)
    return [trained(None), trained(four), trained(two)]


# --- what fails ----------------------------------------------------------------------------------------------------


def steps(state, count=1, before=None):
    """Steps of one model; `before` gets the number of the step in which the hook is called."""
    module = Weights(torch.float32)
    wrapped = DistributedDataParallel(module, process_group=state.process_group)

    def hook(state: CGXState, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        if before is not None:
            before(step)
        return cgx_hook(state, bucket)

    wrapped.register_comm_hook(state, hook)
    for step in range(count):
        wrapped(drawn(module, dist.get_rank(), step)).backward()


def different_bits():
    steps(CGXState(None, compression_params={"bits": 4 - dist.get_rank()}, timeout=20))


def nobody_comes():
    """The other rank makes its model and then does something else."""
    group = dist.new_group()
    if dist.get_rank() == 0:
        steps(CGXState(group, compression_params={"bits": 4}, timeout=1))
    DistributedDataParallel(Weights(torch.float32), process_group=group)


def third_step(of_rank_1):
    """In the third step, when the buckets are those of all later ones, rank 1 calls that before it enters the hook."""

    def before(step):
        if dist.get_rank() == 1 and step == 2:
            of_rank_1()

    steps(CGXState(None, compression_params={"bits": 4}, timeout=20), 3, before)


def raises():
    def fail():
        raise ArithmeticError("by the user's hook")

    third_step(fail)


def bare_state(timeout):
    """One whose last bucket is not compressed."""
    module = nn.Sequential(nn.LayerNorm(40), nn.Linear(40, 90), nn.Linear(90, 60))
    wrapped = DistributedDataParallel(module, bucket_cap_mb=1e-5)
    wrapped.register_comm_hook(CGXState(None, compression_params={"bits": 4}, timeout=timeout), cgx_hook)
    for _ in range(2):
        wrapped(torch.ones(2, 40)).sum().backward()
    return wrapped


def silent():
    """Rank 1 lives, but does not come: a deadline has passed, nobody has died."""
    wrapped = bare_state(timeout=2)
    if dist.get_rank() == 0:
        wrapped(torch.ones(2, 40)).sum().backward()
    else:
        time.sleep(8)


def cut():
    """Until the link between the nodes goes."""
    wrapped = bare_state(timeout=3)
    while True:
        wrapped(torch.ones(2, 40)).sum().backward()
        put(f"stepping.{dist.get_rank()}")


def killed_bare():
    put(f"before_the_end.{dist.get_rank()}", json.dumps(RESULTS))
    wrapped = bare_state(timeout=20)
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    wrapped(torch.ones(2, 40)).sum().backward()


def killed():
    put(f"before_the_end.{dist.get_rank()}", json.dumps(RESULTS))
    third_step(lambda: os.kill(os.getpid(), signal.SIGKILL))


RESULTS = {}


def main():
    torch.set_num_threads(1)
    if GPUS:
        torch.cuda.set_device(DEVICE)
    warnings.simplefilter("error", RuntimeWarning)
    start()
    for case in CASES:
        try:
            RESULTS[case] = globals()[case]()
        except Exception as error:
            traceback.print_exc()
            RESULTS[case] = {name: str(getattr(error, name, None)) for name in ("rank", "operation")}
            RESULTS[case] |= {"type": type(error).__name__, "text": str(error)}
    put(f"result.{dist.get_rank()}", json.dumps(RESULTS))
    with contextlib.suppress(Exception):
        dist.destroy_process_group()


main()
