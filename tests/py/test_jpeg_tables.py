"""A JPEG stream without its own tables: the result does not depend on what was decoded before it."""

import io

import _cgxffcv
import numpy as np
import pytest
import tiny_beton

from cgxffcv import BetonError, Loader, Reader, beton

pytestmark = pytest.mark.skipif(not _cgxffcv.build_info()["jpeg"], reason="this build has no libjpeg-turbo")
SIDES = (24, 40)
HUFFMAN, QUANTIZATION = 0xC4, 0xDB  # markers


def without(stream, marker):
    """The stream without its segments of this kind before the first scan."""
    head, scan, data = stream.partition(b"\xff\xda")
    at, kept = 2, head[:2]
    while at < len(head):
        size = 2 + int.from_bytes(head[at + 2 : at + 4], "big")
        kept += b"" if head[at + 1] == marker else head[at : at + size]
        at += size
    return kept + scan + data


def encoded(**options):
    image = pytest.importorskip("PIL.Image")
    noise = np.random.default_rng(5).integers(0, 256, (3, 5, 3), np.uint8)
    out = io.BytesIO()
    image.fromarray(noise.repeat(8, 0).repeat(8, 1)).save(out, "JPEG", **options)
    return out.getvalue()


def answers(path, *streams):
    """What Reader gives for each, None if it refuses; Loader agrees, with one thread that decodes all."""
    tiny_beton.write(path, {"image": ("image", list(streams))}, sides=SIDES)
    found = []
    with Reader(path) as reader:
        for sample in range(len(streams)):
            try:
                found.append(reader[sample]["image"])
            except BetonError:
                found.append(None)
    with Loader(path, len(streams), num_workers=1, on_error="zero", arrays="numpy") as loader:
        (batch,) = (images for (images,) in loader)
        blanked = loader.stats()["blanked"]
    assert blanked == sum(image is None for image in found)
    for row, image in zip(batch, found, strict=True):
        np.testing.assert_array_equal(row, np.zeros_like(row) if image is None else image)
    assert {problem.sample for problem in beton.verify(path, num_workers=1).problems} == {
        sample for sample, image in enumerate(found) if image is None
    }
    return found


def test_frames_of_motion_jpeg_have_the_standard_tables(tmp_path):
    standard, own = encoded(quality=70), encoded(quality=20, optimize=True)
    bare = without(standard, HUFFMAN)
    assert len(bare) < len(standard) - 300
    first, _, between, whole, last = answers(tmp_path / "x.beton", bare, own, bare, standard, bare)
    for image in (first, between, last):
        np.testing.assert_array_equal(image, whole)


def test_the_tables_of_another_stream_are_not_used(tmp_path):
    own = encoded(quality=20, optimize=True)
    bare = without(own, HUFFMAN)
    alone, after_itself = answers(tmp_path / "x.beton", bare)[0], answers(tmp_path / "y.beton", own, bare)[1]
    assert (alone is None) == (after_itself is None)
    assert alone is None or np.array_equal(alone, after_itself)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}], ids=["plain", "progressive", "full"]
)
def test_without_quantization_a_stream_is_refused(tmp_path, options):
    stream = encoded(**options)
    bare = without(stream, QUANTIZATION)
    found = answers(tmp_path / "x.beton", bare, stream, bare, stream)
    assert [image is None for image in found] == [True, False, True, False]
    with pytest.raises(BetonError, match="(?i)quantization table"):
        Reader(tmp_path / "x.beton")[2]
