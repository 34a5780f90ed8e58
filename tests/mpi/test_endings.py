"""How a job of several ranks ends: with one message, on all ranks, whatever happened, and wherever."""

import shutil
import signal
import sys

import pytest
from checkout import gone, run_command, start_command, wait_until

LIMIT = 60

pytestmark = pytest.mark.skipif(shutil.which("mpirun") is None, reason="mpirun is not installed")

PROGRAM = """
import os, sys, time
from cgxffcv import comm, errors
from cgxffcv import interrupts
from cgxffcv.app import process

def main():
    interrupts.careful()
    with comm.world() as world:
        world.barrier()
        open(os.path.join(sys.argv[1], f"{world.rank}"), "w").write(str(os.getpid()))
        what = sys.argv[2]
        if world.rank == world.size - 1:
            if what == "user":
                raise errors.UserError("mend this")
            if what == "bug":
                raise ZeroDivisionError("oops")
            if what == "kill":
                os.kill(os.getpid(), 9)
        try:
            while what != "fine":
                world.barrier()
                time.sleep(0.01)
        except KeyboardInterrupt:
            time.sleep(0.5)
            print(f"rank {world.rank} goes last", flush=True)
            raise
        world.barrier()

process.run("prog", main)
"""


def start(tmp_path, what, ranks=2):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    return start_command(sys.executable, "-m", "cgxffcv", "launch", "-np", ranks, script, tmp_path, what)


def finish(process):
    try:
        return process.communicate(timeout=LIMIT)
    finally:
        process.kill()


def assert_nobody_is_left(tmp_path, ranks=2):
    pids = [int((tmp_path / str(rank)).read_text()) for rank in range(ranks)]
    wait_until(lambda: all(map(gone, pids)), LIMIT)


def test_all_is_well(tmp_path):
    process = start(tmp_path, "fine")
    _, stderr = finish(process)
    assert process.returncode == 0 and stderr == "", stderr


@pytest.mark.parametrize(
    "what, message, traceback",
    [("user", "prog: rank 2: error: mend this", 0), ("bug", "ZeroDivisionError: oops", 1)],
)
def test_an_exception_on_one_rank_ends_all(tmp_path, what, message, traceback):
    process = start(tmp_path, what, ranks=3)
    _, stderr = finish(process)
    assert process.returncode != 0 and message in stderr and stderr.count("Traceback") == traceback, stderr
    assert "exited with non-zero" not in stderr
    assert_nobody_is_left(tmp_path, 3)


def test_a_killed_rank_ends_all(tmp_path):
    process = start(tmp_path, "kill", ranks=3)
    _, stderr = finish(process)
    assert process.returncode != 0 and "Traceback" not in stderr, stderr
    assert_nobody_is_left(tmp_path, 3)


@pytest.mark.parametrize(
    "number, code, message",
    [(signal.SIGINT, 130, "cgxffcv: interrupted\n"), (signal.SIGTERM, 143, "cgxffcv: terminated\n")],
)
def test_ctrl_c_ends_all(tmp_path, number, code, message):
    process = start(tmp_path, "wait")
    names = [tmp_path / str(rank) for rank in range(2)]
    wait_until(lambda: all(name.exists() and name.read_text() for name in names), LIMIT, process)
    process.send_signal(number)
    stdout, stderr = finish(process)
    assert process.returncode == code and stderr == message, stderr
    assert "rank 0 goes last\n" in stdout  # whatever Open MPI does with the output of ranks that it ends
    assert_nobody_is_left(tmp_path)


@pytest.mark.parametrize("closed", ["<&- >&-", "2>&-", "<&- >&- 2>&-"])
def test_a_job_without_standard_streams(tmp_path, closed):
    """Open MPI itself ends with a signal, or writes into what has taken their numbers."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    line = f'"{sys.executable}" -m cgxffcv launch -np 2 "{script}" "{tmp_path}" fine {closed}'
    run_command("bash", "-c", line, limit=LIMIT)
    assert (tmp_path / "0").exists() and (tmp_path / "1").exists()
