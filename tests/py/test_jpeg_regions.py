"""A region of a JPEG has the same pixels as in the whole image, whatever the stream is like."""

import io
import re

import _cgxffcv
import numpy as np
import pytest

from cgxffcv import BetonError, DatasetWriter, Loader
from cgxffcv import transforms as tf
from cgxffcv.fields import RGBImageField
from cgxffcv.fields.decoders import RandomResizedCropRGBImageDecoder, SimpleRGBImageDecoder
from cgxffcv.loader import PipelineSpec

Image = pytest.importorskip("PIL.Image")
pytestmark = pytest.mark.skipif(not _cgxffcv.build_info()["jpeg"], reason="this build has no libjpeg-turbo")


def picture(seed, height, width):
    y, x = np.mgrid[0:height, 0:width]
    rng = np.random.default_rng(seed)
    waves = np.stack([np.sin(x / (3 + c) + rng.random() * 6) * np.cos(y / (4 + c)) for c in range(3)], -1)
    return np.clip(128 + 90 * waves + rng.normal(0, 12, waves.shape), 0, 255).astype(np.uint8)


def jpeg(height, width, mode="RGB", seed=0, **options):
    out = io.BytesIO()
    Image.fromarray(picture(seed, height, width)).convert(mode).save(out, "JPEG", **{"quality": 85, **options})
    return out.getvalue()


def resampled(data, sampling, height, width):
    """The stream with other factors for the luma, with which it has the same number of blocks in an image of another
    size."""
    data = bytearray(data)
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    data[frame + 11] = sampling
    return bytes(data)


def one_after_the_other(height, width):
    """Three components, each in a separate scan: grey streams, which share their tables, put together."""
    grey = [jpeg(height, width, "L", seed) for seed in range(3)]
    frame, scan = grey[0].index(b"\xff\xc0"), grey[0].index(b"\xff\xda")
    head = grey[0][:frame] + b"\xff\xc0\0\x11\x08" + grey[0][frame + 5 : frame + 9]
    head += b"\3" + b"".join(bytes([c, 0x11, 0]) for c in (1, 2, 3)) + grey[0][frame + 13 : scan]
    parts = [stream[stream.index(b"\xff\xda") + 10 : -2] for stream in grey]
    return (
        head
        + b"".join(b"\xff\xda\0\x08\1" + bytes([c, 0, 0, 63, 0]) + p for c, p in enumerate(parts, 1))
        + grey[0][-2:]
    )


def first_scans(data, count):
    """A progressive stream without its last scans, which is still complete, and is smoothed when it is decoded."""
    at = -1
    for _ in range(count + 1):
        at = data.index(b"\xff\xda", at + 1)
    tables = data.rfind(b"\xff\xc4", 0, at)
    return data[: tables if tables > 0 else at] + b"\xff\xd9"


