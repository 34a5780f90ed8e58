"""cgxffcv convert: folders, tar files and .beton files, unchanged where they can be."""

import errno
import gzip

import _cgxffcv
import numpy as np
import pytest
from tars import write_tar

from cgxffcv import Loader, Reader, beton
from cgxffcv.app import cli
from cgxffcv.classes import read_names
from cgxffcv.errors import DataError, UserError
from cgxffcv.train.facts import look_at


def picture(seed):
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6 + seed % 3, 3), dtype=np.uint8)
    return _cgxffcv.jpeg_encode(noise.repeat(8, 0).repeat(8, 1))


@pytest.fixture
def folder(tmp_path):
    for number in range(6):
        place = tmp_path / "set" / ("cat", "dog")[number % 2] / f"{number}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(picture(number))
    return tmp_path / "set"


def convert(*words):
    return cli.run(["convert", "--workers", "1", *map(str, words)])


def stored(path):
    with Reader(path) as reader:
        return [(reader.stored_image(i, "image")[3], reader[i]["label"]) for i in range(len(reader))]


def test_a_folder(folder, tmp_path, capsys):
    assert convert(folder, tmp_path / "new" / "a.beton") == 0
    assert "6 samples" in capsys.readouterr().out
    want = [(picture(n), n % 2) for n in (0, 2, 4, 1, 3, 5)]
    assert stored(tmp_path / "new" / "a.beton") == want
    convert("--shuffle", "--seed", 3, folder, tmp_path / "b.beton")
    assert stored(tmp_path / "b.beton") != want and sorted(stored(tmp_path / "b.beton")) == sorted(want)


def test_smaller_or_raw(folder, tmp_path):
    convert("--max-resolution", 24, "--checksums", folder, tmp_path / "a.beton")
    info = beton.info(tmp_path / "a.beton")
    assert info.fields[0].max_width == 24 and info.fields[0].num_jpeg == 6 and info.has_checksums
    convert("--mode", "raw", folder, tmp_path / "b.beton")
    with Reader(tmp_path / "b.beton") as reader:
        np.testing.assert_array_equal(reader[0]["image"], _cgxffcv.jpeg_decode(picture(0)))
        assert reader.fields["image"].num_raw == 6


def write_shard(path, key, image, label):
    write_tar(path, {f"{key}.jpeg": image, f"{key}.cls": label})


def test_tar_files(tmp_path):
    for shard in range(2):
        write_shard(tmp_path / f"part-{shard}.tar", f"{shard}a", picture(shard), b"%d" % (10 + shard))
    convert(tmp_path / "part-{0..1}.tar", tmp_path / "a.beton")
    assert stored(tmp_path / "a.beton") == [(picture(0), 10), (picture(1), 11)]


def test_a_label_that_is_none_names_its_sample(tmp_path):
    write_shard(tmp_path / "a.tar", "dogs/7", picture(0), b"dog")
    with pytest.raises(UserError, match=r"sample 'dogs/7': cls: expected a whole number, not b'dog'; .*a\.tar$"):
        convert(tmp_path / "a.tar", tmp_path / "a.beton")


