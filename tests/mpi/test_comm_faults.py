"""Ranks that die, stop, disagree, raise or are interrupted: what the others see. Times are not asserted: if a rank
waits for the deadline of 100 s instead, the job exceeds its hard limit."""

import os
import signal

import pytest
import shared_memory
from ranks import Launch, needs_mpirun, run, start

PLACES = [
    pytest.param(launch, marks=needs_mpirun if launch.how == "mpi" else (), id=str(launch))
    for launch in [Launch("shm", 2), Launch("shm", 3), Launch("mpi", 3), Launch("mpi", 4, 2)]
]


def finish(job, limit=40):
    with job:
        return job.wait(limit)


@pytest.mark.parametrize("operation", ["barrier", "broadcast", "allgather"])
@pytest.mark.parametrize("launch", PLACES)
def test_killed(launch, operation, tmp_path):
    """The first rank is killed while the others wait for it; on two nodes its neighbour tells the ranks of the other
    node."""
    job = start(launch, tmp_path, "killed", operation, 0)
    results = finish(job)
    assert results[0] is None
    for values in results[1:]:
        assert values["type"] == "PeerLost", job.text()
        assert values["rank"] == 0 and "rank 0 (process" in values["text"] and "died" in values["text"]
        assert values["operation"] == operation and values["text"].startswith(f"{operation}: ")
        assert values["again"]["type"] == "CommError" and "is broken" in values["again"]["text"]
        assert values["again"]["rank"] == 0 and "died" in values["broken"]


@pytest.mark.parametrize("launch", [Launch("shm", 3), Launch("shm", 2)], ids=str)
def test_stopped(launch, tmp_path):
    with start(launch, tmp_path, "stopped") as job:
        for rank in (r for r in range(launch.size) if r != 1):
            job.reached(rank, "result")
        for rank in (r for r in range(launch.size) if r != 1):
            values = job.result(rank)
            assert values["type"] == "CommTimeout" and values["rank"] == 1 and "rank 1" in values["text"]
        # A rank that heard of it from another may not have warned; the one whose deadline came first has.
        every = [text for rank in range(launch.size) if rank != 1 for text in job.result(rank)["warnings"]]
        assert every and all("RuntimeWarning: barrier: rank 1 (process" in text for text in every)
        assert len(every) < launch.size  # each rank warns once about a stall
        os.kill(job.pid(1), signal.SIGCONT)
        values = finish(job)[1]
        assert values["type"] == "CommTimeout" or "is broken" in values["text"]


def test_warning_may_be_an_error(tmp_path):
    with start(Launch("shm", 2), tmp_path, "warning_as_error") as job:
        job.reached(0, "result")
        values = job.result(0)
        assert values["type"] == "RuntimeWarning" and "sign of life" in values["text"]
        assert "rank 0 was interrupted" in values["broken"]


@pytest.mark.parametrize("launch", PLACES)
def test_different_calls(launch, tmp_path):
    for rank, values in enumerate(run(launch, tmp_path, "different_calls")):
        assert values["type"] == "CommError"
        assert "'barrier'" in values["text"] and "'allgather'" in values["text"]
        if launch.how == "shm":  # between nodes, a neighbour may notice sooner
            assert values["rank"] == (1 if rank != 1 else 0)


@pytest.mark.parametrize("launch", PLACES)
def test_different_sizes_and_a_new_communicator(launch, tmp_path):
    for values in run(launch, tmp_path, "different_sizes"):
        assert values["type"] == "CommError" and values["operation"] == "broadcast"
        assert "100 bytes" in values["text"] and "108 bytes" in values["text"]
        assert values.get("fresh", launch.size) == launch.size


@pytest.mark.parametrize("where", ["waiting", "computing"])
@pytest.mark.parametrize("launch", PLACES)
def test_abort(launch, where, tmp_path):
    last = launch.size - 1
    for rank, values in enumerate(run(launch, tmp_path, "aborted", where)):
        assert values["type"] == "CommError" and values["rank"] == last
        assert f"rank {last} aborted: no more cheese" in values["text"]
        if rank != last and where == "waiting":
            assert values["text"] == f"barrier: rank {last} aborted: no more cheese"
            assert "is broken" in values["again"]["text"] and "no more cheese" in values["again"]["text"]


