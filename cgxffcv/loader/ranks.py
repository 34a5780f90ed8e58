"""Which part of a data set a process takes: its rank among how many."""

from __future__ import annotations

import os
import sys


def find_ranks() -> tuple[int, int]:
    """(rank, world size) of this process: from torch.distributed if it has been initialised, else from the
    environment that mpirun, srun or torchrun sets. Raises RuntimeError if nothing says."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    for rank, size in (
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
        ("PMI_RANK", "PMI_SIZE"),
        ("RANK", "WORLD_SIZE"),
        ("SLURM_PROCID", "SLURM_NTASKS"),
    ):
        if rank in os.environ and size in os.environ:
            return int(os.environ[rank]), int(os.environ[size])
    raise RuntimeError(
        "distributed=True, but neither torch.distributed nor mpirun's environment says which rank this is: pass rank= "
        "and world_size="
    )


def choose_ranks(distributed: bool, rank: int | None, world_size: int | None) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank ({rank}) and world_size ({world_size}) must be given together")
    if rank is not None:
        return rank, world_size
    return find_ranks() if distributed else (0, 1)
