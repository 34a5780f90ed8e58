"""Batches on a GPU without torch: ToDevice gives arrays with DLPack and the CUDA array interface, with the same pixels
as on the CPU."""

import contextlib
import ctypes
import gc
import sys
from types import ModuleType, SimpleNamespace

import _cgxffcv
import numpy as np
import pytest
import tiny_beton
from checkout import run_python
from gpus import EMULATED, needs_gpu

from cgxffcv import tensors
from cgxffcv import transforms as tf
from cgxffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
from cgxffcv.loader import Loader, OrderOption

pytestmark = [
    needs_gpu,
    pytest.mark.usefixtures("without_torch"),
]
COUNT = 23


def taken_by_interface(array):
    """A copy in host memory, made through the CUDA array interface alone."""
    alone = SimpleNamespace(__cuda_array_interface__=array.__cuda_array_interface__)
    return tensors.take(alone, "array").tensor.copy(-1).numpy()


@pytest.fixture
def path(tmp_path):
    images = list(np.random.default_rng(4).integers(0, 256, (COUNT, 9, 8, 3), dtype=np.uint8))
    fields = {"image": ("image", images), "label": ("int", list(range(COUNT)))}
    return tiny_beton.write(tmp_path / "a.beton", fields)


@pytest.mark.parametrize("page_locked", [None, 0, False])
def test_batches(path, page_locked):
    steps = [SimpleRGBImageDecoder(), tf.RandomHorizontalFlip(), tf.RandomContrast(0.5)]
    finish = [tf.ToTensor(), tf.ToDevice(0), tf.ToTorchImage(), tf.Convert(np.float16)]
    labels = [IntDecoder(), tf.ToTensor(), tf.ToDevice("cuda:0"), tf.Squeeze()]
    options = {"order": OrderOption.RANDOM, "seed": 3, "num_workers": 2, "drop_last": False}
    plain = {"image": [*steps, *finish[2:]], "label": [IntDecoder(), tf.Squeeze()]}
    with Loader(path, 5, pipelines=plain, **options) as loader:
        want = [[array.copy() for array in batch] for batch in loader]
    moved = {"image": [*steps, *finish], "label": labels}
    with Loader(path, 5, pipelines=moved, page_locked=page_locked, **options) as loader:
        assert loader.page_locked is (None if page_locked is False else 0)
        kept = list(loader)
        gc.collect()
    for batch, arrays in zip(kept, want, strict=True):
        for there, array in zip(batch, arrays, strict=True):
            assert there.__dlpack_device__() == (2, 0) and there.dtype == array.dtype.name
            np.testing.assert_array_equal(there.copy(-1).numpy(), array)
            np.testing.assert_array_equal(taken_by_interface(there), array)


def test_callables_behind_the_move_get_what_lies_on_the_gpu(path):
    seen = []

    def own(batch):
        seen.append((batch.__dlpack_device__(), batch.dtype, batch.shape))
        return batch

    def numbered(batch, ids):
        assert batch.__dlpack_device__() == (2, 0) and len(ids) == batch.shape[0]
        return taken_by_interface(batch)

    numbered.with_indices = True
    planar = tf.ToTorchImage(channels_last=False)
    image = [SimpleRGBImageDecoder(), tf.ToDevice(0), tf.RandomVerticalFlip(), planar, own, numbered]
    label = [IntDecoder(), tf.ToDevice(0), tf.Convert(np.float32), tf.ModuleWrapper(own), tf.ToTensor()]
    with Loader(path, 5, pipelines={"image": image, "label": label}, seed=1) as loader:
        images, labels = next(iter(loader))
    plain = {"image": [SimpleRGBImageDecoder(), tf.RandomVerticalFlip(), planar], "label": None}
    with Loader(path, 5, pipelines=plain, seed=1) as loader:
        np.testing.assert_array_equal(images, next(iter(loader))[0])
    np.testing.assert_array_equal(taken_by_interface(labels), np.arange(5, dtype=np.float32)[:, None])
    assert seen == [((2, 0), "uint8", (5, 3, 9, 8)), ((2, 0), "float32", (5, 1))]


@pytest.mark.parametrize("late", [tf.Squeeze(), tf.ToDevice("cpu"), tf.View(np.int8)])
def test_our_steps_behind_callables_on_the_gpu_are_refused(path, late):
    def own(batch):
        return batch

    with pytest.raises(TypeError, match=r"pipeline 'label': .* must come before own, which gets arrays on a GPU"):
        Loader(path, 5, pipelines={"label": [IntDecoder(), tf.ToDevice(0), own, late]})


