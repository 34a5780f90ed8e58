"""The machine that a benchmark's figures come from, and the file that they are saved in."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from typing import Any

from cgxffcv import __version__, files
from cgxffcv.app import doctor
from cgxffcv.app.report import plain
from cgxffcv.bench import processes

LIMIT_SECONDS = 120.0


def describe() -> dict[str, Any]:
    """Processor, memory, GPUs, versions and the day, as plain values."""
    system, gpus = doctor.system(), doctor.gpus()
    packages = ("numpy", "onednn-cpu-gomp", "torch", "torchvision")
    return {
        **{name: system[name] for name in ("os", "kernel", "processor", "cores", "usable_cores", "memory_bytes")},
        "gpus": [device["name"] for device in gpus["devices"]],
        "driver": gpus["driver"],
        "cgxffcv": __version__,
        "python": platform.python_version(),
        "build": doctor.core().get("info"),
        "packages": {name: doctor.version_of(name) for name in packages if doctor.version_of(name)},
        "day": time.strftime("%Y-%m-%d"),
    }


def usable_gpus() -> tuple[list[str], str]:
    """(the names of the GPUs that this build can use here, why there is none). Another process looks, so that this one
    takes none of their memory."""
    code = "import json; from cgxffcv import device as d; "
    code += "print(json.dumps([[x['name'] for x in d.devices()], d.why_none()]))"
    options = {"capture_output": True, "text": True, "timeout": LIMIT_SECONDS, "check": False}
    done = subprocess.run(processes.interpreter("-c", code), env=processes.environment(), **options)
    if done.returncode != 0:
        return [], (done.stderr.splitlines() or [f"exit code {done.returncode}"])[-1]
    names, reason = json.loads(done.stdout.splitlines()[-1])
    return names, reason


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a file of JSON, whole or not at all."""
    files.write(path, json.dumps(plain(value), allow_nan=False) + "\n")
