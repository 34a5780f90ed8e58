"""The core's Writer and write_file by themselves: they release what they are given, and misuse ends in an exception."""

import os
import sys

import _cgxffcv
import numpy as np
import pytest

from cgxffcv.fields import BytesField, IntField

SPECS = [BytesField().describe("b"), IntField().describe("n")]
OPTIONS = {
    "page_size": 4096,
    "small_pages": True,
    "checksums": False,
    "durable": False,
    "expected_samples": 2,
    "threads": 1,
    "seed": 0,
    "skip_bad": False,
}


def writer(path, **options):
    return _cgxffcv.Writer(path, SPECS, **OPTIONS | options)


def packed():
    data, _ = _cgxffcv.Encoder(SPECS, seed=0, threads=1, skip_bad=False).encode(0, [(b"abc", 1), (b"de", 2)])
    return bytearray(data)


def resizable(data):
    """True if no buffer of it is held any more."""
    data.append(0)
    data.pop()
    return True


def test_packed_samples_are_let_go_of(tmp_path):
    data = packed()
    file = writer(tmp_path / "x")
    file.append_packed(data)
    assert resizable(data)
    cut = data[:-1]
    with pytest.raises(ValueError):
        file.append_packed(cut)
    assert resizable(cut)
    file.abort()
    with pytest.raises(ValueError, match="finished or abandoned"):
        file.append_packed(data)
    assert resizable(data)
    with pytest.raises(TypeError):
        file.append_packed("text")


def test_paths_are_let_go_of(tmp_path):
    path = os.fsencode(tmp_path / "x")
    before = sys.getrefcount(path)
    for _ in range(10):
        writer(path).abort()
        with pytest.raises(ValueError, match="page_size"):
            writer(path, page_size=3)
        with pytest.raises(OSError):
            writer(path + b"/missing/x")
        with pytest.raises(TypeError):
            _cgxffcv.Writer(path, 5, **OPTIONS)
        _cgxffcv.write_file(path, [b"x"], False)
        with pytest.raises(TypeError):
            _cgxffcv.write_file(path, [b"x", 5])
    assert sys.getrefcount(path) == before


def test_rows_and_columns_are_let_go_of(tmp_path):
    array, text, number = np.arange(3), b"text of its own", 10**9
    rows = [(text, number)] * 3
    before = [sys.getrefcount(value) for value in (array, text, number)]
    file = writer(tmp_path / "x")
    for _ in range(10):
        file.append(0, rows)
    file.commit()
    numbers = _cgxffcv.Writer(tmp_path / "y", SPECS[1:], **OPTIONS)
    for _ in range(10):
        numbers.append_arrays(0, (array,), 0, 3)
    numbers.abort()
    assert [sys.getrefcount(value) for value in (array, text, number)] == before


@pytest.mark.parametrize("durable", [True, False])
def test_write_file(tmp_path, durable):
    path, pieces = tmp_path / "x", [b"abc", bytearray(b"de"), np.arange(4, dtype=np.uint8), memoryview(b"f"), b""]
    assert _cgxffcv.write_file(path, iter(pieces), durable) == 0
    assert path.read_bytes() == b"abcde\0\1\2\3f" and resizable(pieces[1])
    assert _cgxffcv.write_file(os.fspath(path), [], durable=durable) == 0
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), TypeError),
        ((None, [b"x"]), TypeError),
        ((5, [b"x"]), TypeError),
        (("a\0b", [b"x"]), ValueError),
        (("", [b"x"]), ValueError),
        (("x", None), TypeError),
        (("x", 5), TypeError),
        (("x", ["text"]), TypeError),
        (("x", [b"x", None]), TypeError),
        (("x", [memoryview(b"abcd")[::2]]), BufferError),
        (("x", [b"x"], True, 1), TypeError),
        (("x", (1 / 0 for _ in [1])), ZeroDivisionError),
    ],
)
def test_write_file_refuses(tmp_path, monkeypatch, arguments, error):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error):
        _cgxffcv.write_file(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_pieces_that_change_while_they_are_taken(tmp_path):
    """What is being written is held; a list may change meanwhile."""

    class Piece(bytearray):
        pass

    pieces = [Piece(b"abc")]

    def growing():
        yield pieces[0]
        pieces.clear()
        yield b"de"

    _cgxffcv.write_file(tmp_path / "x", growing())
    assert (tmp_path / "x").read_bytes() == b"abcde"
