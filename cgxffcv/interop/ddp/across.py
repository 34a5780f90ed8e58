"""Ranks that do not share memory: the compressed messages go through collectives of torch.distributed."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from cgxffcv.allreduce import UNCOMPRESSED, AllreducePlan
from cgxffcv.comm import CommError, CommTimeout, PeerLost
from cgxffcv.interop.ddp.rendezvous import MOST_SECONDS, GroupPlace, Meeting, within

OPERATION = "allreduce"
_ANSWERS = 3.0  # seconds within which a live rank reports that its exchange has failed, too


def best_algorithm(wish: str, place: GroupPlace) -> str:
    """The algorithm that runs, resolving "auto"; ValueError for one that cannot go through a process group."""
    sizes = {place.nodes.count(node) for node in place.nodes}
    if wish == "ring":
        raise ValueError(f"algorithm: a ring needs ranks that share memory, but here {place.reason}: use sra or auto")
    if wish != "auto":
        return wish
    if place.size == 2:
        return "one_shot"
    return "two_level" if len(sizes) == 1 and 1 < sizes.pop() < place.size else "sra"


@dataclass
class Groups:
    """Separate process groups for the hook, so that its collectives never mix with the user's."""

    across: dist.ProcessGroup
    inside: dist.ProcessGroup | None


class Carrier:
    """Sends messages, and names the missing ranks when that fails."""

    def __init__(self, group: dist.ProcessGroup, place: GroupPlace, meeting: Meeting, timeout: float) -> None:
        self.place, self._meeting, self._timeout = place, meeting, min(timeout, MOST_SECONDS)
        self._ranks = dist.get_process_group_ranks(group)
        self._name = f"{distributed_c10d._get_process_group_name(group)}/{meeting.name}"
        self.on_gpus = "nccl" in dist.get_backend(group)  # it carries messages from GPU to GPU
        self._flat: Groups | None = None
        self._levels: Groups | None = None
        self._gpus: dist.ProcessGroup | None = None
        self._plans = 0

    def _new_group(self, what: str, members: list[int], backend: str = "gloo") -> dist.ProcessGroup:
        """Under a name of the meeting's own. Those of dist.new_group count the groups that a process has made: not
        the same on all ranks where some have made others, and the hook's would count for the user's, too."""
        ranks = [self._ranks[rank] for rank in members]
        bound = getattr(dist.group.WORLD, "bound_device_id", None) if backend == "nccl" else None
        group, _ = distributed_c10d._new_process_group_helper(
            len(ranks),
            members.index(self.place.rank),
            ranks,
            dist.Backend(backend),
            self._meeting.store,
            f"{self._name}/{what}",
            timeout=datetime.timedelta(seconds=self._timeout),
            **({} if bound is None else {"device_id": bound}),
        )
        distributed_c10d._world.pg_group_ranks[group] = {rank: number for number, rank in enumerate(ranks)}
        return group

    def gpu_group(self) -> dist.ProcessGroup:
        """Of all ranks, for messages on GPUs."""
        if self._gpus is None:
            self._gpus = self._new_group("gpus", list(range(self.place.size)), "nccl")
        return self._gpus

    def groups(self, algorithm: str) -> Groups:
        """For messages in host memory."""
        nodes, me = self.place.nodes, self.place.rank
        if algorithm != "two_level":
            self._flat = self._flat or Groups(self._new_group("all", list(range(self.place.size))), None)
            return self._flat
        if self._levels is None:
            by_node = [[rank for rank, node in enumerate(nodes) if node == n] for n in range(self.place.node_count)]
            mine = by_node[nodes[me]]
            seat = mine.index(me)
            across = self._new_group(f"across {seat}", [ranks[seat] for ranks in by_node])
            self._levels = Groups(across, self._new_group(f"inside {nodes[me]}", mine))
        return self._levels

    def agree(self, table: dict[str, Any]) -> None:
        """Raises CommError on all ranks unless they are about to make the same plan."""
        text, name = json.dumps(table, default=str), f"plan {self._plans}"
        self._plans += 1
        digests = self._meeting.gather(name, hashlib.sha256(text.encode()).hexdigest())
        if len(set(digests)) == 1:
            return
        mine, others = json.loads(text), self._meeting.gather(f"{name} in full", json.loads(text))
        other = next(rank for rank, theirs in enumerate(others) if theirs != mine)
        what = next(key for key in mine if mine[key] != others[other].get(key))
        raise _named(
            CommError(
                f"{OPERATION}: the ranks disagree on {what} of {name}: rank {self.place.rank} has {_part(mine, what)}, "
                f"rank {other} has {_part(others[other], what)}"
            ),
            other,
        )

    @contextlib.contextmanager
    def moving(self):
        """Around collectives, whose own exceptions name no rank."""
        began = time.monotonic()
        try:
            yield
        except CommError:
            raise
        except Exception as error:
            raise self._explained(error, time.monotonic() - began) from error

    def _explained(self, error: Exception, seconds: float) -> CommError:
        me, failure = self.place.rank, str(error).partition("\n")[0]
        try:
            missing = within(2 * _ANSWERS, self._silent)
        except Exception:  # the store's own host has gone, or is out of reach
            missing = [0] if me else []
        if not missing:
            return _named(CommError(f"{OPERATION}: the process group's exchange failed on rank {me}: {failure}"), me)
        names = ", ".join(map(str, missing))
        if seconds >= self._timeout:
            late = f"rank {names} did not answer within {self._timeout:g} s: stopped, far behind, or lost"
            return _named(CommTimeout(f"{OPERATION}: {late} (process group: {failure})"), missing[0])
        return _named(PeerLost(f"{OPERATION}: rank {names} is lost (process group: {failure})"), missing[0])

    def _silent(self) -> list[int]:
        """Ranks that do not report within a moment that they have failed, too."""
        store, name = self._meeting.store, self._meeting.name
        store.set(f"{name}/failed/{self.place.rank}", "")
        end = time.monotonic() + _ANSWERS
        left = list(range(self.place.size))
        while left and time.monotonic() < end:
            left = [rank for rank in left if not store.check([f"{name}/failed/{rank}"])]
            time.sleep(0.05)
        return left


