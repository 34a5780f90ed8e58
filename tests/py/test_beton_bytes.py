"""The writer's bytes against the model's, and the reader's values against what was put in."""

import json
import lzma
import struct
from pathlib import Path

import beton_files as files
import beton_model as model
import numpy as np
import pytest

from cgxffcv import DatasetWriter, Reader
from cgxffcv.fields import BytesField, FloatField, IntField, JSONField, NDArrayField, RGBImageField

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def write(path, fields, samples, page=2 << 20, **options):
    options.setdefault("num_workers", 1)
    return DatasetWriter(
        path, files.package_fields(fields), page_size=page, allow_small_pages=page < 2 << 20, **options
    ).from_indexed_dataset(files.package_samples(fields, samples))


@pytest.mark.parametrize("seed", range(60))
def test_random_files_are_the_models_bytes_and_read_back(tmp_path, seed):
    rng = np.random.default_rng(seed)
    fields = files.random_fields(rng, int(rng.integers(1, 9)))
    samples = files.random_samples(rng, fields, int(rng.choice([0, 1, 2, 17, 200])))
    page = int(rng.choice([1024, 4096, 65536]))
    path = tmp_path / "x.beton"
    report = write(path, fields, samples, page)
    wanted = model.write(fields, samples, page)
    assert path.read_bytes() == wanted
    assert (report.num_samples, report.num_bytes) == (len(samples), len(wanted))
    with Reader(path) as reader:
        assert [(info.kind, info.name) for info in reader.fields.values()] == [field[:2] for field in fields]
        assert len(reader) == len(samples)
        for i, sample in enumerate(files.package_samples(fields, samples)):
            got = reader[i]
            for name, value in zip(reader.fields, sample, strict=True):
                assert files.same(got[name], value), (i, name)


@pytest.mark.parametrize("seed", range(12))
def test_checksums_change_nothing_but_unused_room(tmp_path, seed):
    rng = np.random.default_rng(100 + seed)
    fields = files.random_fields(rng, int(rng.integers(1, 6)))
    samples = files.random_samples(rng, fields, int(rng.choice([0, 1, 30])))
    page = int(rng.choice([512, 4096]))
    plain, checked = tmp_path / "plain.beton", tmp_path / "checked.beton"
    write(plain, fields, samples, page)
    write(checked, fields, samples, page, checksums=True)
    want, got = model.read(plain.read_bytes()), model.read(checked.read_bytes())
    assert got[:2] == want[:2]
    with Reader(checked) as reader:
        for i, sample in enumerate(files.package_samples(fields, samples)):
            assert all(files.same(a, b) for a, b in zip(reader[i].values(), sample, strict=True))
        has_data = any(kind not in model.DATALESS for kind, _, _ in fields)
        assert reader.has_checksums or (not samples and has_data)


@pytest.mark.parametrize(
    ("kinds", "offsets", "size"),
    [
        ("image", [0], 13),
        ("image int", [0, 16], 24),
        ("int image", [0, 8], 24),
        ("image image", [0, 13], 26),
        ("image image int", [0, 13, 32], 40),
        ("image int image", [0, 16, 24], 40),
        ("image bytes", [0, 13], 29),
        ("image bytes json", [0, 13, 29], 45),
        ("array image bytes", [0, 8, 21], 40),
        ("image array json int", [0, 16, 24, 40], 48),
        ("bytes image", [0, 16], 29),
    ],
)
def test_record_layouts_of_the_specification(tmp_path, kinds, offsets, size):
    kinds = kinds.split()
    assert model.layout(kinds) == (offsets, size)
    fields = [(kind, f"f{i}", ("<f4", (2,)) if kind == "array" else None) for i, kind in enumerate(kinds)]
    samples = files.random_samples(np.random.default_rng(0), fields, 3)
    write(tmp_path / "x.beton", fields, samples, 4096)
    with Reader(tmp_path / "x.beton") as reader:
        assert [entry["record_offset"] for entry in reader._file.fields] == offsets
    metadata = 24 + 1041 * len(kinds)
    # the table's place shows the records' size: no page comes in between if there is no data
    if all(kind in model.DATALESS for kind in kinds):
        assert (tmp_path / "x.beton").stat().st_size == metadata + 3 * size


