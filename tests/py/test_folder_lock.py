"""One run at a time in a log folder."""

import errno
import fcntl
import os
import re
import signal
import sys

import pytest
from checkout import start_command

from cgxffcv.app.folder_lock import FolderLock
from cgxffcv.errors import UserError

HOLD = """
import sys, time
from pathlib import Path
from cgxffcv.app.folder_lock import FolderLock
lock = FolderLock(Path(sys.argv[1]), print)
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """A process that holds the lock of tmp_path / "log"."""
    process = start_command(sys.executable, "-c", HOLD, tmp_path / "log")
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_run_names_the_first(tmp_path, other):
    expected = (
        rf"log: another run is writing to it: process {other.pid} on .*, since 20.*; wait until it ends, .*--log-dir"
    )
    for name in ("log", "log/../log"):
        with pytest.raises(UserError, match=expected):
            FolderLock(tmp_path / name, print)


def test_a_killed_runs_lock_goes_by_itself(tmp_path, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / "log/.lock").exists()
    with FolderLock(tmp_path / "log", print):
        assert re.match(rf"process {os.getpid()} on ", (tmp_path / "log/.lock").read_text())
    assert list((tmp_path / "log").iterdir()) == []


def test_it_is_let_go(tmp_path):
    lock = FolderLock(tmp_path / "a/b", print)
    with pytest.raises(UserError, match="another run"):
        FolderLock(tmp_path / "a/b", print)
    lock.close()
    lock.close()
    with FolderLock(tmp_path / "a/b", print):
        pass


def test_a_lock_file_that_was_removed_meanwhile_is_made_again(tmp_path, monkeypatch):
    """The first run ends between the second one's opening of the file and its lock."""
    real, lock = fcntl.flock, [FolderLock(tmp_path, print)]

    def late(file, operation):
        if lock:
            lock.pop().close()
        return real(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with FolderLock(tmp_path, print), pytest.raises(UserError, match="another run"):
        FolderLock(tmp_path, print)


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    said = []
    with FolderLock(tmp_path, said.append):
        assert len(said) == 1 and "no locks there (No locks available); no two runs may write" in said[0]


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/log: cannot write a run's files there: Not a directory; name another"):
        FolderLock(tmp_path / "file/log", print)
    with pytest.raises(UserError, match="file: cannot write a run's files there: File exists; name another"):
        FolderLock(tmp_path / "file", print)
