"""Buckets with what reduces them. What outlives a bucket is the residual, which belongs to parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

from cgxffcv import comm
from cgxffcv.allreduce import AllreducePlan
from cgxffcv.interop.ddp import gpu
from cgxffcv.interop.ddp.across import Carrier, Messages, best_algorithm, compresses
from cgxffcv.interop.ddp.layout import Layout, Rules
from cgxffcv.interop.ddp.rendezvous import Place
from cgxffcv.interop.ddp.worker import Worker


def as_array(buffer: torch.Tensor) -> np.ndarray:
    """A tensor in host memory as an array that a plan takes, over the same memory."""
    plain = buffer.detach()
    return plain.view(torch.int16).numpy().view(np.uint16) if plain.dtype is torch.bfloat16 else plain.numpy()


class Bucket(ABC):
    """A layout and its plan."""

    def __init__(self, layout: Layout, plan: AllreducePlan | None) -> None:
        self.layout, self.plan = layout, plan

    @abstractmethod
    def put(self, bucket: dist.GradBucket) -> torch.futures.Future:
        """Averages the bucket's buffer in place."""

    @property
    def residual(self) -> np.ndarray | None:
        return None if self.plan is None else self.plan.residual

    @property
    def wire_bytes(self) -> int:
        """That this rank sends in a step, each receiver counted."""
        assert self.plan is not None
        return self.plan.wire_bytes

    def explain(self) -> str:
        assert self.plan is not None
        return self.plan.explain()


class PlainBucket(Bucket):
    """Nothing of it is compressed: the process group does what it does without a hook."""

    def __init__(self, layout: Layout, group: dist.ProcessGroup) -> None:
        super().__init__(layout, None)
        self._group = group

    def put(self, bucket: dist.GradBucket) -> torch.futures.Future:
        return default_hooks.allreduce_hook(self._group, bucket)

    @property
    def wire_bytes(self) -> int:
        """As any ring must."""
        size = dist.get_world_size(self._group)
        return 2 * (size - 1) * self.layout.elems * self.layout.item_bytes // size

    def explain(self) -> str:
        return (
            f"{self.layout.elems} elements of {self.layout.dtype}, not compressed: by the process group's allreduce\n"
        )


class HostBucket(Bucket):
    """In host memory, of ranks that share memory."""

    def __init__(self, layout: Layout, plan: AllreducePlan, worker: Worker) -> None:
        super().__init__(layout, plan)
        self._worker = worker

    def put(self, bucket: dist.GradBucket) -> torch.futures.Future:
        """The last bucket of a backward is waited for, so that failures are raised as they are."""
        buffer = bucket.buffer()
        array = as_array(buffer)
        future = self._worker.submit(lambda: self._run(array), buffer)
        if bucket.is_last():
            self._worker.drain()
        return future

    def _run(self, array: np.ndarray) -> None:
        self.plan.run(array)


class CarriedBucket(HostBucket):
    """In host memory, its messages carried by the process group."""

    def __init__(self, layout: Layout, plan: AllreducePlan, worker: Worker, carrier: Carrier) -> None:
        super().__init__(layout, plan, worker)
        self._carrier = carrier
        self._messages = Messages(plan, carrier.groups(plan.algorithm))

    def _run(self, array: np.ndarray) -> None:
        with self._carrier.moving():
            self._messages.run(array)


class GpuBucket(Bucket):
    """In device memory, of ranks of one host."""

    def __init__(self, layout: Layout, plan: AllreducePlan, worker: Worker, lane: gpu.Lane) -> None:
        super().__init__(layout, plan)
        self._worker, self._lane, self._gpu_plan = worker, lane, gpu.GpuPlan(layout, plan)

    def put(self, bucket: dist.GradBucket) -> torch.futures.Future:
        if self.plan.recordable:
            return gpu.put_beside(self._gpu_plan, self._lane, bucket)
        return gpu.put_behind(self._gpu_plan, self._lane, bucket, self._worker)

    @property
    def residual(self) -> None:
        """It is on the GPU, and begins anew when the buckets are rebuilt, once, after the first step."""
        return


class CarriedOnGpuBucket(Bucket):
    """In device memory, its messages carried from GPU to GPU by the process group."""

    def __init__(self, layout: Layout, messages: gpu.GpuMessages, lane: gpu.Lane) -> None:
        super().__init__(layout, messages.plan)
        self._messages, self._lane = messages, lane

    def put(self, bucket: dist.GradBucket) -> torch.futures.Future:
        return gpu.put_carried(self._messages, self._lane, bucket)

    @property
    def residual(self) -> None:
        """As GpuBucket's."""
        return