def vector_samples():
    return [
        (
            np.arange(10 * i, 10 * i + 6, dtype=np.uint8).reshape(1, 2, 3),
            7 + i,
            np.array([1.5 + i, 2.5 + i], np.float32),
            b"hi" + b"!" * i,
            {"a": i},
            -0.5 - i,
        )
        for i in range(2)
    ]


VECTOR_FIELDS = {
    "image": RGBImageField(),
    "label": IntField(),
    "vec": NDArrayField(np.float32, (2,)),
    "txt": BytesField(),
    "meta": JSONField(),
    "w": FloatField(),
}


@pytest.mark.parametrize("workers", [1, 2])
def test_the_test_vector_is_reproduced_byte_for_byte(tmp_path, workers):
    path = tmp_path / "vector.beton"
    writer = DatasetWriter(path, VECTOR_FIELDS, page_size=2 << 20, num_workers=workers, worker_kind="process")
    writer.from_indexed_dataset(vector_samples(), chunksize=1)
    assert path.read_bytes() == lzma.decompress((GOLDEN / "vector.beton.xz").read_bytes())


def test_a_sample_that_needs_a_larger_page_gets_one(tmp_path):
    fields = [("bytes", "b", None), ("int", "n", None)]
    rng = np.random.default_rng(3)
    for sizes in ([100, 900, 5000, 10, 3000, 9000, 4096], [1024] * 5 + [1025], [2049, 1, 1]):
        samples = [(rng.bytes(size), i) for i, size in enumerate(sizes)]
        report = write(tmp_path / "x.beton", fields, samples, 1024)
        wanted = model.write(fields, samples, 1024)
        assert (tmp_path / "x.beton").read_bytes() == wanted
        assert report.page_size == struct.unpack_from("<I", wanted, 4)[0] > 1024