def _named(error: CommError, rank: int) -> CommError:
    error.rank, error.operation = rank, OPERATION
    return error


def _part(table: dict[str, Any], key: str) -> str:
    text = str(table.get(key))
    return text if len(text) <= 200 else f"{text[:200]}..."


class Messages:
    """A plan's memory for its messages, and the collectives that send them, in host memory."""

    def __init__(self, plan: AllreducePlan, groups: Groups) -> None:
        self.plan, self.groups = plan, groups
        self._stages = {name: plan.stage_messages(name) for name in ("inside", "across")}
        _, sizes, each, result = self._stages["across"]
        members, inside = len(sizes), max(1, len(self._stages["inside"][1]))
        self._one_shot = result == 0
        most = max(sum(sizes[:1] if self._one_shot else sizes) for _, sizes, _, _ in self._stages.values())
        received = max((len(sizes) - 1) * each for _, sizes, each, _ in self._stages.values())
        self._sent, self._received = _bytes(most), _bytes(0 if self._one_shot else received)
        self._result = _bytes(result)
        self._gathered = _bytes((each if self._one_shot else result) * members)
        self._all = _bytes(self._gathered.numel() * inside) if inside > 1 else self._gathered

    def run(self, buffer: np.ndarray) -> None:
        if self._one_shot:
            self.plan.stage_encode("across", buffer, self._sent.numpy())
            dist.all_gather_into_tensor(self._gathered, self._sent, self.groups.across)
        else:
            if self.groups.inside is not None:
                self._reduce("inside", buffer, self.groups.inside, self._result[:0])
            self._reduce("across", buffer, self.groups.across, self._result)
            dist.all_gather_into_tensor(self._gathered, self._result, self.groups.across)
            if self.groups.inside is not None:
                dist.all_gather_into_tensor(self._all, self._gathered, self.groups.inside)
        self.plan.stage_finish(buffer, self._all.numpy())

    def _reduce(self, stage: str, buffer: np.ndarray, group: dist.ProcessGroup, result: torch.Tensor) -> None:
        me, sizes, each, _ = self._stages[stage]
        theirs = [0 if member == me else each for member in range(len(sizes))]
        sent, received = self._sent[: sum(sizes)], self._received[: sum(theirs)]
        self.plan.stage_encode(stage, buffer, sent.numpy())
        dist.all_to_all_single(received, sent, theirs, list(sizes), group)
        self.plan.stage_reduce(stage, buffer, received.numpy(), result.numpy())


def _bytes(count: int) -> torch.Tensor:
    return torch.empty(count, dtype=torch.uint8)


def compresses(table: dict[str, Any], algorithm: str) -> bool:
    """True if a plan of that table quantises anything."""
    bits, least = table["bits"], table["layer_min_size"]
    own = bits if isinstance(bits, dict) else {"default": bits}
    if algorithm == "exact":
        return False
    for index, (_, shape) in enumerate(table["layers"]):
        large = len(shape) > 1 and int(np.prod(shape)) >= least
        if own.get(index, own["default"] if large else UNCOMPRESSED) != UNCOMPRESSED:
            return True
    return False