INSTALLED = """
import sys
import numpy as np
from cgxffcv import transforms as tf
from cgxffcv.decoders import IntDecoder, SimpleRGBImageDecoder
from cgxffcv.loader import Loader

pipelines = {
    "image": [SimpleRGBImageDecoder(), tf.ToDevice(0), tf.RandomHorizontalFlip(1), tf.ToTorchImage()],
    "label": [IntDecoder(), tf.ToDevice("cuda"), tf.Convert(np.float32)],
}
plain = {name: [step for step in steps if type(step) is not tf.ToDevice] for name, steps in pipelines.items()}
with Loader(sys.argv[1], 5, pipelines=plain) as loader:
    want = [[array.copy() for array in batch] for batch in loader]
with Loader(sys.argv[1], 5, pipelines=pipelines) as loader:
    for _ in range(2):
        for batch, arrays in zip(loader, want, strict=True):
            for there, array in zip(batch, arrays, strict=True):
                assert there.__dlpack_device__() == (2, 0)
                np.testing.assert_array_equal(there.copy(-1).numpy(), array)
    assert loader._core.moves()[0][0] == 2 and "RandomHorizontalFlip" in loader.explain()
assert "torch" not in sys.modules
"""


def test_torch_that_is_installed_and_not_used_changes_nothing(path, tmp_path):
    (tmp_path / "torch.py").write_text("raise AssertionError('torch was imported')")
    run_python("-c", INSTALLED, path, folders=[tmp_path])


@pytest.mark.parametrize("imported", ["before", "after"])
def test_arrays_beside_torch(path, monkeypatch, imported):
    """Who has asked for NumPy's arrays gets those of the core, whatever else the program imports."""
    torch = ModuleType("torch")
    torch.Tensor, torch.no_grad = type("Tensor", (), {}), contextlib.nullcontext
    if imported == "before":
        monkeypatch.setitem(sys.modules, "torch", torch)
    pipelines = {
        "image": [SimpleRGBImageDecoder(), tf.ToDevice(0), tf.RandomVerticalFlip(1)],
        "label": [tf.ToDevice(0)],
    }
    with Loader(path, 5, pipelines=pipelines, arrays="numpy" if imported == "before" else None) as loader:
        monkeypatch.setitem(sys.modules, "torch", torch)
        for _ in range(2):
            image, label = next(iter(loader))
            assert image.__dlpack_device__() == label.__dlpack_device__() == (2, 0)
            loader.batch_size = 4
    np.testing.assert_array_equal(label.copy(-1).numpy(), np.arange(4)[:, None])


def test_batches_that_stay_are_not_page_locked(path):
    with Loader(path, 5, pipelines={"label": [IntDecoder(), tf.ToDevice("cpu")]}) as loader:
        assert loader.page_locked is None
        loader.pipelines = {"label": [IntDecoder(), tf.ToDevice("cuda")]}
        assert next(iter(loader))[1].__dlpack_device__() == (2, 0) and loader.page_locked == 0


KINDS = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"]


def test_the_interface_is_of_version_3():
    for kind in KINDS:
        array = np.arange(24).astype(kind).reshape(2, 3, 4)
        there = _cgxffcv.tensor_of_buffer(array).copy(0)
        address = there.__cuda_array_interface__["data"][0]
        said = {"shape": (2, 3, 4), "typestr": array.dtype.str, "data": (address, False), "strides": None}
        assert there.__cuda_array_interface__ == {**said, "stream": 1, "version": 3}
        np.testing.assert_array_equal(taken_by_interface(there), array)
    empty = _cgxffcv.tensor_of_buffer(np.zeros((3, 0, 2), np.float32)).copy(0).__cuda_array_interface__
    assert empty["shape"] == (3, 0, 2) and empty["data"] == (0, False)


def test_another_librarys_memory_is_said_as_it_is():
    """Read-only, and without a copy of ours to wait for."""
    kept = _cgxffcv.tensor_of_buffer(np.arange(4.0)).copy(0)
    address = kept.__cuda_array_interface__["data"][0]
    said = _cgxffcv.tensor_of_address(kept, address, (2, 2), None, "float64", False).__cuda_array_interface__
    assert said["data"] == (address, True) and said["shape"] == (2, 2) and said["stream"] is None
    columns = _cgxffcv.tensor_of_address(kept, address, (2,), (16,), "float64", True)
    with pytest.raises(AttributeError, match="no CUDA array interface: it is not in C order"):
        columns.__cuda_array_interface__  # noqa: B018


def test_what_has_no_interface():
    for tensor, why in (
        (_cgxffcv.tensor_of_buffer(np.ones(3)), "it is in host memory"),
        (_cgxffcv.tensor_of_buffer(np.ones(3, np.uint16), "bfloat16").copy(0), "no name for bfloat16"),
    ):
        assert not hasattr(tensor, "__cuda_array_interface__")
        with pytest.raises(AttributeError, match=why):
            tensor.__cuda_array_interface__  # noqa: B018


@pytest.mark.skipif(not EMULATED, reason="only the emulator runs streams as late as it can")
def test_the_stream_that_is_named_has_waited_for_the_copy(monkeypatch):
    monkeypatch.setenv("CGXFFCV_EMULATED_STREAMS", "late")
    emulator = ctypes.CDLL(_cgxffcv.__file__)
    emulator.emulated_stream.restype = ctypes.c_void_p
    array = np.arange(1, 7, dtype=np.float32)
    there = _cgxffcv.tensor_of_buffer(array).copy(0, stream=emulator.emulated_stream())
    np.testing.assert_array_equal(taken_by_interface(there), array)
