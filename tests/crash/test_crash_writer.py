"""A writer that is killed, interrupted, or runs out of space: its file is absent or whole, and what was there stays."""

import contextlib
import errno
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from checkout import ROOT, run_python, start_command, wait_until

from cgxffcv import DatasetWriter, Reader, beton
from cgxffcv.bench import processes
from cgxffcv.fields import BytesField, IntField
from cgxffcv.writer import workers

FIELDS = {"b": BytesField(), "n": IntField()}

# Writes the file again and again, each time with another number in it.
WRITER = """
import sys
import numpy as np
from cgxffcv import DatasetWriter
from cgxffcv.fields import BytesField, IntField

class Samples:
    def __init__(self, number):
        self.number = number
    def __len__(self):
        return 400
    def __getitem__(self, i):
        return np.full(20000, (self.number + i) % 256, np.uint8), self.number

path, kind, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
number = 0
while True:
    number += 1
    writer = DatasetWriter(path, {"b": BytesField(), "n": IntField()}, page_size=2 << 20, num_workers=workers,
                           worker_kind=kind, checksums=True)
    writer.from_indexed_dataset(Samples(number), chunksize=10)
    print(number, flush=True)
"""


def start(*arguments):
    process = start_command(sys.executable, "-c", WRITER, *arguments, start_new_session=True)
    assert process.stdout.readline() == "ready\n"
    return process


def check_whole(path, least):
    """Checks that the file is absent (if none was finished), or whole and from one of the rounds."""
    if not path.exists():
        assert least == 0
        return
    report = beton.verify(path, num_workers=1)
    assert report.ok and report.has_checksums and report.num_samples == 400, str(report)
    with Reader(path) as reader:
        numbers = set(reader.column("n").tolist())
        assert len(numbers) == 1 and numbers.pop() >= least


def finished(process):
    return [int(line) for line in process.stdout.read().split()]


def wait_for_session(session):
    """Fails if processes of the session are left."""
    wait_until(lambda: not processes.members(session), 10)


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_killed_at_random_moments(tmp_path, kind):
    rng = random.Random(1)
    leftovers = 0
    for _ in range(8):
        path = tmp_path / "x.beton"
        path.unlink(missing_ok=True)
        process = start(path, kind, 2)
        time.sleep(rng.uniform(0, 0.4))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        done = finished(process)
        wait_for_session(process.pid)
        check_whole(path, max(done, default=0))
        others = [other for other in tmp_path.iterdir() if other != path]
        leftovers += len(others)
        for other in others:
            other.unlink()
    # only a kill in the instant between naming a finished file and moving it into place leaves a name behind
    assert leftovers <= 1 or not nameless_files(tmp_path)


def nameless_files(folder):
    """True if the file system supports files without names."""
    try:
        os.close(os.open(folder, os.O_TMPFILE | os.O_RDWR))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_interrupted_at_random_moments(tmp_path, kind):
    rng = random.Random(2)
    for _ in range(4):
        path = tmp_path / "x.beton"
        path.unlink(missing_ok=True)
        process = start(path, kind, 2)
        time.sleep(rng.uniform(0.05, 0.4))
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert "KeyboardInterrupt" in errors and process.returncode != 0
        wait_for_session(process.pid)
        check_whole(path, 0)
        assert [p.name for p in tmp_path.iterdir() if p != path] == [], "a temporary file is left"


def test_a_worker_killed_from_outside(tmp_path):
    process = start(tmp_path / "x.beton", "process", 2)
    listed, children = Path(f"/proc/{process.pid}/task/{process.pid}/children"), []
    wait_until(lambda: children.extend(listed.read_text().split()) or children, 20)
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(children[0]), signal.SIGKILL)
    time.sleep(0.5)
    if process.poll() is None:  # it had just ended its work: the next round is as good
        os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode in (-signal.SIGTERM, 1)
    if process.returncode == 1:
        assert "was killed by signal 9" in errors
    wait_for_session(process.pid)


class Freezing:
    """Stops its worker, once, at sample `at`; after `asleep` seconds it is continued."""

    def __init__(self, folder, at, asleep=None, length=40):
        self.folder, self.at, self.asleep, self.length = folder, at, asleep, length

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        if i == self.at:
            (self.folder / "pid").write_text(str(os.getpid()))
            if self.asleep is not None:
                subprocess.Popen(["/bin/sh", "-c", f"sleep {self.asleep}; kill -CONT {os.getpid()}"])
            os.kill(os.getpid(), signal.SIGSTOP)
        return np.full(1000, i, np.uint8), i


