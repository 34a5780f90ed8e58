"""Where output goes: through symbolic links, never over something that is not a regular file; synced before it is
visible, and in which order; a failure leaves the old file, and nothing else."""

import contextlib
import errno
import multiprocessing
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from checkout import ROOT
from shim import Shim

from cgxffcv import DatasetWriter, Reader, beton, checkpoint, files
from cgxffcv.app import config
from cgxffcv.app.report import RunLog
from cgxffcv.bench import machine
from cgxffcv.fields import BytesField, IntField


def write_beton(path, durable=True):
    DatasetWriter(path, {"n": IntField()}, num_workers=1, durable=durable).from_arrays(np.arange(4))


def write_moved_beton(path):
    """More samples than announced: the data move into a second file at the end."""
    rows = ((np.zeros(100, np.uint8), i) for i in range(3000))
    DatasetWriter(
        path, {"b": BytesField(), "n": IntField()}, page_size=4096, num_workers=1, allow_small_pages=True
    ).from_iterable(rows)


def merge(path):
    part = Path(path).absolute().parent / "part.beton"
    write_beton(part)
    try:
        beton.merge(path, [part, part])
    finally:
        part.unlink()


WRITERS = {
    "beton": write_beton,
    "beton, moved": write_moved_beton,
    "beton, not durable": lambda path: write_beton(path, durable=False),
    "merge": merge,
    "checkpoint": lambda path: checkpoint.save(path, {"x": np.ones(3), "step": 1}),
    "config": lambda path: config.save(config.load([], environ={}), path),
    "json": lambda path: machine.write_json(path, {"a": 1}),
    "text": lambda path: files.write(path, "text", durable=False),
}


@pytest.fixture(params=WRITERS)
def write(request):
    return WRITERS[request.param]


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    return Shim(tmp_path_factory.mktemp("shim"))


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("link", ["x", "../here/x", "absolute", "chain"])
def test_links_are_followed(tmp_path, write, link, old):
    """Also one to a file that is not there yet, one from another folder, and a link to a link."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    target, path = there / "target", here / "path"
    if old:
        target.write_text("old")
    if link == "chain":
        (here / "second").symlink_to("../there/target")
        path.symlink_to("second")
    else:
        path.symlink_to(target if link == "absolute" else f"../there/{'../there/' * link.startswith('..')}target")
    before = listing(tmp_path)
    write(path)
    assert path.is_symlink() and target.is_file() and not target.is_symlink()
    assert target.read_bytes() not in (b"", b"old")
    assert listing(tmp_path) == sorted({*before, "there/target"})


def test_a_folder_that_is_a_link(tmp_path, write):
    (tmp_path / "there").mkdir()
    (tmp_path / "here").symlink_to("there")
    write(tmp_path / "here" / "x")
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["x"]


def occupy(path, kind):
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "device":
        if os.getuid() != 0:
            pytest.skip("making a device needs root")
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("a device cannot be made here")


@pytest.mark.parametrize("through_link", [False, True])
@pytest.mark.parametrize("kind", ["folder", "fifo", "socket", "device"])
def test_what_is_no_plain_file_is_refused(tmp_path, monkeypatch, write, kind, through_link):
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    path = there = Path("x")
    if through_link:
        there = Path("there")
        path.symlink_to(there)
    occupy(there, kind)
    before, mode = listing(tmp_path), there.lstat().st_mode
    with pytest.raises(OSError) as caught:
        write(path)
    assert caught.value.errno == (errno.EISDIR if kind == "folder" else errno.EINVAL)
    assert caught.value.filename == str(path) and f"a {'character device' if kind == 'device' else kind}" in str(
        caught.value
    ).replace("FIFO", "fifo")
    assert there.lstat().st_mode == mode and listing(tmp_path) == before


def test_dev_null_survives(write):
    with pytest.raises(OSError, match="character device"):
        write("/dev/null")
    assert stat.S_ISCHR(os.lstat("/dev/null").st_mode)


@pytest.mark.parametrize("name", ["new/", ".", "..", "", "missing/x", "loop", "through/x", "to_missing", "a" * 256])
def test_names_that_cannot_be_written(tmp_path, monkeypatch, write, name):
    monkeypatch.chdir(tmp_path)
    os.symlink("loop", "loop")
    os.symlink("missing/x", "to_missing")
    Path("through").write_text("a file")
    before = listing(tmp_path)
    if name == "":
        write = WRITERS["beton"]  # the others take a Path, for which this is "."
    with pytest.raises((OSError, ValueError)):
        write(name)
    assert listing(tmp_path) == before


def test_the_longest_name(tmp_path, write):
    """The temporary name is not longer than the target's."""
    write(tmp_path / ("x" * 255))
    assert listing(tmp_path) == ["x" * 255]