def filled(data, every=1):
    """With a fill byte before restart markers, as any marker may have (ITU-T T.81, B.1.1.2)."""
    parts = re.split(rb"(\xff[\xd0-\xd7])", data)
    return b"".join(b"\xff" + part if i % 2 and i // 2 % every == every - 1 else part for i, part in enumerate(parts))


STREAMS = {
    "4:4:4": lambda: jpeg(75, 101, subsampling=0),
    "4:2:2": lambda: jpeg(75, 101, subsampling=1),
    "4:2:0": lambda: jpeg(75, 101, subsampling=2),
    "4:2:0 of whole blocks": lambda: jpeg(96, 64, subsampling=2),
    "4:4:0": lambda: resampled(jpeg(64, 96, subsampling=1), 0x12, 96, 64),
    "4:1:1": lambda: resampled(jpeg(64, 96, subsampling=2), 0x41, 32, 192),
    "1:4": lambda: resampled(jpeg(64, 96, subsampling=2), 0x14, 128, 48),
    "grey": lambda: jpeg(75, 101, "L"),
    "progressive": lambda: jpeg(75, 101, progressive=True),
    "progressive 4:4:4": lambda: jpeg(75, 101, progressive=True, subsampling=0),
    "smoothed": lambda: first_scans(jpeg(75, 101, progressive=True), 1),
    "smoothed less": lambda: first_scans(jpeg(75, 101, progressive=True), 3),
    "restarts": lambda: jpeg(75, 101, restart_marker_blocks=3),
    "restarts of rows": lambda: jpeg(75, 101, restart_marker_rows=1, subsampling=0),
    "restarts behind fill bytes": lambda: filled(jpeg(75, 101, restart_marker_blocks=3), 9),
    "the best quality": lambda: jpeg(75, 101, quality=100, subsampling=0),
    "tables of its own": lambda: jpeg(75, 101, optimize=True),
    "scan by scan": lambda: one_after_the_other(53, 70),
    "narrow": lambda: jpeg(200, 3),
    "low": lambda: jpeg(3, 200),
    "a pixel": lambda: jpeg(1, 1),
}


def regions(rng, height, width):
    """All borders, single pixels, and some at random."""
    found = [
        (0, 0, height, width),
        (0, 0, 1, 1),
        (height - 1, width - 1, 1, 1),
        (0, width - 1, height, 1),
        (height - 1, 0, 1, width),
        (0, 0, height, 1),
        (0, 0, 1, width),
        (height // 2, 0, 1, width),
        (0, width // 2, height, 1),
    ]
    for _ in range(120):
        h, w = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
        found.append((int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w))
    return found


@pytest.mark.parametrize("name", STREAMS)
def test_a_region_has_the_pixels_of_the_whole(name):
    data = STREAMS[name]()
    for fast in (False, True):
        whole = _cgxffcv.jpeg_decode(data, fast)
        assert whole.std() > 1 or whole.shape[0] == 1
        for y, x, h, w in regions(np.random.default_rng(1), *whole.shape[:2]):
            part = _cgxffcv.jpeg_decode(data, fast, region=(y, x, h, w))
            np.testing.assert_array_equal(part, whole[y : y + h, x : x + w], f"{(y, x, h, w)}")


def test_what_only_the_library_decodes_has_the_same_pixels():
    """The markers' fill bytes end our entropy decoder, early or late: the library then starts over."""
    plain = jpeg(75, 101, restart_marker_blocks=3)
    for every in (1, 4, 11):
        stream = filled(plain, every)
        assert len(stream) > len(plain)
        for region in (None, (0, 0, 75, 101), (17, 5, 50, 90)):
            got, want = (_cgxffcv.jpeg_decode(data, region=region) for data in (stream, plain))
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", ["a pixel", "4:2:0", "restarts"])
def test_bytes_behind_the_end_mean_nothing(name):
    """However many there are: no memory is taken for more than a scan of the image's size can have."""
    data = STREAMS[name]()
    for junk in (bytes(1 << 20), b"\xff\xd9" * 1000, b"\x55" * 100_000):
        np.testing.assert_array_equal(_cgxffcv.jpeg_decode(data + junk), _cgxffcv.jpeg_decode(data))


@pytest.mark.parametrize("name", ["4:4:4", "4:2:0", "grey", "restarts", "the best quality", "tables of its own"])
def test_pillow_has_the_same_pixels(name):
    """To within a step, since it has another version of libjpeg-turbo."""
    data = STREAMS[name]()
    want = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(_cgxffcv.jpeg_decode(data) - want).max() <= 1


@pytest.mark.parametrize("shrink", [2, 4, 8])
@pytest.mark.parametrize("name", STREAMS)
def test_a_region_of_a_shrunk_image(name, shrink):
    """The same pixels as in the whole shrunk image, which are about the blocks' averages."""
    data = STREAMS[name]()
    full = _cgxffcv.jpeg_decode(data).astype(float)
    whole = _cgxffcv.jpeg_decode(data, shrink=shrink)
    height, width = -(-full.shape[0] // shrink), -(-full.shape[1] // shrink)
    assert whole.shape == (height, width, 3)
    padded = np.pad(full, ((0, height * shrink - full.shape[0]), (0, width * shrink - full.shape[1]), (0, 0)), "edge")
    averages = padded.reshape(height, shrink, width, shrink, 3).mean((1, 3))
    assert np.abs(whole - averages).mean() < 16
    for y, x, h, w in regions(np.random.default_rng(2), height, width)[:60]:
        part = _cgxffcv.jpeg_decode(data, region=(y, x, h, w), shrink=shrink)
        np.testing.assert_array_equal(part, whole[y : y + h, x : x + w], f"{(y, x, h, w)}")


@pytest.mark.parametrize("shrink", [0, 3, 5, 6, 7, 9, -1])
def test_shrinking_is_by_powers_of_two(shrink):
    with pytest.raises(ValueError, match="shr[iu]nk"):
        _cgxffcv.jpeg_decode(jpeg(20, 30), shrink=shrink)


@pytest.mark.parametrize("region", [(0, 0, 0, 1), (0, 0, 1, 0), (1, 0, 20, 1), (0, 1, 1, 30), (20, 0, 1, 1)])
def test_a_region_is_within_the_image(region):
    with pytest.raises(ValueError, match="not within 20 x 30|not within 30 x 20"):
        _cgxffcv.jpeg_decode(jpeg(20, 30), region=region)


def test_damage_is_noticed_down_to_the_last_row():
    """After it only the end marker is checked, without which the stream has been truncated."""
    good = jpeg(160, 160)
    damaged = good[: len(good) // 2] + b"\xff\xd9"
    whole = _cgxffcv.jpeg_decode(good)
    part = _cgxffcv.jpeg_decode(damaged, region=(5, 7, 40, 50))
    np.testing.assert_array_equal(part, whole[5:45, 7:57])
    for data, region in (
        (damaged, (100, 0, 9, 9)),
        (damaged, (5, 7, 155, 50)),
        (good[:-2], (5, 7, 40, 50)),
        (good[: len(good) // 2] + bytes(len(good) // 2), (100, 0, 9, 9)),
    ):
        with pytest.raises(BetonError, match="corrupt JPEG data"):
            _cgxffcv.jpeg_decode(data, region=region)


def loader_of(path, images, **pipelines):
    """The file of these streams, and a loader of it."""
    DatasetWriter(path, {"image": RGBImageField("given")}, progress=False).from_indexed_dataset([(i,) for i in images])
    return Loader(path, 4, 2, pipelines={"image": None, **pipelines}, seed=3, drop_last=False)


def test_what_lies_behind_the_crop_may_be_damaged(tmp_path):
    """A sample that shows the damaged part is named; one that does not has the right pixels."""
    path = str(tmp_path / "a.beton")
    crop = PipelineSpec("image", RandomResizedCropRGBImageDecoder((8, 8), (0.05, 0.3)))
    with loader_of(path, [jpeg(96, 96, seed=i) for i in range(8)], crop=crop) as loader:
        good = np.concatenate([loader.get_batch([i], epoch=e)[0] for i in range(8) for e in range(4)])
        spans = [loader.reader.sample_span(i) for i in range(8)]
    with open(path, "r+b") as file:
        for begin, end in spans:
            at = begin + 3 * (end - begin) // 4
            file.seek(at)
            file.write(b"\xff\xd9" * ((end - at) // 2))
    seen = 0
    with Loader(path, 4, 2, pipelines={"image": None, "crop": crop}, seed=3) as loader:
        for i in range(8):
            for e in range(4):
                try:
                    got = loader.get_batch([i], epoch=e)[0]
                except BetonError as error:
                    assert error.sample == i and "corrupt JPEG" in str(error)
                else:
                    np.testing.assert_array_equal(got[0], good[4 * i + e])
                    seen += 1
    assert 4 <= seen < 28


@pytest.mark.parametrize(
    "at, value, text",
    [
        (1, 0xC9, "arithmetic"),
        (1, 0xCA, "arithmetic"),
        (1, 0xC3, "lossless"),
        (4, 12, "12 bits"),
        (9, 4, "4 components"),
        (9, 2, "2 components"),
        (6, 97, "97 pixels where"),
    ],
)
def test_what_is_refused_names_its_sample(tmp_path, at, value, text):
    """A stream that another program wrote."""
    path = str(tmp_path / "a.beton")
    with loader_of(path, [jpeg(96, 96, seed=i) for i in range(4)]) as loader:
        begin, end = loader.reader.sample_span(2)
    with open(path, "r+b") as file:
        file.seek(begin)
        frame = begin + file.read(end - begin).index(b"\xff\xc0")
        file.seek(frame + at)
        file.write(bytes([value]))
    for decoder in (SimpleRGBImageDecoder(), RandomResizedCropRGBImageDecoder((8, 8))):
        with Loader(path, 4, 2, pipelines={"image": [decoder]}) as loader:
            with pytest.raises(BetonError, match=f"field 'image': .*{text}") as caught:
                list(loader)
            assert caught.value.sample == 2


def test_a_plain_decoder_decodes_what_is_shown(tmp_path):
    """Views of one image, each with its own window, borders and mixing, against those of raw images."""
    images = [jpeg(64, 80, seed=i) for i in range(9)]
    steps = {
        "a": [tf.RandomCrop((20, 24)), tf.RandomHorizontalFlip()],
        "b": [tf.RandomTranslate(9, (1, 2, 3)), tf.RandomCrop((16, 16), 5, "reflect")],
        "c": [tf.RandomCrop((30, 11)), tf.ImageMixup(0.8, False)],
    }
    pipelines = {
        name: PipelineSpec("image", SimpleRGBImageDecoder(), list(chain), draws=n)
        for n, (name, chain) in enumerate(steps.items(), 1)
    }
    raw = DatasetWriter(str(tmp_path / "raw.beton"), {"image": RGBImageField("raw")}, progress=False)
    raw.from_indexed_dataset([(_cgxffcv.jpeg_decode(image),) for image in images])
    for chosen in (["a"], ["b"], ["c"], ["a", "b", "c"]):
        views = {name: pipelines[name] for name in chosen}
        options = {"pipelines": {"image": None, **views}, "seed": 3, "drop_last": False}
        with (
            loader_of(str(tmp_path / "jpg.beton"), images, **views) as loader,
            Loader(str(tmp_path / "raw.beton"), 4, 2, **options) as other,
        ):
            for got, want in zip(loader, other, strict=True):
                for one, right in zip(got, want, strict=True):
                    np.testing.assert_array_equal(one, right)
