"""JPEG, area resampling and the write modes, against Pillow, exact integer arithmetic and a separate Philox."""

import io
import struct
from pathlib import Path

import _cgxffcv
import numpy as np
import pytest
from augment_reference import philox

from cgxffcv import BetonError, DatasetWriter, Reader
from cgxffcv.fields import IntField, RGBImageField

Image = pytest.importorskip("PIL.Image")
GOLDEN = Path(__file__).resolve().parents[1] / "golden"
needs_jpeg = pytest.mark.skipif(not _cgxffcv.build_info()["jpeg"], reason="this build has no libjpeg-turbo")


def picture(rng, height, width):
    """Smooth with some noise, as photographs are."""
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(x / (3 + c) + rng.random() * 6) * np.cos(y / (4 + c)) for c in range(3)], -1)
    return np.clip(128 + 90 * waves + rng.normal(0, 6, waves.shape), 0, 255).astype(np.uint8)


def jpeg_bytes(image, **options):
    out = io.BytesIO()
    image.save(out, "JPEG", **options)
    return out.getvalue()


# ---- area resampling


def area_reference(image, height, width):
    """Exact: overlaps are whole numbers in units of 1/to, sums are int64, halves round up."""

    def weights(source, target):
        matrix = np.zeros((target, source), np.int64)
        for t in range(target):
            for s in range(t * source // target, -(-(t + 1) * source // target)):
                matrix[t, s] = min((s + 1) * target, (t + 1) * source) - max(s * target, t * source)
        return matrix

    h, w = image.shape[:2]
    total = np.einsum("yh,xw,hwc->yxc", weights(h, height), weights(w, width), image.astype(np.int64), optimize=True)
    return np.ascontiguousarray((2 * total + h * w) // (2 * h * w), np.uint8)


@pytest.mark.parametrize("seed", range(40))
def test_resize_is_the_exact_average(seed):
    rng = np.random.default_rng(seed)
    h, w, height, width = (int(side) for side in rng.integers(1, 60, 4))
    image = rng.integers(0, 256, (h, w, 3), np.uint8)
    assert np.array_equal(_cgxffcv.resize_area(image, height, width), area_reference(image, height, width))


def test_resize_rounds_halves_up_and_keeps_extremes():
    image = np.array([[[0, 255, 1], [1, 255, 2]]], np.uint8)
    assert _cgxffcv.resize_area(image, 1, 1).tolist() == [[[1, 255, 2]]]
    for value in (0, 1, 254, 255):
        image = np.full((4099, 1021, 3), value, np.uint8)
        assert (_cgxffcv.resize_area(image, 7, 13) == value).all()


def test_resize_of_the_largest_sides():
    strip = np.random.default_rng(0).integers(0, 256, (1, 65535, 3), np.uint8)
    want = (2 * strip.reshape(1, 13107, 5, 3).sum(2, dtype=np.int64) + 5) // 10
    assert np.array_equal(_cgxffcv.resize_area(strip, 1, 13107), want)
    tall = np.ascontiguousarray(strip.transpose(1, 0, 2))
    assert np.array_equal(_cgxffcv.resize_area(tall, 13107, 1), want.transpose(1, 0, 2))


def test_resize_refuses_what_is_no_image():
    good = np.zeros((4, 4, 3), np.uint8)
    for height, width in ((0, 1), (1, 0), (65536, 1)):
        with pytest.raises(ValueError, match="height (and width )?must be in"):
            _cgxffcv.resize_area(good, height, width)
    for bad in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match="image"):
            _cgxffcv.resize_area(bad, 2, 2)
    with pytest.raises(TypeError, match="uint8"):
        _cgxffcv.resize_area(good.astype(np.float32), 2, 2)


def reduced(width, height, limit):
    ratio = limit / max(width, height)
    return (width, height) if ratio >= 1 else (max(int(ratio * width), 1), max(int(ratio * height), 1))


@pytest.mark.parametrize("limit", [1, 7, 29, 31, 49, 100])
def test_max_resolution(tmp_path, limit):
    rng = np.random.default_rng(limit)
    sides = [(int(h), int(w)) for h, w in rng.integers(1, 120, (40, 2))] + [(100, 1), (1, 100), (100, 100), (49, 29)]
    images = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in sides]
    assert RGBImageField(max_resolution=(limit, limit)).describe("image")["max_resolution"] == limit
    fields = {"image": RGBImageField(max_resolution=limit)}
    DatasetWriter(tmp_path / "x.beton", fields, num_workers=2, worker_kind="thread").from_indexed_dataset(images)
    with Reader(tmp_path / "x.beton") as reader:
        for i, (height, width) in enumerate(sides):
            w, h = reduced(width, height, limit)
            assert np.array_equal(reader[i]["image"], area_reference(images[i], h, w))


