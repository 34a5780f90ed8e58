"""examples/imagenet_torch.py on the CPU, with a few small photographs: training, tests, a measurement, mistakes."""

import importlib.util
import re

import _cgxffcv
import numpy as np
import pytest
from checkout import ROOT, run_python

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs PyTorch: make test-torch"),
    pytest.mark.skipif(not _cgxffcv.build_info()["jpeg"], reason="this build has no libjpeg-turbo"),
]
SCRIPT = str(ROOT / "examples/imagenet_torch.py")
SMALL = ["--classes", "4", "--batch", "8", "--resolution", "32", "--test-resolution", "32", "--workers", "2"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Four photographs, each of a different colour."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number, colour in enumerate([(200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40)]):
        image = np.clip(rng.normal(colour, 20, (60 + number, 80, 3)), 0, 255).astype(np.uint8)
        (folder / f"{number}.jpeg").write_bytes(_cgxffcv.jpeg_encode(image))
    return str(folder)


def run(*words, cwd, status=0):
    variables = {"OMP_NUM_THREADS": 1, "CUDA_VISIBLE_DEVICES": ""}
    done = run_python(*words, status=status, limit=240, cwd=cwd, folders=[ROOT / "examples"], **variables)
    return done.stdout if status == 0 else done.stderr


def test_it_trains_and_tests(tmp_path, photos):
    words = [SCRIPT, "--photos", photos, "--samples", "48", "--epochs", "4", "--last-resolution", "64", *SMALL]
    out = run(*words, "--rate", "0.02", "--ema", "0.5", cwd=tmp_path)
    lines = re.findall(r"^epoch +(\d+): (\d+) px, loss ([\d.]+), [\d,]+ images/s, ([\d.]+)% of the tests", out, re.M)
    assert [(int(epoch), int(side)) for epoch, side, _, _ in lines] == [(1, 32), (2, 32), (3, 32), (4, 64)]
    assert float(lines[-1][2]) < float(lines[0][2])


def test_it_measures(tmp_path, photos):
    out = run(SCRIPT, "--photos", photos, "--samples", "20", "--steps", "3", *SMALL, cwd=tmp_path)
    assert "20 samples written" in out and "3 steps of 8 images of 32 px on cpu" in out
    alone, network, both = (
        float(re.search(rf"{name}: +([\d,]+) images/s", out)[1].replace(",", ""))
        for name in ("the loader alone", "the network, of one batch", "both together")
    )
    assert min(alone, network, both) > 0
    assert 0 <= float(re.search(r"waiting for data: +([\d.]+)% of the time", out)[1]) <= 100


def test_two_ranks_with_few_bits(tmp_path, photos):
    run("-c", f"import imagenet_torch as it; it.write_sets({str(tmp_path)!r}, {photos!r}, 32)", cwd=tmp_path)
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", SCRIPT, "--bits", "4"]
    files = ["--train", str(tmp_path / "train.beton"), "--val", str(tmp_path / "val.beton")]
    out = run(*start, *files, "--epochs", "1", *SMALL, cwd=tmp_path)
    assert re.search(r"^epoch  1: 32 px, loss [\d.]+, ", out, re.M)


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "give --train and --val, or --photos"),
        (["--train", "a.beton"], "give --train and --val, or --photos"),
        (["--train", "a.beton", "--val", "b.beton", "--photos", "c"], "give --train and --val, or --photos"),
        (["--photos", "nowhere"], "imagenet_torch.py: --photos nowhere: no .jpg or .jpeg in it"),
    ],
)
def test_mistakes(tmp_path, words, message):
    status = 1 if message.startswith("imagenet") else 2
    assert message in run(SCRIPT, *words, cwd=tmp_path, status=status)
