"""The CUDA backend without a GPU: the build with emulated kernels, and the CUDA tests with it."""

import fcntl
import os
import shutil
from pathlib import Path

import _cgxffcv
import pytest
from checkout import run_python

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
    return run_python(*command, limit=seconds, cwd=folder, **environment).stdout


def cuda_tests(*tests, **environment):
    """Runs these of tests/cuda with the emulated build."""
    path = os.pathsep.join([str(BUILD / "lib"), str(ROOT)])
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(ROOT / "tests" / "cuda" / test) for test in tests)]
    # From the build's folder: Python looks into the current one first.
    return run(*command, seconds=1800, folder=BUILD / "lib", PYTHONPATH=path, OPENBLAS_NUM_THREADS="1", **environment)


@pytest.fixture(scope="module")
def emulated():
    """The build, made once, by whichever worker comes first."""
    pytest.importorskip("setuptools")
    targets = ["--build-temp", str(BUILD / "temp"), "--build-lib", str(BUILD / "lib")]
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run("tests/cuda/emulator/build.py", "build_ext", *targets, seconds=900)


EVERY = {path.name for path in (ROOT / "tests" / "cuda").glob("test_*.py")}
ALONE = {"test_device.py", "test_emulator.py", "test_window.py"}  # they build what they need
TRAININGS = ["test_fed.py", "test_ranks.py", "test_trainer_gpu.py"]
NETWORKS = ["test_conv.py", "test_networks.py"]
# Tests in which something happens on two streams, or the host and a stream share memory: with streams that run as late
# as possible, which shows what does not wait for them, and with another order of threads.
STREAMS = [
    "test_resident.py",
    "test_loader_device.py",
    "test_cuda_optim.py",
    "test_networks.py::test_types_and_layouts_of_images",
    "test_networks.py::test_refused_batches",
    "test_networks.py::test_what_python_writes_counts_from_the_next_call_on",
]
# A selection of the trainings with streams that run at once, for their results: the runs above check accesses. The long
# tier runs all of them this way.
PROMPT = [
    "test_ranks.py::test_nccl_gives_the_same_bytes_in_any_pieces",
    "test_ranks.py::test_a_rank_that_dies_ends_the_others",
    "test_ranks.py::test_kernels_do_not_wait_for_a_lost_rank",
    "test_ranks.py::test_compressed_gradients",
    "test_fed.py::test_a_set_that_does_not_fit_is_fed",
    "test_trainer_gpu.py::test_it_trains_as_the_cpu_does",
    "test_trainer_gpu.py::test_graphs_change_nothing",
]
LATE = {"CGXFFCV_EMULATED_STREAMS": "late", "CGXFFCV_EMULATED_SEED": "2"}
PARTS = {
    "trainings": (TRAININGS, LATE),
    "streams": (STREAMS, LATE),
    "networks": (NETWORKS, {}),
    "rest": (sorted(EVERY - ALONE - {*TRAININGS, *NETWORKS}), {}),
    "prompt": (PROMPT, {"CGXFFCV_EMULATED_CHECK": "nothing"}),
    "all prompt": (TRAININGS, {}),
}


@pytest.mark.timeout(2000)
@pytest.mark.parametrize(
    "part", [pytest.param(name, marks=[pytest.mark.long] if name == "all prompt" else []) for name in PARTS]
)
def test_cuda_tests_with_the_emulator(emulated, part):
    tests, environment = PARTS[part]
    assert " passed" in cuda_tests(*tests, **environment)
