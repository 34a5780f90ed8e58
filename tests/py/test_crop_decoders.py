"""Decoders that crop and resample images of any sizes, against NumPy, exact integers and Pillow."""

import math
from pathlib import Path

import _cgxffcv
import numpy as np
import pytest
from checkout import run_python
from crop_reference import area, bilinear, central, clamped, drawn, nearest
from PIL import Image

from cgxffcv import BetonError, DatasetWriter, Loader, Reader
from cgxffcv import transforms as tf
from cgxffcv.fields import IntField, RGBImageField
from cgxffcv.fields.decoders import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder, SimpleRGBImageDecoder
from cgxffcv.loader import PipelineSpec

SIZES = [(1, 1), (5, 9), (64, 48), (48, 64), (31, 200), (200, 31), (97, 101), (224, 224), (130, 260), (33, 40)]
COUNT = 3 * len(SIZES)
OUT = (40, 33)
SEED = 7


needs_jpeg = pytest.mark.skipif(not _cgxffcv.build_info()["jpeg"], reason="this build has no libjpeg-turbo")


def picture(i):
    """A smooth image with some noise, so that JPEG has something to do."""
    height, width = SIZES[i % len(SIZES)]
    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng(i)
    planes = [128 + 100 * np.sin(y / (3 + c + i % 5)) * np.cos(x / (5 + c)) for c in range(3)]
    return np.clip(np.stack(planes, 2) + rng.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module", params=["raw", "jpg", "proportion"])
def path(request, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("crop") / "images.beton")
    fields = {"image": RGBImageField(write_mode=request.param), "label": IntField()}
    DatasetWriter(path, fields, progress=False).from_indexed_dataset([(picture(i), i) for i in range(COUNT)])
    return path


def loader_of(path, decoder, *steps, workers=2, batch=7, **options):
    return Loader(path, batch, workers, pipelines={"image": [decoder, *steps]}, seed=SEED, drop_last=False, **options)


def batches(loader):
    images, labels = zip(*((image.copy(), label[:, 0].copy()) for image, label in loader), strict=True)
    return np.concatenate(images), np.concatenate(labels)


@pytest.mark.parametrize("ratio", [1.0, 0.875, 224 / 256, 0.01])
def test_center_crop(path, ratio):
    with loader_of(path, CenterCropRGBImageDecoder(OUT, ratio)) as loader, Reader(path) as reader:
        images, labels = batches(loader)
        assert images.shape == (COUNT, *OUT, 3) and labels.tolist() == list(range(COUNT))
        for got, i in zip(images, labels.tolist(), strict=True):
            whole = reader[i]["image"]
            height, width = whole.shape[:2]
            side = int(ratio * min(height, width))
            y, x, h, w = central(height, width, side, side)
            assert (y, x) == ((height - h) // 2, (width - w) // 2)
            np.testing.assert_array_equal(got, area(whole[y : y + h, x : x + w], OUT))


@pytest.mark.parametrize("scale, ratio", [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.9, 1.0), (0.2, 0.25)), ((1, 1), (1, 1))])
def test_random_resized_crop(path, scale, ratio):
    decoder = RandomResizedCropRGBImageDecoder(OUT, scale, ratio)
    with loader_of(path, decoder) as loader, Reader(path) as reader:
        for epoch in range(2):
            images, labels = batches(loader)
            for got, i in zip(images, labels.tolist(), strict=True):
                whole = reader[i]["image"]
                y, x, h, w = drawn(*whole.shape[:2], (SEED, epoch, i), scale, ratio)
                np.testing.assert_array_equal(got, area(whole[y : y + h, x : x + w], OUT))
        neutral = loader.get_batch(np.arange(COUNT), evaluate=True)[0]
        for i in range(COUNT):
            whole = reader[i]["image"]
            y, x, h, w = clamped(*whole.shape[:2], ratio)
            np.testing.assert_array_equal(neutral[i], area(whole[y : y + h, x : x + w], OUT))


