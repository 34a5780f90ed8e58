"""The allreduce between processes: over shared memory, over MPI between simulated nodes, and when a rank fails."""

import pytest
from ranks import Launch, needs_mpirun, run, start

pytestmark = pytest.mark.medium
SCRIPT = "worker_allreduce.py"


def places(*launches):
    return [pytest.param(x, marks=needs_mpirun if x.how == "mpi" else (), id=str(x)) for x in launches]


MATCHES = places(
    Launch("mpi", 1),
    Launch("mpi", 2),
    Launch("mpi", 3),
    Launch("mpi", 5),
    Launch("mpi", 7),
    Launch("shm", 3),
    Launch("mpi", 4, 2),
    Launch("mpi", 3, 3),
    Launch("mpi", 6, 2),
    Launch("shm", 6, 3),
)
FAILS = places(Launch("shm", 2), Launch("mpi", 3), Launch("mpi", 4, 2))


@pytest.mark.parametrize("launch", MATCHES)
def test_equals_the_simulation(launch, tmp_path):
    for values in run(launch, tmp_path, "match", script=SCRIPT, limit=120):
        assert values == {"checked": 40, "nodes": launch.nodes or 1}


@pytest.mark.parametrize("launch", places(Launch("shm", 2), Launch("mpi", 2, 2), Launch("mpi", 4, 2)))
def test_large(launch, tmp_path):
    step = launch.size * 15 / 255
    for values in run(launch, tmp_path, "large", script=SCRIPT, limit=120):
        worst = values["worst"]
        assert worst["exact"] == 0
        for algorithm, quantizations in {"one_shot": 1, "sra": 2, "two_level": 3, "ring": launch.size}.items():
            assert worst[algorithm] <= quantizations * step / 2 * 1.1 + 1e-3


@pytest.mark.parametrize("launch", places(Launch("shm", 3), Launch("mpi", 2, 2), Launch("mpi", 4, 2)))
def test_automatic(launch, tmp_path):
    results = run(launch, tmp_path, "automatic", script=SCRIPT)
    assert len({values["algorithm"] for values in results}) == 1
    for values in results:
        assert values["value"] == pytest.approx((launch.size - 1) / 2, rel=1e-6)
        assert f"ranks: {launch.size} on {launch.nodes or 1} node" in values["text"]
        assert ("predicted: two_level" in values["text"]) == (launch.nodes > 1)


@pytest.mark.parametrize("algorithm", ["one_shot", "sra"])
@pytest.mark.parametrize("launch", FAILS)
def test_killed_in_the_middle(launch, algorithm, tmp_path):
    with start(launch, tmp_path, "killed", algorithm, 0, script=SCRIPT) as job:
        results = job.wait(40)
    assert results[0] is None
    for values in results[1:]:
        assert values["type"] == "PeerLost" and values["rank"] == 0, job.text()
        assert values["text"].startswith("allreduce: rank 0 (process") and values["operation"] == "allreduce"
        assert values["again"]["type"] == "CommError" and "is broken" in values["again"]["text"]


def test_stopped_in_the_middle(tmp_path):
    with start(Launch("shm", 3), tmp_path, "stopped", script=SCRIPT) as job:
        for rank in (0, 2):
            job.reached(rank, "result")
            values = job.result(rank)
            assert values["type"] == "CommTimeout" and values["rank"] == 1, values


@pytest.mark.parametrize("launch", FAILS)
def test_mismatched(launch, tmp_path):
    for values in run(launch, tmp_path, "mismatched", script=SCRIPT, recover=True):
        assert values["type"] == "CommError" and values["untouched"]
        assert "4 bits" in values["text"] and "3 bits" in values["text"], values["text"]


def test_ctrl_c_on_one_rank(tmp_path):
    results = run(Launch("shm", 2), tmp_path, "interrupted", script=SCRIPT)
    assert results[0]["type"] == "KeyboardInterrupt"
    assert results[1]["type"] == "CommError" and "rank 0 was interrupted" in results[1]["text"]
