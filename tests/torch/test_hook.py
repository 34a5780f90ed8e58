"""The hook for DistributedDataParallel under real PyTorch, on CPUs over gloo: values bit for bit against the model of
docs/WIRE.md, and what happens when something goes wrong."""

import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest
import ranks
import two_nodes
from checkout import ROOT, environ
from ranks import Launch, needs_mpirun

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs PyTorch: make test-torch"),
]
WORKER, SUPPORT = Path(__file__).parent / "worker_hook.py", ROOT / "tests/support"


def run(tmp_path, launch, cases, **variables):
    """What the cases returned, by rank; fails with every rank's failures, since those of the others often say only that
    they have lost that rank."""
    results = ranks.run(launch, tmp_path, cases, script=WORKER, limit=300, **variables)
    failures = [
        f"rank {rank}, {case}: {value}"
        for rank, result in enumerate(results)
        for case, value in result.items()
        if isinstance(value, dict)
    ]
    assert not failures, "\n".join(failures)
    return results


def test_values_and_settings(tmp_path):
    """Two ranks in torchrun's environment."""
    cases = "values,own_bits,settings,accumulated,uneven,sparse,complexes,not_a_number,frozen,several,copies,at_the_end"
    results = run(tmp_path, Launch("torchrun", 2), cases)
    assert results[0] == results[1]


def test_a_run_that_goes_on_from_a_checkpoint(tmp_path):
    run(tmp_path, Launch("torchrun", 2), "resumed,without_names")


@pytest.mark.parametrize(("size", "nodes"), [(2, 1), (3, 1), (4, 2)])
def test_bits_by_what_quantisation_loses(tmp_path, size, nodes):
    results = run(tmp_path, Launch("torchrun", size, nodes), "adapted")
    assert all(result == results[0] for result in results)


def test_three_ranks(tmp_path):
    run(tmp_path, Launch("torchrun", 3), "own_bits,accumulated,several,at_the_end")


@pytest.mark.parametrize(("size", "nodes"), [(2, 2), (4, 2)])
def test_ranks_on_several_nodes(tmp_path, size, nodes):
    """Pretended ones: what is compressed goes through the process group."""
    run(
        tmp_path,
        Launch("torchrun", size, nodes),
        "values,own_bits,uneven,complexes,not_a_number,groups_of_some,resumed",
    )


@needs_mpirun
def test_training_of_three_ranks_under_mpirun(tmp_path):
    for plain, four, two in (r["convergence"] for r in run(tmp_path, Launch("mpi", 3), "convergence")):
        assert plain[0] == four[0] == two[0] > 1.9  # the same start
        assert plain[1] < 0.7 and four[1] < plain[1] + 0.1 and two[1] < plain[1] + 0.2


def test_failures_name_the_rank(tmp_path):
    """One after the other, each with a new state; finally rank 1 is killed in the hook."""
    job = ranks.start(Launch("torchrun", 2), tmp_path, "different_bits,nobody_comes,raises,killed", script=WORKER)
    job.reached(1, "before_the_end", limit=300)
    told, others = job.wait()[0], json.loads((tmp_path / "before_the_end.1").read_text())
    for rank, said in enumerate((told["different_bits"], others["different_bits"])):
        assert (said["type"], said["operation"], said["rank"]) == ("CommError", "rendezvous", str(1 - rank))
        assert "bits" in said["text"] and "'default': 4" in said["text"] and "'default': 3" in said["text"]
    late = told["nobody_comes"]
    assert late["type"] == "CommTimeout" and late["rank"] == "1" and "rank 1 of the process group" in late["text"]
    assert others["raises"]["type"] == "ArithmeticError"
    assert told["raises"]["type"] == "CommError" and "rank 1" in told["raises"]["text"]
    assert told["killed"]["type"] == "PeerLost" and told["killed"]["rank"] == "1"


def test_a_rank_on_another_node_is_killed(tmp_path):
    told = ranks.start(Launch("torchrun", 2, 2), tmp_path, "killed", script=WORKER).wait()[0]["killed"]
    assert told["type"] == "PeerLost" and told["rank"] == "1" and told["operation"] == "allreduce"


def test_the_last_bucket_is_not_compressed_and_a_rank_on_another_node_is_lost(tmp_path):
    """Its sum has the hook's deadline, too, and names the rank."""
    job = ranks.start(Launch("torchrun", 2, 2), tmp_path, "silent,killed_bare", script=WORKER)
    told = job.wait()[0]
    assert told["silent"]["type"] == "CommTimeout" and told["silent"]["rank"] == "1", told
    assert "rank 1 did not answer within 2 s" in told["silent"]["text"]
    assert told["killed_bare"]["type"] == "PeerLost" and told["killed_bare"]["rank"] == "1", told


@pytest.mark.skipif(bool(two_nodes.why_not()), reason=two_nodes.why_not())
def test_a_link_between_nodes_that_goes_down(tmp_path):
    """Ends the steps on both, at the deadline: also where the process group's store is on the other side."""
    place = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": two_nodes.ADDRESSES[0], "MASTER_PORT": "29501"}
    place |= {"GLOO_SOCKET_IFNAME": two_nodes.LINK}
    words = [sys.executable, "-u", WORKER, "cut", tmp_path]

    def reached(name, seconds):
        end = time.monotonic() + seconds
        while not all((tmp_path / f"{name}.{rank}").exists() for rank in range(2)):
            assert time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.05)

    with two_nodes.TwoNodes("1gbit") as nodes, open(tmp_path / "log", "w") as log:
        for rank in range(2):
            nodes.start(rank, words, environ(SUPPORT, **place, RANK=str(rank)), log)
        reached("stepping", 60)
        nodes.set_link("down")
        reached("result", 20)
    for rank in range(2):
        told = json.loads((tmp_path / f"result.{rank}").read_text())["cut"]
        assert told["type"] == "CommTimeout" and told["rank"] == str(1 - rank), told


@pytest.mark.parametrize(("size", "nodes"), [(2, 1), (3, 1), (2, 2)])
def test_on_gpus(tmp_path, size, nodes):
    """Ranks may share a GPU; then the process group is gloo's."""
    import torch

    gpus = torch.cuda.device_count()
    if gpus == 0:
        pytest.skip("needs a GPU")
    run(
        tmp_path,
        Launch("torchrun", size, nodes),
        "on_gpus" if nodes == 1 else "own_bits,uneven,resumed",
        TEST_GPUS=gpus,
    )
