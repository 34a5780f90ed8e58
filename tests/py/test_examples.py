"""Every example runs, and prints what it should."""

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tiny_beton
from _cgxffcv import build_info
from checkout import ROOT, run_python

EXAMPLES = ROOT / "examples"


def needs(name):
    """Modules are not imported here: their threads would disturb other tests' forks."""
    return pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed")


def run(*words, cwd):
    return run_python(*words, limit=240, cwd=cwd, MPLBACKEND="agg").stdout


def test_beton_dataset(tmp_path):
    out = run(str(EXAMPLES / "beton_dataset.py"), str(tmp_path), cwd=tmp_path)
    assert "sample 123: (32, 32, 3) 3" in out and "{'index': 123}" in out
    assert out.count("the last: (100, 3, 32, 32) float32") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["discs.beton"]


def test_compressed_allreduce_alone_says_what_is_missing(tmp_path):
    assert "one rank has nobody to send to: start this with mpirun -np 2" in run(
        str(EXAMPLES / "compressed_allreduce.py"), cwd=tmp_path
    )


def test_compressed_allreduce(tmp_path):
    if shutil.which("mpirun") is None or not build_info()["mpi"]:
        pytest.skip("mpirun or a build with MPI is not there")
    words = ["-m", "cgxffcv", "launch", "-np", "2", str(EXAMPLES / "compressed_allreduce.py")]
    out = run(*words, cwd=tmp_path)
    assert "2 ranks" in out and "nobody to send to" not in out
    errors = {int(bits): float(e) for bits, e in re.findall(r"^ *(\d+) bits: .*error ([\d.]+)$", out, re.M)}
    # Gaussian data: 0.0074, 0.125, 0.63, and about sqrt(1.5) times that if the sum is quantised again
    assert errors[32] == 0 and 0 < errors[8] < 0.01 < errors[4] < 0.16 < errors[2] < 0.9
    # error feedback makes the mean of many steps exact except for the last step's loss: a twentieth of 4 bits' error
    assert float(re.search(r"feedback: relative error ([\d.]+)", out)[1]) < errors[4] / 10


def test_allreduce_arrays(tmp_path):
    if shutil.which("mpirun") is None or not build_info()["mpi"]:
        pytest.skip("mpirun or a build with MPI is not there")
    out = run("-m", "cgxffcv", "launch", "-np", "2", str(EXAMPLES / "allreduce_arrays.py"), cwd=tmp_path)
    assert "2 ranks have seen 1000 samples" in out
    exact, narrow, fed = (float(x) for x in re.findall(r"(?:off by|error) ([\d.e-]+)$", out, re.M))
    assert exact < 1e-6 < narrow < 0.16 and fed < 0.1  # 2 bits alone: 0.9


@needs("jax")
def test_jax_training(tmp_path):
    if shutil.which("mpirun") is None or not build_info()["mpi"]:
        pytest.skip("mpirun or a build with MPI is not there")
    out = run("-m", "cgxffcv", "launch", "-np", "2", str(EXAMPLES / "jax_training.py"), str(tmp_path), cwd=tmp_path)
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", out)]
    assert len(losses) == 5 and losses[-1] < losses[0]
    right = int(re.search(r"2 ranks: (\d+) of 1000 test images", out)[1])
    assert right > 300  # of 1,000 in ten classes
    narrow, plain = (
        int(count.replace(",", "")) for count in re.search(r"sends ([\d,]+) bytes instead of ([\d,]+)", out).groups()
    )
    assert narrow < plain / 6


def test_cupy_statistics(tmp_path):
    cupy = pytest.importorskip("cupy", reason="cupy is not installed")
    if not cupy.is_available():
        pytest.skip("there is no GPU")
    pixels = np.random.default_rng(0).integers(0, 256, (1000, 8, 8, 3), dtype=np.uint8)
    path = tiny_beton.write(tmp_path / "a.beton", {"image": ("image", list(pixels)), "label": ("int", [0] * 1000)})
    told = re.findall(r"[\d.]+", run(str(EXAMPLES / "cupy_statistics.py"), str(path), cwd=tmp_path))
    expected = [*pixels.mean((0, 1, 2)), *pixels.std((0, 1, 2))]
    assert [float(value) for value in told] == pytest.approx(expected, abs=0.006)


@needs("sklearn")
def test_digits(tmp_path):
    if not build_info()["onednn"]:
        pytest.skip("this build has no oneDNN")
    out = run(str(EXAMPLES / "digits.py"), str(tmp_path), cwd=tmp_path)
    ours, theirs = (float(x) / 100 for x in re.findall(r"([\d.]+)%", out))
    assert theirs > 0.98 and ours > 0.98 and "classes of the checkpoint: 0 1 2" in out


ELSEWHERE = {
    "vanilla_pytorch.py": "py/test_bench_table.py",
    "torch_ddp_hook.py": "torch/test_example.py",
    "imagenet_torch.py": "torch/test_imagenet.py",
}


def test_all_examples_are_tested():
    tested = Path(__file__).read_text()
    assert all(name in (ROOT / "tests" / test).read_text() for name, test in ELSEWHERE.items())
    for path in EXAMPLES.iterdir():
        known = path.name in tested or path.name in ("README.md", "__pycache__")
        assert known or path.name in (ROOT / "tests/py/test_notebooks.py").read_text(), path.name
