"""comm.allreduce over arrays between processes: over shared memory, over MPI, and when a rank dies."""

import pytest
from ranks import Launch, needs_mpirun, run, start

pytestmark = pytest.mark.medium
SCRIPT = "worker_arrays.py"


@pytest.mark.parametrize("launch", [Launch("mpi", 2), Launch("mpi", 4, 2), Launch("shm", 3)], ids=str)
@needs_mpirun
def test_in_place_at_once_and_in_the_background(launch, tmp_path):
    for rank, values in enumerate(run(launch, tmp_path, "host", script=SCRIPT)):
        assert values["worst"] < 1e-4
        assert values["lost"] < 2  # in quantisation steps: half a step for each on the way
        assert values["alone"] == [max(r for r in range(launch.size) if r % 2 == rank % 2)] * 3


@needs_mpirun
def test_killed_while_others_wait_for_the_background(tmp_path):
    with start(Launch("mpi", 3), tmp_path, "killed", 1, script=SCRIPT) as job:
        results = job.wait(40)
    assert results[1] is None
    for values in (results[0], results[2]):
        assert values["type"] == "PeerLost" and values["rank"] == 1, job.text()
        assert "in the background: " in values["broken"] and "rank 1 (process" in values["broken"], values


def test_the_end_of_a_process_waits_for_what_is_under_way(tmp_path):
    """Without wait(): a call that all ranks make is carried out, and a call that another rank never makes gives a
    warning."""
    job = start(Launch("shm", 2), tmp_path, "ends", script=SCRIPT, recover=False)
    job.wait(60)
    assert job.codes() == [0, 0], job.text()
    assert job.result(1)["second"] == 0.5
    said = (tmp_path / "log.0").read_text()
    assert "an allreduce that nobody waited for failed: allreduce: rank 1 has left" in said, said
    assert "nobody waited" not in (tmp_path / "log.1").read_text()
