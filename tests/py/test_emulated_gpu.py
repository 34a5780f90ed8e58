"""The CUDA backend without a GPU: the build with emulated kernels, and the CUDA tests with it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import _cgxffcv
import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "emulated"
HEADER = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include" / "cuda_runtime.h"

pytestmark = [
    pytest.mark.medium,
    pytest.mark.skipif(bool(_cgxffcv.devices()), reason="there is a GPU: tests/cuda run on it"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++"),
    pytest.mark.skipif(not HEADER.is_file(), reason=f"no {HEADER} of the CUDA toolkit (CUDA_HOME)"),
]


def run(*command, seconds, **environment):
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.timeout(2000)
def test_cuda_tests_with_the_emulator():
    pytest.importorskip("setuptools")
    targets = ["--build-temp", str(BUILD / "temp"), "--build-lib", str(BUILD / "lib")]
    run("setup.py", "build_ext", *targets, seconds=600, CGXFFCV_CUDA="emulate")
    path = os.pathsep.join([str(BUILD / "lib"), str(ROOT)])
    own = [f"--ignore=tests/cuda/test_{name}.py" for name in ("device", "emulator")]  # build what they need themselves
    for environment in ({}, {"CGXFFCV_EMULATED_STREAMS": "late", "CGXFFCV_EMULATED_SEED": "2"}):
        command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *own, "tests/cuda"]
        out = run(*command, seconds=600, PYTHONPATH=path, **environment)
        assert " passed" in out
