"""With torch the GPU works behind ToDevice, too, and torch takes over what lies there. A stand-in plays torch's part:
here there is none that knows an emulated GPU."""

import subprocess
import sys

import _cgxffcv
import numpy as np
import pytest
import tiny_beton
from checkout import environ

pytestmark = pytest.mark.skipif(not _cgxffcv.devices(), reason=f"no GPU: {_cgxffcv.why_no_device()}")

STAND_IN = '''
import contextlib, sys, types
import _cgxffcv, numpy as np

class Tensor:
    """An array in host memory or, with `there`, one of the core's on a GPU, seen with its dimensions in `order`."""

    def __init__(self, array=None, there=None, order=None, dtype=None):
        self.array, self.there, self.order = array, there, order
        self.dtype = dtype or (array if there is None else there).dtype
    is_cuda = property(lambda self: self.there is not None)
    device = property(lambda self: "cuda:0" if self.is_cuda else "cpu")
    shape = property(lambda self: self.numpy().shape)
    ndim = property(lambda self: len(self.shape))
    def is_pinned(self):
        return False
    def numpy(self):
        array = self.array if self.there is None else self.there.copy(-1).numpy()
        return array if self.order is None else array.transpose(self.order)
    def permute(self, *order):
        return Tensor(self.array, self.there, order, self.dtype)
    def reshape(self, shape):
        return Tensor(self.array, self.there.reshape(shape))
    def clone(self):
        return Tensor(there=self.there.copy(0, 1))
    def to(self, device, non_blocking=False):
        moved.append(device)
        return Tensor(there=_cgxffcv.tensor_of_buffer(np.ascontiguousarray(self.numpy())).copy(0))

def from_dlpack(array):
    taken.append(array.__dlpack_device__())
    return Tensor(there=_cgxffcv.tensor_of_dlpack(array.__dlpack__(stream=1)))

moved, taken = [], []
torch = types.ModuleType("torch")
stream = types.SimpleNamespace(cuda_stream=1)
cuda = types.SimpleNamespace(is_available=lambda: True, current_device=lambda: 0, current_stream=lambda device: stream)
vars(torch).update(Tensor=Tensor, from_numpy=Tensor, from_dlpack=from_dlpack, cuda=cuda)
vars(torch).update(device=str, no_grad=contextlib.nullcontext)
sys.modules["torch"] = torch

from cgxffcv import transforms as tf
from cgxffcv.decoders import IntDecoder, SimpleRGBImageDecoder
from cgxffcv.loader import Loader

def compare(chain, kind):
    options = {"seed": 2, "drop_last": False, "arrays": "numpy"}
    image = [SimpleRGBImageDecoder(), tf.ToTensor(), tf.ToDevice("cuda"), *chain]
    label = [IntDecoder(), tf.ToTensor(), tf.ToDevice("cuda:0"), tf.Squeeze()]
    with Loader(sys.argv[1], 4, pipelines={"image": [SimpleRGBImageDecoder(), *chain]}, **options) as loader:
        want = [[array.copy() for array in batch] for batch in loader]
    moved.clear(), taken.clear()
    with Loader(sys.argv[1], 4, pipelines={"image": image, "label": label}, **options) as loader:
        assert loader.page_locked == 0 and loader._core.moves()[0][0] == kind and loader._core.moves()[1][0] == 0
        kept, said = list(loader), loader.explain()
    for batch, arrays in zip(kept, want, strict=True):
        assert all(isinstance(there, Tensor) and there.is_cuda for there in batch)
        np.testing.assert_array_equal(batch[0].numpy(), arrays[0])
        np.testing.assert_array_equal(batch[1].numpy(), arrays[1][:, 0])
    return kept, said
'''

WORKED = """
chain = [tf.RandomHorizontalFlip(), tf.RandomTranslate(2), tf.Cutout(3), tf.NormalizeImage(100, 50, np.float16)]
kept, said = compare([*chain, tf.ToTorchImage()], 2)
assert taken[:3] == [(2, 0)] * 3 and set(moved) == {"cuda:0"} and len(moved) == 3
assert kept[0][0].order == (0, 3, 1, 2) and kept[0][0].there.shape == (4, 6, 8, 3) and kept[0][0].dtype == "float16"
assert "its copy to GPU 0, which then does RandomHorizontalFlip(" in said
kept, said = compare([*chain, tf.ToTorchImage(channels_last=False)], 2)
assert kept[0][0].order is None and kept[0][0].there.shape == (4, 3, 6, 8)
kept, said = compare([tf.NormalizeImage(100, 50, "bfloat16")], 2)
assert kept[0][0].dtype == "bfloat16"
"""

AS_BEFORE = """
kept, said = compare([tf.RandomCrop(5), tf.ToTorchImage()], 0)
assert not taken and moved.count("cuda") + moved.count("cuda:0") == 6
assert "not done on the GPU: a crop on the GPU keeps the size 6 x 8" in said and "ToDevice" in said
kept, said = compare([], 0)
assert "GPU" not in said and not taken
"""


KEPT = """
def epochs(image):
    pipelines, options = {"image": [SimpleRGBImageDecoder(), *image], "label": None}, {"seed": 2, "arrays": "numpy"}
    with Loader(sys.argv[1], 2, num_workers=1, batches_ahead=1, pipelines=pipelines, **options) as loader:
        return [batch[0] for _ in range(9) for batch in loader], loader.stats()

chain = [tf.RandomHorizontalFlip(), tf.NormalizeImage(100, 50, np.float32)]
kept, stats = epochs([tf.ToTensor(), tf.ToDevice("cuda"), *chain])
want, _ = epochs([*chain, lambda batch: batch.copy()])
assert len(kept) == len(want) == 45 and stats["device_slots"] <= 4
for there, array in zip(kept, want, strict=True):
    np.testing.assert_array_equal(there.numpy(), array)
"""


def run_script(tmp_path, script, **variables):
    images = list(np.random.default_rng(6).integers(0, 256, (11, 6, 8, 3), dtype=np.uint8))
    path = tiny_beton.write(tmp_path / "a.beton", {"image": ("image", images), "label": ("int", list(range(11)))})
    done = subprocess.run(
        [sys.executable, "-c", STAND_IN + script, path],
        capture_output=True,
        text=True,
        timeout=120,
        env=environ() | variables,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("streams", ["prompt", "late"])
def test_batches_are_torchs_own(tmp_path, streams):
    """Whatever is kept stays, in memory that the loader does not use again; and the loader waits for no device, but its
    copies for torch's: late streams do nothing before somebody waits for it."""
    run_script(tmp_path, KEPT, CGXFFCV_EMULATED_STREAMS=streams)


@pytest.mark.parametrize("script", [WORKED, AS_BEFORE], ids=["worked", "as before"])
def test_torch(tmp_path, script):
    run_script(tmp_path, script)
