"""The CUDA backend without a GPU: the build with emulated kernels, and the CUDA tests with it."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
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


def run(*command, seconds, folder=ROOT, **environment):
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def cuda_tests(without, **environment):
    """Runs tests/cuda with the emulated build, but for the modules of these names."""
    path = os.pathsep.join([str(BUILD / "lib"), str(ROOT)])
    tests = ROOT / "tests" / "cuda"
    ignored = [f"--ignore={tests / f'test_{name}.py'}" for name in without]
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *ignored, str(tests)]
    # From the build's folder: Python looks into the current one first.
    return run(*command, seconds=1200, folder=BUILD / "lib", PYTHONPATH=path, OPENBLAS_NUM_THREADS="1", **environment)


@pytest.mark.timeout(2000)
def test_cuda_tests_with_the_emulator():
    """All of them; at the same time those with more than one operator, with late streams and another order."""
    pytest.importorskip("setuptools")
    targets = ["--build-temp", str(BUILD / "temp"), "--build-lib", str(BUILD / "lib")]
    run("setup.py", "build_ext", *targets, seconds=600, CGXFFCV_CUDA="emulate")
    alone = ["device", "emulator"]  # they build what they need
    operators = ["conv", "head", "norm", "stem"]
    with ThreadPoolExecutor() as pool:
        late = {"CGXFFCV_EMULATED_STREAMS": "late", "CGXFFCV_EMULATED_SEED": "2"}
        runs = [pool.submit(cuda_tests, alone), pool.submit(cuda_tests, alone + operators, **late)]
        assert all(" passed" in done.result() for done in runs)
