"""With torch, too, the GPU does what comes after ToDevice, and torch takes over the result. A stand-in replaces torch,
since no torch supports an emulated GPU."""

import numpy as np
import pytest
import tiny_beton
from checkout import run_python
from gpus import EMULATED, needs_gpu

pytestmark = needs_gpu

STAND_IN = '''
import contextlib, sys, types
import _cgxffcv, numpy as np

class Tensor:
    """An array in host memory or, with `there`, one of the core's on a GPU, seen with its dimensions in `order`."""

    def __init__(self, array=None, there=None, order=None, dtype=None):
        self.array, self.there, self.order = array, there, order
        self.dtype = dtype or (array if there is None else there).dtype
    is_cuda = property(lambda self: self.there is not None)
    device = property(lambda self: f"cuda:{self.there.device}" if self.is_cuda else "cpu")
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
        assert current[0] == self.there.device  # else this would set up another GPU, too
        return Tensor(there=self.there.copy(self.there.device, 1))
    def to(self, device, non_blocking=False):
        moved.append(device)
        number = current[0] if device == "cuda" else int(device[5:])
        return Tensor(there=_cgxffcv.tensor_of_buffer(np.ascontiguousarray(self.numpy())).copy(number))

def from_dlpack(array):
    taken.append(array.__dlpack_device__())
    return Tensor(there=_cgxffcv.tensor_of_dlpack(array.__dlpack__(stream=1)))

@contextlib.contextmanager
def on_device(number):
    before, current[0] = current[0], number
    yield
    current[0] = before

def stream_of(device):
    return types.SimpleNamespace(cuda_stream=1, synchronize=lambda: waited.append(device))

moved, taken, waited, current = [], [], [], [0]
torch = types.ModuleType("torch")
cuda = types.SimpleNamespace(is_available=lambda: True, current_device=lambda: current[0])
vars(cuda).update(current_stream=stream_of, device=on_device)
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
assert kept[0][0].dtype == "bfloat16" and not waited
"""

AS_BEFORE = """
kept, said = compare([tf.RandomCrop(5), tf.ToTorchImage()], 0)
assert not taken and moved.count("cuda") + moved.count("cuda:0") == 6
assert "not done on the GPU: a crop on the GPU keeps the size 6 x 8" in said and "ToDevice" in said
kept, said = compare([], 0)
assert "GPU" not in said and not taken
image = [SimpleRGBImageDecoder(), tf.ToTensor(), tf.ToDevice("cuda:99"), tf.RandomHorizontalFlip()]
with Loader(sys.argv[1], 4, pipelines={"image": image, "label": None}) as loader:
    said = loader.explain()
assert "not done on the GPU: ToDevice('cuda:99', non_blocking=True): that is not a GPU of this machine" in said
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


FOLLOWS = """
pipelines = {
    "image": [SimpleRGBImageDecoder(), tf.ToTensor(), tf.ToDevice("cuda"), tf.RandomHorizontalFlip(1)],
    "label": [IntDecoder(), tf.ToTensor(), tf.ToDevice("cuda")],
}

def devices(batch):
    return [there.device for there in batch]

with Loader(sys.argv[1], 4, pipelines={"image": pipelines["image"][:1], "label": None}, arrays="numpy") as loader:
    want = [batch[0][:, :, ::-1].copy() for batch in loader]
with Loader(sys.argv[1], 4, pipelines=pipelines) as loader:
    core = loader._core
    batches = iter(loader)
    assert devices(next(batches)) == ["cuda:0", "cuda:0"] and loader._core is core
    current[0] = 1  # torch.cuda.set_device(1)
    late = next(batches)
    assert devices(late) == ["cuda:1", "cuda:1"] and taken[-1] == (2, 0)
    np.testing.assert_array_equal(late[0].numpy(), want[1])
    batches.close()
    moved.clear()
    for batch, array in zip(loader, want):
        assert devices(batch) == ["cuda:1", "cuda:1"] and taken[-1] == (2, 1) and current == [1]
        np.testing.assert_array_equal(batch[0].numpy(), array)
    assert moved == ["cuda"] * 2  # of labels alone
pipelines["image"][2] = tf.ToDevice("cuda:0")
with Loader(sys.argv[1], 4, pipelines=pipelines) as loader:
    assert devices(next(iter(loader))) == ["cuda:0", "cuda:1"]
"""

WAITS = """
image = [SimpleRGBImageDecoder(), tf.ToTensor(), tf.ToDevice("cuda", non_blocking=False), tf.RandomHorizontalFlip()]
with Loader(sys.argv[1], 4, pipelines={"image": image, "label": None}) as loader:
    for number, (batch,) in enumerate(loader, 1):
        assert taken == [(2, 0)] * number and waited == ["cuda:0"] * number
"""


def run_script(tmp_path, script, **variables):
    images = list(np.random.default_rng(6).integers(0, 256, (11, 6, 8, 3), dtype=np.uint8))
    path = tiny_beton.write(tmp_path / "a.beton", {"image": ("image", images), "label": ("int", list(range(11)))})
    run_python("-c", STAND_IN + script, path, cwd=tmp_path, **variables)


@pytest.mark.parametrize("streams", ["prompt", "late"])
def test_batches_are_torchs_own(tmp_path, streams):
    """Whatever is kept stays valid, in memory that the loader does not use again; and the loader does not wait for a
    device, only its copies wait for torch's: late streams do nothing before something waits for them."""
    run_script(tmp_path, KEPT, CGXFFCV_EMULATED_STREAMS=streams)


@pytest.mark.skipif(not EMULATED, reason="needs two GPUs, which the emulator has")
def test_the_current_gpu_is_that_of_the_time_when_a_batch_is_taken(tmp_path):
    run_script(tmp_path, FOLLOWS, CGXFFCV_EMULATED_DEVICES="2")


def test_who_does_not_want_to_go_on_at_once_waits(tmp_path):
    run_script(tmp_path, WAITS)


@pytest.mark.parametrize("script", [WORKED, AS_BEFORE], ids=["worked", "as before"])
def test_torch(tmp_path, script):
    run_script(tmp_path, script)