def test_a_process_that_goes_elsewhere(tmp_path, monkeypatch):
    """A relative path keeps the meaning that it had when the writing began."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)

    def samples():
        for i in range(3000):
            if i == 10:
                os.chdir("elsewhere")
            yield np.zeros(100, np.uint8), i

    DatasetWriter(
        "x.beton", {"b": BytesField(), "n": IntField()}, page_size=4096, num_workers=1, allow_small_pages=True
    ).from_iterable(samples())
    assert listing(tmp_path) == ["elsewhere", "x.beton"]


@pytest.mark.parametrize("kind", ["fifo", "folder", "link"])
def test_what_appears_meanwhile_is_not_replaced(tmp_path, kind):
    path = tmp_path / "x.beton"

    def samples():
        if kind == "link":
            path.symlink_to("elsewhere")
        else:
            occupy(path, kind)
        yield 1

    with pytest.raises(OSError, match="must not replace"):
        DatasetWriter(path, {"n": IntField()}, num_workers=1).from_iterable(samples())
    assert listing(tmp_path) == ["x.beton"]


@pytest.mark.parametrize("name", ["run.jsonl", "log.csv"])
@pytest.mark.parametrize("resume", [False, True])
def test_logs_are_plain_files(tmp_path, name, resume):
    """A FIFO would block for ever without a reader."""
    os.mkfifo(tmp_path / name)
    with pytest.raises(OSError, match="not a regular file"):
        RunLog(tmp_path, resume=resume)
    assert stat.S_ISFIFO((tmp_path / name).lstat().st_mode)
    (tmp_path / name).unlink()
    (tmp_path / "target").write_text("x" * 1000 + "\n")
    (tmp_path / name).symlink_to("target")
    with RunLog(tmp_path, resume=resume) as log:
        log.event("epoch", {"epoch": 1})
    text = (tmp_path / "target").read_text()
    assert text.startswith("x" * 1000) == resume and 5 < len(text.lstrip("x\n")) < 500


@pytest.mark.parametrize("room", [0, 200, 1000])
def test_a_log_without_room_names_its_file(tmp_path, room):
    """A size limit on files simulates the full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = RunLog(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, old[1]))
    try:
        with pytest.raises(OSError) as caught:
            for i in range(100):
                log.event("epoch" if room == 1000 else "other", {"epoch": i})
        with contextlib.suppress(OSError):
            log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert caught.value.errno == errno.EFBIG and caught.value.filename in map(str, tmp_path.iterdir())
    log.close()


def _save_checkpoint(path, number, turn):
    checkpoint.save(path, {"x": np.full(10_000, number, np.float32), "turn": turn})


def _save_beton(path, number, turn):
    DatasetWriter(path, {"n": IntField(), "turn": IntField()}, num_workers=1, durable=False).from_arrays(
        np.full(10_000, number), np.full(10_000, turn)
    )


def _load_beton(path):
    with Reader(path) as reader:
        return {"x": reader.column("n"), "turn": int(reader.column("turn")[0])}


def _save_often(save, path, number):
    for turn in range(20):
        save(path, number, turn)


@pytest.mark.parametrize("kind", ["thread", "process"])
@pytest.mark.parametrize(("save", "load"), [(_save_checkpoint, checkpoint.load), (_save_beton, _load_beton)])
def test_several_write_one_path(tmp_path, save, load, kind):
    """Each writes a separate file; the one that ends last stays, whole."""
    path = tmp_path / "x"
    pools = {
        "thread": ThreadPoolExecutor(4),
        "process": ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("forkserver")),
    }
    with pools[kind] as pool:
        for done in [pool.submit(_save_often, save, path, number) for number in range(4)]:
            done.result(timeout=100)
    state = load(path)
    assert state["turn"] == 19 and len(np.unique(state["x"])) == 1
    assert listing(tmp_path) == ["x"]