def central_parts(path, out, interpolation):
    """Of each image, what the decoder makes of its largest central square, and that square."""
    decoder = CenterCropRGBImageDecoder(out, 1.0, interpolation)
    with loader_of(path, decoder) as loader, Reader(path) as reader:
        for i, got in enumerate(batches(loader)[0]):
            whole = reader[i]["image"]
            side = min(whole.shape[:2])
            y, x, h, w = central(*whole.shape[:2], side, side)
            yield got, whole[y : y + h, x : x + w]


@pytest.mark.parametrize("out", [OUT, (224, 224), (1, 1), (7, 300)])
def test_bilinear_is_antialiased(path, out):
    """Rounded once from the triangle filter's sums; Pillow, which rounds between the axes, differs by 1 at most."""
    for got, part in central_parts(path, out, "bilinear_antialias"):
        assert np.abs(got - bilinear(part, out)).max() <= 0.5 + 1e-3
        pillow = np.asarray(Image.fromarray(part).resize(out[::-1], Image.Resampling.BILINEAR))
        assert np.abs(got.astype(int) - pillow).max() <= 1


@pytest.mark.parametrize("out", [OUT, (224, 224), (1, 1), (7, 300)])
def test_nearest_pixels_are_pillows(path, out):
    """Except where the centre of an output pixel is exactly between two of the source: we take the latter; Pillow adds
    up its steps, and may arrive at the other one."""
    for got, part in central_parts(path, out, "nearest"):
        np.testing.assert_array_equal(got, nearest(part, out))
        inside = [(2 * np.arange(n) + 1) * len(part) % (2 * n) != 0 for n in out]
        pillow = np.asarray(Image.fromarray(part).resize(out[::-1], Image.Resampling.NEAREST))
        np.testing.assert_array_equal(got[np.ix_(*inside)], pillow[np.ix_(*inside)])


EVERY_PROCESSOR = """
import hashlib, sys
from cgxffcv import Loader
from cgxffcv.fields.decoders import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder
from cgxffcv.loader import PipelineSpec
from cgxffcv.transforms import RandomHorizontalFlip

outs = [(224, 224), (40, 33), (1, 1), (7, 300), (300, 7), (16, 5), (61, 128)]
filters = ("area", "bilinear_antialias", "nearest")
decoders = [cls(out, *ratio, interpolation=filter) for out in outs for filter in filters
            for cls, ratio in ((CenterCropRGBImageDecoder, (0.9,)), (RandomResizedCropRGBImageDecoder, ()))]
pipelines = {f"{i}": PipelineSpec("image", decoder, [RandomHorizontalFlip()] * (i % 2), i)
             for i, decoder in enumerate(decoders)}
with Loader(sys.argv[1], 10, 2, pipelines={"image": None, "label": None, **pipelines}, seed=1) as loader:
    for batch in loader:
        print(*(hashlib.sha256(array).hexdigest()[:12] for array in batch))
"""


@pytest.mark.parametrize("path", ["raw"], indirect=True)
def test_all_processors_give_the_same_pixels(path):
    said = []
    for level in ("scalar", "avx2", "avx512"):  # instead of a missing one, the best available is used
        done = run_python("-c", EVERY_PROCESSOR, path, limit=300, CGXFFCV_CPU=level)
        said.append(done.stdout.splitlines())
    assert len(said[0]) == COUNT // 10
    assert said[0] == said[1] == said[2]


def test_what_comes_behind(path):
    """Operations on the resampled image, and draws that do not depend on workers, batches or a resumption."""
    decoder = RandomResizedCropRGBImageDecoder(OUT)
    mean, std = (120, 110, 100), (60, 61, 62)
    steps = [tf.RandomHorizontalFlip(), tf.NormalizeImage(mean, std, np.float32), tf.ToTorchImage(channels_last=False)]
    with loader_of(path, decoder) as plain, loader_of(path, decoder, *steps, workers=1, batch=4) as full:
        pixels, _ = batches(plain)
        values, _ = batches(full)
        assert values.shape == (COUNT, 3, *OUT) and values.dtype == np.float32
        flipped = 0
        for got, image in zip(values, pixels, strict=True):
            want = ((image.astype(np.float64) - mean) / std).astype(np.float32).transpose(2, 0, 1)
            mirrored = np.array_equal(got, want[:, :, ::-1]) and not np.array_equal(got, want)
            assert mirrored or np.array_equal(got, want)
            flipped += mirrored
        assert 0 < flipped < COUNT
        again = full.get_batch(np.arange(COUNT)[::-1], epoch=0)[0]
        np.testing.assert_array_equal(again[::-1], values)


