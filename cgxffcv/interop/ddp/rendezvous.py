"""How the ranks of a process group find each other without MPI: through the group's store, with timeouts of their own.

Each says where it is; the first rank of a host makes the memory that its ranks share, and the others open it by process
and descriptor. If one rank cannot do something, all of them learn of it before anybody waits.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

from cgxffcv import comm
from cgxffcv.comm import Comm, CommError, CommTimeout

OPERATION = "rendezvous"
DEFAULT_TIMEOUT = 300.0
_SHORTEST, _LONGEST = 0.001, 0.05  # seconds between two looks at the store
_ANSWER = 2.0  # seconds in which a store that is within reach answers
MOST_SECONDS = 1e6  # of a wait: others count them in numbers of their own


def timeout_of(given: float | None) -> float:
    """The timeout of operations in seconds; ValueError if it is not one."""
    text: Any = given if given is not None else os.environ.get("CGXFFCV_COMM_TIMEOUT", "").strip() or DEFAULT_TIMEOUT
    try:
        seconds = -1 if isinstance(text, bool) else float(text)
    except (TypeError, ValueError):
        seconds = -1
    if not seconds > 0:
        raise ValueError(f"timeout must be a number of seconds above 0, not {text!r}")
    return seconds


def within(seconds: float, function: Callable[[], Any]) -> Any:
    """Returns or raises what the function does; TimeoutError if it has not returned by then, and its thread goes on. A
    store whose host is out of reach blocks a caller until its own, longer timeout."""
    came: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            came.put((function(), None))
        except BaseException as error:
            came.put((None, error))

    threading.Thread(target=run, name="cgx_hook's store", daemon=True).start()
    try:
        value, error = came.get(timeout=min(seconds, MOST_SECONDS))
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return value


class Meeting:
    """The ranks of one group, which gather values through its store. The n-th meeting of a rank is the n-th of all."""

    def __init__(self, group: dist.ProcessGroup, timeout: float) -> None:
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.store = distributed_c10d._get_process_group_store(group)
        self.timeout = timeout
        self.name = f"cgxffcv/{self.store.add(f'cgxffcv/meetings/{self.rank}', 1)}"
        self._gathered = 0

    def gather(self, what: str, mine: Any) -> list[Any]:
        """The value of each rank for `what`. CommTimeout names the ranks that have given none by the deadline."""
        self._gathered += 1
        keys = [f"{self.name}/{self._gathered}/{what}/{rank}" for rank in range(self.size)]
        try:
            return within(self.timeout + _ANSWER, lambda: self._gather(keys, what, mine))
        except TimeoutError:
            why = f"the process group's store has not answered within {self.timeout:g} s ({what}): its host is down"
            raise CommTimeout(f"{OPERATION}: {why}, or out of reach") from None

    def _gather(self, keys: list[str], what: str, mine: Any) -> list[Any]:
        self.store.set(keys[self.rank], json.dumps(mine))
        end, pause, there = time.monotonic() + self.timeout, _SHORTEST, 0
        while there < self.size:
            if self.store.check([keys[there]]):
                there += 1
                continue
            if time.monotonic() > end:
                self._fail([rank for rank, key in enumerate(keys) if not self.store.check([key])], what)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST)
        return [json.loads(self.store.get(key)) for key in keys]

    def _fail(self, missing: list[int], what: str) -> None:
        names = ", ".join(map(str, missing[:8])) + ", ..." * (len(missing) > 8)
        error = CommTimeout(
            f"{OPERATION}: rank{'s' * (len(missing) > 1)} {names} of the process group did not reach cgx_hook within "
            f"{self.timeout:g} s ({what}): every rank must register the hook, with its own CGXState"
        )
        error.rank, error.operation = missing[0], OPERATION
        raise error


@dataclass
class GroupPlace:
    """Where the ranks are."""

    rank: int
    size: int
    nodes: list[int]  # of each rank, numbered in the order of ranks
    reason: str  # why they do not share memory; empty where they do
    comm: Comm | None  # of all ranks, where they share memory
    meeting: Meeting

    @property
    def node_count(self) -> int:
        return max(self.nodes) + 1


def host_name() -> str:
    """Equal on processes that can open each other's memory: the boot, the namespace of processes, the user."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')} {os.geteuid()}"


def _pretended_nodes(size: int) -> int:
    text = os.environ.get("CGXFFCV_COMM_NODES", "").strip()
    if not text:
        return 0
    if not text.isdecimal() or not 1 <= int(text) <= size:
        raise ValueError(f"CGXFFCV_COMM_NODES={text!r}: a number of nodes in 1..{size} is expected")
    return int(text)


def _numbered(names: list[str]) -> list[int]:
    known: dict[str, int] = {}
    return [known.setdefault(name, len(known)) for name in names]


def _open(pid: int, fd: int) -> tuple[int, str]:
    try:
        return os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC), ""
    except OSError as error:
        return -1, f"cannot open the memory of process {pid}: {error.strerror}"


def _share(meeting: Meeting) -> tuple[Comm | None, str]:
    """The communicator of ranks that are all on one host; None, and why, if one of them cannot open its memory."""
    maker = meeting.rank == 0
    fd = comm.segment(meeting.size) if maker else -1
    try:
        pid, theirs = meeting.gather("memory", [os.getpid(), fd])[0]
        why = ""
        if not maker:
            fd, why = _open(int(pid), int(theirs))
        for rank, reason in enumerate(meeting.gather("opened", why)):
            if reason:
                return None, f"rank {rank} {reason}"
        return comm.attach(fd, meeting.rank, meeting.size, meeting.timeout, 1), ""
    finally:
        if fd >= 0:
            os.close(fd)


def join(group: dist.ProcessGroup, timeout: float, settings: dict[str, Any], shares_memory: bool) -> GroupPlace:
    """Brings the group's ranks together. Collective. `settings` must be equal on all of them: CommError says where they
    differ."""
    meeting = Meeting(group, timeout)
    rank, size = meeting.rank, meeting.size
    pretended = _pretended_nodes(size)
    host = str(rank * pretended // size) if pretended else host_name()
    ranks = meeting.gather("settings", {"host": host, "settings": settings})
    for other, theirs in enumerate(ranks):
        compare(rank, settings, other, theirs["settings"])
    nodes = _numbered([each["host"] for each in ranks])
    joined, reason = None, "CGX_INNER_COMMUNICATOR_TYPE asks for the process group"
    if max(nodes) > 0:
        reason = f"the ranks are on {max(nodes) + 1} nodes"
    elif shares_memory:
        joined, reason = _share(meeting)
    return GroupPlace(rank, size, nodes, reason, joined, meeting)


def compare(rank: int, mine: dict[str, Any], other: int, theirs: dict[str, Any]) -> None:
    """CommError that names the first thing in which two ranks differ."""
    for name in sorted({*mine, *theirs}):
        if mine.get(name) != theirs.get(name):
            error = CommError(
                f"{OPERATION}: the ranks disagree on {name} of CGXState (or the environment): rank {rank} has "
                f"{mine.get(name)!r}, rank {other} has {theirs.get(name)!r}"
            )
            error.rank, error.operation = other, OPERATION
            raise error
