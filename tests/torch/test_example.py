"""The example under torchrun itself."""

import importlib.util
import re
import subprocess
import sys

import pytest
from checkout import ROOT, environ

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs PyTorch: make test-torch"),
]


def test_the_example_under_torchrun(tmp_path):
    words = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(ROOT / "examples/torch_ddp_hook.py"),
    ]
    done = subprocess.run(
        [sys.executable, *words, "--bits", "4"],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,
        check=False,
        env=environ(OMP_NUM_THREADS=1),
    )
    assert done.returncode == 0, done.stderr
    first, last = map(float, re.search(r"loss: first ([\d.]+), last ([\d.]+)", done.stdout).groups())
    assert first > 2 and last < 1
    sent, plain = (
        int(n.replace(",", "")) for n in re.search(r"sends ([\d,]+) bytes of ([\d,]+)", done.stdout).groups()
    )
    assert plain / 8 < sent < plain / 6  # of two ranks, with sra, each sends as many bytes as there are, in 4 bits
    assert "the replicas are equal" in done.stdout
