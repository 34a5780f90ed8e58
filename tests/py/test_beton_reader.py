"""What Reader, info and verify report; Reader's behaviour: views, threads, truncated files."""

import copy
import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import beton_files as files
import beton_model as model
import numpy as np
import pytest
from package_writer import FIELDS, Samples, write

from cgxffcv import BetonError, DatasetWriter, Reader, beton
from cgxffcv.fields import Field, JSONField, NDArrayField

# ---- reports


def test_info_and_verify_reports(tmp_path):
    write(tmp_path / "x.beton", Samples(50), num_workers=1, checksums=True)
    info = beton.info(tmp_path / "x.beton")
    assert json.loads(beton.to_json(info))["num_samples"] == 50 and "checksums: yes" in str(info)
    assert info.num_bytes == (tmp_path / "x.beton").stat().st_size and info.page_size == 4096
    report = beton.verify(tmp_path / "x.beton", num_workers=2)
    assert report.ok and report.num_regions == 150 and report.has_checksums and "no problems" in str(report)
    assert json.loads(beton.to_json(report))["ok"] is True


def test_verify_says_nothing_of_checksums_where_there_is_no_data_set(tmp_path):
    (tmp_path / "page.html").write_text("<html>" * 100)
    text = str(beton.verify(tmp_path / "page.html"))
    assert "is it a .beton file?" in text and "checksums" not in text


def test_verify_finds_every_changed_byte_of_values_when_there_are_checksums(tmp_path):
    write(tmp_path / "x.beton", Samples(6), num_workers=1, checksums=True)
    data = (tmp_path / "x.beton").read_bytes()
    _, samples, _ = model.read(data)
    begin = int.from_bytes(data[16:24], "little") // 4096 * 4096 - 4096
    used = sum(
        len(model.region_of(kind, value)) or 1
        for sample in samples
        for (kind, _, _), value in zip(FIELDS, sample, strict=True)
        if kind not in model.DATALESS
    )
    for at in range(begin, begin + used, 3):
        broken = bytearray(data)
        broken[at] ^= 0x10
        (tmp_path / "x.beton").write_bytes(broken)
        report = beton.verify(tmp_path / "x.beton", num_workers=1)
        assert report.num_problems == 1 and "checksum" in str(report) or "reserved" in str(report), at


def test_verify_keeps_a_bounded_number_of_problems(tmp_path):
    documents = [({"a": i},) for i in range(300)]
    write(tmp_path / "x.beton", documents, {"d": JSONField()}, num_workers=1)
    data = (tmp_path / "x.beton").read_bytes()
    table = int.from_bytes(data[16:24], "little")
    (tmp_path / "x.beton").write_bytes(data[:table].replace(b"}\0", b"}}") + data[table:])
    report = beton.verify(tmp_path / "x.beton", num_workers=2, max_problems=10)
    assert report.num_problems == 300 and [p.sample for p in report.problems] == list(range(10))
    assert "and 290 more" in str(report)
    assert beton.verify(tmp_path / "x.beton", max_problems=2**70).num_problems == 300
    assert beton.verify(tmp_path / "x.beton", max_problems=0).problems == []
    with pytest.raises(ValueError, match="max_problems must be 0 or more, not -1"):
        beton.verify(tmp_path / "x.beton", max_problems=-1)


def test_progress_is_shown_when_asked_for(tmp_path, capsys):
    write(tmp_path / "x.beton", Samples(50), num_workers=1, progress=True)
    assert "50 samples" in capsys.readouterr().err
    write(tmp_path / "x.beton", Samples(50), num_workers=1)
    assert capsys.readouterr().err == ""


# ---- the reader's behaviour


