"""cgxffcv.launch: what ranks return and print, how each kind of failure is reported, and that nothing is left."""

import ast
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import launched
import numpy as np
import pytest
import shared_memory
from checkout import environ, gone, run_python, start_command, wait_until

import cgxffcv
from cgxffcv import ranks
from cgxffcv.errors import RankError, UsageError


def children():
    """This process's children, including zombies; other tests may have left some."""
    lists = Path("/proc/self/task").glob("*/children")
    return {number for path in lists for number in path.read_text().split()}


@pytest.fixture(autouse=True)
def nothing_is_left():
    descriptors, memory, others = os.listdir("/proc/self/fd"), shared_memory.files(), children()
    yield
    assert os.listdir("/proc/self/fd") == descriptors
    assert not shared_memory.left_since(memory)
    assert children() <= others


def test_ranks_share_communicators_and_return_in_order():
    first, second = cgxffcv.launch(launched.means, ranks=2, args=(5000,), timeout=120)
    expected = np.arange(5000, dtype=np.float32) * 1.5
    for found in (first, second):
        np.testing.assert_array_equal(found[0], expected)
        np.testing.assert_array_equal(found[2], expected)
        assert found[1] == found[3] == [0, 1]
    assert len({first[4], second[4], os.getpid()}) == 3


def test_threads_of_a_rank_may_ask_for_communicators_at_a_time():
    assert cgxffcv.launch(launched.worlds_of_threads, 2, timeout=120) == [[0.5] * 8] * 2


def test_one_rank_is_enough():
    assert cgxffcv.launch(launched.means, 1, (10,), timeout=120)[0][1] == [0]


def test_all_that_asks_for_the_place_knows_it(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert cgxffcv.launch(launched.places, 3, timeout=120) == [((rank, 3), rank, 3, "3") for rank in range(3)]


def test_children_of_a_rank_are_none():
    assert cgxffcv.launch(launched.asked_in_children, 2, timeout=120) == [(b".", "1")] * 2


def test_the_output_of_rank_0_appears(capsys):
    cgxffcv.launch(launched.printing, 2, timeout=120)
    out, err = capsys.readouterr()
    assert out == "rank 0 line 0 ü\nrank 0 line 1 ü\rrank 0 line 2 ü\n" and err == "error of rank 0\n"


class Closed:
    def write(self, text):
        raise BrokenPipeError("nobody reads")


def test_nothing_is_left_where_the_output_cannot_be_written(monkeypatch):
    monkeypatch.setattr("sys.stdout", Closed())
    with pytest.raises(BrokenPipeError, match="nobody reads"):
        cgxffcv.launch(launched.printing_on, 2, timeout=120)


def test_a_frozen_launcher_is_a_timeout():
    """Its late answer is ignored."""
    code = "import cgxffcv, launched; print(cgxffcv.launch(launched.of_a_frozen_launcher, 1, timeout=120))"
    [[(first, late), (second, stale)]] = ast.literal_eval(run_python("-c", code).stdout)
    assert first == "CommTimeout" and "has not answered within 0.5 s" in late
    assert second == "CommError" and "earlier question unanswered" in stale


def test_output_appears_while_ranks_run(tmp_path):
    code = "import cgxffcv, launched, sys; cgxffcv.launch(launched.saying_and_waiting, 1, (sys.argv[1],), timeout=120)"
    command = [sys.executable, "-c", code, str(tmp_path / "go")]
    buffered = environ(PYTHONUNBUFFERED="")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=buffered) as process:
        assert process.stdout.readline() == "waiting\n"
        (tmp_path / "go").touch()
        assert process.stdout.read() == "went on\n"
    assert process.returncode == 0


