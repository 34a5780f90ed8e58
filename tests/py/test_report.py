"""The progress line with and without a terminal, the run's records, and what an earlier run left."""

import csv
import errno
import fcntl
import io
import json
import os
import resource
import struct
import sys
import termios

import pytest

from cgxffcv import DatasetWriter, progress, wording
from cgxffcv.app import report
from cgxffcv.app.folder_lock import FolderLock
from cgxffcv.fields import IntField


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0, "0.0 s"),
        (12.34, "12.3 s"),
        (99.96, "1 min 40 s"),
        (245, "4 min 05 s"),
        (3599.6, "1 h 00 min"),
        (5230, "1 h 27 min"),
        (float("inf"), "?"),
        (float("nan"), "?"),
    ],
)
def test_duration(seconds, text):
    assert wording.duration(seconds) == text


@pytest.mark.parametrize(
    "count, text",
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_960, "100 kB"), (170_052_171, "170 MB"), (1.5e12, "1.5 TB")],
)
def test_size(count, text):
    assert wording.size(count) == text


def test_plain_lines_come_at_the_interval(clock):
    out = io.StringIO()
    bar = progress.Progress("epoch 1", 100, interval=10, stream=out)
    for done in range(1, 101):
        clock.now += 1
        bar.update(done, f"loss {done}")
    bar.finish("loss 100")
    lines = out.getvalue().splitlines()
    assert len(lines) == 11 and "\r" not in out.getvalue()
    assert lines[0] == "epoch 1  10%  loss 10  ETA 90.0 s"
    assert lines[-1] == "epoch 1 100%  loss 100"


def test_a_terminal_gets_one_line_redrawn(clock):
    out = Terminal()
    bar = progress.Progress("epoch 1", 100, stream=out)
    for done in range(1, 101):
        clock.now += 1
        bar.update(done, "x" * (100 - done))
    bar.finish("done")
    assert out.getvalue().count("\n") == 1
    redrawn = out.getvalue().split("\r")
    assert len(redrawn) == 102 and all(len(line.rstrip("\n")) <= 79 for line in redrawn)
    assert redrawn[-1].rstrip() == "epoch 1 [" + "#" * 30 + "] 100%  done"
    assert len(redrawn[-1].rstrip("\n")) >= len(redrawn[-2].rstrip())  # nothing of the longer line is left


def test_the_width_is_the_terminals_own():
    ours, theirs = os.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 123, 0, 0))
        with open(theirs, "w", closefd=False) as stream:
            assert progress.terminal_columns(stream) == 123
    finally:
        os.close(ours)
        os.close(theirs)


def test_under_mpirun_its_terminal_counts(monkeypatch, tmp_path):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    for target, expected in (("pipe:[1]", None), ("/dev/pts/987654", None), ("/dev/null", None)):
        monkeypatch.setattr(progress.os, "readlink", lambda path, target=target: target)
        assert progress.terminal_columns(Terminal()) is expected
    ours, theirs = os.openpty()
    monkeypatch.setattr(progress.os, "readlink", lambda path: os.ttyname(theirs))
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 99, 0, 0))
    assert progress.terminal_columns(io.StringIO()) == 99
    os.close(ours)
    os.close(theirs)


class Kernel:
    """IPython in a notebook, as far as it is used."""

    kernel = None

    @classmethod
    def get_ipython(cls):
        return cls


def test_a_notebook_has_the_bar_of_tqdm(monkeypatch, capsys, clock):
    pytest.importorskip("tqdm", reason="tqdm is not installed")
    assert progress.Progress("writing", 100).mode == "lines" and not progress.is_watched(io.StringIO())
    monkeypatch.setitem(sys.modules, "IPython", Kernel)
    assert progress.is_watched(io.StringIO())
    bar = progress.Progress("writing", 100)
    bar.begin_at(10)
    for done in (20, 60):
        clock.now += 1
        bar.update(done, f"{done} samples")
    bar.note("a line of its own")
    bar.finish("all of them")
    told = capsys.readouterr().err
    assert "writing  20% |" in told and "60 samples" in told and "a line of its own\n" in told
    assert "writing 100% |" in told and "all of them" in told.rpartition("100%")[2]
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert progress.Progress("writing", 100).mode == "lines"


def test_a_terminal_is_not_flooded(clock):
    out = Terminal()
    bar = progress.Progress("x", 1e6, stream=out)
    for done in range(1, 1001):
        clock.now += 0.001
        bar.update(done)
    assert out.getvalue().count("\r") <= 10


def test_off_says_nothing(clock):
    out = io.StringIO()
    bar = progress.Progress("x", 10, mode="off", stream=out)
    clock.now += 100
    bar.update(5)
    bar.note("hello")
    bar.finish()
    assert out.getvalue() == ""