def test_tar_files_that_are_none_or_not_whole(tmp_path):
    write_shard(tmp_path / "whole.tar", "7", picture(0), b"7")
    whole = (tmp_path / "whole.tar").read_bytes()
    packed = gzip.compress(whole)
    for number, (data, text) in enumerate(
        (
            (b"hello", "not a tar file"),
            (b"", "not a tar file"),
            (whole[:600], "damaged, or not all of it"),
            (packed[: len(packed) // 2], "damaged, or not all of it"),
            (packed[:200] + b"\xff" * 100 + packed[300:], "not a tar file|damaged"),
        )
    ):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(data)
        with pytest.raises(UserError, match=text):
            convert(path, tmp_path / "a.beton")
        assert not (tmp_path / "a.beton").exists()
    write_shard(tmp_path / "image.tar", "7", picture(0)[:200], b"7")
    with pytest.raises(UserError, match="sample 0: .*: --skip-bad$"):
        convert(tmp_path / "image.tar", tmp_path / "a.beton")


def test_files_of_this_format(folder, tmp_path):
    convert(folder, tmp_path / "a.beton")
    convert(tmp_path / "a.beton", tmp_path / "a.beton", tmp_path / "b.beton")
    assert stored(tmp_path / "b.beton") == stored(tmp_path / "a.beton") * 2


def labels_of(path):
    with Reader(path) as reader:
        return reader.column("label").tolist()


def test_names_of_classes_go_with_their_labels(folder, tmp_path):
    """A label with different classes in two files is refused, and no names stay that belong to other labels."""
    first, other, both = (tmp_path / f"{name}.beton" for name in ("first", "other", "both"))
    convert(folder, first)
    (tmp_path / "few" / "dog").mkdir(parents=True)
    (tmp_path / "few" / "dog" / "9.jpg").write_bytes(picture(9))
    convert(tmp_path / "few", other)
    assert labels_of(other) == [0] and read_names(other) == ("dog",)  # which is 1 in the first
    with pytest.raises(DataError, match=r"other.beton.classes: class 0 is 'dog', but 'cat' in .*first.beton.classes"):
        convert(first, other, both)
    assert not both.exists()
    with pytest.raises(DataError, match="class 0 is 'dog', but 'cat'"):
        Loader([first, other], 2)
    with pytest.raises(DataError, match="class 0 is 'dog', but 'cat'"):
        look_at(first, other)
    (tmp_path / "few" / "cat").mkdir()
    convert(tmp_path / "few", other)
    assert labels_of(other) == [1] and len(Loader([first, other], 1, pipelines={"image": None})) == 7
    convert(first, other, both)
    assert labels_of(both) == [0] * 3 + [1] * 4 and read_names(both) == ("cat", "dog")
    write_shard(tmp_path / "a.tar", "a", picture(1), b"0")
    convert(tmp_path / "a.tar", both)
    assert labels_of(both) == [0] and read_names(both) is None


def test_hidden_folders_and_files_are_no_classes(folder, tmp_path):
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "x.jpg").write_bytes(picture(1))
    (folder / "cat" / ".thumbnails").mkdir()
    (folder / "cat" / ".thumbnails" / "x.jpg").write_bytes(picture(1))
    (folder / "cat" / "._0.jpg").write_bytes(b"not an image")
    convert(folder, tmp_path / "a.beton")
    assert labels_of(tmp_path / "a.beton") == [0] * 3 + [1] * 3
    assert read_names(tmp_path / "a.beton") == ("cat", "dog")


def test_bad_samples(folder, tmp_path, capsys):
    (folder / "dog" / "1.jpg").write_bytes(b"nothing")
    (folder / "dog" / "5.jpg").write_bytes(picture(5)[:300])  # the core finds it, which knows no paths
    with pytest.raises(UserError, match=r"^\S*dog/1.jpg: .*: --skip-bad$"):
        convert(folder, tmp_path / "a.beton")
    assert not (tmp_path / "a.beton").exists()
    convert("--skip-bad", "--shuffle", folder, tmp_path / "a.beton")
    shown = capsys.readouterr().out
    assert len(stored(tmp_path / "a.beton")) == 4 and "left out: sample 3: " in shown
    assert f"left out: sample 5: {folder}/dog/5.jpg: truncated" in shown
    (folder / "dog" / "1.jpg").unlink()
    with pytest.raises(UserError, match=r"^\S*dog/5.jpg: truncated .*: --skip-bad$"):
        convert(folder, tmp_path / "b.beton", "--shuffle")


@pytest.mark.parametrize(
    "words, text",
    [
        (["x.zip", "y.beton"], "one folder, tar files or .beton files are expected, not x.zip"),
        (["picturs", "y.beton"], "picturs: no such file or folder"),
        (["a.beton", "--mode", "raw", "y.beton"], "copied as they are"),
        (["a.tar", "--shuffle", "y.beton"], "no --shuffle"),
        (["missing.beton", "y.beton"], "missing.beton"),
        (["missing.tar", "y.beton"], "^missing.tar: No such file or directory$"),
        (["y.beton"], "required"),
        (["--quality", "0", "a", "y.beton"], "from 1 to 100"),
    ],
)
def test_refusals(words, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.zip").touch()
    with pytest.raises(UserError, match=text):
        convert(*words)


def test_a_limit_that_was_reached_is_named_without_a_number(folder, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EMFILE, "num_workers: 8 processes: too few files")

    monkeypatch.setattr("cgxffcv.app.commands.convert.convert", refuse)
    with pytest.raises(UserError, match="^num_workers: 8 processes: too few files$"):
        convert(folder, tmp_path / "a.beton")
