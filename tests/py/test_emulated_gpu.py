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


def cuda_tests(*tests, **environment):
    """Runs these of tests/cuda with the emulated build."""
    path = os.pathsep.join([str(BUILD / "lib"), str(ROOT)])
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(ROOT / "tests" / "cuda" / test) for test in tests)]
    # From the build's folder: Python looks into the current one first.
    return run(*command, seconds=1200, folder=BUILD / "lib", PYTHONPATH=path, OPENBLAS_NUM_THREADS="1", **environment)


ALONE = ["device", "emulator"]  # they build what they need
# Where something happens on two streams, or the host and a stream share memory.
STREAMS = ["test_trainer_gpu.py", "test_fed.py", "test_ranks.py", "test_resident.py", "test_cuda_optim.py",
           "test_networks.py::test_types_and_layouts_of_images", "test_networks.py::test_refused_batches",
           "test_networks.py::test_what_python_writes_counts_from_the_next_call_on"]  # fmt: skip


@pytest.mark.timeout(2000)
def test_cuda_tests_with_the_emulator():
    """All of them, and those of streams once more, with late streams and another order of threads."""
    pytest.importorskip("setuptools")
    targets = ["--build-temp", str(BUILD / "temp"), "--build-lib", str(BUILD / "lib")]
    run("setup.py", "build_ext", *targets, seconds=600, CGXFFCV_CUDA="emulate")
    every = {path.name for path in (ROOT / "tests" / "cuda").glob("test_*.py")}
    trainings, networks = {"test_trainer_gpu.py", "test_fed.py", "test_ranks.py"}, {"test_networks.py"}
    rest = every - trainings - networks - {f"test_{name}.py" for name in ALONE}
    with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 4)) as pool:
        late = {"CGXFFCV_EMULATED_STREAMS": "late", "CGXFFCV_EMULATED_SEED": "2"}
        runs = [pool.submit(cuda_tests, *STREAMS, **late)]
        runs += [pool.submit(cuda_tests, *sorted(tests)) for tests in (trainings, rest, networks)]
        assert all(" passed" in done.result() for done in runs)