class CarriedGpuBucket(Bucket):
    """In device memory, through page-locked host memory, its messages carried by the process group."""

    def __init__(
        self, layout: Layout, plan: AllreducePlan, worker: Worker, carrier: Carrier, lane: gpu.Lane, kind: torch.dtype
    ) -> None:
        super().__init__(layout, plan)
        self._worker, self._carrier, self._lane = worker, carrier, lane
        self._messages = Messages(plan, carrier.groups(plan.algorithm))
        self._host = torch.empty(layout.elems, dtype=kind, pin_memory=True)
        self._here = torch.cuda.Event()

    def put(self, bucket: dist.GradBucket) -> torch.futures.Future:
        buffer, lane = bucket.buffer(), self._lane
        lane.follow()
        with torch.cuda.stream(lane.stream):
            self._host.copy_(buffer, non_blocking=True)
            self._here.record()

        def run() -> None:
            self._here.synchronize()
            with self._carrier.moving():
                self._messages.run(as_array(self._host))
            with torch.cuda.stream(lane.stream):
                buffer.copy_(self._host, non_blocking=True)

        future = self._worker.submit(run, buffer, lane.stream)
        if bucket.is_last():
            self._worker.drain()
        return future


class Buckets:
    """All that a state has made, by the identities of their parameters."""

    def __init__(
        self, group: dist.ProcessGroup, place: Place, rules: Rules, options: dict[str, Any], timeout: float
    ) -> None:
        self.group, self.place, self.rules, self.options = group, place, rules, dict(options)
        self.worker = Worker()
        self.comm, self._wish = place.comm, options["algorithm"]
        self._carrier: Carrier | None = None
        if place.comm is None and place.size > 1:
            self.comm = comm.apart(place.rank, place.nodes)
            self._carrier = Carrier(group, place, place.meeting, timeout)
            self.options["algorithm"] = best_algorithm(options["algorithm"], place)
        else:
            self.options["timeout"] = timeout
        self._lanes: dict[int, gpu.Lane] = {}
        self._known: dict[tuple[int, ...], Bucket] = {}
        self._homes: dict[int, tuple[Bucket, int]] = {}  # by parameter: who holds its residual, and where

    def __iter__(self) -> Iterator[Bucket]:
        return iter(self._known.values())

    def get(self, key: tuple[int, ...]) -> Bucket | None:
        return self._known.get(key)

    def add(self, layout: Layout) -> Bucket:
        """Makes the bucket; those that held one of its parameters before are no more. Collective."""
        self.worker.drain()
        bucket = self._make(layout)
        self._move_in(bucket)
        members = set(layout.key)
        self._known = {key: other for key, other in self._known.items() if members.isdisjoint(key)}
        self._known[layout.key] = bucket
        return bucket

    def _make(self, layout: Layout) -> Bucket:
        table = self.rules.table(layout) | {"dtype": layout.dtype}
        on_gpu = layout.device.type == "cuda"
        if self._carrier is not None:
            self._carrier.agree(table)
        if (on_gpu or self._carrier is not None) and not compresses(table, self.options["algorithm"]):
            return PlainBucket(layout, self.group)
        if on_gpu:
            return self._make_on_gpu(layout, table)
        if self._carrier is None:
            return HostBucket(layout, AllreducePlan(self.comm, **table, **self.options), self.worker)
        plan = AllreducePlan(self.comm, **table, **self.options)
        return CarriedBucket(layout, plan, self.worker, self._carrier)

    def _make_on_gpu(self, layout: Layout, table: dict[str, Any]) -> Bucket:
        device = layout.device.index
        lane = self._lanes.get(device) or self._lanes.setdefault(device, gpu.Lane(layout.device))
        if self._carrier is not None:
            messages = self._carry_on_gpus(self._carrier, layout, table)
            if messages is not None:
                return CarriedOnGpuBucket(layout, messages, lane)
            plan = AllreducePlan(self.comm, **table, **self.options)
            return CarriedGpuBucket(layout, plan, self.worker, self._carrier, lane, layout.parameters[0].dtype)
        with torch.cuda.device(device):
            plan = AllreducePlan(self.comm, **table, **self.options, device=device, compare=False)
        # "exact" is what auto has found cheaper; then the group's own way is the cheapest.
        return (
            PlainBucket(layout, self.group) if plan.algorithm == "exact" else GpuBucket(layout, plan, self.worker, lane)
        )

    def _carry_on_gpus(self, carrier: Carrier, layout: Layout, table: dict[str, Any]) -> gpu.GpuMessages | None:
        """None where the kernels, or the process group, do not do it; the same on all ranks."""
        if not carrier.on_gpus:
            return None
        options = self.options | {"algorithm": "sra"} if self._wish == "auto" and self.place.size > 2 else self.options
        try:
            with torch.cuda.device(layout.device):
                plan = AllreducePlan(self.comm, **table, **options, device=layout.device.index, compare=False)
        except ValueError:  # a codec or an algorithm that they do not have
            return None
        return gpu.GpuMessages(layout, plan, carrier.gpu_group())

    def _move_in(self, bucket: Bucket) -> None:
        residual = bucket.residual
        for identity, first, elems in bucket.layout.spans():
            home = self._homes.get(identity)
            if home is not None and residual is not None and home[0].residual is not None:
                residual[first : first + elems] = home[0].residual[home[1] : home[1] + elems]
            self._homes[identity] = bucket, first
