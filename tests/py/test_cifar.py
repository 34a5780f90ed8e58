"""CIFAR-10 from local files, from a web server that misbehaves, from the sample; hostile pickles and archives."""

import contextlib
import errno
import gzip
import hashlib
import http.server
import io
import os
import pickle
import re
import stat
import struct
import tarfile
import threading

import numpy as np
import pytest
from tars import write_tar

from cgxffcv.cifar import data as cifar
from cgxffcv.cifar import plainpickle

IMAGES = 20  # per file, here


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(cifar, "RECORDS", IMAGES)
    monkeypatch.setattr(cifar, "TRIES", 2)
    monkeypatch.setattr(cifar.time, "sleep", lambda seconds: None)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def records():
    rng = np.random.default_rng(1)
    out = {}
    for name in cifar.BATCHES:
        out[name] = rng.integers(0, 256, (IMAGES, 3073), dtype=np.uint8)
        out[name][:, 0] = rng.integers(0, 10, IMAGES)
    return out


# --- pickles as Python 2, and as today's NumPy, write them ---------------------------------------------------------


def text2(value):
    data = value.encode()
    return b"U" + bytes([len(data)]) + data


def python2_pickle(batch):
    """What cPickle of Python 2 wrote for CIFAR-10, opcode by opcode (protocol 2)."""
    pixels = batch[:, 1:].tobytes()
    labels = b"".join(b"K" + bytes([label]) for label in batch[:, 0])
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87Rq\x03"
    array += (
        b"(K\x01M" + struct.pack("<H", len(batch)) + b"M\x00\x0c\x86cnumpy\ndtype\nq\x04U\x02u1K\x00K\x01\x87Rq\x05"
    )
    array += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<I", len(pixels)) + pixels
    array += b"tb"
    pairs = text2("batch_label") + text2("testing batch 1 of 1") + text2("labels") + b"](" + labels + b"e"
    pairs += text2("data") + array + text2("filenames") + b"](" + b"".join([text2("a.png")] * len(batch)) + b"e"
    return b"\x80\x02}q\x00(" + pairs + b"u."


def python_batch(batch):
    return {b"labels": batch[:, 0].tolist(), b"data": batch[:, 1:], b"filenames": [b"a.png"] * len(batch)}


def test_the_python2_pickle_here_is_what_pickle_reads(records):
    batch = records["data_batch_1"]
    read = pickle.loads(python2_pickle(batch), encoding="bytes")
    assert np.array_equal(read[b"data"], batch[:, 1:]) and read[b"labels"] == batch[:, 0].tolist()


def test_a_shape_of_tuples_within_tuples_has_a_short_message():
    """Twenty tuples, each with the one before twice, would be a text of megabytes, and forty would never end."""
    nested = b")q\x00" + b"".join(b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(20))
    array = b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01" + nested + b"cnumpy\ndtype\nU\x02u1\x85R\x89U\x00tb"
    with pytest.raises(plainpickle.PickleError, match="the pixels have shape") as caught:
        plainpickle.uint8_array(plainpickle.parse(b"\x80\x02" + array + b"."), 3)
    assert len(str(caught.value)) < 10_000


def test_pickles_without_end(monkeypatch):
    monkeypatch.setattr(plainpickle, "MAX_OPCODES", 100)
    assert plainpickle.parse(b"\x80\x04" + b"N" * 98 + b".") is None
    with pytest.raises(plainpickle.PickleError, match="more than 100 opcodes"):
        plainpickle.parse(b"\x80\x04" + b"N" * 101 + b".")


