"""What launch passes on of mpirun's own output, and how it ends a job; with real ranks: tests/mpi/test_endings.py."""

import os
import signal
import sys

import pytest
from checkout import gone, start_command, wait_until

from cgxffcv.app import supervise

RULE = "-" * 74 + "\n"
FAILED = {
    "4": RULE
    + "Primary job  terminated normally, but 1 process returned\na non-zero exit code. Aborted.\n"
    + RULE
    + RULE
    + "mpirun detected that one or more processes exited with non-zero status, thus causing\nthe job\n\n"
    "  Process name: [[1,1],0]\n  Exit code:    2\n" + RULE,
    "5": RULE + "prterun detected that one or more processes exited with non-zero status,\nthus\n" + RULE,
    "6": RULE + "\nprterun detected that one or more processes exited with non-zero status,\nthus\n" + RULE,
}
KILLED = RULE + "prterun noticed that process rank 1 with PID 25 on node x exited on\nsignal 9 (Killed).\n" + RULE
OTHER = RULE + "mpirun was unable to launch the specified application\n" + RULE


def passed_on(text, piece, asked=False):
    read, write = os.pipe()
    banners = supervise.Banners(write)
    banners.asked = asked
    data = text.encode()
    for at in range(0, len(data), piece):
        banners.feed(data[at : at + piece])
    banners.end()
    os.close(write)
    with open(read, "rb") as pipe:
        return pipe.read().decode()


@pytest.mark.parametrize("piece", [1, 7, 10_000])
def test_boxes_that_say_nothing_new_are_left_out(piece):
    for box in FAILED.values():
        assert passed_on(f"prog: error: mend this\n{box}after\n", piece) == "prog: error: mend this\nafter\n"
        assert passed_on(box[:-1], piece) == ""
    assert passed_on(KILLED, piece, asked=True) == ""


@pytest.mark.parametrize("piece", [1, 7, 10_000])
@pytest.mark.parametrize(
    "text",
    [
        KILLED,
        OTHER,
        "no end of line",
        "- one\n-- two\n---",
        "a\n" + RULE,
        RULE[:-1],
        "x" + RULE + "mpirun detected\n",
        RULE + "a table\n" + RULE + "b\n",
        "mpirun detected that one or more processes exited with non-zero status\n",
    ],
)
def test_all_else_is_passed_on(piece, text):
    assert passed_on(text, piece) == text


def test_what_all_ranks_say_is_said_once():
    said = "".join(f"prog: rank {rank}: error: batch 512 cannot be shared\n" for rank in range(1, 40))
    first = "prog: error: batch 512 cannot be shared\n"
    other = "prog: rank 3: error: of its own\nprog: note\nprog: note\n"
    assert passed_on(first + said + other, 10_000) == first + other
    assert passed_on(said, 10_000) == said.splitlines(keepends=True)[0]


def test_what_may_not_be_a_box_is_passed_on_at_once():
    read, write = os.pipe()
    banners = supervise.Banners(write)
    for text in ("progress", " 1", "\rprogress 2", "\n", "next"):
        banners.feed(text.encode())
        assert os.read(read, 100).decode() == text
    os.close(read)
    os.close(write)


# A job that ignores a polite signal.
DEAF = """
import os, signal, sys, time
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: os.write(1, b"got %d\\n" % number))
os.write(1, b"up\\n")
while True:
    time.sleep(0.01)
"""
SUPERVISOR = """
import sys
from cgxffcv.app import process, supervise
supervise.GRACE_SECONDS = float(sys.argv[1])
process.run("prog", lambda: supervise.run([sys.executable, "-c", sys.argv[2]]))
"""


def supervised(grace, program):
    return start_command(sys.executable, "-c", SUPERVISOR, grace, program)


def ends(process, code, message):
    try:
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code and stderr == message, stderr
    return stdout


def test_a_job_that_does_not_heed_ctrl_c_is_ended():
    process = supervised(0.2, DEAF)
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGINT)
    assert ends(process, 130, "prog: interrupted\n") == "got 2\ngot 15\n"


def test_a_second_ctrl_c_waits_no_longer():
    process = supervised(1000, DEAF)
    assert process.stdout.readline() == "up\n"
    for expected in ("got 2\n", "got 15\n"):
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == expected
    process.send_signal(signal.SIGTERM)
    ends(process, 130, "prog: interrupted\n")


@pytest.mark.parametrize(
    "program, code", [("", 0), ("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137)]
)
def test_the_codes_of_a_job(program, code):
    ends(supervised(1, program), code, "")


def test_a_job_does_not_outlive_a_killed_supervisor():
    process = supervised(1, "import os, time; print(os.getpid(), flush=True); time.sleep(1000)")
    pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    wait_until(lambda: gone(pid))


def test_a_job_that_may_be_interrupted_again():
    """Signals are blocked while they are waited for, in the supervisor only."""
    program = "import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    assert ends(supervised(1, program), 0, "") == "set()\n"
