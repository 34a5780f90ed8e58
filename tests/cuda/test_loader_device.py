"""Batches on a GPU without torch: ToDevice gives arrays with DLPack, of the same pixels as on the CPU."""

import gc

import _cgxffcv
import numpy as np
import pytest
import tiny_beton

from cgxffcv import transforms as tf
from cgxffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
from cgxffcv.interop.torch import find_torch
from cgxffcv.loader import Loader, OrderOption

pytestmark = [
    pytest.mark.skipif(not _cgxffcv.devices(), reason=f"no GPU: {_cgxffcv.why_no_device()}"),
    pytest.mark.skipif(find_torch() is not None, reason="torch is installed, and moves tensors itself"),
]
COUNT = 23


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


def test_batches_that_stay_are_not_page_locked(path):
    with Loader(path, 5, pipelines={"label": [IntDecoder(), tf.ToDevice("cpu")]}) as loader:
        assert loader.page_locked is None
        loader.pipelines = {"label": [IntDecoder(), tf.ToDevice("cuda")]}
        assert next(iter(loader))[1].__dlpack_device__() == (2, 0) and loader.page_locked == 0
