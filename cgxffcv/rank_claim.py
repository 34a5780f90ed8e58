"""One process for each rank: the first that joins the job as a rank claims it, under a name that vanishes with the
process.

A rank's child inherits its launcher's variables and looks like the rank itself; MPI would wait for ever if it joined a
second time. The name is a socket in Linux's abstract namespace: no file is left, whatever ends the process.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
from pathlib import Path

from _cgxffcv import CommError

from cgxffcv import process_info
from cgxffcv.process_info import MOST_RANKS, ProcessInfo

_held: tuple[int, socket.socket | None] | None = None  # the process that claimed, and its claim, if there are any


def _address(here: ProcessInfo, rank: int) -> str:
    job = hashlib.sha256(f"{os.getuid()} {here.job}".encode()).hexdigest()[:32]
    return f"\0cgxffcv-{job}-{rank}"


def _taken(here: ProcessInfo, owner: int) -> CommError:
    return CommError(
        f"world: process {owner} has already joined the job as rank {here.rank}, and this one (process {os.getpid()}), "
        "which inherited that rank's environment, cannot be the same rank: a program that a rank starts is not a rank "
        "itself. To run it alone, start it without the variables OMPI_*, PMIX_* and PMI_*"
    )


def take(here: ProcessInfo) -> None:
    """Claims this process's rank; CommError if another process has done so."""
    global _held
    if _held is not None and _held[0] == os.getpid():
        return
    owner = _held[0] if _held is not None else 0
    if not here.job:
        if owner:  # a fork of it, whose MPI is the same
            raise _taken(here, owner)
        _held = os.getpid(), None
        return
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        claim.bind(_address(here, here.rank))
        claim.listen(128)
    except OSError as error:
        claim.close()
        owner = owner or _owner(here, here.rank)
        if not owner:
            return  # no such sockets here: MPI's own timeout remains
        raise _taken(here, owner) from error
    _held = os.getpid(), claim


def _owner(here: ProcessInfo, rank: int) -> int:
    """The process that has claimed a rank on this machine; 0 if there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(_address(here, rank))
        except OSError:
            return 0
        pid, user, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return pid if user == os.getuid() else 0  # sockets of other users do not count


def is_first_left() -> bool:
    """True if this process has the lowest rank of those on this machine that are still running."""
    here = process_info.or_alone()
    return bool(here.job) and not any(_owner(here, rank) for rank in range(min(here.rank, MOST_RANKS)))


def is_stopped(pid: int) -> bool:
    """True if a signal has stopped the process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    except (OSError, IndexError):
        return False


def absent(here: ProcessInfo) -> tuple[int | None, str]:
    """The rank that the others are waiting for, as far as can be seen on this machine, and a sentence that says so."""
    if not here.job or here.size > MOST_RANKS or here.local_size != here.size:
        return None, "a rank of this job has not called comm.world(), or is stopped"
    owners = {rank: _owner(here, rank) for rank in range(here.size)}
    missing = [rank for rank, pid in owners.items() if not pid]
    if missing:
        names = ", ".join(map(str, missing[:8])) + ", ..." * (len(missing) > 8)
        also = ", or have given up already" if len(missing) > 1 else ""  # at the same deadline as this one
        return missing[0], f"rank{'s' * (len(missing) > 1)} {names} of {here.size} did not call comm.world(){also}"
    for rank, pid in owners.items():
        if is_stopped(pid):
            return rank, f"rank {rank} (process {pid}) is stopped"
    return None, f"all {here.size} ranks have called comm.world(), but MPI did not connect them"
