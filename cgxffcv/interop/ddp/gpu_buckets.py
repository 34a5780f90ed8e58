"""Buckets in device memory. Each may go to the process group instead, while a trial tries that, or once it has chosen
it."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
import torch.distributed as dist

from cgxffcv.allreduce import AllreducePlan
from cgxffcv.interop.ddp import gpu
from cgxffcv.interop.ddp.across import Carrier, Messages
from cgxffcv.interop.ddp.buckets import Bucket, PlainBucket, as_array
from cgxffcv.interop.ddp.layout import Layout
from cgxffcv.interop.ddp.overlap import Overlap, RecurringBucket
from cgxffcv.interop.ddp.trial import Trial
from cgxffcv.interop.ddp.worker import Worker


class Common(NamedTuple):
    """What the buckets on one GPU have in common."""

    group: dist.ProcessGroup
    overlap: Overlap
    trial: Trial | None


class TrialBucket(Bucket):
    def __init__(self, layout: Layout, plan: AllreducePlan, common: Common) -> None:
        super().__init__(layout, plan)
        self._overlap, self._trial = common.overlap, common.trial
        self._plain = PlainBucket(layout, common.group)

    def put(self, bucket: dist.GradBucket) -> torch.futures.Future:
        if self._trial is not None and self._trial.plain:
            return self._plain.put(bucket)
        return self._put(bucket)

    @abstractmethod
    def _put(self, bucket: dist.GradBucket) -> torch.futures.Future:
        """Averages the bucket, compressed."""

    def finish(self) -> None:
        self._overlap.lane.stream.synchronize()

    @property
    def _went_plain(self) -> bool:
        return self._trial is not None and bool(self._trial.decision)

    @property
    def wire_bytes(self) -> int:
        return self._plain.wire_bytes if self._went_plain else super().wire_bytes

    def explain(self) -> str:
        return self._plain.explain() if self._went_plain else super().explain()


class GpuBucket(TrialBucket):
    """A bucket of ranks of one host."""

    def __init__(self, layout: Layout, plan: AllreducePlan, common: Common, worker: Worker) -> None:
        super().__init__(layout, plan, common)
        self._worker, self._gpu_plan = worker, gpu.GpuPlan(layout, plan)

    def _put(self, bucket: dist.GradBucket) -> torch.futures.Future:
        if self.plan.recordable:
            return gpu.put_overlapped(self._gpu_plan, self._overlap.lane, bucket)
        return gpu.put_behind(self._gpu_plan, self._overlap.lane, bucket, self._worker)

    def _recurring(self, buffer: torch.Tensor, bucket: dist.GradBucket) -> RecurringBucket | None:
        if not self.plan.recordable:
            return None
        put, tensor = self._gpu_plan.put_overlapped, self._gpu_plan.tensor(buffer)
        lane = self._overlap.lane.number
        return RecurringBucket(
            buffer, bucket, self._overlap, self._trial, lambda stream, blocks: put(tensor, stream, lane, blocks)
        )


class CarriedOnGpuBucket(TrialBucket):
    """A bucket whose messages the process group carries from GPU to GPU."""

    def __init__(self, layout: Layout, messages: gpu.GpuMessages, common: Common) -> None:
        super().__init__(layout, messages.plan, common)
        self._messages = messages

    def _put(self, bucket: dist.GradBucket) -> torch.futures.Future:
        return gpu.put_carried(self._messages, self._overlap.lane, bucket)

    def _recurring(self, buffer: torch.Tensor, bucket: dist.GradBucket) -> RecurringBucket | None:
        messages, lane = self._messages, self._overlap.lane

        def put(_: int, blocks: int) -> None:
            lane.follow()
            with torch.cuda.stream(lane.stream):
                messages.put(buffer, lane.number)

        return RecurringBucket(buffer, bucket, self._overlap, self._trial, put)


class CarriedGpuBucket(TrialBucket):
    """A bucket that goes through page-locked host memory; the process group carries its messages."""

    def __init__(self, layout: Layout, plan: AllreducePlan, common: Common, worker: Worker, carrier: Carrier) -> None:
        super().__init__(layout, plan, common)
        self._worker, self._carrier = worker, carrier
        self._messages = Messages(plan, carrier.groups(plan.algorithm))
        self._host = torch.empty(layout.elems, dtype=layout.parameters[0].dtype, pin_memory=True)
        self._here = torch.cuda.Event()

    def _put(self, bucket: dist.GradBucket) -> torch.futures.Future:
        buffer, lane = bucket.buffer(), self._overlap.lane
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