def test_max_resolution_of_ffcv():
    want = np.load(GOLDEN / "rgb_max_resolution.expected.npz")
    source, image = want["source"], want["image"]
    got = np.stack([_cgxffcv.resize_area(one, *image.shape[1:3]) for one in source])
    difference = np.abs(got.astype(int) - image)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.003


# ---- JPEG


@needs_jpeg
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"subsampling": 0},
        {"subsampling": 1},
        {"progressive": True},
        {"quality": 30},
        {"optimize": True, "restart_marker_rows": 1},
    ],
)
def test_accurate_decoding_is_pillows(seed, options):
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(1, 90, 2))
    data = jpeg_bytes(Image.fromarray(picture(rng, height, width)), **{"quality": 90, **options})
    want = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert _cgxffcv.jpeg_header(data) == (width, height, 3, bool(options.get("progressive")))
    # both are libjpeg-turbo, of different versions
    assert np.abs(_cgxffcv.jpeg_decode(data) - want).max() <= 1
    assert np.abs(_cgxffcv.jpeg_decode(data, fast=True) - want).max() <= 16


@needs_jpeg
def test_grey_jpeg_is_three_equal_channels():
    data = jpeg_bytes(Image.fromarray(picture(np.random.default_rng(0), 33, 21)).convert("L"))
    got = _cgxffcv.jpeg_decode(data)
    assert _cgxffcv.jpeg_header(data)[2] == 1 and (got == got[..., :1]).all()
    assert np.abs(got[..., 0].astype(int) - np.asarray(Image.open(io.BytesIO(data)))).max() <= 1


@needs_jpeg
def test_encoding_is_baseline_420_at_the_quality():
    image = picture(np.random.default_rng(1), 61, 47)
    for quality in (1, 50, 90, 100):
        data = _cgxffcv.jpeg_encode(image, quality)
        opened = Image.open(io.BytesIO(data))
        assert [layer[1:3] for layer in opened.layer] == [(2, 2), (1, 1), (1, 1)]
        same = Image.open(io.BytesIO(jpeg_bytes(Image.fromarray(image), quality=quality)))
        assert opened.quantization == same.quantization and "progressive" not in opened.info
    error = np.abs(_cgxffcv.jpeg_decode(_cgxffcv.jpeg_encode(image, 95)).astype(int) - image)
    assert error.mean() < 6


@needs_jpeg
@pytest.mark.parametrize("mode", ["CMYK"])
def test_four_components_are_refused(mode):
    data = jpeg_bytes(Image.fromarray(picture(np.random.default_rng(2), 20, 20)).convert(mode))
    for function in (_cgxffcv.jpeg_header, _cgxffcv.jpeg_decode):
        with pytest.raises(BetonError, match="4 components"):
            function(data)


def test_headers_that_are_none():
    good = jpeg_bytes(Image.fromarray(picture(np.random.default_rng(3), 20, 20)))
    frame = good.index(b"\xff\xc0")
    assert _cgxffcv.jpeg_header(good[: frame + 10]) == (20, 20, 3, False)
    cases = [
        b"",
        b"\xff",
        b"\x89PNG....",
        good[:2],
        good[:4],
        good[: frame + 9],
        b"\xff\xd8\xff\xd9",
        good[:frame] + b"\0" + good[frame:],
        good[:2] + b"\xff\xe0\xff\xff" + good[4:200],
        good[:2] + b"\xff\xd0\xff\xdb" + bytes(0xFFD9) + good[frame:],
        good[:frame] + b"\xff\xc3" + good[frame + 2 :],
        good[:2] + b"\xff\xe0\0\1" + good[2:],
    ]
    for data in cases:
        with pytest.raises(BetonError):
            _cgxffcv.jpeg_header(data)
    for at, value in ((4, 12), (5, 0), (9, 2)):
        bad = bytearray(good)
        bad[frame + at : frame + at + (2 if at == 5 else 1)] = bytes([0, 0]) if at == 5 else bytes([value])
        with pytest.raises(BetonError):
            _cgxffcv.jpeg_header(bytes(bad))


