"""What a benchmark's figures were made on, and where they are kept."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

from cgxffcv import __version__, doctor
from cgxffcv.report import plain


def describe() -> dict[str, Any]:
    """Processor, memory, GPUs, versions and the day, as plain values."""
    system, gpus = doctor.system(), doctor.gpus()
    packages = ("numpy", "onednn-cpu-gomp", "torch", "torchvision")
    return {
        **{name: system[name] for name in ("os", "kernel", "processor", "cores", "usable_cores", "memory_bytes")},
        "gpus": [device["name"] for device in gpus["devices"]], "driver": gpus["driver"],
        "cgxffcv": __version__, "python": platform.python_version(), "build": doctor.core().get("info"),
        "packages": {name: doctor.version_of(name) for name in packages if doctor.version_of(name)},
        "day": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def usable_gpus() -> int:
    """The GPUs that a process here may use: those that there are, or those that CUDA_VISIBLE_DEVICES leaves."""
    count = len(doctor.gpus()["devices"])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return count if visible is None else min(count, len([name for name in visible.split(",") if name.strip()]))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a file of JSON, whole or not at all."""
    target = Path(path)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(plain(value), allow_nan=False) + "\n")
        os.chmod(name, 0o644)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
