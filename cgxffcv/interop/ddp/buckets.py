"""Buckets with the plans that reduce them. What outlives a bucket is the residual, which belongs to parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cgxffcv.allreduce import AllreducePlan
from cgxffcv.interop.ddp.layout import Layout, Rules
from cgxffcv.interop.ddp.rendezvous import Place
from cgxffcv.interop.ddp.worker import Worker


def as_array(buffer: torch.Tensor) -> np.ndarray:
    """A tensor in host memory as an array that a plan takes, over the same memory."""
    plain = buffer.detach()
    return plain.view(torch.int16).numpy().view(np.uint16) if plain.dtype is torch.bfloat16 else plain.numpy()


class HostBucket:
    """A bucket in host memory, of ranks that share memory."""

    def __init__(self, layout: Layout, plan: AllreducePlan, worker: Worker) -> None:
        self.layout, self.plan, self._worker = layout, plan, worker

    def put(self, buffer: torch.Tensor, last: bool) -> torch.futures.Future:
        """Averages the buffer in place. The last bucket of a backward is waited for, so that failures are raised."""
        plan, array = self.plan, as_array(buffer)
        future = self._worker.submit(lambda: plan.run(array), buffer)
        if last:
            self._worker.drain()
        return future


class Buckets:
    """All that a state has made, by the identities of their parameters."""

    def __init__(self, place: Place, rules: Rules, options: dict[str, Any], timeout: float) -> None:
        self.place, self.rules, self.options, self.timeout = place, rules, options, timeout
        self.worker = Worker()
        self._known: dict[tuple[int, ...], HostBucket] = {}
        self._homes: dict[int, tuple[HostBucket, int, int]] = {}  # by parameter: who holds its residual, and where

    def __iter__(self):
        return iter(self._known.values())

    def get(self, key: tuple[int, ...]) -> HostBucket | None:
        return self._known.get(key)

    def add(self, layout: Layout) -> HostBucket:
        """Makes the bucket; those that held one of its parameters before are no more. Collective."""
        self.worker.drain()
        plan = AllreducePlan(
            self.place.comm, **self.rules.table(layout), dtype=layout.dtype, timeout=self.timeout, **self.options
        )
        bucket = HostBucket(layout, plan, self.worker)
        self._move_in(bucket)
        members = set(layout.key)
        self._known = {key: other for key, other in self._known.items() if members.isdisjoint(key)}
        self._known[layout.key] = bucket
        return bucket

    def _move_in(self, bucket: HostBucket) -> None:
        for identity, first, elems in bucket.layout.spans():
            home = self._homes.get(identity)
            if home is not None and bucket.plan.residual is not None and home[0].plan.residual is not None:
                before = home[0].plan.residual[home[1] : home[1] + elems]
                bucket.plan.residual[first : first + elems] = before
            self._homes[identity] = bucket, first, elems
