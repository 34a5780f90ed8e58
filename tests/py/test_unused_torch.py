"""A program uses torch if it has imported it, or asks for its tensors; that it is installed changes nothing."""

import copy
import sys
import types

import numpy as np
import pytest
import tiny_beton
from checkout import run_python

from cgxffcv.interop import torch as interop
from cgxffcv.loader import Loader
from cgxffcv.reader import Reader
from cgxffcv.transforms import ToDevice, ToTensor

EVERYTHING = """
import copy, pickle, sys
import numpy as np
from cgxffcv import comm
from cgxffcv import transforms as tf
from cgxffcv.decoders import IntDecoder, NDArrayDecoder, SimpleRGBImageDecoder
from cgxffcv.errors import UserError
from cgxffcv.fields import IntField, NDArrayField, RGBImageField, TorchTensorField
from cgxffcv.loader import Loader
from cgxffcv.pipeline.operation import Operation
from cgxffcv.reader import Reader
from cgxffcv.writer import DatasetWriter

class Same(Operation):
    def declare_state_and_memory(self, previous_state):
        assert previous_state.device == "cpu"
        return previous_state, None

    def generate_code(self):
        return lambda batch, memory: batch

fields = {"image": RGBImageField(), "label": IntField(), "tensor": TorchTensorField("torch.float32", (2,))}
samples = [(np.full((6, 8, 3), i, np.uint8), i % 3, np.full(2, i, np.float32)) for i in range(12)]
DatasetWriter(sys.argv[1], fields, num_workers=1, progress=False).from_indexed_dataset(samples)
steps = [Same(), tf.ToTorchImage(), tf.NormalizeImage(100, 50, np.float32), tf.Convert(np.float16), tf.View(np.int16)]
pipelines = {
    "image": [SimpleRGBImageDecoder(), tf.ImageMixup(0.5, True), tf.ToDevice("cpu"), tf.ModuleWrapper(np.copy), *steps],
    "label": [IntDecoder(), tf.LabelMixup(0.5, True), tf.MixupToOneHot(3), tf.Squeeze()],
}
with Loader(sys.argv[1], 4, pipelines=pipelines, ids=True) as loader:
    for batch in (*loader, *pickle.loads(pickle.dumps(loader)), loader.get_batch([3]), *copy.copy(loader)):
        assert [type(entry) for entry in batch] == [np.ndarray] * 4
    assert len(loader.filter("tensor", lambda row: row[0] > 5).indices) == 6
with Loader(sys.argv[1], 4) as loader:  # with default pipelines
    assert {type(entry) for batch in loader for entry in batch} == {np.ndarray}
with Reader(sys.argv[1]) as reader:
    assert type(reader[1]["tensor"]) is np.ndarray
with comm.world() as world:
    assert type(world.allreduce(np.ones(5, np.float32))) is np.ndarray
try:
    Loader(sys.argv[1], 4, pipelines={"image": [SimpleRGBImageDecoder(), tf.ToDevice("cuda:0")]}).close()
except UserError as error:
    assert "GPU" in str(error) or "CUDA" in str(error)  # which there is not
for wrong in "mps", "cuda:one":
    try:
        Loader(sys.argv[1], 4, pipelines={"image": [SimpleRGBImageDecoder(), tf.ToDevice(wrong)]})
    except ValueError as error:
        assert "without torch a device is 'cpu', 'cuda' or 'cuda:' and a number" in str(error)
assert "torch" not in sys.modules
"""


def test_nothing_imports_it(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise AssertionError('torch was imported')")
    run_python("-c", EVERYTHING, tmp_path / "a.beton", folders=[tmp_path])


class Tensor(np.ndarray):
    pass


def stand_in():
    torch = types.ModuleType("torch")
    torch.Tensor, torch.from_numpy = Tensor, lambda array: array.view(Tensor)
    torch.no_grad, torch.device = interop.contextlib.nullcontext, str
    return torch


@pytest.fixture(autouse=True)
def nothing_kept():
    interop.find_torch.cache_clear()
    yield
    interop.find_torch.cache_clear()


@pytest.fixture
def path(tmp_path):
    arrays = list(np.arange(24, dtype=np.float32).reshape(12, 2))
    fields = {"label": ("int", list(range(12))), "array": ("array", arrays), "tensor": ("tensor", arrays)}
    return tiny_beton.write(tmp_path / "a.beton", fields)


def kinds(loader):
    return {name: type(entry) for name, entry in zip(("label", "array", "tensor"), loader.get_batch([0]), strict=True)}


def all_of(kind):
    return dict.fromkeys(("label", "array", "tensor"), kind)


def test_a_loader_keeps_to_what_it_began_with(path, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with Loader(path, 4) as loader, Reader(path) as reader:
        assert type(reader[0]["tensor"]) is np.ndarray
        monkeypatch.setitem(sys.modules, "torch", stand_in())
        assert type(reader[0]["tensor"]) is Tensor
        loader.batch_size = 3
        assert kinds(loader) == kinds(copy.copy(loader)) == all_of(np.ndarray) and loader.arrays is None
        assert kinds(loader.filter("label", lambda row: row[0] < 5)) == all_of(np.ndarray)
        loader.arrays = None
        assert kinds(loader) == all_of(Tensor)
        loader.arrays = "numpy"
        assert kinds(loader) == all_of(np.ndarray)
    with Loader(path, 4) as loader:
        assert kinds(loader) == all_of(Tensor)


def test_who_asks_for_tensors_uses_torch(path, monkeypatch):
    """torch is installed, but not imported yet: ToTensor does that, and the other fields are tensors as well."""
    torch = stand_in()

    def find_torch():
        monkeypatch.setitem(sys.modules, "torch", torch)
        return torch

    monkeypatch.delitem(sys.modules, "torch", raising=False)
    for module in ("cgxffcv.transforms", "cgxffcv.pipeline.compile", "cgxffcv.pipeline.moves"):
        monkeypatch.setattr(f"{module}.find_torch", find_torch)
    with Loader(path, 4, pipelines={"array": [ToTensor()]}) as loader:
        assert kinds(loader) == all_of(Tensor)
    monkeypatch.delitem(sys.modules, "torch")
    with Loader(path, 4, pipelines={"array": [ToTensor()]}, arrays="numpy") as loader:
        assert kinds(loader) == {"label": np.ndarray, "array": Tensor, "tensor": np.ndarray}


def test_a_move_that_needs_tensors_says_what_to_do(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", stand_in())
    wanted = r"needs torch tensors: put ToTensor\(\) before it; or, for arrays .* Loader\(arrays='numpy'\)"
    with Loader(path, 4, pipelines={"label": [ToDevice("cuda:0")]}) as loader, pytest.raises(TypeError, match=wanted):
        next(iter(loader))
    with pytest.raises(TypeError, match="moves arrays and tensors, not a list"):
        ToDevice("cuda:0")([1])
