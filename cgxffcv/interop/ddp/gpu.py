"""Buckets in device memory, of ranks of one host: sums are put on a stream alongside backward's, and nothing waits on
the CPU, unless the plan goes through host memory; then it runs on the worker's thread."""

from __future__ import annotations

from collections.abc import Callable

import _cgxffcv
import torch
import torch.distributed as dist

from cgxffcv.allreduce import AllreducePlan
from cgxffcv.interop.ddp.layout import Layout
from cgxffcv.interop.ddp.worker import Worker


class Lane:
    """The stream of a GPU on which the hook works."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.index = device, device.index
        self.stream = torch.cuda.Stream(device)
        self.number = self.stream.cuda_stream
        self._moment = torch.cuda.Event()

    def follow(self) -> None:
        """Orders everything put on the lane from now on after what backward has put on its stream so far."""
        self._moment.record(torch.cuda.current_stream(self.device))
        self.stream.wait_event(self._moment)

    def wait_for(self, work: dist.Work) -> None:
        """Orders everything put on the lane from now on after work of a process group."""
        with torch.cuda.stream(self.stream):
            work.wait()

    def mark(self) -> torch.cuda.Event | None:
        """The moment at which the GPU's current stream gets here; None while it is being recorded."""
        if torch.cuda.is_current_stream_capturing():
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def finished(self, result: torch.Tensor) -> torch.futures.Future:
        """A future of `result` as the work now on the lane leaves it; streams that wait for it wait for that work."""
        future: torch.futures.Future = torch.futures.Future(devices=[self.device])
        with torch.cuda.stream(self.stream):
            future.set_result(result)
        return future


def tensor_over(layout: Layout, buffer: torch.Tensor) -> _cgxffcv.Tensor:
    """A bucket's buffer as a tensor of the core, which does not keep the memory alive."""
    return _cgxffcv.tensor_of_address(None, buffer.data_ptr(), (layout.elems,), None, layout.dtype, True)


class GpuPlan:
    """A plan, and the core's tensor over which it ran last, which does not keep the memory alive:
    DistributedDataParallel wants to free buffers that it has made again."""

    def __init__(self, layout: Layout, plan: AllreducePlan) -> None:
        self.plan, self._layout = plan, layout
        self._plan = plan._plan
        self._address, self._tensor = -1, None

    def tensor(self, buffer: torch.Tensor) -> _cgxffcv.Tensor:
        address = buffer.data_ptr()
        if address != self._address:
            self._tensor = tensor_over(self._layout, buffer)
            self._address = address
        return self._tensor

    def put(self, buffer: torch.Tensor, stream: int) -> None:
        self._plan.put([self.tensor(buffer)], stream)

    @property
    def put_overlapped(self) -> Callable[[_cgxffcv.Tensor, int, int, int], None]:
        return self._plan.enqueue_on_lane


class GpuMessages(GpuPlan):
    """A plan whose messages the process group carries from GPU to GPU: kernels and collectives, one after the other on
    the lane."""

    def __init__(self, layout: Layout, plan: AllreducePlan, group: dist.ProcessGroup) -> None:
        super().__init__(layout, plan)
        self._group, ranks, me = group, dist.get_world_size(group), dist.get_rank(group)
        row, rows, outgoing = self._plan.external_space()
        window = torch.empty((rows, row), dtype=torch.uint8, device=layout.device)
        self._outgoing = torch.empty((outgoing, row), dtype=torch.uint8, device=layout.device)
        self._plan.external_bind(_as_bytes(window), _as_bytes(self._outgoing))
        self._terms, self._results = window[:ranks].view(-1), window[ranks:].view(-1)
        self._own_term, self._own_result = window[me], window[ranks + me] if outgoing else None

    def put(self, buffer: torch.Tensor, stream: int) -> None:
        """The lane must be the current stream."""
        tensor = self.tensor(buffer)
        self._plan.external_step("push", tensor, stream)
        if self._own_result is None:
            dist.all_gather_into_tensor(self._terms, self._own_term, self._group)
        else:
            dist.all_to_all_single(self._terms, self._outgoing.view(-1), group=self._group)
            self._plan.external_step("reduce", tensor, stream)
            dist.all_gather_into_tensor(self._results, self._own_result, self._group)
        self._plan.external_step("gather", tensor, stream)


def _as_bytes(tensor: torch.Tensor) -> _cgxffcv.Tensor:
    return _cgxffcv.tensor_of_address(tensor, tensor.data_ptr(), (tensor.numel(),), None, "uint8", True)


def put_overlapped(plan: GpuPlan, lane: Lane, bucket: dist.GradBucket) -> torch.futures.Future:
    """Puts the sum on the lane, at once."""
    buffer = bucket.buffer()
    lane.follow()
    plan.put(buffer, lane.number)
    return lane.finished(buffer)


def put_carried(messages: GpuMessages, lane: Lane, bucket: dist.GradBucket) -> torch.futures.Future:
    """Puts the sum on the lane, at once, with the process group's collectives."""
    buffer = bucket.buffer()
    lane.follow()
    future: torch.futures.Future = torch.futures.Future(devices=[lane.device])
    with torch.cuda.stream(lane.stream):
        messages.put(buffer, lane.number)
        future.set_result(buffer)
    return future


def put_behind(plan: GpuPlan, lane: Lane, bucket: dist.GradBucket, worker: Worker) -> torch.futures.Future:
    """Has the worker put the sum on the lane, and wait for the GPU."""
    buffer = bucket.buffer()
    lane.follow()

    def run() -> None:
        with torch.cuda.device(lane.device):
            plan.put(buffer, lane.number)

    future = worker.submit(run, buffer, lane.stream)
    if bucket.is_last():
        worker.drain()
    return future
