"""Which process of a job this is, according to its launcher: the only module that reads launchers' variables.

`comm.world()`, the loader's shares of the samples and the messages all use it, so that they cannot disagree. Nothing is
started here: MPI is not asked.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import NamedTuple

MOST_RANKS = 1024  # of one machine: as many can share a memory segment (csrc/comm/segment.c)


class ProcessInfo(NamedTuple):
    """Process `rank` of `size` (0 if unknown), and where it is on its machine (0 of 1 if unknown)."""

    launcher: str
    rank: int
    size: int
    local_rank: int
    local_size: int
    joins: bool  # whether MPI_Init finds the other processes
    variables: str  # what says so
    job: str = ""  # a name that no other job of this machine has, if one is known


class _Launcher(NamedTuple):
    name: str
    rank: str
    size: str
    local_rank: str = ""
    local_size: str = ""
    joins: bool = False
    alone: bool = True  # whether a rank above 0 may be set by itself, without a size, and mean nothing


_USUAL = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
# The first one found counts: a launcher comes before those that may have started it.
_LAUNCHERS = (
    _Launcher("mpirun", *(f"OMPI_COMM_WORLD_{name}" for name in _USUAL), True),
    _Launcher("MVAPICH's launcher", *(f"MV2_COMM_WORLD_{name}" for name in _USUAL)),
    _Launcher("MVAPICH's launcher", *(f"MVP_COMM_WORLD_{name}" for name in _USUAL)),
    _Launcher("the launcher of MPICH or Intel MPI", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", True),
    _Launcher("MPICH's launcher (-pmi-port)", "PMI_ID", "PMI_SIZE", "", "", True, False),
    _Launcher("jsrun", *(f"JSM_NAMESPACE_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))),
    _Launcher("PALS", "PALS_RANKID", "PALS_SIZE", "PALS_LOCAL_RANKID", "PALS_LOCAL_SIZE", False, False),
    _Launcher("aprun", "ALPS_APP_PE", "ALPS_APP_SIZE", alone=False),
    _Launcher("flux", "FLUX_TASK_RANK", "FLUX_JOB_SIZE", "FLUX_TASK_LOCAL_ID", alone=False),
    _Launcher("horovodrun", "HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE"),
    _Launcher("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    _Launcher("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", alone=False),
    _Launcher("Lightning", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_RANK"),  # what the processes that it starts itself see
)
_TORCHRUN = next(launcher for launcher in _LAUNCHERS if launcher.name == "torchrun")
_TORCHRUN_MARK = "TORCHELASTIC_RUN_ID"  # not set by others that set RANK and WORLD_SIZE

# Processes that start ranks, by the beginnings of their names: MPICH's and Intel MPI's, Slurm's, flux's.
_STARTERS = ("hydra_", "pmi_proxy", "mpiexec", "mpirun", "slurmstepd", "flux-shell")
_ANCESTORS = 16

_settled: ProcessInfo | None = None


def settle(here: ProcessInfo) -> None:
    """Makes this process `here`, whatever the environment says: a rank of `cgxffcv.launch`, before anything asks."""
    global _settled
    _settled = here


def _number(name: str) -> int | None:
    text = os.environ.get(name, "").strip()
    return int(text) if text.isdecimal() else None


def _by_launcher(launcher: _Launcher) -> ProcessInfo | None:
    rank, size = _number(launcher.rank), _number(launcher.size)
    if launcher.name == "srun" and size is None and rank:
        # Only the tasks of a step have a number above 0; salloc's shell and sbatch's script, which see the job's
        # SLURM_NTASKS too, are one process.
        launcher = launcher._replace(size="SLURM_NTASKS")
        size = _number(launcher.size)
    node = _number("NODE_RANK") if launcher.name == "Lightning" else 0
    if node and size and rank is not None:  # its rank on this machine is known, that in the job is not
        return ProcessInfo(launcher.name, node, 0, 0, 1, False, "NODE_RANK")
    if rank and not size and not launcher.alone:
        return ProcessInfo(launcher.name, rank, 0, 0, 1, launcher.joins, launcher.rank)
    if rank is None or not size:
        return None
    local = _number(launcher.local_rank) or 0, _number(launcher.local_size) or 1
    return ProcessInfo(launcher.name, rank, size, *local, launcher.joins, f"{launcher.rank} and {launcher.size}")


def _nearest() -> ProcessInfo | None:
    """What the first launcher says, preferring those that give a size. A torchrun that mpirun or srun started on each
    node starts its processes itself: it is nearer than they are."""
    known = [info for info in map(_by_launcher, _LAUNCHERS) if info is not None]
    found = min(known, key=lambda info: info.size == 0, default=None)
    inner = _by_launcher(_TORCHRUN) if _TORCHRUN_MARK in os.environ else None
    if found is None or inner is None or inner.size == 1:
        return found
    return found if (found.rank, found.size) == (inner.rank, inner.size) else inner


@functools.cache
def _starter(process: int) -> str:
    """The nearest ancestor of this process (`process`) that starts ranks: a name that no other job of this machine has;
    "" if none is found."""
    above = os.getppid()
    for _ in range(_ANCESTORS):
        try:
            head, _, tail = Path(f"/proc/{above}/stat").read_text(errors="replace").rpartition(")")
        except OSError:
            break
        name, fields = head.partition("(")[2], tail.split()
        if name.startswith(_STARTERS):
            return f"{name} {above} {fields[19]}"  # when it began
        above = int(fields[1])
    return ""


def _from_launcher() -> ProcessInfo | None:
    if _settled is not None:
        return _settled
    found = _nearest()
    pmix = _number("PMIX_RANK")
    if pmix is None:
        return found._replace(job=_starter(os.getpid())) if found is not None and found.joins else found
    if found is None:
        found = ProcessInfo("a launcher with PMIx", pmix, 0, 0, 1, True, "PMIX_RANK")
    if found.launcher == "srun" and found.rank == pmix:
        found = found._replace(joins=True)
    return found._replace(job=os.environ.get("PMIX_NAMESPACE", "")) if found.joins else found


def _of_torch() -> ProcessInfo | None:
    torch = sys.modules.get("torch")
    distributed = getattr(torch, "distributed", None)
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    rank, size = distributed.get_rank(), distributed.get_world_size()
    return ProcessInfo("torch.distributed", rank, size, 0, 1, False, "its process group")


def find() -> ProcessInfo | None:
    """What is known of this process, from torch.distributed if it is initialised, else from `cgxffcv.launch` or the
    environment; None if none of them says. A process group of one process says nothing about the job around it."""
    known, group = _from_launcher(), _of_torch()
    if group is None or (
        known is not None and (group.size == 1 or (group.rank, group.size) == (known.rank, known.size))
    ):
        return known
    return group


def or_alone() -> ProcessInfo:
    """The same, but process 0 of 1 instead of None."""
    return find() or ProcessInfo("", 0, 1, 0, 1, False, "")
