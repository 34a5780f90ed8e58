"""What the hook puts on a GPU alongside a backward pass, and the end of that pass, where the gradients are waited for.

A stream-aware future costs the thread that launches backward's kernels a search for tensors, an event and two changes
of the stream. Within a backward pass none is needed: autograd calls back at its end, before DistributedDataParallel
looks at the first gradient, and everything later on the stream then waits for all sums at once. So a bucket that comes
again gets a future that is complete from the start, and is the same at every step."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import _cgxffcv
import torch
import torch.distributed as dist

from cgxffcv.interop.ddp.gpu import Lane
from cgxffcv.interop.ddp.trial import Trial

# A kernel that waits for other ranks holds its multiprocessors meanwhile, and backward needs them.
BLOCKS = 32
BLOCKS_VARIABLE = "CGXFFCV_HOOK_BLOCKS"

_task = getattr(torch._C, "_current_graph_task_id", lambda: -1)  # -1: outside of a backward pass
_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)


def overlap_blocks() -> int:
    """The number of blocks of a kernel alongside backward; ValueError if the variable is not one."""
    text = os.environ.get(BLOCKS_VARIABLE, "").strip() or str(BLOCKS)
    if not text.isdecimal() or int(text) > 65535:
        raise ValueError(
            f"{BLOCKS_VARIABLE}={text!r}: a number of blocks is expected, or 0 for as many as there is room for"
        )
    return int(text)


def begin_step(trial: Trial | None) -> None:
    """Tells the trial of a step, before its first bucket, unless it is being recorded in a graph."""
    if trial is not None and trial.decision is None and not torch.cuda.is_current_stream_capturing():
        trial.begin()


class Overlap:
    """The work alongside backward, of one GPU and one state. A trial, if there is one, is timed by the ends of passes
    here."""

    def __init__(self, lane: Lane, group: dist.ProcessGroup, trial: Trial | None) -> None:
        self.lane, self.blocks = lane, overlap_blocks()
        self.works: list[Any] = []  # that the process group has begun since the last end
        self._stream = 0  # on which backward worked when the last bucket came
        self._used = False  # whether the lane was, since the last end
        self._group, self._sums, self._trial = group, _average_of(group), trial
        self._pass = -1

    def enter(self) -> bool:
        """True if a backward pass is in progress, whose end will be noticed."""
        number = _task()
        if number < 0 or _stream is None:
            return False
        if number != self._pass:
            torch.autograd.Variable._execution_engine.queue_callback(self._end)  # type: ignore[attr-defined]
            self._pass = number
        self._stream = _stream(self.lane.index)
        return True

    def issue(self, put: Callable[[int], None]) -> None:
        """After `enter`: puts something on the lane, given backward's stream."""
        self._used = True
        put(self._stream)

    @property
    def can_sum(self) -> bool:
        """True if the process group has an average on GPUs."""
        return self._sums is not None

    def sum_plainly(self, tensors: list[torch.Tensor]) -> bool:
        """After `enter`: averages a tensor through the process group; False if it cannot."""
        if self._sums is None:
            return False
        self.works.append(self._group.allreduce(tensors, self._sums))
        return True

    def _end(self) -> None:
        self._pass = -1
        here = _stream(self.lane.index)
        self._join(here)
        if self._stream != here:
            with torch.cuda.stream(torch.cuda.ExternalStream(self._stream, self.lane.device)):
                self._join(self._stream)
        self.works.clear()
        self._used = False
        if self._trial is not None:
            self._trial.end(self.lane.mark)

    def _join(self, stream: int) -> None:
        """Makes later work on the stream, which is the current one, wait for all sums."""
        for work in self.works:
            work.wait()
        if self._used:
            _cgxffcv.device_order(self.lane.index, stream, self.lane.number)


def _average_of(group: dist.ProcessGroup) -> Any:
    if "nccl" not in dist.get_backend(group):
        return None
    options = dist.AllreduceOptions()  # all_reduce of torch.distributed makes one at every call
    options.reduceOp = dist.ReduceOp.AVG
    if hasattr(options, "asyncOp"):
        options.asyncOp = True
    return options


class CompletedFuture(torch.futures.Future):
    """A completed future of a buffer. DistributedDataParallel takes it as that, once the pass is over; Python code that
    asks for it, as a hook around this one may, gets a stream-aware future."""

    def __init__(self, buffer: torch.Tensor, proper: Callable[[], torch.futures.Future]) -> None:
        super().__init__()
        super().set_result(buffer)
        self._proper = proper

    def then(self, callback: Callable) -> torch.futures.Future:
        return self._proper().then(callback)

    def add_done_callback(self, callback: Callable) -> None:
        self._proper().add_done_callback(callback)

    def wait(self) -> torch.Tensor:
        return self._proper().wait()

    def value(self) -> torch.Tensor:
        return self._proper().wait()


class RecurringBucket:
    """A bucket whose buffer has come again: everything that does not change from step to step. `put` puts its sum on
    the lane, given backward's stream and the blocks that its kernels may have."""

    def __init__(
        self,
        buffer: torch.Tensor,
        bucket: dist.GradBucket,
        overlap: Overlap,
        trial: Trial | None,
        put: Callable[[int, int], None] | None,
    ) -> None:
        self.buffer, self._overlap, self._trial, self._tensors = buffer, overlap, trial, [buffer]
        self._begins = trial is not None and bucket.index() == 0
        blocks = 0 if bucket.is_last() else overlap.blocks  # after the last one nothing is left of backward
        self._put = None if put is None else lambda stream: put(stream, blocks)
        self._future = CompletedFuture(buffer, _proper(overlap, buffer))

    def put(self) -> torch.futures.Future | None:
        """Returns None if the bucket has to go the usual way."""
        if self._begins:
            begin_step(self._trial)
        if not self._overlap.enter():
            return None
        if self._put is not None and not (self._trial is not None and self._trial.plain):
            self._overlap.issue(self._put)
        elif not self._overlap.sum_plainly(self._tensors):
            return None
        return self._future


def _proper(overlap: Overlap, buffer: torch.Tensor) -> Callable[[], torch.futures.Future]:
    def proper() -> torch.futures.Future:
        for work in overlap.works:
            overlap.lane.wait_for(work)
        return overlap.lane.finished(buffer)

    return proper
