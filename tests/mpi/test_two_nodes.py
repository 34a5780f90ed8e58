"""Ranks on two nodes with separate network addresses, host names and processes: they find out by themselves where they
are, and learn that a link is lost."""

import sys

import pytest
import two_nodes
from ranks import WORKERS, Job, Launch, environment, needs_mpirun

pytestmark = [
    pytest.mark.medium,
    needs_mpirun,
    pytest.mark.skipif(bool(two_nodes.why_not()), reason=f"two nodes: {two_nodes.why_not()}"),
]


@pytest.fixture
def nodes():
    with two_nodes.TwoNodes("1gbit") as made:
        yield made


def start(nodes, out, case, *arguments, **variables):
    """Two ranks on each node."""
    out.mkdir()
    job = Job(Launch("mpi", 4), out)
    command = [sys.executable, "-u", WORKERS / "worker_allreduce.py", case, out, *arguments]
    with open(out / "log", "w") as log:
        job.processes.append(nodes.mpirun(2, command, environment(**variables), log))
    return job


def test_equals_the_simulation(nodes, tmp_path):
    for values in start(nodes, tmp_path / "out", "match").wait(120):
        assert values == {"checked": 40, "nodes": 2}


def test_a_lost_link(nodes, tmp_path):
    """Only the deadline reveals it, and ends the wait on both sides."""
    with start(nodes, tmp_path / "out", "until_lost", "two_level", CGXFFCV_COMM_TIMEOUT=4) as job:
        job.reached(0, "running")
        nodes.set_link("down")
        for rank in range(4):
            job.reached(rank, "result", 40)
    for rank in range(4):
        assert job.result(rank)["type"] in ("CommTimeout", "CommError"), job.text()
    assert any(job.result(rank)["type"] == "CommTimeout" for rank in range(4))