def test_a_crop_is_mixed_with_the_one_before(path):
    """At every position in a batch, also where a chunk of work begins."""
    decoder = RandomResizedCropRGBImageDecoder(OUT)
    with loader_of(path, decoder, batch=COUNT) as plain:
        pixels = batches(plain)[0].astype(float)
    mixed = []
    for workers in (1, 3):
        with loader_of(path, decoder, tf.ImageMixup(1.0, same_lambda=True), workers=workers, batch=COUNT) as loader:
            mixed.append(batches(loader)[0])
    np.testing.assert_array_equal(*mixed)
    before = np.roll(pixels, 1, axis=0)
    share = ((mixed[0] - before) * (pixels - before)).sum() / ((pixels - before) ** 2).sum()
    assert 0 < share < 1
    assert np.abs(mixed[0] - (share * pixels + (1 - share) * before)).max() <= 1.5


def test_image_and_mask_share_their_draws(path):
    decoder = RandomResizedCropRGBImageDecoder(OUT)
    pipelines = {name: PipelineSpec("image", decoder, draws=number) for name, number in (("a", 3), ("b", 3), ("c", 4))}
    with Loader(path, COUNT, 2, pipelines={"image": None, "label": None, **pipelines}, seed=SEED) as loader:
        a, b, c = next(iter(loader))
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)


