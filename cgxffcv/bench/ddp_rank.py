"""One rank of `bench ddp`: python -m cgxffcv.bench.ddp_rank JOB, in an environment like torchrun's.

JOB is JSON: model, ways, batch, steps, warmup, device, bucket_mb, codec, algorithm, error_feedback. Rank 0 prints a
line of JSON for each way. A step is forward under bfloat16 autocast, backward with the sums, and SGD with momentum; on
a GPU its time is that between the ends of two steps, by events. Each way starts with a new network.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import debugging_hooks, default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from cgxffcv.bench import ddp_models
from cgxffcv.interop.ddp import trial

Job = dict[str, Any]


def register(model: DistributedDataParallel, way: str, job: Job) -> Any:
    """Registers the hook of a way with the model; returns its state."""
    if way == "floor":
        model.register_comm_hook(None, debugging_hooks.noop_hook)
    elif way == "bf16":
        model.register_comm_hook(None, default_hooks.bf16_compress_hook)
    elif way == "powersgd":
        state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=4, start_powerSGD_iter=2)
        model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        return state
    elif way != "plain":
        from cgxffcv.interop.torch import CGXState, cgx_hook

        params = {"bits": int(way.removeprefix("ours")), "bucket_size": 1024}
        own = {name: job[name] for name in ("codec", "algorithm", "error_feedback")}
        state = CGXState(None, layer_min_size=1024, compression_params=params, **own)
        model.register_comm_hook(state, cgx_hook)
        return state
    return None


def wire_bytes(way: str, state: Any, elems: int) -> int | None:
    """Bytes that a rank sends in a step: what any ring must send of what is reduced, or what the state has counted."""
    share = 2 * (dist.get_world_size() - 1) / dist.get_world_size()
    if way == "powersgd":
        return int(4 * share * state.total_numel_after_compression / max(1, state.iter - 2))
    if way.startswith("ours"):
        return getattr(state, "wire_bytes", None)
    return int(share * elems * {"floor": 0, "plain": 4, "bf16": 2}[way])


class Clock:
    """Seconds between marks: of the GPU's stream, or of the host."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.marks = device, []

    def mark(self) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        pairs = list(zip(self.marks, self.marks[1:], strict=False))
        if self.device.type != "cuda":
            return [after - before for before, after in pairs]
        torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1e3 for before, after in pairs]


def equal_replicas(model: torch.nn.Module) -> bool:
    """True if all ranks hold the same bytes, by sums of them as integers."""
    sums = [parameter.detach().view(torch.int32).to(torch.int64) for parameter in model.parameters()]
    mine = [
        int((bits * (1 + torch.arange(bits.numel(), device=bits.device).view_as(bits) % 8191)).sum()) for bits in sums
    ]
    all_sums: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(all_sums, mine)
    return all(other == mine for other in all_sums)


def measure(way: str, job: Job, device: torch.device) -> dict[str, Any]:
    """Trains a few steps in one way."""
    model = ddp_models.make(job["model"], device)
    elems = sum(parameter.numel() for parameter in model.parameters())
    ids = [device.index] if device.type == "cuda" else None
    parallel = DistributedDataParallel(model, device_ids=ids, bucket_cap_mb=job["bucket_mb"])
    state = register(parallel, way, job)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    inputs, labels = ddp_models.batch_of(job["model"], job["batch"], dist.get_rank(), device)
    clock, loss, warmup = Clock(device), None, job["warmup"]
    if way.startswith("ours"):  # its first steps try both ways
        warmup = max(warmup, trial.STEPS + 4)
    for step in range(warmup + job["steps"]):
        if step == warmup:
            dist.barrier()
            clock.mark()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16):
            loss = parallel(inputs, labels)
        loss.backward()
        optimizer.step()
        if step >= warmup:
            clock.mark()
    steps: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(steps, clock.seconds())
    seconds = [max(times) for times in zip(*steps, strict=True)]
    middle = statistics.median(seconds)
    found = {"way": way, "step_seconds": middle, "steps_seconds": seconds, "parameters": elems, "loss": float(loss)}
    found |= {"items_per_second": dist.get_world_size() * ddp_models.items(job["model"], job["batch"]) / middle}
    found |= {"wire_bytes": wire_bytes(way, state, elems), "replicas_equal": equal_replicas(model)}
    ours = way.startswith("ours")
    return found | {"explain": state.explain() if ours else None, "went_plain": bool(state.plain) if ours else None}


def main(words: list[str]) -> None:
    job: Job = json.loads(words[0])
    device = torch.device("cpu")
    if job["device"] == "gpu":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if job["device"] == "gpu" else "gloo")
    for way in job["ways"]:
        found = measure(way, job, device)
        gc.collect()
        if dist.get_rank() == 0:
            print(json.dumps(found), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
