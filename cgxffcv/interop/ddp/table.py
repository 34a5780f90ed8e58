"""All buckets of a state, by the identities of their parameters. What outlives a bucket is the residual and the chosen
bits, which belong to parameters, and the number of the next run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from cgxffcv import comm
from cgxffcv.adaptive import Policy
from cgxffcv.allreduce import AllreducePlan
from cgxffcv.interop.ddp import gpu
from cgxffcv.interop.ddp.across import Carrier, best_algorithm, compresses
from cgxffcv.interop.ddp.adapter import Adapter
from cgxffcv.interop.ddp.buckets import (
    Bucket,
    CarriedBucket,
    HookGroupBucket,
    HostBucket,
    PlainBucket,
    as_array,
)
from cgxffcv.interop.ddp.gpu_buckets import CarriedGpuBucket, CarriedOnGpuBucket, Common, GpuBucket
from cgxffcv.interop.ddp.layout import Layout, Rules
from cgxffcv.interop.ddp.memory import Memory
from cgxffcv.interop.ddp.overlap import Overlap, RecurringBucket, begin_step
from cgxffcv.interop.ddp.rendezvous import GroupPlace, compare
from cgxffcv.interop.ddp.trial import Trial
from cgxffcv.interop.ddp.worker import Worker


class Buckets:
    """memory: what an earlier run of the training has left, and what this one would leave. policy: how bits are chosen,
    if they are."""

    def __init__(
        self,
        group: dist.ProcessGroup,
        place: GroupPlace,
        rules: Rules,
        options: dict[str, Any],
        timeout: float,
        memory: Memory,
        policy: Policy | None = None,
    ) -> None:
        self.group, self.place, self.rules, self.options = group, place, rules, dict(options)
        self.memory, self.worker = memory, Worker()
        self.comm, self._wish = place.comm, options["algorithm"]
        self._carrier: Carrier | None = None
        if place.comm is None and place.size > 1:
            self.comm = comm.apart(place.rank, place.nodes)
            self._carrier = Carrier(group, place, place.meeting, timeout)
            self.options["algorithm"] = best_algorithm(options["algorithm"], place)
        else:
            self.options["timeout"] = timeout
        self.adapter: Adapter | None = None
        if policy is not None and place.size > 1:
            self.adapter = Adapter(policy, place.meeting.gather, place.rank, memory.bits, memory.call)
        self.trial: Trial | None = None
        self.recurring: dict[int, RecurringBucket] = {}  # by the identities of their buffers, which they hold
        self._overlaps: dict[int, Overlap] = {}
        self._known: dict[tuple[int, ...], Bucket] = {}
        self.adapt()  # the first step has begun

    def __iter__(self) -> Iterator[Bucket]:
        return iter(self._known.values())

    def put(self, buffer: torch.Tensor, bucket: dist.GradBucket) -> torch.futures.Future:
        """Averages the bucket's buffer in place; for the first time, and as long as its buffers change."""
        key = tuple(map(id, bucket.parameters()))
        known = self._known.get(key) or self._add(Layout.of(key, bucket))
        recurring = known.recurring(buffer, bucket)
        if recurring is not None:
            self.recurring.pop(known.buffer_id, None)
            known.buffer_id = id(buffer)
            self.recurring[known.buffer_id] = recurring
        if self.adapter is None or not self.adapter.measuring:
            return known.put(bucket)
        self._measure(self.adapter, known, buffer)
        future = known.put(bucket)
        if bucket.is_last():
            self.adapter.decide()
        return future

    @property
    def recorded(self) -> bool:
        """True if bits can no longer change, since a graph holds plans that have them."""
        return self.adapter is not None and self.adapter.stopped

    def begin_step(self) -> None:
        begin_step(self.trial)

    def adapt(self) -> None:
        """Begins a step: applies new bits after one that was measured, but not after one recorded in a graph."""
        if self.adapter is None:
            return
        if self._overlaps and torch.cuda.is_current_stream_capturing():
            self.adapter.stop()
        if self.adapter.begin(self.trial is None or self.trial.decision is False):
            self._forget(self.memory.save)
        if self.adapter.measuring:
            self.recurring.clear()

    def _forget(self, leave: Callable[[Bucket], None]) -> None:
        """Drops all buckets, which are made again when they come; `leave` is called for each old one."""
        self.worker.drain()
        self.recurring.clear()
        for key in list(self._known):
            leave(self._known.pop(key))

    def _measure(self, adapter: Adapter, known: Bucket, buffer: torch.Tensor) -> None:
        """Measures what the bucket's sum is about to lose."""
        layout, widths = known.layout, adapter.policy.widths
        if layout.device.type == "cuda" and torch.cuda.is_current_stream_capturing():  # from the first step on
            adapter.stop()
        if known.plan is None or adapter.stopped:
            return
        self.worker.drain()
        known.finish()
        if layout.device.type == "cuda":
            stream = torch.cuda.current_stream(layout.device).cuda_stream
            found = known.plan.losses(gpu.tensor_over(layout, buffer), widths, stream)
        else:
            found = known.plan.losses(as_array(buffer), widths)
        own = self.rules.table(layout)["bits"]
        adapter.add(layout, set(own) if isinstance(own, dict) else set(), *found)

    def _add(self, layout: Layout) -> Bucket:
        """Makes the bucket; those that held one of its parameters before are dropped. Collective."""
        self.worker.drain()
        self.recurring.clear()
        bucket = self._make(layout)
        members = set(layout.key)
        for key in list(self._known):
            if not members.isdisjoint(key):
                self.memory.save(self._known.pop(key))
        self.memory.restore(bucket)
        self._known[layout.key] = bucket
        return bucket

    def settle(self) -> None:
        """Waits until nothing is in progress on the CPU, and stores in the memory what a trial has found."""
        self.worker.drain()
        if self.trial is not None:
            self.memory.plain = self.trial.decision

    def load(self) -> None:
        """Restores everything from the memory, which has changed. Collective."""
        for rank, theirs in enumerate(self.place.meeting.gather("load_state_dict", self.memory.shared())):
            compare(self.place.rank, self.memory.shared(), rank, theirs)
        if self.adapter is not None and not self.recorded:
            self.adapter.resume(self.memory.bits, self.memory.call)
            self._forget(lambda bucket: bucket.finish())
        for bucket in self:
            self.memory.restore(bucket)
        if self.trial is not None:
            self.trial.resume(self.memory.plain)

    # ---- making ----

    def _make(self, layout: Layout) -> Bucket:
        table = self.rules.table(layout) | {"dtype": layout.dtype}
        if self.adapter is not None:
            table["bits"] = self.adapter.of(layout, table["bits"])
        on_gpu = layout.device.type == "cuda"
        if self._carrier is not None:
            self._carrier.agree(table)
        carried = on_gpu or self._carrier is not None
        if not layout.is_summed or (carried and not compresses(table, self.options["algorithm"])):
            return self._make_plain(layout)
        if on_gpu:
            return self._make_on_gpu(layout, table)
        plan = AllreducePlan(self.comm, **table, **self.options)
        if self._carrier is None:
            return HostBucket(layout, plan, self.worker)
        return CarriedBucket(layout, plan, self.worker, self._carrier)

    def _make_plain(self, layout: Layout) -> Bucket:
        if layout.device.type == "cuda":
            return PlainBucket(layout, *self._common(layout.device))
        if self._carrier is None:
            return PlainBucket(layout, self.group)
        return HookGroupBucket(layout, self.group, self.worker, self._carrier)

    def _common(self, device: torch.device) -> Common:
        """The trial is timed by the ends of passes on the first GPU."""
        if not self._overlaps and self._wish == "auto" and self.place.size > 1:
            self.trial = Trial(self._gather_times, self.memory.plain)
        if device.index not in self._overlaps:
            clock = None if self._overlaps else self.trial
            self._overlaps[device.index] = Overlap(gpu.Lane(device), self.group, clock)
        return Common(self.group, self._overlaps[device.index], self.trial)

    def _gather_times(self, mine: list[float]) -> list[list[float]]:
        return self.place.meeting.gather("times of steps", mine)

    def _make_on_gpu(self, layout: Layout, table: dict[str, Any]) -> Bucket:
        device, common = layout.device.index, self._common(layout.device)
        if self._carrier is not None:
            messages = self._carry_on_gpus(self._carrier, layout, table)
            if messages is not None:
                return CarriedOnGpuBucket(layout, messages, common)
            plan = AllreducePlan(self.comm, **table, **self.options)
            return CarriedGpuBucket(layout, plan, common, self.worker, self._carrier)
        with torch.cuda.device(device):
            plan = AllreducePlan(self.comm, **table, **self.options, device=device, compare=False)
        if plan.algorithm == "exact":  # auto has found that cheaper; then the group's own way is the cheapest
            reason = next((line for line in plan.explain().splitlines() if line.startswith("algorithm: ")), "")
            return PlainBucket(layout, *common, reason)
        return GpuBucket(layout, plan, common, self.worker)

    def _carry_on_gpus(self, carrier: Carrier, layout: Layout, table: dict[str, Any]) -> gpu.GpuMessages | None:
        """None if the kernels, or the process group, cannot do it; the same on all ranks."""
        if not carrier.on_gpus:
            return None
        options = self.options | {"algorithm": "sra"} if self._wish == "auto" and self.place.size > 2 else self.options
        try:
            with torch.cuda.device(layout.device):
                plan = AllreducePlan(self.comm, **table, **options, device=layout.device.index, compare=False)
        except ValueError:  # a codec or an algorithm that they do not have
            return None
        return gpu.GpuMessages(layout, plan, carrier.gpu_group())

    def explain(self) -> str:
        """What was chosen for each bucket and why."""
        choices = [f"on this link: {self.trial.explain()}\n"] if self.trial is not None else []
        choices += [f"{self.adapter.explain()}\n"] if self.adapter is not None else []
        return "\n".join([*choices, *(bucket.explain() for bucket in self)])
