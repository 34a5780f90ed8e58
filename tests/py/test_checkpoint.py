"""The checkpoint file: the safetensors format, atomic writing, damaged files."""

import contextlib
import json
import os
import struct

import numpy as np
import pytest

from cgxffcv import checkpoint

STATE = {
    "weights": np.arange(12, dtype=np.float32).reshape(3, 4) / 7,
    "empty": np.zeros((0, 3), np.int64),
    "scalar": np.array(2.5),
    "halves": np.array([1.5, np.nan, np.inf], np.float16),
    "step": 17,
    "name": "airbench94",
    "nested": {"epoch": 3, "list": [1, 2.5, None, True]},
}


def same(a, b):
    assert set(a) == set(b)
    for name, value in a.items():
        if isinstance(value, np.ndarray):
            assert value.dtype == b[name].dtype and value.shape == b[name].shape
            assert value.tobytes() == b[name].tobytes()
        else:
            assert value == b[name]


def test_round_trip(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, STATE)
    same(checkpoint.load(path), STATE)
    assert checkpoint.read_header(path) == {k: v for k, v in STATE.items() if not isinstance(v, np.ndarray)}
    first = path.read_bytes()
    checkpoint.save(path, STATE)
    assert path.read_bytes() == first
    assert os.listdir(tmp_path) == [path.name]


def test_loaded_arrays_are_writable_and_transposed_ones_are_kept_by_value(tmp_path):
    path = tmp_path / "a.safetensors"
    array = np.arange(6, dtype=np.float64).reshape(2, 3).T
    checkpoint.save(path, {"x": array})
    loaded = checkpoint.load(path)["x"]
    np.testing.assert_array_equal(loaded, array)
    loaded += 1


def test_the_bytes_are_safetensors(tmp_path):
    """The layout, spelled out."""
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, {"t": np.array([1, 2], np.int16), "n": 5})
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    assert length % 8 == 0
    header = json.loads(data[8 : 8 + length])
    assert header == {
        "__metadata__": {"n": "5"},
        "t": {"dtype": "I16", "shape": [2], "data_offsets": [0, 4]},
    }
    assert data[8 + length :] == b"\x01\x00\x02\x00"


def test_the_library_of_that_name_reads_it(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy", reason="the safetensors package is not installed")
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, STATE)
    loaded = numpy.load_file(path)
    same(loaded, {k: v for k, v in STATE.items() if isinstance(v, np.ndarray)})
    numpy.save_file({"x": np.ones((2, 2), np.float32)}, path, metadata={"note": "plain text"})
    state = checkpoint.load(path)
    assert state["note"] == "plain text" and state["x"].sum() == 4


def test_every_truncation_is_refused(tmp_path):
    path, cut = tmp_path / "a.safetensors", tmp_path / "cut.safetensors"
    checkpoint.save(path, STATE)
    data = path.read_bytes()
    for length in range(len(data)):
        cut.write_bytes(data[:length])
        with pytest.raises(checkpoint.CheckpointError, match="cut.safetensors: not a usable checkpoint"):
            checkpoint.load(cut)


def test_flipped_bits_of_the_header_are_a_state_or_refused(tmp_path):
    path, bad = tmp_path / "a.safetensors", tmp_path / "bad.safetensors"
    checkpoint.save(path, STATE)
    data = bytearray(path.read_bytes())
    loaded, end = 0, 8 + struct.unpack_from("<Q", data)[0]
    for at in range(end):
        for bit in range(8) if at < 40 else (at % 8,):
            data[at] ^= 1 << bit
            bad.write_bytes(data)
            data[at] ^= 1 << bit
            with contextlib.suppress(checkpoint.CheckpointError):
                checkpoint.load(bad)
                loaded += 1
    assert 0 < loaded < end


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{",
        b'{"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"t": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"t": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        b'{"t": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        b'{"t": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}',
        b'{"t": 3}',
        b'{"__metadata__": 3}',
        b"\xff\xfe",
    ],
)
def test_bad_headers(tmp_path, header):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0\0\0")
    with pytest.raises(checkpoint.CheckpointError):
        checkpoint.load(path)


def test_failed_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, {"x": np.ones(3)})
    before = path.read_bytes()
    with pytest.raises(TypeError, match="'y': complex128"):
        checkpoint.save(path, {"y": np.ones(3, np.complex128)})
    with pytest.raises(OSError):
        checkpoint.save(tmp_path / "no" / "folder", {"x": np.ones(3)})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_full_disk(tmp_path):
    """A size limit on files stands for the full disk."""
    import resource
    import signal

    path = tmp_path / "a.safetensors"
    checkpoint.save(path, {"x": np.ones(3)})
    before = path.read_bytes()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
    try:
        with pytest.raises(OSError, match="a.safetensors"):
            checkpoint.save(path, {"x": np.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]
