"""Networks for other programs: the safetensors file, tensor by tensor; ONNX with onnxruntime. PyTorch: tests/torch."""

import sys
from pathlib import Path

import _cgxffcv
import exported
import numpy as np
import pytest
from checkout import ROOT
from safetensors import numpy as safetensors_numpy

from cgxffcv import checkpoint, nn
from cgxffcv.app import cli
from cgxffcv.checkpoint import CheckpointError
from cgxffcv.errors import UserError
from cgxffcv.nn import export

pytestmark = pytest.mark.skipif(not _cgxffcv.build_info()["onednn"], reason="networks need oneDNN (see cgxffcv doctor)")


def sizes(kernel, stride, padding, bias):
    return {"kernel_size": kernel, "stride": stride, "padding": padding, "bias": bias}


def test_tensors_have_the_names_and_layouts_of_torch(tmp_path):
    made = exported.classifier("airbench96")
    export.to_torch(made, tmp_path / "x.safetensors")
    tensors = safetensors_numpy.load_file(tmp_path / "x.safetensors")
    network = made.network
    for layer in network.layers:
        values = network.parameter(layer.name)
        other = tensors[layer.name.replace(".scale", ".weight")]
        np.testing.assert_array_equal(other, values.transpose(0, 3, 1, 2) if values.ndim == 4 else values)
    np.testing.assert_array_equal(tensors["b2.norm3.weight"], np.ones(16))  # a scale that is not trained
    np.testing.assert_array_equal(tensors["b1.norm1.running_var"], network.running_variance("b1.norm1"))
    assert tensors["b1.norm1.num_batches_tracked"].shape == () and tensors["mean"].ravel().tolist() == [100, 90, 80]
    about = checkpoint.load(tmp_path / "x.safetensors")
    assert about["side"] == 48 and about["classes"] == ["0", "1", "2"]
    assert about["modules"][:4] == [
        ["whiten", "Conv2d", {"in_channels": 3, "out_channels": 24} | sizes(2, 1, 0, bias=True)],
        ["whiten_activation", "GELU", {}],
        ["b1", "Module", {}],
        ["b1.conv1", "Conv2d", {"in_channels": 24, "out_channels": 8} | sizes(3, 1, 1, bias=False)],
    ]
    assert about["steps"][:2] == [["whiten", ["images"], ["images"]], ["whiten_activation", ["whiten"], ["whiten"]]]
    assert ["b1.norm3_sum", ["b1.norm3", "b1.norm1_activation"], ["b1.norm3", "b1.norm1_activation"]] in about["steps"]
    assert about["steps"][-1] == ["head", ["head_flatten"], ["head_flatten"]] and about["scale"] == 1 / 24


@pytest.mark.parametrize("name", exported.CASES)
def test_outputs_are_kept_as_long_as_they_are_needed(tmp_path, name):
    export.to_torch(exported.classifier(name), tmp_path / "x.safetensors")
    kept, most = {"images"}, 0
    for module, reads, done in checkpoint.load(tmp_path / "x.safetensors")["steps"]:
        assert kept >= set(reads) >= set(done)
        kept = (kept | {module}) - set(done)
        most = max(most, len(kept))
    assert kept == {"head"} and most <= 3


def test_the_module_to_copy_is_short():
    assert len((ROOT / "cgxffcv/interop/torch_network.py").read_text().splitlines()) <= 30


@pytest.mark.parametrize("name", exported.CASES)
def test_onnx_gives_the_same_logits(tmp_path, name):
    pytest.importorskip("onnx", reason="the package onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="the package onnxruntime is not installed")
    made, images = exported.classifier(name), exported.images(name)
    export.to_onnx(made, tmp_path / "x.onnx")
    session = runtime.InferenceSession(tmp_path / "x.onnx", providers=["CPUExecutionProvider"])
    expected = made.logits(images, tta=False)
    (logits,) = session.run(None, {"images": images})
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert session.get_modelmeta().custom_metadata_map["classes"].split("\n") == list(made.classes)


def test_without_onnx_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match="pip install onnx"):
        export.to_onnx(exported.classifier("silu"), tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_the_checkpoint_is_not_replaced(tmp_path, monkeypatch, kind):
    kept, link = tmp_path / "best.safetensors", tmp_path / "link"
    kept.write_bytes(b"a checkpoint")
    link.symlink_to(kept)
    monkeypatch.setattr(nn, "load", lambda *_, **__: exported.classifier("silu"))
    for source, out in ((kept, kept), (tmp_path, kept), (kept, link)):
        with pytest.raises(UserError, match="OUT is CHECKPOINT itself"):
            cli.run(["export", str(source), "--to", kind, str(out)])
    assert kept.read_bytes() == b"a checkpoint"


def test_the_command_says_where_the_module_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(nn, "load", lambda *_, **__: exported.classifier("silu"))
    (tmp_path / "best.safetensors").touch()
    assert cli.run(["export", str(tmp_path), "--to", "torch", str(tmp_path / "x")]) == 0
    path = capsys.readouterr().out.splitlines()[1].split(" loads it")[0]
    assert "class Network(nn.Module)" in Path(path).read_text()


def test_the_command(tmp_path, capsys):
    (tmp_path / "best.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="best.safetensors"):
        cli.run(["export", str(tmp_path), "--to", "torch", str(tmp_path / "x")])
    with pytest.raises(UserError, match="--to"):
        cli.run(["export", str(tmp_path), str(tmp_path / "x")])