def test_eta_leaves_out_what_was_there(clock):
    bar = progress.Progress("x", 100, mode="off")
    bar.begin_at(50)
    clock.now += 10
    assert bar.eta(75) == pytest.approx(10.0)
    assert bar.eta(50) == float("inf")


def test_run_log(tmp_path):
    with report.RunLog(tmp_path / "a/b") as log:
        log.event("start", {"ranks": 2})
        log.event("epoch", {"epoch": 1, "test_accuracy": 0.5, "more": [1]})
        # everything is written before the end: a killed run leaves whole lines
        assert len((tmp_path / "a/b/run.jsonl").read_text().splitlines()) == 2
    with report.RunLog(tmp_path / "a/b", resume=True) as log:
        log.event("epoch", {"epoch": 2, "test_accuracy": 0.75})
    records = [json.loads(line) for line in (tmp_path / "a/b/run.jsonl").read_text().splitlines()]
    assert [r["event"] for r in records] == ["start", "epoch", "epoch"]
    assert records[1]["more"] == [1] and all(r["time"] > 0 for r in records)
    rows = list(csv.DictReader((tmp_path / "a/b/log.csv").open()))
    assert [(row["epoch"], row["test_accuracy"]) for row in rows] == [("1", "0.5"), ("2", "0.75")]


@pytest.mark.parametrize("half", ["x", '{"event": "epoch", "epoch": 1' + " " * 200_000])
def test_a_killed_run_goes_on_with_a_line_of_its_own(tmp_path, half):
    with report.RunLog(tmp_path) as log:
        log.event("epoch", {"epoch": 1})
    for name in ("run.jsonl", "log.csv"):
        with open(tmp_path / name, "a") as file:
            file.write(half)
    with report.RunLog(tmp_path, resume=True) as log:
        log.event("epoch", {"epoch": 2})
    assert [json.loads(line)["epoch"] for line in (tmp_path / "run.jsonl").open()] == [1, 2]
    assert [row["epoch"] for row in csv.DictReader((tmp_path / "log.csv").open())] == ["1", "2"]


def test_numbers_that_are_none_are_null(tmp_path):
    with report.RunLog(tmp_path) as log:
        log.event("epoch", {"test_loss": float("nan"), "more": {"a": [float("inf"), 1.5]}})
    record = json.loads((tmp_path / "run.jsonl").read_text(), parse_constant=pytest.fail)
    assert record["test_loss"] is None and record["more"] == {"a": [None, 1.5]}


def test_a_new_run_sets_the_old_one_aside(tmp_path):
    assert report.set_aside(tmp_path) is None
    folders = []
    for number in range(3):
        (tmp_path / "run.jsonl").write_text(str(number))
        (tmp_path / "last.safetensors").write_text(str(number))
        (tmp_path / "mine.txt").write_text("stays")
        folders.append(report.set_aside(tmp_path))
    assert len(set(folders)) == 3
    assert [(folder / "run.jsonl").read_text() for folder in folders] == ["0", "1", "2"]
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["mine.txt"]


class Own:
    """A stream of somebody's own, of which the writer asks no more than that it writes."""

    def __init__(self, error=None):
        self.error, self.text = error, ""

    def write(self, text):
        if self.error is not None:
            raise self.error
        self.text += text


class OwnTerminal(Own):
    def isatty(self):
        return True

    def flush(self):
        pass


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("wanted", [None, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda: None,  # a program without a console
        closed,
        Own,
        OwnTerminal,
        lambda: OwnTerminal(OSError(errno.EIO, "the terminal is gone")),
        lambda: Own(BrokenPipeError()),
    ],
)
def test_a_stream_that_shows_nothing_ends_no_writing(tmp_path, monkeypatch, make, wanted):
    stream = make()
    monkeypatch.setattr(progress.sys, "stderr", stream)
    monkeypatch.setattr(progress, "BAR_INTERVAL", 0.0)
    writer = DatasetWriter(tmp_path / "x.beton", {"n": IntField()}, num_workers=1, progress=wanted)
    assert writer.from_indexed_dataset([(i,) for i in range(300)]).num_samples == 300
    monkeypatch.undo()
    if isinstance(stream, Own) and stream.error is None:
        assert ("300 samples" in stream.text) == (wanted is True or isinstance(stream, OwnTerminal))


@pytest.mark.parametrize("make, name", [(report.RunLog, "log.csv"), (lambda at: FolderLock(at, print), ".lock")])
def test_a_full_disk_names_the_file(tmp_path, make, name):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            make(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(tmp_path / name)


def test_a_fifo_in_the_place_of_a_log_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "run.jsonl")
    assert not report.was_interrupted(tmp_path)
