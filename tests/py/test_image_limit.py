"""Streams and files that claim to hold more than they do: they are refused before memory is taken or time spent."""

import io
import os
import struct
import tracemalloc
import warnings

import _cgxffcv
import numpy as np
import pytest
import tiny_beton
from checkout import run_python

import cgxffcv
from cgxffcv import BetonError, DatasetWriter, Loader, Reader, beton
from cgxffcv.fields import RGBImageField

DEFAULT = 178_956_970
LIMIT = "over the limit of"

needs_jpeg = pytest.mark.skipif(not _cgxffcv.build_info()["jpeg"], reason="this build has no libjpeg-turbo")


def segment(marker, body):
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg_of(width, height, scans, frame=0xC2):
    """A grey JPEG whose scans (component 1, tables 0) are `scans`: (first, last, high, low, coded bytes)."""
    one_code = bytes([1] + [0] * 15)  # one code, of one bit
    data = b"\xff\xd8" + segment(0xDB, b"\0" + bytes([1] * 64))
    data += segment(frame, struct.pack(">BHHB", 8, height, width, 1) + b"\x01\x11\0")
    data += segment(0xC4, b"\0" + one_code + b"\0") + segment(0xC4, b"\x10" + one_code + b"\0")
    for first, last, high, low, coded in scans:
        data += segment(0xDA, b"\x01\x01\0" + bytes([first, last, high << 4 | low])) + coded
    return data + b"\xff\xd9"


def bomb(width=40_000, height=40_000):
    return jpeg_of(width, height, [(0, 63, 0, 0, b"\x3f")], 0xC0)


