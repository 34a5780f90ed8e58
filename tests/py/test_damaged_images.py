"""JPEG images whose data is damaged: an error that names the sample, or black pixels that are counted."""

import numpy as np
import pytest

from cgxffcv import BetonError, DatasetWriter, Reader
from cgxffcv import transforms as tf
from cgxffcv.fields import IntField, RGBImageField
from cgxffcv.fields.decoders import (
    CenterCropRGBImageDecoder,
    RandomResizedCropRGBImageDecoder,
    SimpleRGBImageDecoder,
)
from cgxffcv.loader import Loader, PipelineSpec

COUNT, BAD = 14, [2, 9]
PIPELINES = {
    "whole": [SimpleRGBImageDecoder()],
    "part": [SimpleRGBImageDecoder(), tf.RandomCrop(20), tf.RandomHorizontalFlip()],
    "mixed": [SimpleRGBImageDecoder(), tf.ImageMixup(0.4, False)],
    "centre": [CenterCropRGBImageDecoder((17, 30), 1.0), tf.RandomContrast(0.5)],
    "random": [RandomResizedCropRGBImageDecoder((25, 25))],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One with images that are cut in the middle, and one in which they are black."""
    folder = tmp_path_factory.mktemp("damaged")
    noise = np.random.default_rng(3).integers(0, 256, (COUNT, 6, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    paths = str(folder / "damaged.beton"), str(folder / "black.beton")
    for path in paths:
        fields = {"image": RGBImageField(write_mode="jpg"), "label": IntField()}
        black = path == paths[1]
        samples = [(image * (not black or i not in BAD), i) for i, image in enumerate(noise)]
        DatasetWriter(path, fields, num_workers=1, progress=False).from_indexed_dataset(samples)
    with Reader(paths[0]) as reader, open(paths[0], "r+b") as file:
        for sample in BAD:
            begin, end = reader.sample_span(sample)
            file.seek((begin + end) // 2)
            file.write(bytes(end - (begin + end) // 2))
    return paths


def load(path, steps, **options):
    pipelines = {"image": steps, "again": PipelineSpec("image", steps[0])}
    options = {"pipelines": pipelines, "seed": 7, "drop_last": False, "arrays": "numpy", **options}
    return Loader(path, 4, 2, **options)


@pytest.mark.parametrize("name", PIPELINES)
def test_black_instead(files, name):
    with load(files[0], PIPELINES[name], on_error="zero") as loader, load(files[1], PIPELINES[name]) as whole:
        for _ in range(2):
            for got, want in zip(loader, whole, strict=True):
                for one, other in zip(got, want, strict=True):
                    np.testing.assert_array_equal(one, other)
        least = 2 * len(BAD)
        assert least <= loader.stats()["blanked"] <= (1 if name != "mixed" else 3) * least
        assert whole.stats()["blanked"] == 0
        (got, _, again) = loader.get_batch([BAD[0]], evaluate=True)
        assert not again.any() and loader.stats()["blanked"] > least and got.shape[0] == 1


def test_resident(files):
    with load(files[0], PIPELINES["part"], on_error="zero", resident=True) as loader:
        assert loader.stats()["blanked"] == len(BAD)
        with load(files[1], PIPELINES["part"]) as whole:
            for got, want in zip(loader, whole, strict=True):
                np.testing.assert_array_equal(got[0], want[0])
        assert loader.stats()["blanked"] == len(BAD)


@pytest.mark.parametrize("name", PIPELINES)
def test_an_error_by_default(files, name):
    with load(files[0], PIPELINES[name]) as loader:
        with pytest.raises(BetonError, match="damaged") as caught:
            list(loader)
        assert caught.value.sample == BAD[0] and caught.value.field == "image"
        loader.on_error = "zero"
        assert len(list(loader)) == 4
        with pytest.raises(ValueError, match="on_error must be 'raise' or 'zero', not 'skip'"):
            loader.on_error = "skip"
