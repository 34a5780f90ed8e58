"""An exported network in PyTorch gives the same logits as ours."""

import importlib.util

import _cgxffcv
import exported
import numpy as np
import pytest

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
    network = Network(tmp_path / "x.safetensors").eval()
    with torch.no_grad():
        logits = network(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    expected = made.logits(images, tta=False)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert network.classes == list(made.classes)