def test_fill_bytes_before_a_marker():
    """Any marker may have some (ITU-T T.81, B.1.1.2)."""
    good = jpeg_bytes(Image.fromarray(picture(np.random.default_rng(3), 20, 20)))
    frame = good.index(b"\xff\xc0")
    filled = good[:frame] + b"\xff\xff\xff" + good[frame:]
    assert _cgxffcv.jpeg_header(filled) == (20, 20, 3, False)
    assert np.array_equal(_cgxffcv.jpeg_decode(filled), _cgxffcv.jpeg_decode(good))


def test_encoder_refuses_quality_out_of_range():
    for quality in (0, 101, -5):
        with pytest.raises((ValueError, _cgxffcv.NotBuiltError)):
            _cgxffcv.jpeg_encode(np.zeros((4, 4, 3), np.uint8), quality)


# ---- write modes


def drawn(seed, sample, field, probability):
    return (philox(seed, 0, sample, 6, field)[0] >> 8) * 2.0**-24 < probability


def modes(path, field="image"):
    with Reader(path) as reader:
        return [reader.stored_image(i, field)[0] for i in range(len(reader))]


@needs_jpeg
@pytest.mark.parametrize(("seed", "probability"), [(0, 0.5), (123456789012345, 0.2), (7, 0.0), (7, 1.0)])
def test_proportion_is_a_function_of_seed_and_index(tmp_path, seed, probability):
    image = np.zeros((4, 4, 3), np.uint8)
    fields = {"n": IntField(), "image": RGBImageField("proportion", compress_probability=probability)}
    for workers, kind in ((1, "thread"), (3, "process")):
        path = tmp_path / f"{kind}.beton"
        writer = DatasetWriter(path, fields, num_workers=workers, worker_kind=kind, seed=seed)
        writer.from_indexed_dataset([(i, image) for i in range(200)], chunksize=17)
        want = ["jpg" if drawn(seed, i, 1, probability) else "raw" for i in range(200)]
        assert modes(path) == want
    assert (tmp_path / "thread.beton").read_bytes() == (tmp_path / "process.beton").read_bytes()


@needs_jpeg
def test_smart_raw_and_jpg(tmp_path):
    images = [np.full((4 + i, 10, 3), 9 * i, np.uint8) for i in range(12)]
    for field, want in [
        (RGBImageField("smart", smart_threshold=300), ["raw"] * 7 + ["jpg"] * 5),
        (RGBImageField("smart"), ["raw"] * 12),
        (RGBImageField("smart", smart_threshold=0), ["jpg"] * 12),
        (RGBImageField("jpg"), ["jpg"] * 12),
        (RGBImageField("raw"), ["raw"] * 12),
        (RGBImageField("given"), ["raw"] * 12),
    ]:
        DatasetWriter(tmp_path / "x.beton", {"image": field}, num_workers=1).from_indexed_dataset(images)
        assert modes(tmp_path / "x.beton") == want
        with Reader(tmp_path / "x.beton") as reader:
            assert all(np.abs(reader[i]["image"].astype(int) - images[i]).max() <= 2 for i in range(12))


@needs_jpeg
def test_jpeg_is_stored_as_our_encoder_makes_it(tmp_path):
    image = picture(np.random.default_rng(5), 40, 56)
    for quality in (30, 90):
        fields = {"image": RGBImageField("jpg", jpeg_quality=quality)}
        DatasetWriter(tmp_path / "x.beton", fields, num_workers=1).from_indexed_dataset([image])
        with Reader(tmp_path / "x.beton") as reader:
            assert reader.stored_image(0, "image") == ("jpg", 56, 40, _cgxffcv.jpeg_encode(image, quality))


@needs_jpeg
def test_jpeg_streams_pass_through_unchanged(tmp_path):
    rng = np.random.default_rng(6)
    image = Image.fromarray(picture(rng, 40, 56))
    streams = [
        jpeg_bytes(image),
        jpeg_bytes(image, progressive=True),
        jpeg_bytes(image, subsampling=0),
        jpeg_bytes(image.convert("L")),
        jpeg_bytes(image) + b"tail",
    ]
    (tmp_path / "one.jpg").write_bytes(streams[1])
    given = [*streams, bytearray(streams[0]), memoryview(streams[2]), str(tmp_path / "one.jpg"), tmp_path / "one.jpg"]
    want = [*streams, streams[0], streams[2], streams[1], streams[1]]
    for mode in ("jpg", "given", "smart"):
        fields = {"image": RGBImageField(mode, smart_threshold=100)}
        DatasetWriter(tmp_path / "x.beton", fields, num_workers=1).from_indexed_dataset([(value,) for value in given])
        with Reader(tmp_path / "x.beton") as reader:
            assert [reader.stored_image(i, "image") for i in range(9)] == [("jpg", 56, 40, data) for data in want]