def freeze(tmp_path, monkeypatch, *arguments, timeout):
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(workers, "STOPPED_SECONDS", 0.2)
    writer = DatasetWriter(tmp_path / "x.beton", FIELDS, page_size=2 << 20, num_workers=2, worker_timeout=timeout)
    with pytest.warns(RuntimeWarning, match=r"worker process 1 \(pid \d+\), .* 10 to 19, is stopped .*kill -CONT \d+"):
        return writer.from_indexed_dataset(Freezing(tmp_path, *arguments), chunksize=10)


def test_a_worker_that_stays_stopped_ends_the_writing(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match=r"worker process 1 \(pid \d+\), .* stopped \(SIGSTOP\).*worker_timeout"):
        freeze(tmp_path, monkeypatch, 12, timeout=1.0)
    assert [p.name for p in tmp_path.iterdir()] == ["pid"], "no file, whole or temporary, is left"
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_worker_that_is_let_go_on_loses_nothing(tmp_path, monkeypatch):
    assert freeze(tmp_path, monkeypatch, 12, 1.0, timeout=60.0).num_samples == 40
    with Reader(tmp_path / "x.beton") as file:
        assert [int(file[i]["b"][0]) for i in range(40)] == list(range(40))


def test_a_worker_stopped_in_the_middle_of_a_message(tmp_path, monkeypatch):
    """Its pipe holds part of a message: the parent must not wait for the rest without a time limit."""
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(workers, "STOPPED_SECONDS", 0.2)
    write = workers._write

    def half(descriptor, data):
        if len(data) < 5000:
            return write(descriptor, data)
        write(descriptor, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGSTOP)
        return write(descriptor, data[len(data) // 2 :])

    monkeypatch.setattr(workers, "_write", half)
    writer = DatasetWriter(tmp_path / "x.beton", FIELDS, num_workers=2, worker_timeout=1.0)
    with pytest.warns(RuntimeWarning), pytest.raises(RuntimeError, match="worker process [01] .* has been stopped"):
        writer.from_indexed_dataset(Freezing(tmp_path, -1), chunksize=10)


def test_a_slow_worker_is_named_and_waited_for(tmp_path, monkeypatch):
    class Slow(Freezing):
        def __getitem__(self, i):
            time.sleep(1.5 if i == 12 else 0)
            return super().__getitem__(i)

    monkeypatch.setattr(workers, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(workers, "SLOW_SECONDS", 0.2)
    writer = DatasetWriter(tmp_path / "x.beton", FIELDS, num_workers=2, worker_timeout=60.0)
    with pytest.warns(RuntimeWarning, match="worker process 1 .* 10 to 19, has sent nothing for") as caught:
        assert writer.from_indexed_dataset(Slow(tmp_path, -1), chunksize=10).num_samples == 40
    assert len([w for w in caught if "has sent nothing" in str(w.message)]) <= 3, "each warning waits twice as long"


class Hanging(Freezing):
    """Sample 12 waits, in one of these ways, for something that does not come."""

    def __init__(self, folder, how):
        super().__init__(folder, -1)
        self.how = how

    def __getitem__(self, i):
        if i == 12 and self.how == "lock":
            lock = threading.Lock()
            lock.acquire()
            lock.acquire()
        while i == 12 and self.how == "naps":
            time.sleep(0.2)
        ends = time.monotonic() + 2.0
        while i == 12 and self.how == "works" and time.monotonic() < ends:
            pass
        if i == 12 and self.how == "child works":
            subprocess.run(["/bin/sh", "-c", "i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done"], check=True)
        if self.how == "many naps":
            time.sleep(0.1)
        return super().__getitem__(i)


def hang(tmp_path, monkeypatch, how):
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.05)
    writer = DatasetWriter(tmp_path / "x.beton", FIELDS, num_workers=2, worker_timeout=0.5)
    return writer.from_indexed_dataset(Hanging(tmp_path, how), chunksize=10)


@pytest.mark.parametrize("how", ["lock", "naps"])
def test_a_worker_that_hangs_ends_the_writing(tmp_path, monkeypatch, how):
    with pytest.raises(
        RuntimeError, match=r"worker process 1 \(pid \d+\), .* 10 to 19, has finished no sample.* hangs"
    ):
        hang(tmp_path, monkeypatch, how)
    assert list(tmp_path.iterdir()) == [] and not multiprocessing.active_children()


@pytest.mark.parametrize("how", ["works", "child works", "many naps"])
def test_a_worker_that_makes_progress_is_waited_for(tmp_path, monkeypatch, how):
    """It uses a core, or one of its children does, or it finishes samples."""
    assert hang(tmp_path, monkeypatch, how).num_samples == 40


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_worker_timeouts_are_positive(tmp_path, seconds):
    with pytest.raises(ValueError, match="worker_timeout must be a positive number"):
        DatasetWriter(tmp_path / "x.beton", FIELDS, worker_timeout=seconds)


def fill(path, megabytes, **options):
    chunk = np.zeros(1 << 20, np.uint8)
    DatasetWriter(path, FIELDS, page_size=2 << 20, **options).from_indexed_dataset(
        [(chunk, i) for i in range(megabytes)]
    )


@pytest.fixture
def small_disk(tmp_path):
    if os.getuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"a small tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(("kind", "workers"), [("thread", 1), ("process", 2)])
def test_full_disk(small_disk, kind, workers):
    path = small_disk / "x.beton"
    fill(path, 3, num_workers=1)
    before = path.read_bytes()
    with pytest.raises(OSError) as caught:
        fill(path, 30, num_workers=workers, worker_kind=kind)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)
    assert path.read_bytes() == before and list(small_disk.iterdir()) == [path]
    fill(path, 2, num_workers=1)
    with Reader(path) as reader:
        assert len(reader) == 2


def test_disk_that_is_full_only_at_the_end(small_disk):
    """All data fit, records and table do not."""
    path = small_disk / "x.beton"
    numbers = np.arange(3_000_000)
    with pytest.raises(OSError) as caught:
        DatasetWriter(path, {"n": IntField()}, num_workers=1).from_arrays(numbers)
    assert caught.value.errno == errno.ENOSPC and list(small_disk.iterdir()) == []


def test_file_size_limit(tmp_path):
    """Works without root: the limit makes write() fail with EFBIG."""
    script = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (5 << 20, resource.RLIM_INFINITY));" + (
        "from tests.crash.test_crash_writer import fill, Path; fill(Path(sys.argv[1]), 20, num_workers=1)"
    )
    done = run_python("-c", script, tmp_path / "x.beton", status=1, cwd=ROOT)
    assert f"[Errno {errno.EFBIG}]" in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_out_of_file_descriptors(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    writer = DatasetWriter(tmp_path / "x.beton", FIELDS, num_workers=1)
    held = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        while True:
            try:
                held.append(tempfile.TemporaryFile())  # noqa: SIM115
            except OSError:
                break
        with pytest.raises(OSError) as caught:
            writer.from_indexed_dataset([(b"x", 1)])
        assert caught.value.errno == errno.EMFILE
    finally:
        for file in held:
            file.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_memory_stays_flat(tmp_path):
    """Opening, reading, failing and closing many times leaves no descriptor, mapping or memory behind."""
    fill(tmp_path / "x.beton", 3, num_workers=1)
    bad = tmp_path / "bad.beton"
    bad.write_bytes((tmp_path / "x.beton").read_bytes()[:-1])

    def cycle(count):
        for _ in range(count):
            with Reader(tmp_path / "x.beton", view=True) as reader:
                reader.value(1, "b")
            with pytest.raises(ValueError):
                Reader(bad)
            with pytest.raises(ValueError):
                DatasetWriter(tmp_path / "y.beton", FIELDS, num_workers=1).from_indexed_dataset([(5, 5)])

    def state():
        maps = Path("/proc/self/maps").read_text().count("\n")
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return len(os.listdir("/proc/self/fd")), maps, pages

    cycle(50)
    before = state()
    cycle(300)
    after = state()
    assert after[0] == before[0] and after[1] <= before[1] + 5
    assert (after[2] - before[2]) * os.sysconf("SC_PAGE_SIZE") < 4 << 20
