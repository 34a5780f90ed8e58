"""JPEG images whose data is damaged: an error that names the sample, or black pixels that are counted."""

from pathlib import Path

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
from cgxffcv.loader import Loader, OrderOption, PipelineSpec

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
    """A file with images that are truncated in the middle, and one in which they are black."""
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
    return Loader(path, 4, options.pop("num_workers", 2), **options)


@pytest.mark.parametrize("name", PIPELINES)
def test_black_instead(files, name):
    with load(files[0], PIPELINES[name], on_error="zero") as loader, load(files[1], PIPELINES[name]) as whole:
        for _ in range(2):
            for got, want in zip(loader, whole, strict=True):
                for one, other in zip(got, want, strict=True):
                    np.testing.assert_array_equal(one, other)
        count = 2 * len(BAD)
        assert loader.stats()["blanked"] == count
        assert whole.stats()["blanked"] == 0
        loader.get_batch([0, BAD[0]])  # the second one is also mixed into the first
        assert loader.stats()["blanked"] == count + 1
        (got, _, again) = loader.get_batch([BAD[0]], evaluate=True)
        assert not again.any() and loader.stats()["blanked"] == count + 2 and got.shape[0] == 1


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
        with pytest.raises(ValueError, match="on_error must be 'raise', 'zero' or 'skip', not 'ignore'"):
            loader.on_error = "ignore"


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("options", [{}, {"order": OrderOption.RANDOM}, {"os_cache": False}], ids=str)
def test_left_out(files, name, options):
    """Each batch is what it would be without them: also when mixed, and also the second time, when they are known."""
    with (
        load(files[0], PIPELINES[name], on_error="skip", ids=True, **options) as loader,
        load(files[1], PIPELINES[name], ids=True, **options) as whole,
    ):
        for epoch in range(3):
            for got, want in zip(loader, whole, strict=True):
                ids = [sample for sample in want[-1].tolist() if sample not in BAD]
                assert got[-1].tolist() == ids
                if ids:
                    for one, other in zip(got, whole.get_batch(ids, epoch), strict=True):
                        np.testing.assert_array_equal(one, other)
            assert loader.stats()["skipped"] == (epoch + 1) * len(BAD)
        assert loader.stats()["samples"] == 3 * (COUNT - len(BAD)) and loader.stats()["blanked"] == 0
        with pytest.raises(BetonError, match="damaged"):
            loader.get_batch(BAD)


def test_left_out_and_resumed(files):
    options = {"on_error": "skip", "ids": True, "order": OrderOption.RANDOM, "num_workers": 1}
    with load(files[0], PIPELINES["mixed"], **options) as loader:
        want = [*loader, *loader]
    lengths = [len(batch[-1]) for batch in want]
    for taken in range(1, len(want) // 2):
        with load(files[0], PIPELINES["mixed"], **options) as loader:
            passing = iter(loader)
            for _ in range(taken):
                next(passing)
            state = loader.state_dict()
        with load(files[0], PIPELINES["mixed"], **options) as loader:
            loader.load_state_dict(state)
            rest = [*loader, *loader]
        assert [len(batch[-1]) for batch in rest] == lengths[taken:]
        for got, other in zip(rest, want[taken:], strict=True):
            for one, two in zip(got, other, strict=True):
                np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("resident", [False, True])
def test_a_batch_of_which_nothing_is_left_is_empty(files, resident):
    order = [2, 9, 2, 9, 0, 1, 2, 3]
    with load(files[0], PIPELINES["part"], on_error="skip", ids=True, order=order, resident=resident) as loader:
        first, second = loader
        assert len(loader) == 2 and first[0].shape == (0, 20, 20, 3) and first[-1].size == 0
        assert second[-1].tolist() == [0, 1, 3] and loader.stats()["skipped"] == 5


def test_left_out_among_ranks(files):
    """Every rank has as many batches as if all samples were valid."""
    lengths, seen = [], []
    for rank in range(3):
        options = {"on_error": "skip", "ids": True, "rank": rank, "world_size": 3, "seed": 1}
        with load(files[0], PIPELINES["centre"], order=OrderOption.RANDOM, **options) as loader:
            batches = [batch[-1].tolist() for batch in loader]
            assert len(batches) == len(loader)
            lengths.append(len(batches))
            seen += sum(batches, [])
    assert len(set(lengths)) == 1 and sorted(seen) == [i for i in range(COUNT) if i not in BAD]


def test_a_file_that_becomes_shorter_is_an_error_in_any_case(files, tmp_path):
    path = tmp_path / "cut.beton"
    path.write_bytes(Path(files[1]).read_bytes())
    with load(str(path), PIPELINES["whole"], on_error="skip") as loader:
        with open(path, "r+b") as file:
            file.truncate(8192)
        with pytest.raises(BetonError, match="shorter"):
            list(loader)
