"""The checkpoint file: the safetensors format, atomic writing, damaged files."""

import contextlib
import copy
import json
import os
import random
import struct

import numpy as np
import pytest
from trainings import same_state

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


def test_round_trip(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, STATE)
    same_state(checkpoint.load(path), STATE)
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
    same_state(loaded, {k: v for k, v in STATE.items() if isinstance(v, np.ndarray)})
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


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


DEEP = "[" * 5000 + "]" * 5000
BAD_HEADERS = {
    "a list": [],
    "no JSON": b"{",
    "no text": b"\xff\xfe",
    "deep": b'{"t": ' + DEEP.encode() + b"}",
    "a name twice": b'{"t": %s, "t": %s}' % ((json.dumps(entry()).encode(),) * 2),
    "a key of a tensor twice": b'{"t": {"dtype": "F32", "dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
    "a metadata name twice": b'{"__metadata__": {"a": "1", "a": "1"}, "t": %s}' % json.dumps(entry()).encode(),
    "a name twice in a value": {"__metadata__": {"a": '{"x": 1, "x": 2}'}, "t": entry()},
    "a value and a tensor": {"__metadata__": {"t": "1"}, "t": entry()},
    "metadata that are a number": {"__metadata__": 3, "t": entry()},
    "a value that is no text": {"__metadata__": {"a": 3}, "t": entry()},
    "a value that is deep": {"__metadata__": {"a": DEEP}, "t": entry()},
    "a value that is rather deep": {"__metadata__": {"a": "[" * 300 + "]" * 300}, "t": entry()},
    "an entry that is a number": {"t": 3},
    "an entry that is a list": {"t": [[[]]]},
    "no type": {"t": {"shape": [1], "data_offsets": [0, 4]}},
    "an unknown type": {"t": entry(dtype="F99")},
    "a type that is a list": {"t": entry(dtype=["F32"])},
    "no shape": {"t": {"dtype": "F32", "data_offsets": [0, 4]}},
    "a shape that is a text": {"t": entry() | {"shape": "1"}},
    "a shape that is a dict": {"t": entry() | {"shape": {"1": 1}}},
    "a side below zero": {"t": entry(shape=[-1])},
    "two sides below zero": {"t": entry(shape=[-1, -1])},
    "a side that is no integer": {"t": entry(shape=[1.0])},
    "a side that is true": {"t": entry(shape=[True])},
    "a side beyond 63 bits": {"t": entry(shape=[2**63, 0], offsets=[0, 0])},
    "a side beyond 64 bits": {"t": entry(shape=[2**70, 0], offsets=[0, 0])},
    "a product beyond 64 bits": {"t": entry(shape=[2**32, 2**32, 0], offsets=[0, 0])},
    "a product that is 1 in 64 bits": {"t": entry(shape=[3, 12297829382473034411])},
    "too many sides": {"t": entry(shape=[1] * 65)},
    "too many sides that are zero": {"t": entry(shape=[0] * 65, offsets=[0, 0])},
    "a size that does not fit": {"t": entry(shape=[2])},
    "one offset": {"t": entry(offsets=[4])},
    "three offsets": {"t": entry(offsets=[0, 4, 4])},
    "offsets in words": {"t": entry(offsets=["0", "4"])},
    "an offset below zero": {"t": entry(offsets=[-4, 0])},
    "an offset beyond 64 bits": {"t": entry(offsets=[2**70, 2**70 + 4])},
    "offsets the wrong way round": {"t": entry(offsets=[4, 0])},
    "beyond the end": {"t": entry(offsets=[4, 8])},
    "bytes after the last tensor": {"t": entry("U8", offsets=[0, 1])},
    "bytes before the first tensor": {"t": entry("U8", offsets=[3, 4])},
    "a hole": {"t": entry("U8", offsets=[0, 1]), "u": entry("U8", [2], offsets=[2, 4])},
    "tensors that overlap": {"t": entry(), "u": entry()},
    "tensors that overlap in part": {"t": entry("U8", [3], offsets=[0, 3]), "u": entry("U8", [2], offsets=[2, 4])},
    "tensors that overlap and leave a hole": {"t": entry("U8", [2], [0, 2]), "u": entry("U8", [2], [0, 2])},
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_bad_headers(tmp_path, name):
    """Four bytes of data, and a header that does not describe them."""
    header = BAD_HEADERS[name]
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "bad.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0\0\0\0")
    with pytest.raises(checkpoint.CheckpointError, match="bad.safetensors: not a usable checkpoint"):
        checkpoint.load(path)