def test_names_of_names_are_refused():
    """Each would quote the one before, whose backslashes double."""
    with pytest.raises(plainpickle.PickleError, match="names something that has no name"):
        plainpickle.parse(b"\x80\x04" + b"}" * 60 + b"\x93" * 59 + b".")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_every_protocol(records, protocol):
    batch = records["data_batch_1"]
    for dictionary in (python_batch(batch), {k.decode(): v for k, v in python_batch(batch).items()}):
        read = cifar.from_python(pickle.dumps(dictionary, protocol), "data_batch_1", "x", lambda text: None)
        assert np.array_equal(read, batch)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def hostile(tmp_path):
    good = {"labels": [1] * IMAGES, "data": np.zeros((IMAGES, 3072), np.uint8)}
    target = tmp_path / "pwned"
    yield "call", pickle.dumps(Evil(target))
    yield "call inside", pickle.dumps({**good, "data": Evil(target)})
    yield "call in labels", pickle.dumps({**good, "labels": [Evil(target)] * IMAGES})
    yield "call aside", pickle.dumps({**good, "x": Evil(target)})
    yield "object array", pickle.dumps({**good, "data": np.array([[Evil(target)]], object)})
    yield "inst", b"(S'touch /tmp/x'\nios\nsystem\n."
    yield "obj", b"(cos\nsystem\nS'x'\no."
    yield "memo bomb", b"\x80\x02}r\xff\xff\xff\x7f."
    yield "length bomb", b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"x."
    yield "negative get", b"\x80\x02h\x05."
    yield "empty stack", b"\x80\x02b."
    yield "no stop", b"\x80\x02}"
    yield "nothing", b""
    yield "text", b"hello"
    yield "list", pickle.dumps([1, 2])
    yield "wrong dtype", pickle.dumps({**good, "data": np.zeros((IMAGES, 3072), np.int8)})
    yield "wrong shape", pickle.dumps({**good, "data": np.zeros((IMAGES, 3071), np.uint8)})
    yield "fortran", pickle.dumps({**good, "data": np.asfortranarray(np.ones((IMAGES, 3072), np.uint8))})
    yield "labels short", pickle.dumps({**good, "labels": [1]})
    yield "label 300", pickle.dumps({**good, "labels": [300] * IMAGES})
    yield "label true", pickle.dumps({**good, "labels": [True] * IMAGES})
    yield "label 10", pickle.dumps({**good, "labels": [10] * IMAGES})
    yield "fine labels", pickle.dumps({"fine_labels": [1] * IMAGES, "data": good["data"]})
    yield "too few", pickle.dumps({"labels": [1], "data": good["data"][:1]})


def test_hostile_pickles_are_refused_and_not_run(tmp_path):
    for what, data in hostile(tmp_path):
        try:
            cifar.from_python(data, "data_batch_1", "FILE", print)
        except cifar.DataError as error:
            assert str(error).startswith("FILE: "), what
        else:
            only_aside = what == "call aside"  # what nothing uses is not an error, but it is not run either
            assert only_aside, f"{what} was read"
    assert not (tmp_path / "pwned").exists()


def test_every_cut_of_a_pickle_is_refused(records):
    data = python2_pickle(records["test_batch"][:1])
    for end in range(0, len(data), 7):
        with pytest.raises(plainpickle.PickleError):
            plainpickle.parse(data[:end])


def test_flipped_bits_of_a_pickle_are_data_or_refused(records):
    data = python2_pickle(records["test_batch"])
    for at in [*range(300), *range(len(data) - 300, len(data))]:
        for bit in range(8):
            bad = bytearray(data)
            bad[at] ^= 1 << bit
            with contextlib.suppress(cifar.DataError):
                cifar.from_python(bytes(bad), "test_batch", "F", lambda text: None)


# --- folders and archives ------------------------------------------------------------------------------------------


def write_binary(folder, records):
    folder.mkdir(parents=True, exist_ok=True)
    for name, batch in records.items():
        (folder / f"{name}.bin").write_bytes(batch.tobytes())


def tar_of(files):
    out = io.BytesIO()
    write_tar(None, files, "w:gz", fileobj=out, compresslevel=1)
    return out.getvalue()


def binary_archive(records):
    files = {f"cifar-10-batches-bin/{name}.bin": batch.tobytes() for name, batch in records.items()}
    return tar_of({"cifar-10-batches-bin/readme.html": b"hello", **files})


