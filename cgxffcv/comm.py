"""Communicators: the ranks of a job, how they find each other, and how they fail together.

Under mpirun, `world()` gives the communicator of all ranks; within a host they communicate through shared memory,
between hosts through MPI. In a function that `cgxffcv.launch` runs it has that call's ranks. Elsewhere it has one rank,
so the same program runs alone::

    from cgxffcv import comm

    with comm.world() as world:
        names = world.allgather(socket.gethostname().encode())
        settings = world.broadcast(json.dumps(options).encode() if world.rank == 0 else None)

Every wait has a deadline and lets Ctrl-C through. A rank that dies is reported as `PeerLost` within about a second; one
that is stopped gives a warning after five, and a `CommTimeout` at the deadline; an exception on one rank reaches the
others as a `CommError` with its message. After any of these the communicator is broken and says so; if no rank has
died, the ranks can make a new one.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import _cgxffcv
from _cgxffcv import Comm, CommError, CommTimeout, PeerLost

from cgxffcv import launch_channel, process_info, rank_claim

__all__ = ["Comm", "CommError", "CommTimeout", "PeerLost", "abort_all", "apart", "attach", "segment", "world"]

_prepared = False


def world(
    timeout: float | None = None,
    nodes: int | None = None,
    *,
    slot_bytes: int | None = None,
    stall: float | None = None,
) -> Comm:
    """Makes the communicator of all ranks that mpirun (or srun with PMIx) or `cgxffcv.launch` started; of one rank
    without a launcher. Collective. A job of several processes that MPI cannot join (torchrun, srun without PMIx) is
    refused: alone, each would train by itself. The MPI library is opened here if mpirun started several ranks: the one
    next to their launcher, or the one that CGXFFCV_MPI_LIBRARY names.

    MPI is initialised unless it already is (by mpi4py, say), and finalised at exit by whoever initialised it. From the
    first call on, an exception that ends this process, Ctrl-C included, aborts its communicators, so that the other
    ranks end with its message.

    timeout: seconds that any operation may take unless the call names its own; default CGXFFCV_COMM_TIMEOUT, else 300.
    nodes: pretend that the ranks are on this many nodes, rank r on node r * nodes // size, with MPI between them;
    default CGXFFCV_COMM_NODES, else the real ones. slot_bytes: the largest slice sent at once (a multiple of 64 in 4096
    .. 4194304), default 256 KiB; each rank owns about 7 MiB of slots, of which only those in use take memory. stall:
    seconds without a sign of life from a rank before a warning about it, default 5.

    Raises NotBuiltError if mpirun started several ranks and no library of MPI is found; CommError, CommTimeout if the
    ranks cannot be connected; ValueError for arguments out of range.
    """
    here = process_info.or_alone()
    if here.launcher == launch_channel.LAUNCHER:
        return _launched(here, slot_bytes, timeout=timeout, nodes=nodes, stall=stall)
    if here.size != 1 and not here.joins:
        process = f"process {here.rank} of {here.size}" if here.size else f"process {here.rank} of several"
        raise CommError(
            f"world: {here.launcher} says ({here.variables}) that this is {process}, and its jobs cannot be joined: "
            f"start this one with `cgxffcv launch -np {here.size or 'N'} SCRIPT`, or with Open MPI's mpirun; to "
            f"run it alone, start it without {here.variables}"
        )
    if here.size != 1:
        rank_claim.take(here)
    _prepare()
    try:
        joined = _cgxffcv.comm_world(timeout, nodes, slot_bytes=slot_bytes, stall=stall, ranks=here.size)
    except CommTimeout as error:
        rank, why = rank_claim.absent(here)
        timeout_error = CommTimeout(f"{error}: {why}")
        timeout_error.rank, timeout_error.operation = rank, error.operation
        raise timeout_error from None
    rank, size = joined.rank, joined.size
    if here.size == 0 and rank != here.rank:
        joined.close()
        raise CommError(
            f"world: {here.launcher} says ({here.variables}) that this is rank {here.rank}, but MPI says rank {rank} "
            f"of {size}: the launcher and the MPI library that this build uses are not of the same installation; to "
            f"run it alone, start it without {here.variables}"
        )
    return joined


def _launched(here: process_info.ProcessInfo, slot_bytes: int | None, timeout: float | None, **options: Any) -> Comm:
    fd = launch_channel.segment(slot_bytes, timeout)
    try:
        return attach(fd, here.rank, here.size, timeout, **options)
    finally:
        os.close(fd)


def segment(size: int, slot_bytes: int | None = None) -> int:
    """The descriptor of a new memory segment for `size` ranks on this host, for processes that are started without
    mpirun: they inherit it (or receive it over a socket) and call `attach`. The caller closes it. Raises OSError."""
    return _cgxffcv.comm_segment(size, slot_bytes)


def attach(
    fd: int,
    rank: int,
    size: int,
    timeout: float | None = None,
    nodes: int | None = None,
    *,
    stall: float | None = None,
) -> Comm:
    """Joins a `segment` as `rank` of `size` and waits for the others; needs no MPI. With `nodes` the ranks behave as if
    they were on several nodes, while all bytes go through the segment. The other arguments are those of `world`."""
    _prepare()
    return _cgxffcv.comm_attach(fd, rank, size, timeout, nodes, stall=stall)


def apart(rank: int, nodes: Sequence[int]) -> Comm:
    """A communicator without a connection to its other ranks: rank r is on the node with the number nodes[r]. Plans
    made with it run in stages, between which the caller sends the messages (`AllreducePlan.stage_encode`)."""
    _prepare()
    return _cgxffcv.comm_apart(rank, nodes)


def abort_all(message: str) -> None:
    """Aborts every open communicator of this process: all their ranks fail at once with `message`."""
    _cgxffcv.comm_abort_all(message)


def _prepare() -> None:
    """Prepares for the end of the process, once."""
    global _prepared
    if not _prepared:
        _prepared = True
        atexit.register(_cgxffcv.comm_finalize)
        _abort_on_exception()


def _abort_on_exception() -> None:
    """Puts an excepthook in front of the present one: it notifies the other ranks, then lets that one print."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        text = str(error)
        abort_all(f"{kind.__name__}: {text}" if text else kind.__name__)
        before(kind, error, traceback)

    sys.excepthook = hook
