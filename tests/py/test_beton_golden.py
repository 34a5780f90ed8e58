"""Files that FFCV 1.0.2 wrote, read back. The small ones are in tests/golden; the others are next to the repository."""

import json
import lzma
from pathlib import Path

import beton_model as model
import numpy as np
import pytest

from cgxffcv import Reader, beton

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden"
SHARED = [ROOT.parent / "shared/golden", ROOT.parents[1] / "shared/golden"]
MANIFEST = json.loads((GOLDEN / "manifest.json").read_text())
JPEG_OF_ONE_SIZE = ("rgb_jpg_q90", "rgb_jpg_q50", "rgb_smart", "rgb_proportion")
# An accurate decode of these images differs from FFCV's fast one by at most this much.
FAST_AND_ACCURATE = 9


def find(file_name):
    for folder in (GOLDEN, *SHARED):
        if (folder / file_name).exists():
            return folder / file_name
    pytest.skip(f"{file_name} is neither in tests/golden nor in ../shared/golden")
    return None


@pytest.fixture
def open_golden(tmp_path):
    readers = []

    def open_one(name, **options):
        path = tmp_path / f"{name}.beton"
        path.write_bytes(lzma.decompress(find(f"{name}.beton.xz").read_bytes()))
        readers.append(Reader(path, **options))
        return readers[-1]

    yield open_one
    for reader in readers:
        reader.close()


def expected(name):
    return dict(np.load(find(f"{name}.expected.npz")))


@pytest.mark.parametrize("name", [*MANIFEST, "vector"])
def test_every_golden_file_is_in_order(open_golden, name):
    reader = open_golden(name)
    entry = MANIFEST.get(name, {"num_samples": 2, "page_size": 2 << 20, "fields": ["image"] * 6})
    assert (len(reader), reader.page_size, len(reader.fields)) == (
        entry["num_samples"],
        entry["page_size"],
        len(entry["fields"]),
    )
    report = beton.verify(reader.path, num_workers=1)
    assert report.ok and report.num_samples == len(reader), str(report)
    assert str(beton.info(reader.path)).count("\n") == 3 + len(reader.fields)


@pytest.mark.parametrize("name", ["scalars", "cifar_raw", "ndarray", "tensor", "mixed", "two_writers"])
def test_arrays_of_one_size_are_exact(open_golden, name):
    reader, want = open_golden(name), expected(name)
    columns = [key for key in want if "_" not in key or key.startswith("field_")]
    assert columns
    for key in columns:
        for i in range(len(reader)):
            got = np.asarray(reader.value(i, key))
            assert got.tobytes() == want[key][i].tobytes() and got.shape == want[key][i].shape, (key, i)
    for i in range(len(reader) if name == "mixed" else 0):
        assert reader.value(i, "blob") == want[f"blob_{i}"].tobytes()
        assert reader.value(i, "doc") == MANIFEST["mixed"]["expected_doc"][i]


def test_scalar_columns_are_exact(open_golden):
    reader, want = open_golden("scalars"), expected("scalars")
    assert reader.column("i").tobytes() == want["i"].tobytes()
    assert reader.column("f").tobytes() == want["f"].tobytes()
    assert np.isnan(want["f"]).any() and np.isinf(want["f"]).any()


def test_images_of_varied_sizes_are_exact(open_golden):
    reader, want = open_golden("rgb_raw_varied"), expected("rgb_raw_varied")
    for i in range(len(reader)):
        assert np.array_equal(reader[i]["image"], want[f"image_{i}"]) and reader[i]["label"] == i


@pytest.mark.parametrize("name", JPEG_OF_ONE_SIZE)
def test_jpeg_images_are_exact_with_the_fast_transform(open_golden, name):
    fast, accurate, want = open_golden(name, jpeg_mode="fast"), open_golden(name), expected(name)["image"]
    for i in range(len(fast)):
        assert np.array_equal(fast[i]["image"], want[i]), i
        difference = np.abs(accurate[i]["image"].astype(int) - want[i])
        assert difference.max() <= FAST_AND_ACCURATE and difference.mean() < 1.5


def test_images_stored_by_threshold(open_golden):
    reader, want = open_golden("rgb_smart_mixed", jpeg_mode="fast"), expected("rgb_smart_mixed")
    modes = [reader.stored_image(i, "image")[0] for i in range(len(reader))]
    assert modes == ["raw" if (4 + i) * 10 * 3 <= 300 else "jpg" for i in range(12)]
    for i in range(12):
        assert np.array_equal(reader[i]["image"], want[f"image_{i}"])


def test_proportion_has_both_modes(open_golden):
    info = open_golden("rgb_proportion").fields["image"]
    assert info.num_jpeg + info.num_raw == 20 and info.num_jpeg > 0 and info.num_raw > 0


def test_bytes_are_exact(open_golden):
    reader, want = open_golden("bytes"), expected("bytes")
    assert [reader[i]["b"] for i in range(len(reader))] == [want[f"b_{i}"].tobytes() for i in range(len(reader))]


def test_json_is_exact(open_golden):
    reader = open_golden("json")
    assert [sample["doc"] for sample in reader] == MANIFEST["json"]["expected"]


def test_an_unsorted_table_of_several_pages(open_golden):
    reader = open_golden("unsorted")
    assert np.array_equal(reader.column("n"), expected("unsorted")["n"])
    for i, n in enumerate(reader.column("n").tolist()):
        value = reader[i]["b"]
        assert len(value) == 60000 + n and set(value) == {(7 * n + 11) % 256}
        begin, end = reader.sample_span(i)
        assert end - begin == len(value) and begin // reader.page_size == (end - 1) // reader.page_size


def test_entries_of_size_zero(open_golden):
    reader = open_golden("bytes_empty")
    assert [sample["b"].decode() for sample in reader] == MANIFEST["bytes_empty"]["expected"]


def test_the_test_vector(open_golden):
    reader = open_golden("vector")
    assert [reader[i]["image"].tobytes() for i in range(2)] == [bytes(range(6)), bytes(range(10, 16))]
    assert [(s["label"], s["vec"].tolist(), s["txt"], s["meta"], s["w"]) for s in reader] == [
        (7, [1.5, 2.5], b"hi", {"a": 0}, -0.5),
        (8, [2.5, 3.5], b"hi!", {"a": 1}, -1.5),
    ]


@pytest.mark.parametrize("name", ["two_writers", "mixed", "rgb_jpg_q90", "bytes_empty", "unsorted"])
def test_merging_one_file_gives_what_our_writer_makes_of_its_values(open_golden, name, tmp_path):
    reader = open_golden(name)
    fields, samples, page = model.read(Path(reader.path).read_bytes())
    out = tmp_path / "merged.beton"
    beton.merge(out, [reader.path], page_size=page)
    assert out.read_bytes() == model.write(fields, samples, page)
