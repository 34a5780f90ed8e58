"""The core's copies of batches to a GPU: device memory is reused and bounded, order on streams, early ends."""

import ctypes
import gc

import _cgxffcv
import numpy as np
import pytest
import tiny_beton
from checkout import run_python, wait_until
from gpus import EMULATED, needs_gpu

import cgxffcv
from cgxffcv import transforms as tf
from cgxffcv.decoders import IntDecoder, SimpleRGBImageDecoder
from cgxffcv.loader import Loader, OrderOption

pytestmark = [
    needs_gpu,
    pytest.mark.usefixtures("without_torch"),
]
on_emulator = pytest.mark.skipif(not EMULATED, reason="only the emulator counts allocations, and runs streams late")
COUNT, BATCH, AHEAD = 43, 4, 3
WORK = [tf.RandomHorizontalFlip(), tf.NormalizeImage(100, 50, np.float32), tf.ToTorchImage()]


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(5).integers(0, 256, (COUNT, 6, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def path(images, tmp_path_factory):
    fields = {"image": ("image", list(images)), "label": ("int", list(range(COUNT)))}
    return tiny_beton.write(tmp_path_factory.mktemp("uploads") / "a.beton", fields)


@pytest.fixture
def emulator():
    opened = ctypes.CDLL(_cgxffcv.__file__)
    opened.emulated_stream.restype = ctypes.c_void_p
    opened.emulated_allocations.restype = ctypes.c_long
    return opened


def loader_of(path, work=(), **options):
    pipelines = {
        "image": [SimpleRGBImageDecoder(), tf.ToDevice(0), *work],
        "label": [IntDecoder(), tf.ToTensor(), tf.ToDevice(0), tf.Squeeze()],
    }
    options = {"order": OrderOption.RANDOM, "seed": 3, "num_workers": 2, "batches_ahead": AHEAD, **options}
    return Loader(path, BATCH, pipelines=pipelines, **options)


def go_through(loader):
    for _ in loader:
        pass


def here(array):
    return array.copy(-1).numpy()


@on_emulator
@pytest.mark.parametrize("work", [[], WORK], ids=["plain", "work"])
def test_memory_is_flat_over_epochs(path, emulator, work):
    with loader_of(path, work) as loader:
        seen = []
        for _ in range(6):
            go_through(loader)
            stats = loader.stats()
            assert stats["device_slots"] <= AHEAD + 2 and stats["device_slots_held"] == 0
            seen.append((emulator.emulated_allocations(), _cgxffcv.device_free_memory(), stats["device_bytes"]))
        # Both pools may grow to their bounds whenever threads are slow, but no further.
        assert seen[-1][0] - seen[0][0] <= 2 * (AHEAD + 2)
        assert seen[-1][2] <= (AHEAD + 2) * 2 * BATCH * 6 * 8 * 3 * 4 + 16384
        for _ in range(20):
            go_through(loader)
        assert emulator.emulated_allocations() - seen[-1][0] <= 2 * (AHEAD + 2) - (seen[-1][0] - seen[0][0])


def test_batches_that_are_kept_stay_valid(path, images):
    with loader_of(path, ids=True, drop_last=False) as loader:
        kept = [batch for _ in range(2) for batch in loader]
        stats = loader.stats()
        assert stats["device_slots_held"] == len(kept) == 22 and stats["slots"] <= len(kept) + AHEAD + 2
        gc.collect()
        for there, labels, ids in kept:
            np.testing.assert_array_equal(here(there), images[ids])
            np.testing.assert_array_equal(here(labels), ids)
            assert labels.shape == (len(ids),)
        views = kept[0][0], kept[1][1]
        expected = images[kept[0][2]], kept[1][2].copy()
        del kept, there, labels, ids
        assert loader.stats()["device_slots_held"] == 2
        assert loader.stats()["device_slots"] <= AHEAD + 4
    np.testing.assert_array_equal(here(views[0]), expected[0])
    np.testing.assert_array_equal(here(views[1]), expected[1])


def test_host_slots_return_though_batches_are_kept(path):
    """Batches without sample numbers, which are in host memory."""
    with loader_of(path) as loader:
        kept = list(loader)
        assert len(kept) == 10 and loader.stats()["slots_held"] == 0 and loader.stats()["slots"] <= AHEAD + 2


def test_copies_begin_before_they_are_asked_for(path):
    with loader_of(path) as loader:
        batches = iter(loader)
        first = next(batches)
        wait_until(lambda: loader.stats()["device_slots"] >= 1 + AHEAD, 30)
        assert loader.stats()["device_slots"] == 1 + AHEAD and loader.stats()["device_slots_held"] == 1
        del first


@on_emulator
@pytest.mark.parametrize("page_locked", [None, False])
@pytest.mark.parametrize("work", [[], WORK], ids=["plain", "work"])
def test_slots_wait_for_their_copies(path, monkeypatch, work, page_locked):
    """With streams that do nothing before something waits."""
    with loader_of(path, work) as loader:
        want = [[here(array) for array in batch] for batch in loader]
    monkeypatch.setenv("CGXFFCV_EMULATED_STREAMS", "late")
    with loader_of(path, work, page_locked=page_locked) as loader:
        kept = list(loader)
    for batch, arrays in zip(kept, want, strict=True):
        for there, array in zip(batch, arrays, strict=True):
            np.testing.assert_array_equal(here(there), array)


@on_emulator
def test_memory_waits_for_what_reads_it_on_any_stream(path, monkeypatch, emulator, images):
    """A copy on one of the consumer's streams is under way when the batch dies."""
    monkeypatch.setenv("CGXFFCV_EMULATED_STREAMS", "late")
    stream, copies = emulator.emulated_stream(), []
    with loader_of(path, ids=True) as loader:
        for there, _, ids in loader:
            copies.append((there.copy(0, stream=stream), ids.copy()))
            del there, ids, _
        assert loader.stats()["device_slots"] <= AHEAD + 2 < len(copies)
    for copy, ids in copies:
        np.testing.assert_array_equal(here(copy), images[ids])


@on_emulator
def test_the_consumers_stream_waits(path, monkeypatch, emulator, images):
    """For a copy, and through DLPack with the consumer's stream."""
    monkeypatch.setenv("CGXFFCV_EMULATED_STREAMS", "late")
    stream = emulator.emulated_stream()
    with loader_of(path, ids=True) as loader:
        for there, _, ids in loader:
            np.testing.assert_array_equal(here(there), images[ids])
    with loader_of(path, ids=True) as loader:
        for there, _, ids in loader:
            taken = _cgxffcv.tensor_of_dlpack(there.__dlpack__(stream=stream))
            np.testing.assert_array_equal(taken.copy(-1, stream=stream).numpy(), images[ids])


@pytest.mark.parametrize("work", [[], WORK], ids=["plain", "work"])
def test_nothing_is_left_behind(path, work):
    def fail(batch):
        raise RuntimeError("mine")

    gc.collect()
    before = _cgxffcv.device_free_memory()
    loader = loader_of(path, work)
    for i in range(30):
        batches = iter(loader)
        for _ in range(i % 4):
            next(batches)
        if i % 2:
            batches.close()
    del batches
    assert loader.stats()["device_slots"] <= AHEAD + 4
    with pytest.raises(RuntimeError, match="mine"), loader_of(path, [*work, fail]) as failing:
        next(iter(failing))
    kept = next(iter(loader))
    loader.close()
    del kept, failing, loader
    gc.collect()
    if EMULATED:  # others may also use a real GPU's memory
        assert _cgxffcv.device_free_memory() == before


def test_single_batches_of_any_size(path, images):
    with loader_of(path) as loader:
        batches = iter(loader)
        next(batches)
        for ids in ([], [7], list(range(COUNT)), [3, 3, 40]):
            there, labels = loader.get_batch(ids)
            assert there.shape == (len(ids), 6, 8, 3) and there.__dlpack_device__() == (2, 0)
            np.testing.assert_array_equal(here(there), images[ids])
            np.testing.assert_array_equal(here(labels), ids)
        assert len(list(batches)) == 9


def test_batches_without_samples(tmp_path, images):
    values = [np.full(3, i, np.float32) for i in range(4)]
    bad = [tiny_beton.jpeg(image)[:60] for image in images[:4]]
    fields = {"image": ("image", bad), "value": ("array", values)}
    path = tiny_beton.write(tmp_path / "bad.beton", fields, sides=(6, 8))
    pipelines = {"image": [SimpleRGBImageDecoder(), tf.ToDevice(0), *WORK], "value": [tf.ToDevice(0)]}
    with Loader(path, 2, pipelines=pipelines, on_error="skip", num_workers=1) as loader:
        for images_there, values_there in loader:
            assert images_there.shape == (0, 3, 6, 8) and images_there.dtype == "float32"
            assert here(values_there).shape == (0, 3)
        assert loader.stats()["skipped"] == 4


def test_other_steps_come_before_the_move(path):
    """They work on NumPy arrays, and the copy is made in the thread that asks for the batch."""
    label = [IntDecoder(), tf.ToDevice(0), tf.Convert(np.float32), tf.Squeeze()]
    with Loader(path, BATCH, pipelines={"image": None, "label": label}, seed=1) as loader:
        (labels,) = next(iter(loader))
        np.testing.assert_array_equal(here(labels), np.arange(BATCH, dtype=np.float32))
        assert loader.stats()["device_slots"] == 0 and loader.page_locked == 0


def test_filters_look_at_what_lies_on_the_gpu(path, images):
    with loader_of(path, drop_last=False) as loader:
        bright = loader.filter("image", lambda image: image.mean() > 128)
        np.testing.assert_array_equal(bright.indices, np.flatnonzero(images.mean((1, 2, 3)) > 128))
        assert loader.filter("label", lambda label: label == 7).indices.tolist() == [7]
        bright.close()


def test_labels_are_paired_behind_the_move(path):
    pair = tf.LabelMixup(0.8, same_lambda=False)
    options = {"seed": 5, "arrays": "numpy"}
    with Loader(path, BATCH, pipelines={"image": None, "label": [IntDecoder(), pair]}, **options) as loader:
        want = [batch[0].copy() for batch in loader]
    moved = [IntDecoder(), tf.ToTensor(), tf.ToDevice(0), pair]
    with Loader(path, BATCH, pipelines={"image": None, "label": moved}, **options) as loader:
        for (there,), array in zip(loader, want, strict=True):
            np.testing.assert_array_equal(here(there), array)


@pytest.mark.parametrize("dtype", [bool, np.complex64])
def test_arrays_that_cannot_lie_on_a_gpu_are_refused_at_once(tmp_path, dtype):
    values = [np.full(3, i % 2, dtype) for i in range(4)]
    path = tiny_beton.write(tmp_path / "a.beton", {"mask": ("array", values)})
    with pytest.raises(TypeError, match=f"pipeline 'mask': arrays of {np.dtype(dtype)} cannot go to a GPU"):
        Loader(path, 2, pipelines={"mask": [tf.ToTensor(), tf.ToDevice(0)]})
    if dtype is bool:
        with Loader(path, 2, pipelines={"mask": [tf.ToDevice(0), tf.Convert(np.uint8)]}) as loader:
            np.testing.assert_array_equal(here(next(iter(loader))[0]), np.stack(values[:2]))


TWO = """
import sys
import _cgxffcv, numpy as np
from cgxffcv import transforms as tf
from cgxffcv.loader import Loader
_cgxffcv.select_device(0)
pipelines = {"image": [tf.ToDevice(1), tf.RandomHorizontalFlip()], "label": [tf.ToDevice(0)]}
with Loader(sys.argv[1], 4, pipelines=pipelines, seed=1, arrays="numpy") as loader:
    batches = [[(a.device, a.copy(-1).numpy()) for a in batch] for batch in loader]
    assert loader.page_locked == 1 and loader.stats()["device_slots"] > 0
plain = {"image": [tf.RandomHorizontalFlip()]}
with Loader(sys.argv[1], 4, pipelines=plain, seed=1, arrays="numpy") as loader:
    for batch, arrays in zip(batches, loader, strict=True):
        assert [device for device, _ in batch] == [1, 0]
        for (_, there), array in zip(batch, arrays, strict=True):
            np.testing.assert_array_equal(there, array)
"""


COPIED = """
import os, sys
import _cgxffcv, numpy as np
from cgxffcv import transforms as tf
from cgxffcv.loader import Loader
options = {"num_workers": 1, "batches_ahead": 1, "arrays": "numpy"}
with Loader(sys.argv[1], 4, pipelines={"image": [tf.ToDevice(0)], "label": None}, **options) as loader:
    copies = [there.copy(1) for there, in loader]
    got = [copy.copy(-1).numpy() for copy in copies]
with Loader(sys.argv[1], 4, pipelines={"label": None}, **options) as loader:
    for array, (want,) in zip(got, loader, strict=True):
        np.testing.assert_array_equal(array, want)
"""

MANY = """
import sys
from cgxffcv import transforms as tf
from cgxffcv.loader import Loader
pipelines = {"image": [tf.ToDevice(0)], "label": None}
with Loader(sys.argv[1], 4, pipelines=pipelines, num_workers=1, batches_ahead=1, arrays="numpy") as loader:
    for _ in range(3):
        for batch in loader:
            del batch
    assert loader.stats()["device_slots"] == 2
"""


@on_emulator
@pytest.mark.parametrize(
    ("script", "variables"),
    [
        (TWO, {"CGXFFCV_EMULATED_DEVICES": "2"}),
        (COPIED, {"CGXFFCV_EMULATED_DEVICES": "2", "CGXFFCV_EMULATED_STREAMS": "late"}),
        (MANY, {"CGXFFCV_EMULATED_MEMORY": "1600"}),
    ],
    ids=["one GPU by the core, others by steps", "copies on another GPU are of the batch", "memory for two batches"],
)
def test_in_a_process_of_its_own(path, tmp_path, script, variables):
    run_python("-c", script, path, cwd=tmp_path, **variables)


@on_emulator
def test_the_gpu_keeps_no_more_than_usual_batches_need(path):
    with loader_of(path, WORK, num_workers=1) as loader:
        go_through(loader)
        before = loader.stats()["device_bytes"]
        loader.get_batch(list(range(COUNT)))
        go_through(loader)
        assert loader.stats()["device_bytes"] == before


@on_emulator
@pytest.mark.parametrize("lost", [1, 20, 60])
def test_a_gpu_lost_meanwhile_is_said(path, monkeypatch, lost):
    gc.collect()
    before = _cgxffcv.device_free_memory()
    with loader_of(path, WORK) as loader:
        next(iter(loader))
        monkeypatch.setenv("CGXFFCV_EMULATED_LOST", str(lost))
        with pytest.raises(cgxffcv.CudaError):
            for _ in range(8):
                for there, _ in loader:
                    here(there)
        monkeypatch.delenv("CGXFFCV_EMULATED_LOST")
    there = _ = None
    gc.collect()
    assert _cgxffcv.device_free_memory() == before


def test_views_of_tensors_share_their_memory():
    there = _cgxffcv.tensor_of_buffer(np.arange(6.0)).copy(0)
    seen = there.reshape((2, 3))
    del there
    np.testing.assert_array_equal(here(seen), np.arange(6.0).reshape(2, 3))
    for wrong in ((4,), (7,), (2, 2)):
        with pytest.raises(ValueError, match="cannot be viewed in a shape of"):
            seen.reshape(wrong)
    with pytest.raises(ValueError, match="elements in dimension"):
        seen.reshape((-1, 3))
    np.testing.assert_array_equal(here(seen.view("int64")), np.arange(6.0).view(np.int64).reshape(2, 3))
    with pytest.raises(ValueError, match="elements of float64 cannot be viewed as float32"):
        seen.view("float32")