PROGRAMS = {
    "beton": """
import sys, numpy as np
from cgxffcv import DatasetWriter
from cgxffcv.fields import BytesField
rows = [(b"abc" * 1000,)] * 5
DatasetWriter(sys.argv[1], {"b": BytesField()}, num_workers=1, durable=DURABLE).from_indexed_dataset(rows)
""",
    "checkpoint": """
import sys, numpy as np
from cgxffcv import checkpoint
checkpoint.save(sys.argv[1], {"x": np.ones(1000)})
""",
    "text": """
import sys
from cgxffcv import files
files.write(sys.argv[1], "text", durable=DURABLE)
""",
}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("durable", [True, False])
def test_the_order_of_syncs(tmp_path, shim, program, durable):
    """All bytes, then the file's sync, its name, its place, the folder's sync. Without durable no syncs."""
    if program == "checkpoint" and not durable:
        pytest.skip("checkpoints are always durable")
    path = tmp_path / "x"
    path.write_text("old")
    done, calls = shim.run(PROGRAMS[program].replace("DURABLE", str(durable)), path)
    assert done.returncode == 0, done.stderr
    last = max(i for i, call in enumerate(calls) if call in ("pwrite", "ftruncate"))
    end = [call for call in calls[last + 1 :] if call != "linkat"]  # named before, if files need a name
    assert "fsync file" not in calls[:last]
    assert end == (["fsync file", "rename", "fsync folder"] if durable else ["rename"])
    assert "linkat" not in calls or calls.index("linkat") == calls.index("rename") - 1


CALLS = ("pwrite", "fsync file", "linkat", "rename")
FAILURES = [(name, error) for name in CALLS for error in (errno.EIO, errno.ENOSPC, errno.EDQUOT)]
FAILURES += [("pwrite", errno.EFBIG), ("ftruncate", errno.ENOSPC)]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(("name", "error"), FAILURES)
def test_a_call_that_fails_leaves_the_old_file(tmp_path, shim, program, name, error):
    path = tmp_path / "x"
    path.write_text("old")
    done, calls = shim.run(PROGRAMS[program].replace("DURABLE", "True"), path, fail=(name, 1, error))
    if name not in calls:
        assert done.returncode == 0
        return
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and f"[Errno {error}]" in last and last.endswith(f"'{path}'"), done.stderr
    assert path.read_text() == "old" and listing(tmp_path) == ["x"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_folder_that_cannot_be_synced(tmp_path, shim, program):
    """The new file is in place by then: that is success, and a warning says what is not certain."""
    path = tmp_path / "x"
    path.write_text("old")
    code = PROGRAMS[program].replace("DURABLE", "True")
    done, _ = shim.run(code, path, fail=("fsync folder", 0, errno.EIO))
    assert done.returncode == 0 and path.read_bytes() != b"old"
    assert f"RuntimeWarning: {path}: the new file is complete and in its place" in done.stderr
    done, _ = shim.run(code, path, fail=("fsync folder", 0, errno.EINVAL))
    assert done.returncode == 0 and done.stderr == "", "a file system that cannot sync folders"


SAVE = """
import sys, numpy as np
from cgxffcv import checkpoint
print("ready", flush=True)
while True:
    checkpoint.save(sys.argv[1], {"x": np.zeros(3_000_000, np.float32)})
"""


def test_a_killed_checkpoint_leaves_nothing(tmp_path):
    path = tmp_path / "x"
    left = set()
    for attempt in range(6):
        process = subprocess.Popen([sys.executable, "-c", SAVE, str(path)], stdout=subprocess.PIPE, cwd=ROOT)
        process.stdout.readline()
        time.sleep(0.03 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        left |= {name for name in listing(tmp_path) if name != "x"}
    # only a kill in the instant between naming a finished file and moving it into place leaves a name behind
    assert len(left) <= 1


def test_planted_names_are_not_followed(tmp_path):
    """Nothing is written through a link that was planted under a predictable temporary name."""
    victim, path = tmp_path / "victim", tmp_path / "x"
    victim.write_text("victim")
    (tmp_path / f".x.{os.getpid()}.tmp").symlink_to("victim")
    checkpoint.save(path, {"x": np.ones(3)})
    assert victim.read_text() == "victim" and not path.is_symlink()


def _write_as_nobody(path):
    if os.getuid() == 0:  # root, who is stopped by no folder's mode
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    with pytest.raises(PermissionError):
        os.listdir(path.parent)
    write_beton(path)


def test_a_folder_that_cannot_be_read():
    """It can still take a file, but cannot be synced."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        folder = Path(name) / "write_only"
        folder.mkdir(0o300)
        os.chown(folder, 65534 if os.getuid() == 0 else -1, -1)
        child = multiprocessing.get_context("fork").Process(target=_write_as_nobody, args=(folder / "x",))
        child.start()
        child.join()
        folder.chmod(0o700)
        assert child.exitcode == 0
        with Reader(folder / "x") as reader:
            assert len(reader) == 4