@pytest.mark.parametrize("how", ["with", "hook", "exit", "with exit", "clean"])
@pytest.mark.parametrize("launch", [PLACES[1], PLACES[3]])
def test_exception_on_one_rank(launch, how, tmp_path):
    told = {
        "with": "rank 1 aborted: KeyError: 'lost key'",
        "hook": "rank 1 aborted: ZeroDivisionError: one by zero",
        "exit": "rank 1 has left the communicator",
        "with exit": "rank 1 aborted: SystemExit: 3",
        "clean": "rank 1 has left the communicator",
    }[how]
    job = start(launch, tmp_path, "raised", how, recover=how in ("hook", "with exit"))
    results = finish(job)
    for rank, values in enumerate(results):
        if rank != 1:
            assert values["type"] == "CommError" and told in values["text"] and values["rank"] == 1, job.text()
    if how == "with":
        assert results[1] == {"closed": True}
    if how == "hook":
        assert "ZeroDivisionError: one by zero" in job.text()
    if launch.how == "shm":
        assert job.codes()[1] == {"with": 0, "hook": 1, "exit": 3, "with exit": 3, "clean": 0}[how]


@needs_mpirun
@pytest.mark.parametrize("where", ["waiting", "computing"])
@pytest.mark.parametrize("launch", [Launch("mpi", 3), Launch("mpi", 4, 2)], ids=str)
def test_exception_ends_the_whole_job(launch, where, tmp_path):
    """As a user runs it: nothing is caught; ranks far from any communication are ended by mpirun."""
    job = start(launch, tmp_path, "crash", where, recover=False)
    finish(job)
    assert "ZeroDivisionError: one by zero" in job.text()
    assert job.codes()[0] != 0


@pytest.mark.parametrize("launch", PLACES)
def test_ctrl_c(launch, tmp_path):
    with start(launch, tmp_path, "interrupted") as job:
        job.reached(1, "waiting")
        os.kill(job.pid(1), signal.SIGINT)
        job.reached(1, "result")
        job.go("go")
        results = finish(job)
        assert results[1]["type"] == "KeyboardInterrupt"
        for rank, values in enumerate(results):
            if rank != 1:
                assert values["type"] == "CommError" and "rank 1 was interrupted" in values["text"]


@pytest.mark.parametrize("launch", PLACES)
def test_use_after_close(launch, tmp_path):
    for rank, values in enumerate(run(launch, tmp_path, "used_after_close")):
        if rank == 0:
            assert values["texts"] == ["the communicator is closed"] * 5 and "closed" in values["repr"]
        else:
            assert values["type"] == "CommError" and "has left" in values["text"]


def test_forked_child(tmp_path):
    for values in run(Launch("shm", 2), tmp_path, "forked"):
        assert "belongs to process" in values["child"]


def test_abort_from_a_thread(tmp_path):
    first, second = run(Launch("shm", 2), tmp_path, "threads")
    assert first["type"] == "CommError" and "rank 0 aborted: from a thread" in first["text"]
    assert len(first["refused"]) == 1 and "another thread" in first["refused"][0]
    assert "from a thread" in second["text"]


@pytest.mark.parametrize("launch", PLACES)
def test_a_signal_handler_cannot_begin_a_call_inside_another(launch, tmp_path):
    refused = run(launch, tmp_path, "in_a_handler")[0]["refused"]
    assert len(refused) == 1 and "a signal handler cannot use the communicator that is in 'barrier'" in refused[0]


def test_rank_that_never_comes(tmp_path):
    values = run(Launch("shm", 2), tmp_path, "late")[0]
    assert values["rank"] == 1 and "rank 1" in values["text"]


@pytest.mark.parametrize("launch", [Launch("shm", 2), Launch("shm", 3)], ids=str)
def test_two_jobs_at_once_and_nothing_left_after_kill(launch, tmp_path):
    before = shared_memory.files()
    with start(launch, tmp_path / "a", "lingering") as first, start(launch, tmp_path / "b", "lingering") as second:
        for job in (first, second):
            for rank in range(launch.size):
                job.reached(rank, "up")
        first.kill()
        # The other job does not notice.
        third = run(launch, tmp_path / "c", "collectives")
        assert len(third) == launch.size
        assert all(process.poll() is None for process in second.processes)
    assert not shared_memory.left_since(before)


@needs_mpirun
def test_killed_job_under_mpirun_leaves_nothing(tmp_path):
    before = shared_memory.files()
    with start(Launch("mpi", 3), tmp_path, "lingering") as job:
        pids = [job.pid(rank) for rank in range(3)]
        for rank in range(3):
            job.reached(rank, "up")
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    assert not shared_memory.left_since(before)
