"""The example, and the script that docs/coming-from-torch_cgx.md converts, under torchrun itself and under mpirun."""

import importlib.util
import re
import socket
import sys

import pytest
from checkout import ROOT, run_command
from ranks import needs_mpirun

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs PyTorch: make test-torch"),
]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
LAUNCHERS = {
    "torchrun": [sys.executable, *TORCHRUN],
    "mpirun": ["mpirun", "-np", "2", "--oversubscribe", "--bind-to", "none", sys.executable],
}
launchers = pytest.mark.parametrize("launcher", ["torchrun", pytest.param("mpirun", marks=needs_mpirun)])


def start(tmp_path, launcher, *words):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": 1, "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": 1}
    variables = {"OMP_NUM_THREADS": 1, "MASTER_PORT": port, **as_root}
    return run_command(*LAUNCHERS[launcher], *words, limit=600, cwd=tmp_path, **variables).stdout


@launchers
def test_the_example(tmp_path, launcher):
    told = start(tmp_path, launcher, ROOT / "examples/torch_ddp_hook.py", "--bits", "4")
    first, last = map(float, re.search(r"loss: first ([\d.]+), last ([\d.]+)", told).groups())
    assert first > 2 and last < 1
    sent, plain = (int(n.replace(",", "")) for n in re.search(r"sends ([\d,]+) bytes of ([\d,]+)", told).groups())
    assert plain / 8 < sent < plain / 6  # of two ranks, with sra, each sends as many elements as there are, in 4 bits
    assert "the replicas are equal" in told


BEFORE = """
import torch
model, local_rank = torch.nn.Linear(64, 64), 0
"""
AFTER = """
for step in range(3):
    model.zero_grad()
    model(torch.ones(4, 64) * (1 + dist.get_rank())).square().sum().backward()
every = [torch.zeros(64, 64) for _ in range(2)]
dist.all_gather(every, model.module.weight.grad)
assert torch.equal(every[0], every[1])
if dist.get_rank() == 0:
    print(state.explain())
"""


@launchers
def test_the_script_of_the_documentation(tmp_path, launcher):
    """Exactly as printed there, on a CPU, except for the algorithm, which the script leaves to whichever is fastest on
    the machine."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/coming-from-torch_cgx.md").read_text(), re.DOTALL)
    converted = blocks[1].replace('"nccl"', '"gloo"').replace(", device_ids=[local_rank]", "")
    converted = converted.replace("compression_params=", 'algorithm="sra", compression_params=')
    assert converted.count("gloo") == 2 and "local_rank" not in converted and converted.count("sra") == 1
    (tmp_path / "script.py").write_text(BEFORE + converted + AFTER)
    assert "quantised: 1 layers, 4096 elements (4 bits, buckets of 1024" in start(tmp_path, launcher, "script.py")