def test_reader_manners(tmp_path):
    write(tmp_path / "x.beton", Samples(10), num_workers=1)
    with Reader(tmp_path / "x.beton") as reader:
        assert len(reader) == 10 and "10 samples" in repr(reader)
        assert reader[-1]["n"] == reader[np.int64(9)]["n"] and [s["n"] for s in reader[2:8:3]] == [
            reader[2]["n"],
            reader[5]["n"],
        ]
        for index in (10, -11):
            with pytest.raises(IndexError, match="10"):
                reader[index]
        with pytest.raises(TypeError):
            reader["n"]
        with pytest.raises(KeyError, match="it has b, n, img, d"):
            reader.value(0, "label")
        with pytest.raises(TypeError, match="column reads fields of int or float; field 'b' holds bytes"):
            reader.column("b")
        with pytest.raises(TypeError, match="int"):
            reader.stored_image(0, "n")
    assert reader.closed
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader[0]
    with pytest.raises(ValueError, match="jpeg_mode"):
        Reader(tmp_path / "x.beton", jpeg_mode="quick")


def test_views_outlive_the_reader(tmp_path):
    array = np.arange(1000, dtype=np.int32)
    write(tmp_path / "x.beton", [(array,)], {"a": NDArrayField("int32", (1000,))}, num_workers=1)
    with Reader(tmp_path / "x.beton", view=True) as reader:
        view = reader[0]["a"]
    with Reader(tmp_path / "x.beton") as reader:
        copy = reader[0]["a"]
    os.unlink(tmp_path / "x.beton")
    assert np.array_equal(view, array) and not view.flags.writeable and not view.flags.owndata
    assert np.array_equal(copy, array) and copy.flags.writeable and copy.flags.owndata


class Twice(Field):
    """A field of a user's own type."""

    metadata_type = np.dtype([("x", "<i4")])

    def encode(self, destination, value, malloc):
        destination["x"] = value

    def decode(self, record, data):
        return 2 * int(record["x"])


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda reader: pickle.loads(pickle.dumps(reader))])
def test_copies_open_the_file_again(tmp_path, monkeypatch, again):
    """As the workers of a torch DataLoader get one, in whatever folder they are."""
    DatasetWriter(
        tmp_path / "x.beton", {"own": Twice(), "a": NDArrayField("u1", 2)}, num_workers=1
    ).from_indexed_dataset([(i, np.full(2, i, np.uint8)) for i in range(5)])
    monkeypatch.chdir(tmp_path)
    with Reader("x.beton", {"own": Twice}, jpeg_mode="fast", view=True) as reader:
        monkeypatch.chdir("/")
        other = again(reader)
    assert reader.closed and not other.closed
    assert other[3]["own"] == 6 and other[3]["a"].tolist() == [3, 3] and not other[3]["a"].flags.writeable
    write(tmp_path / "x.beton", Samples(2), num_workers=1)
    with pytest.raises(BetonError, match=r"x\.beton: another file has taken its place since it was opened"):
        again(other)
    (tmp_path / "x.beton").unlink()
    with pytest.raises(FileNotFoundError):
        again(other)
    other.close()


def test_a_file_that_is_cut_while_it_is_open(tmp_path):
    path = tmp_path / "x.beton"
    write(path, Samples(10), num_workers=1)
    data = path.read_bytes()
    with Reader(path) as reader:
        assert reader[3]["n"] == Samples(10)[3][1]
        os.truncate(path, 5000)
        for call in (
            lambda: reader[3],
            lambda: reader.column("n"),
            lambda: reader.sample_span(3),
            lambda: reader.stored_image(3, "img"),
            lambda: reader._file.verify(0, 10, threads=1, decode_jpeg=True, max_problems=1),
        ):
            with pytest.raises(BetonError, match=f"5000 bytes of {len(data)}"):
                call()
        path.write_bytes(data)
        assert reader[3]["n"] == Samples(10)[3][1]
    with Reader(path) as reader:  # replaced, as our writer does: the open one is not affected
        write(path, Samples(5), num_workers=1)
        assert len(reader) == 10 and reader[9]["n"] == Samples(10)[9][1]


def test_many_threads_read_at_once(tmp_path):
    write(tmp_path / "x.beton", Samples(50), num_workers=1)
    want = Samples(50).samples
    wrong = []
    with Reader(tmp_path / "x.beton") as reader:

        def read(seed):
            for i in np.random.default_rng(seed).integers(0, 50, 300).tolist():
                if not all(files.same(a, b) for a, b in zip(reader[i].values(), want[i], strict=True)):
                    wrong.append(i)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(read, range(4)))
    assert wrong == []