@pytest.mark.parametrize(
    "function, rank, words",
    [
        (launched.raising, 1, "rank 1 of 2 raised ValueError: the second one fails\n\nTraceback"),
        (launched.raising, 1, 'raise ValueError("the second one fails")'),
        (launched.raising, 1, "the last that rank 1 printed:\njust before"),
        (launched.leaving, 0, "rank 0 of 2 raised SystemExit: 3"),
        (launched.ending, 0, "rank 0 of 2 ended with code 4 before its function returned"),
        (launched.unpicklable, 0, "rank 0 of 2 returned a lock, which cannot be pickled"),
        (launched.one_way, 0, "rank 0 of 2 returned what cannot be unpickled here: ValueError: invalid literal"),
        (launched.wrong_slots, 0, "rank 0 of 2 raised cgxffcv.CommError: world: slot_bytes must be a whole number"),
        (launched.killed, 1, "rank 1 of 2 was killed by SIGKILL"),
        (launched.crashing, 1, "rank 1 of 2 was killed by SIGSEGV\n\nFatal Python error: Segmentation fault"),
        (launched.absent, 1, "rank 1 of 2 returned without a call of comm.world(), in which other ranks wait for it"),
        (launched.nested, 0, "is already rank 0 of a job of cgxffcv.launch, and ranks launch no ranks"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_failure_names_the_rank(function, rank, words):
    with pytest.raises(RankError) as caught:
        cgxffcv.launch(function, 2, timeout=120)
    if rank == 0:  # both fail alike, and the other may have been the first by more than launch waits
        words = words.replace("rank 0", f"rank {caught.value.rank}")
    assert words in str(caught.value) and caught.value.rank >= rank


def test_a_failure_can_be_pickled():
    error = pickle.loads(pickle.dumps(RankError("rank 1 of 2 failed", 1)))
    assert (type(error), str(error), error.rank) == (RankError, "rank 1 of 2 failed", 1)


@pytest.mark.medium
def test_ranks_that_hang_are_named_with_the_place():
    with pytest.raises(RankError, match="ranks 1, 2 of 3 did not return within 20 s\n\n") as caught:
        cgxffcv.launch(launched.hanging, 3, timeout=20)
    told = re.search(r"\nrank 1 \(process \d+\): (.*)\nrank 2 \(process \d+\): (.*)", str(caught.value), re.S)
    assert "in hanging\n" in told[1] and told[2] == "it is stopped" and caught.value.rank == 1


INTERRUPTED = """
import cgxffcv, launched, os, signal, sys
try:
    cgxffcv.launch(launched.busy, 2, (sys.argv[1], sys.argv[2] == "stubborn"))
except KeyboardInterrupt:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        print("all are gone")
"""


def busy_ranks(folder, how):
    """A process that has launched two ranks, and the ranks' processes, once they run."""
    process = start_command(sys.executable, "-c", INTERRUPTED, folder, how)
    files = [Path(folder) / f"rank.{rank}" for rank in range(2)]
    wait_until(lambda: all(file.exists() for file in files), process=process)
    return process, [int(word) for file in files for word in file.read_text().split()]


@pytest.mark.medium
@pytest.mark.parametrize("how", ["gentle", "stubborn"])
def test_ctrl_c_ends_all(tmp_path, how):
    process, pids = busy_ranks(tmp_path, how)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert out == "all are gone\n" and process.returncode == 0 and all(map(gone, pids))
    assert all((tmp_path / f"interrupted.{rank}").exists() for rank in range(2))


def test_ranks_end_with_the_process_that_launched_them(tmp_path):
    process, pids = busy_ranks(tmp_path, "gentle")
    process.kill()
    process.communicate(timeout=60)
    ranks, children = pids[::2], pids[1::2]
    wait_until(lambda: all(map(gone, ranks)), 30)
    for pid in children:  # of a rank that had no time to end them
        os.kill(pid, signal.SIGKILL)


def test_a_function_of_a_notebook_or_a_script_travels_by_value(tmp_path):
    pytest.importorskip("cloudpickle", reason="cloudpickle is not installed")
    script = tmp_path / "script.py"
    script.write_text(
        "import cgxffcv\nfrom cgxffcv import comm\n"
        "class Answer:\n    def __init__(self, value):\n        self.value = value\n"
        "factor = 10\n"
        "def inner(rank):\n    return Answer(rank * factor)\n"
        "def outer():\n    with comm.world() as world:\n        return inner(world.rank)\n"
        "print([(type(x) is Answer, x.value) for x in cgxffcv.launch(outer, 2, timeout=120)])\n"
    )
    assert run_python(script).stdout == "[(True, 0), (True, 10)]\n"  # once: the script is not run again


def test_without_cloudpickle_a_function_of_main_is_refused():
    code = "import sys; sys.modules['cloudpickle'] = None; import cgxffcv\ndef f(): pass\ncgxffcv.launch(f)"
    said = run_python("-c", code, status=1).stderr
    assert "UsageError" in said and "pip install cloudpickle" in said


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ((3,), TypeError, "expected a function, not 3"),
        ((launched.means, 2.0), TypeError, "ranks must be a whole number"),
        ((launched.means, 0), ValueError, "ranks must be 1 or more"),
        ((launched.means, 100_000), ValueError, "at most 1024 ranks can share one machine's memory, not 100000"),
        ((launched.means, 1, (threading.Lock(),)), UsageError, "cannot be pickled"),
    ],
)
def test_wrong_calls(arguments, error, words):
    with pytest.raises(error, match=words):
        cgxffcv.launch(*arguments)


def test_a_process_that_ignores_how_children_end_launches_none():
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.raises(UsageError, match="ignores SIGCHLD"):
            cgxffcv.launch(launched.means)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_nothing_is_left_where_no_rank_can_be_started(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(FileNotFoundError, match="/nowhere/python"):
        cgxffcv.launch(launched.means)


def test_ranks_take_up_what_is_theirs_whatever_others_read():
    """They share one open file: each read by another rank moved the position at which the next one was read."""
    payload, over = os.memfd_create("payload"), threading.Event()
    os.write(payload, pickle.dumps((1, 2, 3)))

    def move():
        while not over.is_set():
            os.lseek(payload, 0, os.SEEK_END)

    other = threading.Thread(target=move)
    other.start()
    try:
        assert [ranks._taken(os.dup(payload)) for _ in range(200)] == [(1, 2, 3)] * 200
    finally:
        over.set()
        other.join()
        os.close(payload)


def test_ranks_of_mpirun_launch_none(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="already rank 1 of a job of mpirun"):
        cgxffcv.launch(launched.means)