def test_a_masks_classes_stay_what_they_are(tmp_path):
    """Image and mask are cut and mirrored alike, and no new class appears."""
    classes = np.array([0, 7, 200], np.uint8)
    masks = [np.repeat(classes[picture(i)[..., :1] // 86], 3, 2) for i in range(COUNT)]
    fields = {"image": RGBImageField(), "mask": RGBImageField()}
    DatasetWriter(tmp_path / "a", fields, progress=False).from_indexed_dataset(list(zip(masks, masks, strict=True)))
    decoder, steps = RandomResizedCropRGBImageDecoder(OUT, interpolation="nearest"), [tf.RandomHorizontalFlip()]
    pipelines = {name: PipelineSpec(name, decoder, steps, draws=0) for name in fields}
    area = PipelineSpec("mask", RandomResizedCropRGBImageDecoder(OUT), steps, draws=0)
    with Loader(tmp_path / "a", COUNT, 2, pipelines={**pipelines, "area": area}, seed=SEED) as loader:
        image, mask, averaged = next(iter(loader))
    np.testing.assert_array_equal(image, mask)
    assert set(np.unique(mask)) == set(classes) != set(np.unique(averaged))
    assert np.mean(np.abs(mask.astype(int) - averaged) > 100) < 0.05  # the same places


def test_two_decoders_of_one_field(path):
    indices = [i for i in range(COUNT) if SIZES[i % len(SIZES)] == (64, 48)]
    pipelines = {
        "image": [SimpleRGBImageDecoder()],
        "small": PipelineSpec("image", CenterCropRGBImageDecoder(OUT, 1.0)),
    }
    with Loader(path, 3, 2, indices=indices, pipelines=pipelines) as loader:
        whole, _, small = next(iter(loader))
        for one, other in zip(whole, small, strict=True):
            np.testing.assert_array_equal(other, area(one[8:56], OUT))


def test_no_samples(path):
    with loader_of(path, CenterCropRGBImageDecoder(OUT, 1.0), indices=[]) as loader:
        assert list(loader) == []
        assert loader.get_batch([])[0].shape == (0, *OUT, 3)


def test_memory_is_of_one_image_a_thread(path):
    """Not of the largest image for every position in every batch."""
    with loader_of(path, RandomResizedCropRGBImageDecoder(OUT), batch=1000) as loader:
        batches(loader)
        room = 5 * COUNT * (OUT[0] * OUT[1] * 3 + 16)
        assert loader.stats()["memory_bytes"] < 2 * (260 * 224 * 3 + OUT[0] * OUT[1] * 3) + room + (1 << 16)


FLIPS = [tf.RandomHorizontalFlip(0.6), tf.AlternatingFlip(), tf.RandomTranslate(1), tf.Cutout(3, (1, 2, 3))]


@pytest.mark.parametrize("interpolation", ["area", "bilinear_antialias", "nearest"])
@pytest.mark.parametrize("out", [OUT, (48, 64), (300, 7)])
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4])
def test_what_only_mirrors_is_done_by_the_resampler(path, steps, out, interpolation):
    """The same as by the pass that other layouts need; of a translation or hole that does nothing, too."""
    decoders = [
        RandomResizedCropRGBImageDecoder(out, interpolation=interpolation),
        CenterCropRGBImageDecoder(out, 1.0, interpolation=interpolation),
    ]
    for decoder in decoders:
        for options in ({}, {"evaluate": True}):
            with loader_of(path, decoder, *FLIPS[:steps], **options) as loader:
                straight, _ = batches(loader)
            planar = tf.ToTorchImage(channels_last=False)
            with loader_of(path, decoder, *FLIPS[:steps], planar, **options) as loader:
                passed, _ = batches(loader)
            np.testing.assert_array_equal(straight, passed.transpose(0, 2, 3, 1))


def test_images_of_the_results_size_are_mirrored_too(tmp_path):
    path, images = str(tmp_path / "a.beton"), np.random.default_rng(2).integers(0, 256, (40, 9, 9, 3), np.uint8)
    DatasetWriter(path, {"image": RGBImageField()}, progress=False).from_arrays(image=images)
    with Loader(path, 40, pipelines={"image": [CenterCropRGBImageDecoder((9, 9), 1.0), FLIPS[0]]}, seed=SEED) as loader:
        (got,) = next(iter(loader))
    turned = (got == images[:, :, ::-1]).all((1, 2, 3))
    np.testing.assert_array_equal(np.where(turned[:, None, None, None], images[:, :, ::-1], images), got)
    assert 12 < turned.sum() < 36


MIRRORED = [(134, 33, "nearest"), (262, 65, "nearest"), (902, 225, "nearest"), (299, 40, "area"), (217, 8, "area")]


@pytest.mark.parametrize("jpeg_mode", ["accurate", "scaled"])
@pytest.mark.parametrize("size, out, interpolation", MIRRORED)
def test_mirroring_moves_the_columns_that_are_added_at_a_time(tmp_path, size, out, interpolation, jpeg_mode):
    """And therefore how much of a row they need: here more than unmirrored."""
    path, draw = str(tmp_path / "a.beton"), np.random.default_rng(size)
    images = [draw.integers(0, 256, (size, size, 3), np.uint8) for _ in range(3)]
    mode = "raw" if jpeg_mode == "accurate" else "jpg"
    writer = DatasetWriter(path, {"image": RGBImageField(write_mode=mode)}, progress=False)
    writer.from_indexed_dataset([(image,) for image in images])
    decoder = CenterCropRGBImageDecoder((out, out), 1.0, interpolation=interpolation, jpeg_mode=jpeg_mode)
    plain, mirrored = (
        next(iter(Loader(path, 3, pipelines={"image": [decoder, *steps]})))[0]
        for steps in ((), (tf.RandomHorizontalFlip(1.0),))
    )
    np.testing.assert_array_equal(mirrored, plain[:, :, ::-1])


def test_stats_tell_where_the_workers_time_goes(path):
    """Parts that do not overlap; what is not done has no part."""
    with Reader(path) as reader:
        jpeg = bool(reader.fields["image"].num_jpeg)
    for decoder in (CenterCropRGBImageDecoder(OUT, 1.0), RandomResizedCropRGBImageDecoder(OUT)):
        with loader_of(path, decoder, tf.RandomBrightness(0.5)) as loader:
            batches(loader)
            stats = loader.stats()
        parts = [stats[f"{name}_seconds"] for name in ("jpeg", "resample", "augment")]
        assert (parts[0] > 0) == jpeg and min(parts[1:]) > 0 and sum(parts) <= stats["work_seconds"] + 1e-6
    with Loader(path, 7, pipelines={"image": None}, drop_last=False) as loader:
        list(loader)
        assert loader.stats()["resample_seconds"] == loader.stats()["augment_seconds"] == 0


def shares(size, unit, first, length, out):
    """The share of each of a shrunk axis' pixels in each output pixel, in an average over [first, first + length)."""
    edges = first + np.arange(out + 1) * length / out
    low, high = np.arange(size)[None] * unit, np.arange(1, size + 1)[None] * unit
    return np.clip(np.minimum(edges[1:, None], high) - np.maximum(edges[:-1, None], low), 0, None) * out / length


@needs_jpeg
@pytest.mark.parametrize("interpolation", ["area", "bilinear_antialias"])
def test_large_crops_are_decoded_at_a_part_of_their_size(tmp_path, interpolation):
    """From the shrunk image, at the rectangle's exact place in it, in fractions of its pixels; and each view by
    itself."""
    path, out = str(tmp_path / "a.beton"), (17, 20)
    smooth = []
    for i in range(12):
        y, x = np.mgrid[: 250 + i, : 321 - i]
        planes = [128 + 100 * np.sin(y / (20 + c + i)) * np.cos(x / (25 + c)) for c in range(3)]
        smooth.append(np.stack(planes, 2).astype(np.uint8))
    fields = {"image": RGBImageField(write_mode="jpg"), "label": IntField()}
    DatasetWriter(path, fields, progress=False).from_indexed_dataset([(s, i) for i, s in enumerate(smooth)])
    options = {"interpolation": interpolation, "jpeg_mode": "scaled"}
    decoder = RandomResizedCropRGBImageDecoder(out, (0.01, 1.0), **options)
    views = {"a": PipelineSpec("image", decoder, draws=0), "b": PipelineSpec("image", decoder, draws=1)}
    streams, seen = [], set()
    with Reader(path) as reader:
        for i in range(len(smooth)):
            begin, end = reader.sample_span(i)
            streams.append(Path(path).read_bytes()[begin:end])
    with Loader(path, 12, 2, pipelines={"image": None, **views}, seed=SEED) as loader:
        labels, a, b = next(iter(loader))
        for got, number in ((a, 0), (b, 1)):
            for i in labels[:, 0].tolist():
                height, width = smooth[i].shape[:2]
                y, x, h, w = drawn(height, width, (SEED, 0, i), (0.01, 1.0), (3 / 4, 4 / 3), number)
                shrink = next(s for s in (8, 4, 2, 1) if s == 1 or (h // s >= out[0] and w // s >= out[1]))
                seen.add(shrink)
                source = _cgxffcv.jpeg_decode(streams[i], shrink=shrink).astype(float)
                if interpolation == "area":
                    rows = shares(source.shape[0], shrink, y, h, out[0])
                    columns = shares(source.shape[1], shrink, x, w, out[1])
                    want = np.stack([rows @ source[:, :, c] @ columns.T for c in range(3)], 2)
                    assert np.abs(got[i] - want).max() <= 0.5 + 1e-6
                part = _cgxffcv.jpeg_decode(streams[i])[y : y + h, x : x + w]
                exact = area(part, out).astype(int) if interpolation == "area" else bilinear(part, out)
                assert np.abs(got[i] - exact).mean() < 2
    assert seen == {1, 2, 4, 8}


def test_views_are_what_each_would_be_alone(path):
    """Crops of an image share its decoding, whether or not they have the same decoder, size, draws and chain."""
    random, fast = RandomResizedCropRGBImageDecoder(OUT), RandomResizedCropRGBImageDecoder(OUT, jpeg_mode="fast")
    views = {
        "a": PipelineSpec("image", random, draws=5),
        "b": PipelineSpec("image", RandomResizedCropRGBImageDecoder((9, 12), (0.5, 1)), [tf.RandomHorizontalFlip()], 6),
        "c": PipelineSpec("image", CenterCropRGBImageDecoder(OUT, 0.8)),
        "d": PipelineSpec("image", random, [tf.ImageMixup(0.5, False)], 5),
        "e": PipelineSpec("image", CenterCropRGBImageDecoder((20, 3), 1.0), [tf.RandomBrightness(0.5)], 8),
        "f": PipelineSpec("image", fast, draws=5),
    }

    def of(chosen):
        pipelines = {"image": None, "label": None, **{name: views[name] for name in chosen}}
        with Loader(path, 11, 3, pipelines=pipelines, seed=SEED, drop_last=False) as loader:
            return [np.concatenate(arrays) for arrays in zip(*loader, strict=True)]

    together = of(views)
    for name, got in zip(views, together, strict=True):
        np.testing.assert_array_equal(got, of([name])[0])
    assert not np.array_equal(together[0], together[3])


@pytest.mark.parametrize("stored", ["raw", "jpg", "proportion"])
@pytest.mark.parametrize("cached", [True, False])
def test_whole_images_beside_crops_are_what_they_would_be_alone(tmp_path, stored, cached):
    path, shape = str(tmp_path / "a.beton"), (44, 38, 3)
    noise = np.random.default_rng(3).integers(0, 256, (23, *shape), dtype=np.uint8)
    smooth = np.cumsum(noise.astype(np.int64) - 128, axis=2) // 8 % 256
    fields = {"image": RGBImageField(write_mode=stored), "label": IntField()}
    rows = [(image.astype(np.uint8), i) for i, image in enumerate(smooth)]
    DatasetWriter(path, fields, progress=False).from_indexed_dataset(rows)
    random, fast = RandomResizedCropRGBImageDecoder(OUT), RandomResizedCropRGBImageDecoder(OUT, jpeg_mode="fast")
    moved = [tf.RandomTranslate(60), tf.RandomHorizontalFlip(), tf.NormalizeImage(9, 3, np.float16)]
    views = {
        "whole": PipelineSpec("image", SimpleRGBImageDecoder()),
        "a": PipelineSpec("image", random, draws=5),
        "mixed": PipelineSpec(
            "image", SimpleRGBImageDecoder(), [tf.RandomVerticalFlip(), tf.ImageMixup(0.5, False)], 3
        ),
        "part": PipelineSpec("image", SimpleRGBImageDecoder(), [tf.RandomCrop((20, 11), padding=7)], 2),
        "fast": PipelineSpec("image", fast, draws=5),
        "b": PipelineSpec("image", CenterCropRGBImageDecoder((9, 9), 0.8), [tf.ImageMixup(0.5, False)], 4),
        "moved": PipelineSpec("image", SimpleRGBImageDecoder("fast"), moved, 1),
        "scaled": PipelineSpec("image", RandomResizedCropRGBImageDecoder((5, 6), jpeg_mode="scaled"), draws=5),
    }

    def of(chosen, evaluate=False):
        pipelines = {"image": None, "label": None, **{name: views[name] for name in chosen}}
        options = {"seed": SEED, "drop_last": False, "os_cache": cached, "evaluate": evaluate}
        with Loader(path, 9, 3, pipelines=pipelines, **options) as loader:
            return [np.concatenate(arrays) for arrays in zip(*loader, strict=True)]

    for chosen in (views, ["whole", "a"], ["b", "part"], ["fast", "moved"], ["moved", "mixed", "a"]):
        for name, got in zip(chosen, of(chosen), strict=True):
            np.testing.assert_array_equal(got, of([name])[0], err_msg=f"{name} of {list(chosen)}")
    np.testing.assert_array_equal(of(views, True)[0], of(["whole"])[0])


def test_a_whole_image_beside_a_crop_must_be_of_the_one_size(path):
    views = {"a": CenterCropRGBImageDecoder(OUT, 1.0), "b": SimpleRGBImageDecoder()}
    pipelines = {"image": None, **{name: PipelineSpec("image", decoder) for name, decoder in views.items()}}
    with pytest.raises(TypeError, match="this decoder needs images of one size"):
        Loader(path, 5, 1, pipelines=pipelines)
    with Loader(path, 2, 1, indices=[4, 4 + len(SIZES)], pipelines=pipelines) as loader:
        assert [array.shape for array in next(iter(loader))[1:]] == [(2, *OUT, 3), (2, *SIZES[4], 3)]
        with pytest.raises(ValueError, match="the image is 1x1 .*, but the loader's images are 31x200"):
            loader.get_batch([0])


@needs_jpeg
def test_views_of_several_decoders_decode_an_image_once(tmp_path):
    """A damaged image is counted each time that it is decoded."""
    path, stream = str(tmp_path / "a.beton"), bytearray(_cgxffcv.jpeg_encode(picture(7)))
    DatasetWriter(path, {"image": RGBImageField("jpg")}, progress=False).from_indexed_dataset([(bytes(stream),)])
    stream[len(stream) // 2 :] = bytes(len(stream) - len(stream) // 2)
    with Reader(path) as reader:
        begin, end = reader.sample_span(0)
    with open(path, "r+b") as file:
        file.seek(begin)
        file.write(stream[: end - begin])
    random, central = RandomResizedCropRGBImageDecoder(OUT, (0.9, 1.0)), CenterCropRGBImageDecoder(OUT, 1.0)
    views = {"a": random, "b": central, "c": RandomResizedCropRGBImageDecoder((9, 9), (0.9, 1.0))}
    views |= {"d": SimpleRGBImageDecoder(), "e": SimpleRGBImageDecoder()}
    pipelines = {"image": None, **{name: PipelineSpec("image", decoder) for name, decoder in views.items()}}
    with Loader(path, 1, 1, pipelines=pipelines, on_error="zero") as loader:
        assert not any(array.any() for array in next(iter(loader)))
        assert loader.stats()["blanked"] == 1


def test_a_damaged_image_names_its_sample(tmp_path):
    path = str(tmp_path / "a.beton")
    fields = {"image": RGBImageField(write_mode="jpg")}
    DatasetWriter(path, fields, progress=False).from_indexed_dataset([(picture(6),) for _ in range(5)])
    with Reader(path) as reader:
        begin, end = reader.sample_span(3)
    with open(path, "r+b") as file:
        file.seek((begin + end) // 2)
        file.write(bytes(end - (begin + end) // 2))
    with loader_of(path, CenterCropRGBImageDecoder(OUT, 1.0)) as loader:
        with pytest.raises(BetonError, match="field 'image': corrupt JPEG") as caught:
            list(loader)
        assert caught.value.sample == 3


@pytest.mark.parametrize(
    "make, error, text",
    [
        (lambda: CenterCropRGBImageDecoder(OUT, 0), ValueError, "ratio"),
        (lambda: CenterCropRGBImageDecoder(OUT, 1.5), ValueError, "ratio"),
        (lambda: CenterCropRGBImageDecoder((0, 5), 1), ValueError, "output_size"),
        (lambda: CenterCropRGBImageDecoder((5, 70000), 1), ValueError, "output_size"),
        (lambda: CenterCropRGBImageDecoder(OUT, 1, interpolation="cubic"), ValueError, "interpolation"),
        (lambda: RandomResizedCropRGBImageDecoder(OUT, jpeg_mode="best"), ValueError, "jpeg_mode"),
        (lambda: RandomResizedCropRGBImageDecoder(OUT, scale=(0.5, 0.1)), ValueError, "scale"),
        (lambda: RandomResizedCropRGBImageDecoder(OUT, scale=(0.5, 1.1)), ValueError, "scale"),
        (lambda: RandomResizedCropRGBImageDecoder(OUT, ratio=(0, 1)), ValueError, "ratio"),
        (lambda: RandomResizedCropRGBImageDecoder(OUT, ratio=(1, math.inf)), ValueError, "ratio"),
        (lambda: RandomResizedCropRGBImageDecoder(OUT, ratio=(math.nan, 1)), ValueError, "ratio"),
    ],
)
def test_bad_arguments(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_pixels_cannot_stay(path):
    with pytest.raises(ValueError, match="resident"):
        loader_of(path, CenterCropRGBImageDecoder(OUT, 1.0), resident=True)