def assert_is(data, records, complete=True):
    train = np.concatenate([records[name] for name in cifar.BATCHES[:5]])
    assert data.complete is complete
    assert data.train_images.shape == (5 * IMAGES, 32, 32, 3) and data.train_images.flags.c_contiguous
    assert np.array_equal(data.train_images, train[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    assert np.array_equal(data.train_labels, train[:, 0]) and data.train_labels.dtype == np.int64
    assert np.array_equal(data.test_labels, records["test_batch"][:, 0])


@pytest.mark.parametrize("where", [".", "cifar-10-batches-bin"])
def test_binary_folder(tmp_path, records, where):
    write_binary(tmp_path / where, records)
    assert_is(cifar.obtain(tmp_path, say=lambda text: None), records)


@pytest.mark.parametrize("where", [".", "cifar-10-batches-py"])
def test_python_folder(tmp_path, records, where):
    (tmp_path / where).mkdir(exist_ok=True)
    for name, batch in records.items():
        (tmp_path / where / name).write_bytes(python2_pickle(batch))
    assert_is(cifar.obtain(tmp_path, "local", say=lambda text: None), records)


def test_archives_of_both_versions(tmp_path, records):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(
        tar_of({f"cifar-10-batches-py/{name}": python2_pickle(batch) for name, batch in records.items()})
    )
    assert_is(cifar.obtain(tmp_path, say=lambda text: None), records)
    other = {name: batch[::-1].copy() for name, batch in records.items()}
    (tmp_path / cifar.BINARY.name).write_bytes(binary_archive(other))
    assert_is(cifar.obtain(tmp_path, say=lambda text: None), other)


def test_other_pixels_than_the_official_ones_are_told(tmp_path, records):
    write_binary(tmp_path, records)
    said = []
    cifar.obtain(tmp_path, say=said.append)
    assert sum("differs from the official file" in line for line in said) == 6


def damaged_folder(folder, records, what):
    write_binary(folder, records)
    path = folder / "data_batch_3.bin"
    if what == "missing":
        path.unlink()
    elif what == "short":
        path.write_bytes(path.read_bytes()[:-1])
    elif what == "label":
        path.write_bytes(b"\x0a" + path.read_bytes()[1:])


@pytest.mark.parametrize(
    "what, expected",
    [
        ("missing", "data_batch_3 not found. Get CIFAR-10 again, all six files"),
        ("short", "data_batch_3.bin: 61,459 bytes; expected 61,460. Is it cut off?"),
        ("label", "data_batch_3.bin: record 0 has label 10; expected 0 to 9"),
    ],
)
def test_damaged_folders_are_errors_also_in_auto(tmp_path, records, what, expected):
    damaged_folder(tmp_path, records, what)
    with pytest.raises(cifar.DataError, match=re.escape(expected)):
        cifar.obtain(tmp_path, say=lambda text: None)


def test_local_and_nothing_there(tmp_path):
    with pytest.raises(cifar.DataError, match="--data.source=auto"):
        cifar.obtain(tmp_path / "none", "local")


def test_damaged_archives(tmp_path, records):
    path = tmp_path / cifar.BINARY.name
    whole = binary_archive(records)
    for data in (whole[:1000], whole[: len(whole) // 2], b"", b"no archive", gzip.compress(b"no tar")):
        path.write_bytes(data)
        with pytest.raises(cifar.DataError, match="Delete it and try again|not found. Get CIFAR-10 again"):
            cifar.obtain(tmp_path, say=lambda text: None)
    path.write_bytes(tar_of({f"f{i}": b"" for i in range(100)}))
    with pytest.raises(cifar.DataError, match="not an official CIFAR-10 archive"):
        cifar.obtain(tmp_path, say=lambda text: None)


def test_flipped_bits_of_an_archive_are_data_or_refused(tmp_path, records):
    """Bits in the gzip header and in the headers of the tar file inside."""
    packed, path = binary_archive(records), tmp_path / cifar.BINARY.name
    tar = gzip.decompress(packed)
    member = tar.index(b"cifar-10-batches-bin/data_batch_1.bin")

    def flipped(data, at):
        return data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]

    damaged = [flipped(packed, at) for at in range(64)]
    damaged += [gzip.compress(flipped(tar, member + at), 0) for at in [*range(0, 100, 3), *range(100, 265)]]
    for data in damaged:
        path.write_bytes(data)
        with contextlib.suppress(cifar.DataError):
            cifar.obtain(tmp_path, "local", say=lambda text: None)


def test_a_small_archive_with_a_large_header_is_refused(tmp_path, monkeypatch):
    """tarfile takes a header for the next member (type x, L or K) into memory, whatever its size."""
    monkeypatch.setattr(cifar, "MAX_ARCHIVE_BYTES", 1 << 20)
    for kind in (b"x", b"g", b"L", b"K"):
        header = tarfile.TarInfo("x")
        header.size, header.type = 1 << 31, kind
        path = tmp_path / "cifar-10-binary.tar.gz"
        path.write_bytes(gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(4 << 20)))
        with pytest.raises(
            cifar.DataError, match=r"cifar-10-binary.tar.gz: not an official CIFAR-10 archive: more than 1"
        ):
            cifar.obtain(tmp_path, "local")


@pytest.mark.parametrize("suffix, where", [(".bin", "cifar-10-batches-bin"), ("", "cifar-10-batches-py")])
def test_a_batch_that_is_a_pipe_is_refused(tmp_path, suffix, where):
    """Nothing writes to it: reading it would block for ever."""
    (tmp_path / where).mkdir()
    (tmp_path / where / f"data_batch_2{suffix}").write_bytes(b"")
    os.mkfifo(tmp_path / where / f"data_batch_1{suffix}")
    with pytest.raises(OSError, match="is not a regular file") as caught:
        cifar.obtain(tmp_path, "local")
    assert caught.value.filename == str(tmp_path / where / f"data_batch_1{suffix}")


def test_an_archive_writes_nothing(tmp_path, records):
    files = {f"cifar-10-batches-bin/{name}.bin": batch.tobytes() for name, batch in records.items()}
    root = tmp_path / "in"
    root.mkdir()
    (root / cifar.BINARY.name).write_bytes(tar_of({"../../evil": b"x", "/tmp/evil-cgxffcv": b"x", **files}))
    assert_is(cifar.obtain(root, say=lambda text: None), records)
    assert sorted(p.name for p in tmp_path.rglob("*")) == sorted(["in", cifar.BINARY.name])
    assert not os.path.exists("/tmp/evil-cgxffcv")


# --- download ------------------------------------------------------------------------------------------------------


class Server(http.server.ThreadingHTTPServer):
    """Serves `body`; `faults`: how many bytes to send before hanging up, for each request in turn (None: all)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.faults, self.ranges, self.can_resume, self.status = b"", [], [], True, 200

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/{cifar.BINARY.name}"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.ranges.append(wanted)
        begin = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and server.can_resume else 0
        if server.status != 200 or begin > len(server.body) or (wanted and begin == len(server.body)):
            self.send_error(server.status if server.status != 200 else 416)
            return
        body = server.body[begin:]
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(server.body) - 1}/{len(server.body)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        fault = server.faults.pop(0) if server.faults else None
        self.wfile.write(body if fault is None else body[:fault])


@pytest.fixture
def server(records):
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.body = binary_archive(records)
    server.archive = cifar.Archive(cifar.BINARY.name, len(server.body), hashlib.sha256(server.body).hexdigest())
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def get(server, root, source="auto", say=lambda text: None):
    return cifar.obtain(root, source, server.url, say, "off", server.archive)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_download_and_keep(tmp_path, server, records):
    assert_is(get(server, tmp_path / "new/folder"), records)
    assert names(tmp_path / "new/folder") == [cifar.BINARY.name]
    assert_is(get(server, tmp_path / "new/folder"), records)
    assert server.ranges == [None]


def test_a_download_through_a_link(tmp_path, server, records):
    """The archive is kept on the disk that the link names."""
    root, disk = tmp_path / "data", tmp_path / "disk"
    root.mkdir()
    disk.mkdir()
    (root / cifar.BINARY.name).symlink_to(disk / "archive")
    assert_is(get(server, root, "download"), records)
    assert (root / cifar.BINARY.name).is_symlink() and names(disk) == ["archive"] and names(root) == [cifar.BINARY.name]


@pytest.mark.parametrize("name", [cifar.BINARY.name, f"{cifar.BINARY.name}.part"])
def test_a_download_does_not_replace_what_is_no_plain_file(tmp_path, server, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(cifar.DataError, match="not a regular file"):
        cifar.download(tmp_path, server.url, server.archive, "off")
    assert names(tmp_path) == [name] and stat.S_ISFIFO((tmp_path / name).stat().st_mode)


def test_a_download_does_not_follow_a_planted_link(tmp_path, server):
    """Anybody can guess the name of a part."""
    victim, part = tmp_path / "victim", tmp_path / f"{cifar.BINARY.name}.part"
    victim.write_text("victim")
    part.symlink_to(victim)
    with pytest.raises(cifar.DataError, match="cannot write to .*part"):
        cifar.download(tmp_path, server.url, server.archive, "off")
    assert victim.read_text() == "victim" and part.is_symlink()


def test_download_goes_on_after_a_broken_connection(tmp_path, server, records):
    server.faults = [50_000]
    assert_is(get(server, tmp_path), records)
    assert server.ranges == [None, "bytes=50000-"]


def test_download_goes_on_in_the_next_run(tmp_path, server, records):
    server.faults = [10_000, 20_000]
    with pytest.raises(cifar.DataError, match="the connection ended after 30.0 kB|cannot download"):
        get(server, tmp_path, "download")
    assert names(tmp_path) == [f"{cifar.BINARY.name}.part"]
    assert_is(get(server, tmp_path, "download"), records)
    assert server.ranges[-1] == "bytes=30000-" and names(tmp_path) == [cifar.BINARY.name]


def test_download_from_a_server_that_cannot_resume(tmp_path, server, records):
    server.can_resume = False
    server.faults = [50_000]
    assert_is(get(server, tmp_path), records)


def test_a_part_that_is_longer_than_the_archive(tmp_path, server, records):
    (tmp_path / f"{cifar.BINARY.name}.part").write_bytes(b"x" * (len(server.body) + 10))
    assert_is(get(server, tmp_path), records)


def test_a_whole_part_from_a_killed_run(tmp_path, server, records):
    (tmp_path / f"{cifar.BINARY.name}.part").write_bytes(server.body)
    assert_is(get(server, tmp_path), records)


@pytest.mark.parametrize("change, match", [(-100, " .* is not the official archive's; discarded"), (50_000_000, "")])
def test_wrong_bytes_are_discarded_and_too_many_end_early(tmp_path, server, change, match):
    server.body = server.body[: min(change, 0) or None] + bytes(abs(change))
    with pytest.raises(cifar.DataError, match=f"SHA-256{match}"):
        get(server, tmp_path, "download")
    assert names(tmp_path) == []


def test_offline_uses_the_sample_and_says_so(tmp_path, server):
    server.status, said = 503, []
    data = get(server, tmp_path, say=said.append)
    assert not data.complete and len(data.train_images) == 5000 and len(data.test_images) == 1000
    (note,) = [text.splitlines() for text in said if "SAMPLE" in text]
    assert "FAR LOWER" in note[2]
    assert len({len(line) for line in note}) == 1 and all(line[0] == line[-1] == "*" for line in note)
    assert any("503" in line for line in said)
    assert names(tmp_path) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x", "http://no-such-host.invalid/x", "nonsense", "ftp://[::1"])
def test_unreachable(tmp_path, url):
    with pytest.raises(cifar.DataError, match="cannot download"):
        cifar.obtain(tmp_path, "download", url, lambda text: None, "off")
    assert names(tmp_path) == []


def test_two_downloads_at_once(tmp_path, server):
    import fcntl

    with open(tmp_path / f"{cifar.BINARY.name}.part", "ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(cifar.DataError, match="another process is downloading"):
            get(server, tmp_path, "download")


def test_a_full_disk_is_an_os_error(tmp_path, server, monkeypatch):
    def full(part, block):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), part.name)

    monkeypatch.setattr(cifar, "_append", full)
    with pytest.raises(OSError, match="No space left"):
        get(server, tmp_path)


@pytest.mark.parametrize("source", ["auto", "download"])
@pytest.mark.parametrize("root, reason", [("file", "is not a folder"), ("/proc/cgxffcv/data", "No such file")])
def test_a_root_that_cannot_be_written_is_a_message(tmp_path, source, root, reason):
    (tmp_path / "file").write_text("in the way")
    said = []
    with pytest.raises(cifar.DataError, match=rf"data.root: cannot write to .*{reason}.*--data.root=DIR"):
        cifar.obtain(tmp_path / root, source, "http://127.0.0.1:1/x", said.append, "off")
    assert said == []
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everywhere")
@pytest.mark.parametrize("mode, what", [(0o500, "write to"), (0o000, "read")])
def test_a_root_without_permission_is_a_message(tmp_path, mode, what):
    root = tmp_path / "closed"
    root.mkdir(mode)
    with pytest.raises(cifar.DataError, match=rf"data.root: cannot {what} .*closed.*Permission denied"):
        cifar.obtain(root, "auto", "http://127.0.0.1:1/x", lambda text: None, "off")


def test_sample_by_name():
    data = cifar.obtain("nowhere", "sample")
    assert not data.complete and np.bincount(data.test_labels).tolist() == [100] * 10
