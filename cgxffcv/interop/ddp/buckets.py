"""Buckets in host memory, with what reduces them, and the base class of all buckets."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

from cgxffcv.allreduce import AllreducePlan
from cgxffcv.interop.ddp.across import Carrier, Messages
from cgxffcv.interop.ddp.layout import Layout
from cgxffcv.interop.ddp.overlap import Overlap, RecurringBucket
from cgxffcv.interop.ddp.trial import Trial
from cgxffcv.interop.ddp.worker import Worker


def as_array(buffer: torch.Tensor) -> np.ndarray:
    """A tensor in host memory as an array that a plan takes, over the same memory."""
    plain = buffer.detach()
    return plain.view(torch.int16).numpy().view(np.uint16) if plain.dtype is torch.bfloat16 else plain.numpy()


class Bucket(ABC):
    """A layout and its plan."""

    def __init__(self, layout: Layout, plan: AllreducePlan | None) -> None:
        self.layout, self.plan = layout, plan
        self._came: weakref.ref[torch.Tensor] | None = None
        self.buffer_id = 0  # the identity of the buffer that has come again

    @abstractmethod
    def put(self, bucket: dist.GradBucket) -> torch.futures.Future:
        """Averages the bucket's buffer in place."""

    def recurring(self, buffer: torch.Tensor, bucket: dist.GradBucket) -> RecurringBucket | None:
        """What is faster than `put` for a buffer that has come before; None if there is no such way, or it is new."""
        again = self._came is not None and self._came() is buffer
        self._came = weakref.ref(buffer)
        return self._recurring(buffer, bucket) if again else None

    def _recurring(self, buffer: torch.Tensor, bucket: dist.GradBucket) -> RecurringBucket | None:
        return None

    def finish(self) -> None:  # noqa: B027
        """Waits until none of its work is in progress on a GPU."""

    @property
    def wire_bytes(self) -> int:
        """Bytes that this rank sends in a step, counted for each receiver."""
        assert self.plan is not None
        return self.plan.wire_bytes

    def explain(self) -> str:
        assert self.plan is not None
        return self.plan.explain()


class PlainBucket(Bucket):
    """A bucket that is not compressed: the process group does what it does without a hook."""

    def __init__(
        self,
        layout: Layout,
        group: dist.ProcessGroup,
        overlap: Overlap | None = None,
        trial: Trial | None = None,
        reason: str = "",
    ) -> None:
        super().__init__(layout, None)
        self._group, self._overlap, self._trial, self._reason = group, overlap, trial, reason

    def put(self, bucket: dist.GradBucket) -> torch.futures.Future:
        return default_hooks.allreduce_hook(self._group, bucket)

    def _recurring(self, buffer: torch.Tensor, bucket: dist.GradBucket) -> RecurringBucket | None:
        if self._overlap is None or not self._overlap.can_sum:
            return None
        return RecurringBucket(buffer, bucket, self._overlap, self._trial, None)

    @property
    def wire_bytes(self) -> int:
        """What any ring must send."""
        size = dist.get_world_size(self._group)
        return 2 * (size - 1) * self.layout.elems * self.layout.item_bytes // size

    def explain(self) -> str:
        reason = f" ({self._reason})" if self._reason else ""
        what = f"{self.layout.elems} elements of {self.layout.dtype}"
        return f"{what}, not compressed: by the process group's allreduce{reason}\n"


def _put(bucket: dist.GradBucket, run: Callable[[torch.Tensor], None], worker: Worker) -> torch.futures.Future:
    """By the worker. The last bucket of a backward is waited for, so that failures are raised as they are."""
    buffer = bucket.buffer()
    future = worker.submit(lambda: run(buffer), buffer)
    if bucket.is_last():
        worker.drain()
    return future


class HostBucket(Bucket):
    """A bucket in host memory, of ranks that share memory."""

    def __init__(self, layout: Layout, plan: AllreducePlan, worker: Worker) -> None:
        super().__init__(layout, plan)
        self._worker = worker

    def put(self, bucket: dist.GradBucket) -> torch.futures.Future:
        return _put(bucket, self._run, self._worker)

    def _run(self, buffer: torch.Tensor) -> None:
        self.plan.run(as_array(buffer))


class HookGroupBucket(PlainBucket):
    """In host memory of ranks that do not share it, and nothing of it is compressed: summed by a process group of the
    hook's, in turn with what is, so that its waits have the hook's deadline and its failures name a rank."""

    def __init__(self, layout: Layout, group: dist.ProcessGroup, worker: Worker, carrier: Carrier) -> None:
        super().__init__(layout, group)
        self._worker, self._carrier = worker, carrier
        self._across = carrier.groups("sra").across

    def put(self, bucket: dist.GradBucket) -> torch.futures.Future:
        return _put(bucket, self._run, self._worker)

    def _run(self, buffer: torch.Tensor) -> None:
        with self._carrier.moving():
            dist.all_reduce(buffer.div_(dist.get_world_size(self._across)), group=self._across)


class CarriedBucket(HostBucket):
    """A bucket in host memory, whose messages the process group carries."""

    def __init__(self, layout: Layout, plan: AllreducePlan, worker: Worker, carrier: Carrier) -> None:
        super().__init__(layout, plan, worker)
        self._carrier = carrier
        self._messages = Messages(plan, carrier.groups(plan.algorithm))

    def _run(self, buffer: torch.Tensor) -> None:
        with self._carrier.moving():
            self._messages.run(as_array(buffer))