@pytest.mark.parametrize("more", [-1, 1, 4])
def test_bytes_that_no_tensor_has_are_refused(tmp_path, more):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, STATE)
    data = path.read_bytes()
    path.write_bytes(data + bytes(more) if more > 0 else data[:more])
    with pytest.raises(checkpoint.CheckpointError, match=r"tensors take \d+ bytes, but there are \d+"):
        checkpoint.load(path)


@pytest.mark.parametrize("length", [0, 1, 7, 2**31, 2**63 - 1, 2**63, 2**64 - 1])
def test_headers_that_lie_about_their_length(tmp_path, length):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}" * 3)
    reason = "its header says" if length > 6 else "its header is not JSON"
    with pytest.raises(checkpoint.CheckpointError, match=reason):
        checkpoint.load(path)


def test_more_than_fits_the_memory(tmp_path):
    """A sparse file costs nothing to make."""
    text = json.dumps({"t": entry("U8", [1 << 43], [0, 1 << 43])}).encode()
    path = tmp_path / "bad.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    try:
        os.truncate(path, 8 + len(text) + (1 << 43))
    except OSError:
        pytest.skip("this file system has no files of 2^43 bytes")
    with pytest.raises(checkpoint.CheckpointError, match="more than fits into memory"):
        checkpoint.load(path)


def test_more_than_the_memory_there_is(tmp_path, monkeypatch):
    """Refused before it is allocated: a system may promise more than it has."""
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, {"x": np.zeros(100_000)})
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 10, "SC_PAGE_SIZE": 4096}.get)
    with pytest.raises(checkpoint.CheckpointError, match="more than fits into memory"):
        checkpoint.load(path)


WRONG_VALUES = [None, True, -1, 0, 1, 2**31, 2**63, 2**64, 1.5, 1e999, "", "F32", "x" * 1000, [], [1], {}, {"a": 1}]


def variants(rng, value):
    """`value` with a random one of its parts replaced."""
    if isinstance(value, dict | list) and value and rng.random() < 0.8:
        value = copy.copy(value)
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        if rng.random() < 0.1:
            del value[key]
        else:
            value[key] = variants(rng, value[key])
        return value
    return rng.choice(WRONG_VALUES)


def test_headers_changed_at_random_are_a_state_or_refused(tmp_path):
    path, rng, loaded = tmp_path / "a.safetensors", random.Random(1), 0
    checkpoint.save(path, STATE)
    data = path.read_bytes()
    length = struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8 : 8 + length])
    for _ in range(2000):
        changed = variants(rng, header)
        if rng.random() < 0.3:
            changed = variants(rng, changed)
        text = json.dumps(changed).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
        with contextlib.suppress(checkpoint.CheckpointError):
            loaded += bool(checkpoint.load(path))
    assert loaded > 0


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_what_is_no_plain_file_is_not_read(tmp_path, kind):
    """A FIFO would block, /dev/zero would be read for ever."""
    path = {"fifo": tmp_path / "fifo", "folder": tmp_path, "device": "/dev/zero"}[kind]
    if kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(OSError, match="directory" if kind == "folder" else "not a regular file"):
        checkpoint.load(path)


@pytest.mark.parametrize("state", [{"__metadata__": np.ones(2)}, {"__metadata__": 1}, {1: 2}, {2: np.ones(2)}])
def test_names_that_cannot_be_kept(tmp_path, state):
    with pytest.raises(TypeError, match="names of a checkpoint's entries"):
        checkpoint.save(tmp_path / "x", state)
    assert os.listdir(tmp_path) == []


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
    """A size limit on files simulates the full disk."""
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


def test_a_number_is_no_path():
    """It would be a descriptor, which would be closed in the end."""
    here, _ = os.pipe()
    with pytest.raises(TypeError):
        checkpoint.load(here)
    os.close(here)
