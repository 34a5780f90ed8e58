"""Tar files of samples: which members make a sample, what they are decoded to, and what is refused."""

import gzip
import io
import os
import pickle
import tarfile

import numpy as np
import pytest
from tars import write_tar

from cgxffcv.writer.webshards import Shards, expand


def array_bytes(array):
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


def test_a_range_of_one():
    assert expand("a-{7..7}.tar") == ["a-7.tar"]


def test_folders_are_no_samples_and_part_of_keys(tmp_path):
    """Two samples, although their files have the same name."""
    members = {"one": None, "one/a.cls": b"1", "two": None, "two/a.cls": b"2", "two/a.txt": "ü".encode()}
    shards = Shards(write_tar(tmp_path / "x.tar", members)).decode()
    assert list(shards) == [{"__key__": "one/a", "cls": 1}, {"__key__": "two/a", "cls": 2, "txt": "ü"}]
    assert shards.count() == 2


def test_extensions_by_their_last_part_in_any_case(tmp_path):
    members = {
        "a.Seg.CLS": b"7",
        "a.JSON": b"[1]",
        "a.JPG": b"\xff",
        "a.id": b"-3",
        "a.mask.npy": array_bytes(np.eye(2)),
    }
    (sample,) = Shards([write_tar(tmp_path / "x.tar", members)]).decode()
    np.testing.assert_array_equal(sample.pop("mask.npy"), np.eye(2))
    assert sample == {"__key__": "a", "seg.cls": 7, "json": [1], "jpg": b"\xff", "id": -3}


def test_the_first_name_that_is_there_is_taken(tmp_path):
    shards = Shards(write_tar(tmp_path / "x.tar", {"a.png": b"p", "a.jpeg": b"j", "a.cls": b"1"}))
    assert list(shards.to_tuple("jpg;jpeg;png cls")) == [(b"j", b"1")]
    assert list(shards.rename(image="jpg;png;jpeg", none="txt")) == [
        {"__key__": "a", "image": b"p", "jpeg": b"j", "cls": b"1"}
    ]


def test_functions_for_the_first_values_only(tmp_path):
    shards = Shards(write_tar(tmp_path / "x.tar", {"a.cls": b"1", "a.id": b"2"})).decode().to_tuple("cls", "id")
    assert list(shards.map_tuple(lambda value: value + 10)) == [(11, 2)]


class Run:
    """Leaves a file if it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    "more",
    [
        lambda shards: shards.map(lambda sample: next(iter(()))),
        lambda shards: shards.select(lambda sample: next(iter(()))),
        lambda shards: shards.to_tuple("cls").map_tuple(lambda label: next(iter(()))),
        lambda shards: shards.decode(lambda extension, data: next(iter(()))),
    ],
)
def test_a_function_that_raises_stop_iteration_loses_no_sample(tmp_path, more):
    shards = Shards(write_tar(tmp_path / "x.tar", {"a.cls": b"1", "b.cls": b"2"}))
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(more(shards))


def test_nothing_is_unpickled(tmp_path):
    objects = array_bytes(np.array([Run(tmp_path / "ran")], object))
    assert pickle.dumps(Run(tmp_path / "ran")) and not (tmp_path / "ran").exists()
    shards = Shards(write_tar(tmp_path / "x.tar", {"a.npy": objects})).decode()
    with pytest.raises(ValueError, match="sample 'a'.*allow_pickle=False"):
        list(shards)
    assert not (tmp_path / "ran").exists()


def test_shards_are_regular_files(tmp_path):
    """A FIFO would be waited for, and is read twice."""
    os.mkfifo(tmp_path / "x.tar")
    for read in (list, Shards.count):
        with pytest.raises(OSError, match="is not a regular file"):
            read(Shards(tmp_path / "x.tar"))


def test_what_is_no_tar_file_is_named(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"x" * 2000)
    for read in (list, Shards.count):
        with pytest.raises(tarfile.ReadError, match="x.tar: not a tar file"):
            read(Shards(tmp_path / "x.tar"))


def test_what_is_damaged_further_on_is_named(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", {"a.bin": bytes(1 << 20)})
    packed = gzip.compress(whole.read_bytes()[: 1 << 19])
    (tmp_path / "x.tar.gz").write_bytes(packed + b"no gzip" * 10)
    for read in (list, Shards.count):
        with pytest.raises(tarfile.ReadError, match="x.tar.gz: damaged, or not all of it: "):
            read(Shards(tmp_path / "x.tar.gz"))


def test_members_of_very_many_bytes_are_not_read(tmp_path):
    """A sparse member of any size takes one block."""
    member = tarfile.TarInfo("a.cls")
    member.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(1 << 40), "GNU.sparse.numblocks": "1"}
    member.size = 1
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member, io.BytesIO(b"7"))
    with pytest.raises(ValueError, match="x.tar: a.cls has 1,099,511,627,776 bytes: more than 4 GiB are not read"):
        list(Shards(tmp_path / "x.tar"))
