"""Which GPU this process trains on."""

from __future__ import annotations

import os
from typing import Any

from cgxffcv.errors import UserError

DRIVER = "/proc/driver/nvidia/version"


def devices() -> list[dict[str, Any]]:
    """The GPUs that this build and this machine's driver can use together; empty where there is none."""
    import _cgxffcv

    return _cgxffcv.devices()


def why_none() -> str:
    """Why `devices` is empty, with the remedy; "" if it is not."""
    import _cgxffcv

    return _cgxffcv.why_no_device()


def check(wish: str = "auto", first: int = 0) -> int:
    """The number of GPUs to train on; 0 for the CPU.

    `wish` is "auto" (GPUs if there are any), "cpu" or "gpu". Raises UserError if there is no GPU and one is asked for,
    or if there is no GPU `first`.
    """
    if wish not in ("auto", "cpu", "gpu"):
        raise ValueError(f"a device is auto, cpu or gpu, not {wish!r}")
    count = 0 if wish == "cpu" else len(devices())
    if count == 0 and wish == "gpu":
        raise UserError(why_none())
    if count and not 0 <= first < count:
        there = "is GPU 0 only" if count == 1 else f"are GPUs 0 to {count - 1}"
        raise UserError(f"there is no GPU {first} here: there {there} (see CUDA_VISIBLE_DEVICES)")
    return count


def choose(wish: str = "auto", first: int = 0, local_rank: int = 0) -> int | None:
    """Selects the GPU of the process that is number `local_rank` on its machine; returns its index, None for the CPU.

    Processes take the GPUs in turn, from `first` on, and share them if there are more processes than GPUs. Raises
    UserError as `check` does, and if this build cannot use that GPU. Must come before everything else that uses GPUs,
    and applies to the calling thread.
    """
    import _cgxffcv

    count = check(wish, first)
    if count == 0:
        return None
    index = (first + local_rank) % count
    try:
        _cgxffcv.select_device(index)
    except (ValueError, _cgxffcv.CudaError, _cgxffcv.NotBuiltError) as error:
        raise UserError(f"GPU {index} cannot be used: {str(error).removeprefix(f'GPU {index} ')}") from None
    return index


def unused() -> str:
    """Why a GPU that seems to be in this machine cannot be used, with the remedy; "" if none is there or it can."""
    return why_none() if os.path.exists(DRIVER) and not devices() else ""