@needs_jpeg
def test_jpeg_streams_are_decoded_where_pixels_are_wanted(tmp_path):
    data = jpeg_bytes(Image.fromarray(picture(np.random.default_rng(7), 40, 56)))
    pixels = _cgxffcv.jpeg_decode(data)
    small = area_reference(pixels, 20, 28)
    cases = [
        (RGBImageField("raw"), ("raw", 56, 40, pixels.tobytes())),
        (RGBImageField("smart", smart_threshold=40 * 56 * 3), ("raw", 56, 40, pixels.tobytes())),
        (RGBImageField("raw", max_resolution=28), ("raw", 28, 20, small.tobytes())),
        (RGBImageField("jpg", max_resolution=28), ("jpg", 28, 20, _cgxffcv.jpeg_encode(small, 90))),
        (RGBImageField("given", max_resolution=28), ("jpg", 28, 20, _cgxffcv.jpeg_encode(small, 90))),
        (RGBImageField("jpg", max_resolution=56), ("jpg", 56, 40, data)),
    ]
    for field, want in cases:
        DatasetWriter(tmp_path / "x.beton", {"image": field}, num_workers=1).from_indexed_dataset([(data,)])
        with Reader(tmp_path / "x.beton") as reader:
            assert reader.stored_image(0, "image") == want, field


@needs_jpeg
def test_other_images_come_through_pillow(tmp_path):
    rng = np.random.default_rng(8)
    pixels = picture(rng, 20, 30)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    png = (tmp_path / "a.png").read_bytes()
    cmyk = jpeg_bytes(image.convert("CMYK"), quality=100)
    want_cmyk = np.asarray(Image.open(io.BytesIO(cmyk)).convert("RGB"))
    given = [image, image.convert("L"), image.convert("P"), str(tmp_path / "a.png"), png, cmyk]
    want = [
        pixels,
        np.asarray(image.convert("L").convert("RGB")),
        np.asarray(image.convert("P").convert("RGB")),
        pixels,
        pixels,
        want_cmyk,
    ]
    DatasetWriter(tmp_path / "x.beton", {"image": RGBImageField()}, num_workers=1).from_indexed_dataset(
        [(value,) for value in given]
    )
    with Reader(tmp_path / "x.beton") as reader:
        for i, wanted in enumerate(want):
            assert np.array_equal(reader[i]["image"], wanted), i


