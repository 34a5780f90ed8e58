"""Loaders with PyTorch itself: tensors without a copy, FFCV's pipelines of CIFAR and ImageNet, modules as steps."""

from dataclasses import replace

import numpy as np
import pytest

from cgxffcv import DatasetWriter
from cgxffcv.fields import BytesField, FloatField, IntField, JSONField, NDArrayField, RGBImageField, TorchTensorField
from cgxffcv.fields.basics import IntDecoder
from cgxffcv.fields.rgb_image import (
    CenterCropRGBImageDecoder,
    RandomResizedCropRGBImageDecoder,
    SimpleRGBImageDecoder,
)
from cgxffcv.loader import Loader, OrderOption
from cgxffcv.pipeline.operation import AllocationQuery, Operation
from cgxffcv.transforms import (
    Convert,
    ImageMixup,
    LabelMixup,
    MixupToOneHot,
    NormalizeImage,
    RandomHorizontalFlip,
    Squeeze,
    ToDevice,
    ToTensor,
    ToTorchImage,
    View,
)

torch = pytest.importorskip("torch", reason="needs PyTorch: make test-torch")
pytestmark = pytest.mark.torch
MEAN, STD = np.array([0.485, 0.456, 0.406]) * 255, np.array([0.229, 0.224, 0.225]) * 255
COUNT, CPU = 40, torch.device("cpu")


def images():
    return np.random.default_rng(0).integers(0, 256, (COUNT, 24, 36, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("torch") / "a.beton")
    writer = DatasetWriter(path, {"image": RGBImageField(), "label": IntField()}, num_workers=1)
    writer.from_indexed_dataset([(image, number % 10) for number, image in enumerate(images())])
    return path


def to_the_device(*steps):
    return [*steps, ToTensor(), ToDevice(CPU, non_blocking=True)]


def test_training_on_imagenet(path):
    decoder = RandomResizedCropRGBImageDecoder((16, 16))
    finish = [ToTorchImage(), NormalizeImage(MEAN, STD, np.float16)]
    pipelines = {
        "image": [*to_the_device(decoder, RandomHorizontalFlip()), *finish],
        "label": [IntDecoder(), ToTensor(), Squeeze(), ToDevice(CPU, non_blocking=True)],
    }
    options = {"num_workers": 2, "order": OrderOption.QUASI_RANDOM, "drop_last": True, "seed": 1}
    with Loader(path, batch_size=16, os_cache=1, distributed=0, pipelines=pipelines, **options) as loader:
        for size in ((16, 16), (32, 32)):
            decoder.output_size = size
            batches = list(loader)
            assert len(batches) == 2
            for image, label in batches:
                assert image.shape == (16, 3, *size) and image.dtype == torch.float16
                assert image.is_contiguous(memory_format=torch.channels_last)
                assert label.shape == (16,) and label.dtype == torch.int64
    center = [*to_the_device(CenterCropRGBImageDecoder((24, 24), 1.0)), *finish]
    with Loader(path, 16, pipelines={"image": center, "label": None}, drop_last=False) as loader:
        got = torch.cat([image for (image,) in loader])
    want = torch.from_numpy(images()[:, :, 6:30]).permute(0, 3, 1, 2).double() - torch.tensor(MEAN)[:, None, None]
    torch.testing.assert_close(got, (want / torch.tensor(STD)[:, None, None]).half(), rtol=0, atol=0)


def test_mixup_and_shares(path):
    pipelines = {
        "image": [SimpleRGBImageDecoder(), ImageMixup(0.5, True), ToTensor(), ToTorchImage(), Convert(torch.float16)],
        "label": [IntDecoder(), LabelMixup(0.5, True), ToTensor(), MixupToOneHot(10)],
    }
    with Loader(path, 8, pipelines=pipelines, seed=2) as loader:
        for image, shares in loader:
            assert image.dtype == torch.float16 and image.shape == (8, 3, 24, 36)
            torch.testing.assert_close(shares.sum(1), torch.ones(8))
    bad = MixupToOneHot(3)
    with pytest.raises(ValueError, match="label 3 is not one of"):
        bad(torch.tensor([[1.0, 3.0, 0.5]]))


def test_modules_bring_no_gradients(path):
    steps = [SimpleRGBImageDecoder(), ToTensor(), ToTorchImage(), Convert(torch.float32), torch.nn.Conv2d(3, 2, 3)]
    with Loader(path, 8, pipelines={"image": steps, "label": None}) as loader:
        (image,) = next(iter(loader))
    assert image.shape == (8, 2, 22, 34) and not image.requires_grad


def test_views_and_kinds_of_numbers(path):
    pipelines = {
        "image": [SimpleRGBImageDecoder(), ToTensor(), ToTorchImage(), View(torch.int8)],
        "label": [IntDecoder(), ToTensor(), Convert(torch.int32), Squeeze(1)],
    }
    with Loader(path, 8, pipelines=pipelines) as loader:
        image, label = next(iter(loader))
    assert image.dtype == torch.int8 and label.dtype == torch.int32 and label.shape == (8,)


def test_normalising_behind_a_module(path):
    normalise = NormalizeImage(MEAN, STD, torch.bfloat16)
    front = [SimpleRGBImageDecoder(), ToTensor(), ToDevice(CPU), ToTorchImage()]
    chains = [[*front, normalise], [*front, torch.nn.Identity(), normalise]]
    batches = [next(iter(Loader(path, 8, pipelines={"image": chain, "label": None})))[0] for chain in chains]
    assert batches[1].dtype == torch.bfloat16 and batches[1].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(batches[1], batches[0], rtol=0, atol=0)


class Scaled(Operation):
    """Works on tensors: its memory is torch's."""

    def generate_code(self):
        def code(batch, out):
            out.copy_(batch)
            return out.mul_(2)

        return code

    def declare_state_and_memory(self, previous_state):
        assert not previous_state.jit_mode and previous_state.device == CPU
        state = replace(previous_state, dtype=torch.float32)
        return state, AllocationQuery(state.shape, state.dtype, state.device)


def test_operations_on_tensors(path):
    with Loader(path, 8, pipelines={"label": [IntDecoder(), ToTensor(), Scaled()], "image": None}) as loader:
        kept = [label for (label,) in loader]
    got = torch.cat(kept)
    assert got.dtype == torch.float32
    assert got[:, 0].tolist() == [2.0 * (i % 10) for i in range(COUNT)]


def test_default_pipelines(tmp_path):
    fields = {
        "t": TorchTensorField(torch.float32, (2, 3)),
        "j": JSONField(),
        "b": BytesField(),
        "f": FloatField(),
        "a": NDArrayField(np.dtype("int16"), (2,)),
    }
    samples = [(torch.full((2, 3), i), {"n": i}, bytes([i] * 4), i / 2, np.array([i, -i], np.int16)) for i in range(12)]
    samples = [(tensor.float(), *rest) for tensor, *rest in samples]
    DatasetWriter(str(tmp_path / "a.beton"), fields, num_workers=1).from_indexed_dataset(samples)
    with Loader(tmp_path / "a.beton", 4) as loader:
        batch = next(iter(loader))
        assert all(type(entry) is torch.Tensor for entry in batch)
        assert [entry.dtype for entry in batch] == [torch.float32, torch.uint8, torch.uint8, torch.float64, torch.int16]
        assert JSONField.unpack(batch[1]) == [{"n": i} for i in range(4)]
        loader.arrays = "numpy"
        assert all(type(entry) is np.ndarray for entry in next(iter(loader)))
