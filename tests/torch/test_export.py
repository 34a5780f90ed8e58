"""An exported network in PyTorch gives the same logits as ours."""

import importlib.util
import json
import shutil

import _cgxffcv
import exported
import numpy as np
import pytest
from checkout import ROOT, run_python

from cgxffcv.nn import export

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("torch", "safetensors")),
        reason="needs PyTorch and safetensors: make test-torch",
    ),
    pytest.mark.skipif(not _cgxffcv.build_info()["onednn"], reason="networks need oneDNN (see cgxffcv doctor)"),
]


@pytest.mark.parametrize("name", exported.CASES)
def test_same_logits(tmp_path, name):
    import torch

    from cgxffcv.interop.torch_network import Network

    made, images = exported.classifier(name), exported.images(name)
    export.to_torch(made, tmp_path / "x.safetensors")
    network = Network(tmp_path / "x.safetensors")
    with torch.no_grad():
        logits = network(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    expected = made.logits(images, tta=False)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert network.about["classes"] == list(made.classes) and network.about["side"] == images.shape[1]


def test_the_module_needs_nothing_of_ours(tmp_path):
    """Copied next to the file, on a machine without cgxffcv, it gives the same logits; as float64, too."""
    made, images = exported.classifier("resnet18"), exported.images("resnet18")
    export.to_torch(made, tmp_path / "x.safetensors")
    np.save(tmp_path / "images.npy", images.transpose(0, 3, 1, 2))
    shutil.copy(ROOT / "cgxffcv/interop/torch_network.py", tmp_path / "network.py")
    (tmp_path / "use.py").write_text(
        "import sys; sys.modules['cgxffcv'] = sys.modules['_cgxffcv'] = None\n"
        "import numpy, torch, network\n"
        "made = network.Network('x.safetensors').double()\n"
        "with torch.no_grad(): numpy.save('logits.npy', made(torch.from_numpy(numpy.load('images.npy'))).numpy())\n"
    )
    run_python("use.py", cwd=tmp_path)
    logits, expected = np.load(tmp_path / "logits.npy"), made.logits(images, tta=False)
    assert logits.dtype == np.float64
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    "kind, settings", [("__init__", {"name": "x"}), ("__class__", {"name": "x"}), ("factory_kwargs", {"kwargs": {}})]
)
def test_a_file_makes_nothing_but_modules(tmp_path, kind, settings):
    """A file may be anyone's: it cannot call what every Python module has, such as torch.nn's own __init__."""
    import torch
    from safetensors.torch import save_file

    from cgxffcv.interop.torch_network import Network

    about = {"modules": [["head", kind, settings]], "steps": [["head", ["images"], ["images"]]], "scale": 1}
    metadata = {name: json.dumps(value) for name, value in about.items()}
    save_file({"mean": torch.zeros(1), "std": torch.ones(1)}, tmp_path / "x.safetensors", metadata)
    before = dict(vars(torch.nn))
    with pytest.raises((KeyError, TypeError)):
        Network(tmp_path / "x.safetensors")
    assert vars(torch.nn) == before


@pytest.mark.parametrize("name", exported.CASES)
def test_fine_tuning(tmp_path, name):
    """Every parameter gets a gradient, and a step makes the loss smaller; a copy of the network gives the same."""
    import copy

    import torch

    from cgxffcv.interop.torch_network import Network

    export.to_torch(exported.classifier(name), tmp_path / "x.safetensors")
    network = Network(tmp_path / "x.safetensors")
    # contiguous: PyTorch 2.15's own backward pass corrupts memory in channels_last, with networks as narrow as these
    images = torch.from_numpy(exported.images(name)).permute(0, 3, 1, 2).contiguous()
    assert torch.equal(copy.deepcopy(network)(images), network(images))
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        loss = torch.nn.functional.cross_entropy(network(images), torch.zeros(len(images), dtype=torch.long))
        loss.backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