def test_a_page_that_grows_moves_the_data_although_it_begins_in_the_same_place(tmp_path):
    fields = [("bytes", "b", None), ("int", "n", None)]
    rng = np.random.default_rng(4)
    samples = [(rng.bytes(2000 if i == 59 else 600), i) for i in range(60)]
    wanted = model.write(fields, samples, 1024)
    begin = 24 + 2 * 1041 + 60 * 24
    assert struct.unpack_from("<I", wanted, 4)[0] == 2048 and -(-begin // 1024) * 1024 == -(-begin // 2048) * 2048
    write(tmp_path / "x.beton", fields, samples, 1024)
    assert (tmp_path / "x.beton").read_bytes() == wanted


@pytest.mark.parametrize("claimed", [0, 1, 40, 100_000])
@pytest.mark.parametrize("checksums", [False, True])
def test_a_wrong_guess_of_the_number_of_samples_changes_nothing(tmp_path, claimed, checksums):
    fields = [("bytes", "b", None), ("int", "n", None)]
    samples = files.random_samples(np.random.default_rng(4), fields, 40)
    wanted = tmp_path / "wanted.beton"
    write(wanted, fields, samples, 256, checksums=checksums)
    path = tmp_path / "x.beton"
    writer = DatasetWriter(
        path, files.package_fields(fields), page_size=256, allow_small_pages=True, num_workers=1, checksums=checksums
    )
    writer.from_iterable(iter(samples), length=claimed)
    assert path.read_bytes() == wanted.read_bytes()


def test_skipping_samples_gives_the_file_of_the_others(tmp_path):
    fields = [("bytes", "b", None), ("array", "a", ("<i4", (3,)))]
    samples = files.random_samples(np.random.default_rng(5), fields, 300)
    good = [sample for i, sample in enumerate(samples) if i % 7]
    bad = files.package_samples(fields, samples)
    for i in range(0, 300, 7):
        bad[i] = (bad[i][0], np.zeros(4, np.int32)) if i % 2 else (bad[i][0],)
    for kind in ("thread", "process"):
        path = tmp_path / f"{kind}.beton"
        writer = DatasetWriter(
            path,
            files.package_fields(fields),
            page_size=1024,
            allow_small_pages=True,
            num_workers=2,
            worker_kind=kind,
            on_error="skip",
        )
        report = writer.from_indexed_dataset(bad, chunksize=11)
        assert path.read_bytes() == model.write(fields, good, 1024)
        assert [skip.index for skip in report.skipped] == list(range(0, 300, 7))
        assert {skip.field for skip in report.skipped} == {"", fields[1][1]}


@pytest.mark.parametrize("n", [0, 1, 5])
def test_files_without_data_end_with_their_records(tmp_path, n):
    fields = [("int", "i", None), ("float", "f", None)]
    samples = files.random_samples(np.random.default_rng(6), fields, n)
    write(tmp_path / "x.beton", fields, samples)
    data = (tmp_path / "x.beton").read_bytes()
    assert data == model.write(fields, samples) and len(data) == 24 + 2 * 1041 + 16 * n


def test_empty_bytes_reserve_one_byte_each(tmp_path):
    fields = [("bytes", "a", None), ("bytes", "b", None)]
    samples = [(b"", b""), (b"x", b""), (b"", b"yz"), (b"", b"")]
    write(tmp_path / "x.beton", fields, samples, 4096)
    data = (tmp_path / "x.beton").read_bytes()
    assert data == model.write(fields, samples, 4096)
    table = struct.unpack_from("<Q", data, 16)[0]
    entries = np.frombuffer(data, "<u8", offset=table).reshape(-1, 3)
    assert len(set(entries[:, 1].tolist())) == 8 and entries[:, 2].tolist() == [1, 1, 1, 1, 1, 2, 1, 1]
    with Reader(tmp_path / "x.beton") as reader:
        assert [tuple(sample.values()) for sample in reader] == samples


def test_json_text_is_json_dumps_and_a_nul(tmp_path):
    documents = [{"a": [1, 2.5, None, True]}, "ünïcödé\0", [], 3, {"nested": {"deep": ["x"] * 50}}]
    DatasetWriter(tmp_path / "x.beton", {"doc": JSONField()}, num_workers=1).from_indexed_dataset(documents)
    _, samples, _ = model.read((tmp_path / "x.beton").read_bytes())
    assert [sample[0] for sample in samples] == [json.dumps(document).encode() for document in documents]
    with Reader(tmp_path / "x.beton") as reader:
        assert [reader[i]["doc"] for i in range(5)] == documents


def test_columns_and_rows_give_the_same_file(tmp_path):
    rng = np.random.default_rng(7)
    images = rng.integers(0, 256, (301, 5, 7, 3), np.uint8)
    labels, weights = rng.integers(-9, 9, 301), rng.normal(size=301)
    vectors = rng.normal(size=(301, 2, 3)).astype(np.float16)
    fields = {"image": RGBImageField(), "label": IntField(), "w": FloatField(), "v": NDArrayField("float16", (2, 3))}
    columns = (images, labels.astype(np.int16), weights, vectors)
    made = []
    for workers in (1, 2):
        path = tmp_path / f"{workers}.beton"
        DatasetWriter(path, fields, num_workers=workers).from_arrays(*columns)
        made.append(path.read_bytes())
    DatasetWriter(tmp_path / "rows.beton", fields, num_workers=1).from_indexed_dataset(
        list(zip(images, labels, weights, vectors, strict=True))
    )
    model_fields = [
        ("image", "image", None),
        ("int", "label", None),
        ("float", "w", None),
        ("array", "v", ("<f2", (2, 3))),
    ]
    samples = [
        (("raw", 7, 5, images[i].tobytes()), int(labels[i]), float(weights[i]), vectors[i].tobytes())
        for i in range(301)
    ]
    wanted = model.write(model_fields, samples, 8 << 20)
    assert made[0] == made[1] == (tmp_path / "rows.beton").read_bytes() == wanted


def test_a_subset_of_an_image_is_written_without_its_surroundings(tmp_path):
    rng = np.random.default_rng(8)
    whole = rng.integers(0, 256, (40, 50, 3), np.uint8)
    views = [whole[3:20, 5:31], whole[::-1], whole[:, ::2], whole[10:11], whole[:, 7:8], np.asfortranarray(whole)]
    DatasetWriter(tmp_path / "x.beton", {"image": RGBImageField()}, num_workers=1).from_indexed_dataset(views)
    with Reader(tmp_path / "x.beton") as reader:
        for i, view in enumerate(views):
            assert np.array_equal(reader[i]["image"], view)