def image_file(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def image_kinds():
    """name: (an image file, whether RGB can hold it)."""
    rng = np.random.default_rng(12)
    rgb = Image.fromarray(picture(rng, 12, 9))
    opaque, part, palette, grey = rgb.copy(), rgb.copy(), rgb.quantize(15), rgb.convert("L")
    opaque.putalpha(255)
    part.putalpha(Image.fromarray(rng.integers(0, 256, (12, 9), dtype=np.uint8)))
    deep = Image.fromarray(rng.integers(0, 1 << 16, (12, 9)).astype(np.uint16))
    wide = Image.fromarray(rng.integers(0, 1 << 16, (12, 9)).astype(np.int32))
    real = Image.fromarray(rng.random((12, 9), np.float32))
    return {
        "RGB": (image_file(rgb, "PNG"), True),
        "1": (image_file(rgb.convert("1"), "PNG"), True),
        "L": (image_file(grey, "PNG"), True),
        "palette": (image_file(palette, "PNG"), True),
        "CMYK": (image_file(rgb.convert("CMYK"), "TIFF"), True),
        "YCbCr": (image_file(rgb.convert("YCbCr"), "TIFF"), True),
        "GIF": (image_file(palette, "GIF"), True),
        "RGBA, opaque": (image_file(opaque, "PNG"), True),
        "LA, opaque": (image_file(opaque.convert("LA"), "PNG"), True),
        "palette, a colour that no pixel has is transparent": (image_file(palette, "PNG", transparency=15), True),
        "RGBA": (image_file(part, "PNG"), False),
        "RGBA TIFF": (image_file(part, "TIFF"), False),
        "RGBA ICO": (image_file(part, "ICO", sizes=[(9, 12)]), False),
        "LA": (image_file(part.convert("LA"), "PNG"), False),
        "palette with a transparent colour": (image_file(palette, "PNG", transparency=palette.getpixel((0, 0))), False),
        "palette with half transparent colours": (image_file(palette, "PNG", transparency=bytes([128] * 16)), False),
        "GIF with a transparent colour": (image_file(palette, "GIF", transparency=palette.getpixel((0, 0))), False),
        "RGB with a transparent colour": (image_file(rgb, "PNG", transparency=rgb.getpixel((0, 0))), False),
        "grey with a transparent level": (image_file(grey, "PNG", transparency=grey.getpixel((0, 0))), False),
        "16 bits": (image_file(deep, "PNG"), False),
        "16 bits TIFF": (image_file(deep, "TIFF"), False),
        "16 bits PGM": (image_file(wide, "PPM"), False),
        "32 bits TIFF": (image_file(wide, "TIFF"), False),
        "float TIFF": (image_file(real, "TIFF"), False),
        "LAB TIFF": (image_file(Image.new("LAB", (4, 4)), "TIFF"), False),
    }


@pytest.mark.parametrize("mode", ["raw", "jpg"])
@pytest.mark.parametrize("name", image_kinds())
def test_one_answer_for_files_bytes_and_opened_images(tmp_path, name, mode):
    """Refused with a remedy, or stored correctly, whichever way the image comes."""
    data, storable = image_kinds()[name]
    path = tmp_path / "image"
    path.write_bytes(data)
    with Image.open(path) as opened:
        try:
            opened.load()
        except OSError as error:
            pytest.skip(f"this version of Pillow does not read what it has written: {error}")
    want = np.asarray(opened.convert("RGBA").convert("RGB") if opened.mode == "P" else opened.convert("RGB"))
    field, answers = RGBImageField(mode, jpeg_quality=100), []
    for value in (opened, data, bytearray(data), path, str(path)):
        writer = DatasetWriter(tmp_path / "x.beton", {"image": field}, num_workers=1)
        try:
            writer.from_indexed_dataset([(value,)])
        except BetonError as error:
            answers.append("refused")
            assert "Pillow's mode" in error.reason and ("uint8 array" in error.reason or "background" in error.reason)
            assert not isinstance(value, str) or str(path) in error.reason
            continue
        with Reader(tmp_path / "x.beton") as reader:
            stored = reader[0]["image"]
        assert np.array_equal(stored, want) if mode == "raw" else np.abs(stored.astype(int) - want).mean() < 8
        answers.append("kept")
    assert answers == ["kept" if storable else "refused"] * 5


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.zeros((4, 4), np.uint8), "shape"),
        (np.zeros((3, 5, 5), np.uint8), "moveaxis"),
        (np.zeros((4, 4, 4), np.uint8), "shape"),
        (np.zeros((4, 4, 3), np.float32), "uint8"),
        (np.zeros((0, 4, 3), np.uint8), "sides"),
        (np.zeros((1, 65536, 3), np.uint8), "sides"),
        (b"no image at all", "Pillow: cannot identify image file)"),
        (b"", "not a readable image"),
        ("/proc/nonexistent/image.jpg", "No such file"),
        (5, "int"),
        (None, "NoneType"),
        (io.BytesIO(b"a file"), "BytesIO"),
        (Image.new("RGBA", (4, 4)), "RGBA"),
        (Image.new("I;16", (4, 4)), "I;16"),
    ],
)
def test_bad_images_stop_with_index_and_reason(tmp_path, value, reason):
    good = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(BetonError) as caught:
        DatasetWriter(
            tmp_path / "x.beton",
            {"n": IntField(), "image": RGBImageField("jpg")},
            num_workers=1,
        ).from_indexed_dataset([(0, good), (1, good), (2, value), (3, good)])
    assert (caught.value.sample, caught.value.field) == (2, "image") and reason in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@needs_jpeg
def test_truncated_jpeg_files_are_not_passed_on(tmp_path):
    data = jpeg_bytes(Image.fromarray(picture(np.random.default_rng(9), 40, 56)))
    for cut in (len(data) - 2, len(data) // 2):
        with pytest.raises(BetonError, match="truncated"):
            DatasetWriter(tmp_path / "x.beton", {"image": RGBImageField("jpg")}, num_workers=1).from_indexed_dataset(
                [(data[:cut],)]
            )


def test_image_records(tmp_path):
    """Mode, width and height, byte by byte, at the largest side."""
    wide = np.zeros((1, 65535, 3), np.uint8)
    DatasetWriter(tmp_path / "x.beton", {"image": RGBImageField()}, num_workers=1).from_indexed_dataset([wide])
    data = (tmp_path / "x.beton").read_bytes()
    assert struct.unpack_from("<BHH", data, 24 + 1041) == (1, 65535, 1)
