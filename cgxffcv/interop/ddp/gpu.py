"""Buckets in device memory, of ranks of one host: sums are put on a stream beside backward's, and nothing waits on the
processor, unless the plan goes through host memory; then it runs on the worker's thread."""

from __future__ import annotations

import _cgxffcv
import torch
import torch.distributed as dist

from cgxffcv.allreduce import AllreducePlan
from cgxffcv.interop.ddp.layout import Layout
from cgxffcv.interop.ddp.worker import Worker


class Lane:
    """The stream of a GPU on which the hook works."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.number = self.stream.cuda_stream
        self._moment = torch.cuda.Event()

    def follow(self) -> None:
        """What is put on the lane from now on comes after what backward has put on its stream so far."""
        self._moment.record(torch.cuda.current_stream(self.device))
        self.stream.wait_event(self._moment)

    def finished(self, result: torch.Tensor) -> torch.futures.Future:
        """A future of `result` as what is on the lane now leaves it; streams that wait for it wait for that."""
        future: torch.futures.Future = torch.futures.Future(devices=[self.device])
        with torch.cuda.stream(self.stream):
            future.set_result(result)
        return future


class GpuPlan:
    """A plan, and the tensor over which it ran last, as the core knows it."""

    def __init__(self, layout: Layout, plan: AllreducePlan) -> None:
        self._layout, self._plan, self._shape = layout, plan._plan, (layout.elems,)
        self._address, self._tensors = 0, []

    def put(self, buffer: torch.Tensor, stream: int) -> None:
        address = buffer.data_ptr()
        if address != self._address:
            tensor = _cgxffcv.tensor_of_address(buffer, address, self._shape, None, self._layout.dtype, True)
            self._address, self._tensors = address, [tensor]
        self._plan.put(self._tensors, stream)


def put_beside(plan: GpuPlan, lane: Lane, bucket: dist.GradBucket) -> torch.futures.Future:
    """On the lane, at once."""
    buffer = bucket.buffer()
    lane.follow()
    plan.put(buffer, lane.number)
    return lane.finished(buffer)


def put_behind(plan: GpuPlan, lane: Lane, bucket: dist.GradBucket, worker: Worker) -> torch.futures.Future:
    """On the lane, by the worker, which waits for the GPU."""
    buffer = bucket.buffer()
    lane.follow()

    def run() -> None:
        with torch.cuda.device(lane.device):
            plan.put(buffer, lane.number)

    future = worker.submit(run, buffer, lane.stream)
    if bucket.is_last():
        worker.drain()
    return future
