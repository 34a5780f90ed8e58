"""The CUDA tests run on a GPU, or with the emulated build (CGXFFCV_CUDA=emulate, see tests/cuda/emulator):

PYTHONPATH=build/emulated/lib:. python -m pytest tests/cuda
"""

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
# `python -m` puts the current folder, and a module built in place there, before PYTHONPATH.
asked_for = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
sys.path[:0] = [*asked_for, str(HERE), str(HERE.parent / "py")]

import _cgxffcv  # noqa: E402
import programs  # noqa: E402


def has_gpu():
    return any(device["name"] != "emulated device" for device in _cgxffcv.devices())


@pytest.fixture(scope="session", params=["emulated", "gpu"])
def built(request, tmp_path_factory):
    """built(program): the program, compiled for the emulator and for a GPU where there is one."""
    if request.param == "emulated":
        why, build = programs.why_not_emulated(), programs.build_emulated
    else:
        why, build = "" if has_gpu() else "no GPU", programs.build_for_gpu
        why = why or ("" if programs.find_nvcc() else "no nvcc")
    if why:
        pytest.skip(why)
    directory, made = tmp_path_factory.mktemp(request.param), {}

    def get(program):
        if program not in made:
            made[program] = build(program, directory)
        return made[program]

    get.emulated = request.param == "emulated"
    return get
