"""The loading half of FFCV's CIFAR example, with its imports renamed and nothing else changed in substance."""

import importlib
import re

import numpy as np
import pytest
from checkout import ROOT

from cgxffcv.cifar import sample

# What scripts written for FFCV 1.0.2 import, by module.
PATHS = {
    "fields": [
        "BytesField",
        "FloatField",
        "IntField",
        "JSONField",
        "NDArrayField",
        "RGBImageField",
        "TorchTensorField",
    ],
    "fields.decoders": [
        "IntDecoder",
        "FloatDecoder",
        "NDArrayDecoder",
        "BytesDecoder",
        "SimpleRGBImageDecoder",
        "CenterCropRGBImageDecoder",
        "RandomResizedCropRGBImageDecoder",
    ],
    "loader": ["Loader", "OrderOption"],
    "fields.base": ["Field"],
    "fields.basics": ["FloatDecoder", "FloatField", "IntDecoder", "IntField"],
    "fields.bytes": ["BytesDecoder", "BytesField"],
    "fields.json": ["JSONField"],
    "fields.ndarray": ["NDArrayDecoder", "NDArrayField", "TorchTensorField"],
    "fields.rgb_image": [
        "CenterCropRGBImageDecoder",
        "RGBImageField",
        "RandomResizedCropRGBImageDecoder",
        "SimpleRGBImageDecoder",
    ],
    "loader.epoch_iterator": ["EpochIterator"],
    "loader.loader": ["Loader", "OrderOption"],
    "pipeline": ["Compiler", "PipelineSpec"],
    "pipeline.allocation_query": ["AllocationQuery"],
    "pipeline.compiler": ["Compiler"],
    "pipeline.operation": ["AllocationQuery", "Operation", "State"],
    "pipeline.pipeline_spec": ["PipelineSpec"],
    "pipeline.state": ["State"],
    "reader": ["Reader"],
    "transforms": (
        "Convert Cutout ImageMixup LabelMixup MixupToOneHot ModuleWrapper NormalizeImage Poison RandomBrightness "
        "RandomContrast RandomHorizontalFlip RandomResizedCrop RandomSaturation RandomTranslate ReplaceLabel Squeeze "
        "ToDevice ToTensor ToTorchImage View"
    ).split(),
    "transforms.color_jitter": ["RandomBrightness", "RandomContrast", "RandomSaturation"],
    "transforms.common": ["Squeeze"],
    "transforms.cutout": ["Cutout"],
    "transforms.flip": ["RandomHorizontalFlip"],
    "transforms.mixup": ["ImageMixup", "LabelMixup", "MixupToOneHot"],
    "transforms.module": ["ModuleWrapper"],
    "transforms.normalize": ["NormalizeImage"],
    "transforms.ops": ["ToTensor", "ToDevice", "ToTorchImage", "Convert", "View"],
    "transforms.poisoning": ["Poison"],
    "transforms.random_resized_crop": ["RandomResizedCrop"],
    "transforms.replace_label": ["ReplaceLabel"],
    "transforms.translate": ["RandomTranslate"],
    "traversal_order": ["Random", "Sequential"],
    "traversal_order.base": ["TraversalOrder"],
    "traversal_order.random": ["Random"],
    "traversal_order.sequential": ["Sequential"],
    "writer": ["DatasetWriter"],
}


@pytest.mark.parametrize("path", PATHS)
def test_ffcvs_paths(path):
    module = importlib.import_module(f"cgxffcv.{path}")
    assert [name for name in PATHS[path] if not hasattr(module, name)] == []


def test_the_page_has_a_line_for_each_name():
    page = (ROOT / "docs/coming-from-ffcv.md").read_text()
    table = page[page.index("## FFCV's names") : page.index("## What is different")]
    words = set(re.findall(r"\w+", table))
    assert {name for names in PATHS.values() for name in names} - words == set()
    assert {path.split(".")[-1] for path in PATHS if path.startswith("transforms.")} - words == set()


def test_the_cifar_example(tmp_path):
    from cgxffcv.fields import IntField, RGBImageField
    from cgxffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
    from cgxffcv.loader import Loader, OrderOption
    from cgxffcv.pipeline.operation import Operation
    from cgxffcv.transforms import Convert, Cutout, RandomHorizontalFlip, RandomTranslate, ToTensor, ToTorchImage
    from cgxffcv.transforms.common import Squeeze
    from cgxffcv.writer import DatasetWriter

    images, labels = sample.load()
    pairs = [(images[i].transpose(1, 2, 0), int(labels[i])) for i in range(1100)]
    DatasetWriter(str(tmp_path / "train.beton"), {"image": RGBImageField(), "label": IntField()}).from_indexed_dataset(
        pairs
    )
    loaders = {}
    for name in ("train", "test"):
        label_pipeline: list[Operation] = [IntDecoder(), ToTensor(), Squeeze()]
        image_pipeline: list[Operation] = [SimpleRGBImageDecoder()]
        if name == "train":
            mean = [125, 122, 113]
            image_pipeline.extend(
                [RandomHorizontalFlip(), RandomTranslate(padding=2, fill=mean), Cutout(4, tuple(mean))]
            )
        image_pipeline.extend([ToTensor(), ToTorchImage(), Convert(np.float16)])
        ordering = OrderOption.RANDOM if name == "train" else OrderOption.SEQUENTIAL
        loaders[name] = Loader(
            str(tmp_path / "train.beton"),
            batch_size=512,
            num_workers=2,
            order=ordering,
            drop_last=(name == "train"),
            pipelines={"image": image_pipeline, "label": label_pipeline},
        )
    assert (len(loaders["train"]), len(loaders["test"])) == (2, 3)
    seen = []
    for batch_images, batch_labels in loaders["test"]:
        seen.append((np.asarray(batch_images), np.asarray(batch_labels)))
    assert np.array_equal(np.concatenate([x for x, _ in seen]), images[:1100].astype(np.float16))
    assert np.array_equal(np.concatenate([y for _, y in seen]), labels[:1100])
    for batch_images, batch_labels in loaders["train"]:
        assert batch_images.shape == (512, 3, 32, 32) and batch_labels.shape == (512,)
