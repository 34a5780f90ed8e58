"""What happens to ranks before they have a communicator: frozen, dead, late, or not ranks at all."""

import json
import os
import signal
import time

import pytest
from ranks import Launch, needs_mpirun, start

pytestmark = needs_mpirun
TWO, THREE = Launch("mpi", 2), Launch("mpi", 3)


def finish(job, limit=60):
    """Waits for the job, then for the results of all ranks that wrote one."""
    with job:
        for process in job.processes:
            process.wait(limit)
        return [job.result(rank) for rank in range(job.launch.size)]


@pytest.mark.parametrize("how", ["frozen", "late"])
def test_a_rank_that_does_not_come_is_named_at_the_deadline(how, tmp_path):
    with start(THREE, tmp_path, "absent", how, script="worker_before.py") as job:
        for rank in (0, 2):
            job.reached(rank, "result")
            values = job.result(rank)
            assert values["type"] == "CommTimeout" and values["rank"] == 1 and values["operation"] == "world"
            assert "rank 1 of 3 did not call comm.world()" in values["text"]


def test_a_rank_that_is_frozen_on_its_way_is_named(tmp_path):
    """It has begun to join, so it can be named by its process."""
    with start(TWO, tmp_path, "frozen_inside", script="worker_before.py") as job:
        job.reached(0, "result")
        values = job.result(0)
        assert values["type"] == "CommTimeout" and values["rank"] == 1, job.text()
        assert f"rank 1 (process {job.pid(1)}) is stopped" in values["text"]


def test_a_late_rank_is_waited_for_again(tmp_path):
    """After its CommTimeout a rank may call world() again; meanwhile MPI continues to start."""
    with start(TWO, tmp_path, "second_try", script="worker_before.py") as job:
        job.reached(0, "timeout")
        job.go("come")
        assert [values["size"] for values in finish(job)] == [2, 2], job.text()


def test_ctrl_c_while_mpi_starts(tmp_path):
    with start(TWO, tmp_path, "absent", "late", 100, script="worker_before.py") as job:
        pid = job.pid(0)
        time.sleep(0.5)
        os.kill(pid, signal.SIGINT)
        job.reached(0, "result")
        assert job.result(0)["type"] == "KeyboardInterrupt"


@pytest.mark.parametrize("how", ["raise", "exit", "kill", "absent"])
def test_mpirun_ends_when_a_rank_ends_before_it_joins(how, tmp_path):
    job = start(TWO, tmp_path, "dies", how, script="worker_before.py", recover=False)
    finish(job)
    assert job.codes()[0] != 0
    if how == "raise":
        assert "ValueError: before the world" in job.text()
    if how == "absent":
        assert "rank 1 of 2 did not call comm.world()" in job.text()


@pytest.mark.parametrize("how", ["subprocess", "fork", "early subprocess"])
def test_the_child_of_a_rank_is_no_rank(how, tmp_path):
    """It gets an error at once, and the job ends without one."""
    job = start(TWO, tmp_path, "parent", how, script="worker_before.py", recover=False)
    results = finish(job)
    assert job.codes() == [0], job.text()
    for rank, values in enumerate(results):
        child = json.loads(values["child"])
        assert child["type"] == "CommError" and f"joined the job as rank {rank}," in child["text"], child
        assert f"process {values['pid']} has already joined" in child["text"] and values["size"] == 2


def test_a_wrapper_may_start_the_rank(tmp_path):
    """The process that joins counts, not the one that the launcher started."""
    job = start(TWO, tmp_path, "wrapper", script="worker_before.py", recover=False)
    assert [values["size"] for values in finish(job)] == [2, 2], job.text()


def test_another_number_of_ranks_than_mpi_knows(tmp_path):
    job = start(TWO, tmp_path, "miscounted", script="worker_before.py")
    for values in finish(job):
        assert values["type"] == "CommError" and "started 3 ranks, but MPI reports 2" in values["text"]
