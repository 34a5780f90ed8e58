"""Which part of a data set a process takes: its rank among how many."""

from __future__ import annotations

from cgxffcv import process_info


def find_ranks() -> tuple[int, int]:
    """(rank, world size) of this process: from torch.distributed if it has been initialised, else from the environment
    that its launcher sets, by the rules of `comm.world()`. Raises RuntimeError if neither says."""
    here = process_info.find()
    if here is not None and here.size == 0:
        raise RuntimeError(
            f"distributed=True, and {here.launcher} says ({here.variables}) that this is process {here.rank}, but not "
            "of how many: pass rank= and world_size="
        )
    if here is None:
        raise RuntimeError(
            "distributed=True, but neither torch.distributed nor the environment of mpirun or another launcher says "
            "which rank this is: pass rank= and world_size="
        )
    return here.rank, here.size


def choose_ranks(distributed: bool, rank: int | None, world_size: int | None) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank ({rank}) and world_size ({world_size}) must be given together")
    if rank is not None:
        return rank, world_size
    return find_ranks() if distributed else (0, 1)