def refined(side, count):
    """A grey image that is 128 everywhere, sent in `count` legal scans: each coefficient by itself, bit by bit."""
    blocks = (side // 8) ** 2
    empty = bytes(blocks // 8) if blocks > 7 else bytes([0xFF >> blocks])
    scans = [(0, 0, 0, 0, empty)]
    for coefficient in range(1, 64):
        for low in range(13, -1, -1):
            scans.append((coefficient, coefficient, 0 if low == 13 else low + 1, low, empty))
    return jpeg_of(side, side, scans[:count])


@pytest.fixture
def limit():
    before = _cgxffcv.max_image_pixels()
    yield cgxffcv.set_max_image_pixels
    cgxffcv.set_max_image_pixels(before)


@pytest.fixture
def frugal():
    """The test may not allocate more than 64 MiB with NumPy."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20, f"{peak:,} bytes were taken"


def file_of(path, streams, sides):
    return str(tiny_beton.write(path, {"image": ("image", streams)}, sides=sides))


def test_the_default_is_pillows():
    assert _cgxffcv.max_image_pixels() == DEFAULT
    assert _cgxffcv.jpeg_header(bomb(13_377, 13_377))[:2] == (13_377, 13_377)
    with pytest.raises(BetonError, match=rf"13378 x 13378 pixels is {LIMIT} {DEFAULT} .*CGXFFCV_MAX_IMAGE_PIXELS"):
        _cgxffcv.jpeg_header(bomb(13_378, 13_378))


@needs_jpeg
def test_streams(frugal):
    assert len(bomb()) < 200
    with pytest.raises(BetonError, match=LIMIT):
        _cgxffcv.jpeg_decode(bomb())


@needs_jpeg
def test_reader_and_verify(tmp_path, frugal):
    path = file_of(tmp_path / "x.beton", [bomb()], (40_000, 40_000))
    with Reader(path) as reader:
        for ask in (lambda: reader[0], lambda: reader.value(0, "image"), lambda: list(reader)):
            with pytest.raises(BetonError, match=LIMIT) as caught:
                ask()
            assert (caught.value.path, caught.value.sample, caught.value.field) == (path, 0, "image")
        assert reader.stored_image(0, "image") == ("jpg", 40_000, 40_000, bomb())
    for decode in (False, True):
        report = beton.verify(path, decode_jpeg=decode)
        assert [problem.sample for problem in report.problems] == [0] and LIMIT in report.problems[0].reason


@needs_jpeg
@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("count", [1, 300])
def test_loader(tmp_path, resident, count, frugal):
    path = file_of(tmp_path / "x.beton", [bomb()] * count, (40_000, 40_000))
    with pytest.raises(BetonError, match=LIMIT) as caught:
        Loader(path, 256, resident=resident)
    assert (caught.value.path, caught.value.field) == (path, "image")


@needs_jpeg
def test_a_stream_that_says_more_than_its_record(tmp_path, frugal):
    path = file_of(tmp_path / "x.beton", [bomb()] * 2, (16, 16))
    with Reader(path) as reader, pytest.raises(BetonError, match=LIMIT):
        reader[1]
    with Loader(path, 2) as loader, pytest.raises(BetonError, match=LIMIT):
        next(iter(loader))


@needs_jpeg
@pytest.mark.parametrize("options", [{}, {"write_mode": "jpg"}, {"write_mode": "given"}, {"max_resolution": 64}])
@pytest.mark.parametrize("by_path", [False, True])
def test_writer(tmp_path, options, by_path, frugal):
    value = bomb()
    if by_path:
        value = tmp_path / "bomb.jpg"
        value.write_bytes(bomb())
    writer = DatasetWriter(tmp_path / "x.beton", {"image": RGBImageField(**options)}, num_workers=1)
    with pytest.raises(ValueError, match=f"sample 0.*{LIMIT}"):
        writer.from_iterable([(value,)])
    assert not os.path.exists(tmp_path / "x.beton")


def test_images_that_pillow_reads(limit, tmp_path):
    image = pytest.importorskip("PIL.Image")
    data = io.BytesIO()
    image.new("RGB", (100, 50)).save(data, "PNG")
    limit(4999)
    with pytest.raises(ValueError, match=f"100 x 50 pixels are {LIMIT} 4,999"):
        RGBImageField().convert(data.getvalue())
    limit(5000)
    assert RGBImageField().convert(data.getvalue()).shape == (50, 100, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        png = (
            b"\x89PNG\r\n\x1a\n"
            + struct.pack(">I", 13)
            + b"IHDR"
            + struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
        )
        with pytest.raises(ValueError, match="not a readable image"):
            RGBImageField().convert(png + b"\0\0\0\0")


def test_pillows_own_limit_is_named(limit):
    pytest.importorskip("PIL.Image")
    limit(0)
    gif = b"GIF89a" + struct.pack("<HH", 60_000, 60_000) + b"\x80\0\0\0\0\0\xff\xff\xff,"
    gif += struct.pack("<HHHH", 0, 0, 60_000, 60_000) + b"\0\x02\x02D\x01\0;"
    with pytest.raises(ValueError, match=r"not a readable image.*PIL\.Image\.MAX_IMAGE_PIXELS, now \d+, sets it"):
        RGBImageField().convert(gif)


@needs_jpeg
def test_the_limit_is_the_users(limit, tmp_path):
    stream = _cgxffcv.jpeg_encode(np.zeros((20, 30, 3), np.uint8))
    path = file_of(tmp_path / "x.beton", [stream], (20, 30))
    limit(599)
    for call in (
        lambda: _cgxffcv.jpeg_decode(stream),
        lambda: Loader(path, 1),
        lambda: Reader(path)[0],
        lambda: _cgxffcv.resize_area(np.zeros((1, 1, 3), np.uint8), 20, 30),
        lambda: _cgxffcv.jpeg_encode(np.zeros((20, 30, 3), np.uint8)),
    ):
        with pytest.raises(ValueError, match=f"{LIMIT} 599"):
            call()
    for enough in (600, 0):
        limit(enough)
        assert _cgxffcv.max_image_pixels() == enough
        assert _cgxffcv.jpeg_decode(stream).shape == Reader(path)[0]["image"].shape == (20, 30, 3)
    for wrong, error in ((-1, ValueError), (2**64, ValueError), (1.5, TypeError), (None, TypeError)):
        with pytest.raises(error):
            limit(wrong)


@pytest.mark.parametrize(
    "text, said",
    [
        ("599", "over the limit of 599"),
        ("600", "fine"),
        ("0", "fine"),
        ("", "fine"),
        ("many", "'many'; expected a whole number"),
        ("-1", "'-1'; expected a whole number"),
        ("1e9", "'1e9'; expected a whole number"),
        ("9" * 30, "; expected a whole number"),
    ],
)
def test_the_environment_sets_the_limit(text, said):
    code = f"""
import _cgxffcv
try:
    _cgxffcv.jpeg_header({bomb(30, 20)!r})
    print("fine")
except ValueError as error:
    print(error)
"""
    assert said in run_python("-c", code, CGXFFCV_MAX_IMAGE_PIXELS=text).stdout


@needs_jpeg
def test_scans_without_end():
    """libjpeg-turbo stops at 500 of them; without that, this stream would be decoded."""
    assert set(_cgxffcv.jpeg_decode(refined(8, 500)).ravel().tolist()) == {128}
    with pytest.raises(BetonError, match="corrupt JPEG data.*500 scans"):
        _cgxffcv.jpeg_decode(refined(8, 502))


@needs_jpeg
def test_large_images_have_fewer_scans(limit):
    """16 for an image of the largest size."""
    limit(64 * 64)
    assert _cgxffcv.jpeg_decode(refined(64, 16)).shape == (64, 64, 3)
    with pytest.raises(BetonError, match="64 x 64 pixels in 17 scans"):
        _cgxffcv.jpeg_decode(refined(64, 17))
    assert _cgxffcv.jpeg_decode(refined(32, 64)).shape == (32, 32, 3)
    with pytest.raises(BetonError, match="32 x 32 pixels in 65 scans"):
        _cgxffcv.jpeg_decode(refined(32, 65))
    limit(0)
    assert _cgxffcv.jpeg_decode(refined(64, 65)).shape == (64, 64, 3)


def test_batches_beyond_the_machines_memory(tmp_path):
    arrays = [np.zeros(1 << 20, np.uint8)]
    path = str(tiny_beton.write(tmp_path / "x.beton", {"a": ("array", arrays)}))
    with pytest.raises(MemoryError, match="make batch_size smaller"):
        Loader(path, 1 << 30, indices=np.zeros(1 << 25, np.int64))
    with Loader(path, 1) as loader, pytest.raises(MemoryError, match="33554432 samples"):
        loader.get_batch(np.zeros(1 << 25, np.int64))


@needs_jpeg
def test_resident_images_beyond_the_machines_memory(tmp_path):
    path = file_of(tmp_path / "x.beton", [bomb(10_000, 10_000)] * 40_000, (10_000, 10_000))
    with pytest.raises(MemoryError, match="resident"):
        Loader(path, 1, resident=True)
