"""Quantised sums on GPUs of several (simulated) nodes: the CPU's bytes, whatever connects the GPUs within a node."""

import json
import re

import _cgxffcv
import pytest
from gpus import EMULATED, needs_gpu
from ranks import Launch, needs_mpirun, run, start

pytestmark = needs_gpu
only_emulated = pytest.mark.skipif(not EMULATED, reason="only the emulator can be another machine")

KERNELS = "on the GPUs by kernels that write into "
SENT_ON = "host memory, from where it is sent on"
PEER = f"{KERNELS}each other's memory and, between nodes, into {SENT_ON}"
STAGED = f"{KERNELS}page-locked host memory and, between nodes, into {SENT_ON}"
FORWARDED = KERNELS + SENT_ON


def match(out, launch, ways, gpus=4, limit=240, **variables):
    variables = {"CGXFFCV_EMULATED_DEVICES": gpus} | variables
    return run(launch, out, "match", json.dumps(ways), script="worker_device.py", limit=limit, **variables)


def kinds(results):
    return [values["kinds"] for values in results]


SRA = [
    {"algorithm": "sra"},
    {"algorithm": "sra", "codec": "rotated", "bits": 2, "error_feedback": True},
    {"algorithm": "one_shot", "bits": 3, "bucket_size": 33, "rounding": "stochastic", "average": False},
    {"algorithm": "one_shot", "codec": "maxmin_spikes", "dtype": "float16"},
    {"algorithm": "sra", "codec": "rotated", "bits": 2, "error_feedback": "int8"},
]


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("streams", ["late", "at once"])
def test_neighbours_are_reached_as_on_one_host(tmp_path, staged, streams):
    variables = {"CGXFFCV_EMULATED_STREAMS": streams} | ({"CGXFFCV_P2P": 0} if staged else {})
    results = match(tmp_path, Launch("shm", 4, 2), SRA[:2] if streams == "late" else SRA[2:], **variables)
    assert kinds(results) == [[STAGED if staged else PEER]] * 4


def test_a_rank_that_is_alone_on_its_node(tmp_path):
    results = match(tmp_path, Launch("shm", 3, 2), SRA, CGXFFCV_COMM_WINDOW_KIB=16)
    assert kinds(results) == [[PEER], [PEER], [FORWARDED]]


LEVELS = [
    {},
    {"bits": 8, "bucket_size": 1024, "average": False},
    {"bits": 2, "bucket_size": 512, "error_feedback": True},
    {"bits": 3, "bucket_size": 33, "rounding": "stochastic", "seed": 7},
    {"bits": 8, "bucket_size": 2500, "rounding": "stochastic", "error_feedback": True, "average": False},
    {"dtype": "float16", "bits": 5, "error_feedback": True},
    {"dtype": "bfloat16", "half_metadata": True, "error_feedback": True},
    {"codec": "maxmin_spikes", "bits": 3, "error_feedback": True, "dtype": "float16"},
    {"codec": "maxmin_spikes", "bits": 2, "rounding": "stochastic"},
    {"codec": "sign", "error_feedback": True},
    {"codec": "sign", "dtype": "bfloat16", "half_metadata": True},
    {"codec": "rotated", "bits": 2, "error_feedback": True, "seed": 9},
    {"codec": "rotated", "bits": 1, "bucket_size": 1024, "average": False},
    {"codec": "rotated", "bucket_size": 4096, "error_feedback": True, "dtype": "bfloat16"},
    {"codec": "maxmin_spikes", "bits": 3, "dtype": "float16", "half_metadata": True, "error_feedback": True},
    {"bits": 4, "bucket_size": 512, "error_feedback": "int8"},
    {"codec": "maxmin_spikes", "bits": 3, "error_feedback": "int8", "dtype": "float16"},
    {"codec": "rotated", "bits": 2, "error_feedback": "int8", "average": False},
    {"codec": "sign", "error_feedback": "int8"},
]


def two_level(ways):
    return [{"algorithm": "two_level"} | way for way in ways]


@pytest.mark.parametrize("part", range(3))
def test_two_levels(tmp_path, part):
    """Layers that are quantised and others that are not, some of them in several ranks' shards; within 32 MiB of each
    GPU."""
    memory = {"CGXFFCV_EMULATED_MEMORY": 32 << 20}
    results = match(tmp_path, Launch("shm", 4, 2), two_level(LEVELS[part::3]), **memory)
    assert kinds(results) == [[PEER]] * 4


@pytest.mark.medium
@pytest.mark.parametrize("nodes", [2, 3])
def test_two_levels_of_six_ranks(tmp_path, nodes):
    """Numbers of nodes and places by which averages do not divide exactly, and rotated sums that begin with another's
    values."""
    ways = two_level([LEVELS[i] for i in (2, 5, 11)])
    results = match(tmp_path, Launch("shm", 6, nodes), ways, gpus=3, CGXFFCV_EMULATED_STREAMS="late")
    assert kinds(results) == [[PEER]] * 6


@pytest.mark.parametrize(("streams", "gpus", "seed"), [("late", 2, 1), ("at once", 4, 2)])
def test_two_levels_in_several_rounds(tmp_path, streams, gpus, seed):
    """Boxes so small that a run takes several of them, all in host memory, of ranks that share GPUs."""
    small = {"CGXFFCV_COMM_WINDOW_KIB": 8, "CGXFFCV_P2P": 0, "CGXFFCV_EMULATED_STREAMS": streams}
    ways = two_level([*LEVELS[2:4], *(LEVELS[i] | {"error_feedback": "int8"} for i in (2, 3))])
    ways += [{"algorithm": "sra"}, {"algorithm": "two_level", "bits": 2}]
    results = match(tmp_path, Launch("shm", 4, 2), ways, gpus, CGXFFCV_EMULATED_SEED=seed, **small)
    assert kinds(results) == [[STAGED]] * 4
    assert not results[0]["rounds"].endswith("in 1 round")


@pytest.mark.parametrize(("launch", "kind"), [(Launch("shm", 2, 2), FORWARDED), (Launch("shm", 3), None)], ids=str)
def test_two_levels_of_which_one_does_nothing(tmp_path, launch, kind):
    """One rank on each node; one node."""
    results = match(tmp_path, launch, two_level([LEVELS[i] for i in (0, 2, 11)]))
    assert kinds(results) == [[kind or f"{KERNELS}each other's memory"]] * launch.size


@only_emulated
def test_ranks_that_reach_nobody_in_place(tmp_path):
    """They reach neither each other's GPUs nor memory that all ranks of a node register: then everything is sent on."""
    nowhere = {"CGXFFCV_P2P": 0, "CGXFFCV_EMULATED_REGISTER": 0}
    results = match(tmp_path, Launch("shm", 4, 2), [SRA[0], *two_level(LEVELS[2:3])], **nowhere)
    assert kinds(results) == [[FORWARDED]] * 4


@needs_mpirun
def test_under_mpirun(tmp_path):
    results = match(tmp_path, Launch("mpi", 4, 2), [SRA[0], SRA[2], *two_level(LEVELS[2:4])])
    assert kinds(results) == [[PEER]] * 4


@pytest.mark.parametrize("staged", [False, True])
def test_exact_sums_between_nodes(tmp_path, staged):
    """What is not quantised, by kernels if they are asked for: in parts and as a whole, in one round and several."""
    types = {"sra": "float32", "one_shot": "bfloat16"}
    ways = [(9000, 0, 2, {"algorithm": name, "dtype": types[name]}) for name in types]
    variables = {"CGXFFCV_EMULATED_DEVICES": 2, "CGXFFCV_COMM_NCCL": 0, "CGXFFCV_COMM_WINDOW_KIB": 16}
    variables |= {"CGXFFCV_P2P": 0, "CGXFFCV_EMULATED_STREAMS": "late"} if staged else {}
    how = {"script": "worker_device.py", "limit": 120} | variables
    for values in run(Launch("shm", 4, 2), tmp_path, "exact", json.dumps(ways), **how):
        assert all(line.startswith(STAGED if staged else PEER) for line in values["lines"])


@pytest.mark.parametrize(("ranks", "algorithm"), [(4, "two_level"), (3, "sra")])
def test_the_rule_between_nodes(tmp_path, ranks, algorithm):
    """Nodes of unequal size do not use two levels; what is small is done in one step, and nothing is left out."""
    calls = [(1 << 18, 4, "auto"), (1 << 10, 4, "auto"), (0, 4, "auto")]
    how = {"script": "worker_device.py", "CGXFFCV_EMULATED_DEVICES": 4, "CGXFFCV_COMM_WINDOW_KIB": 64}
    results = run(Launch("shm", ranks, 2), tmp_path, "choose", json.dumps(calls), limit=120, **how)
    for values in results[:2]:
        (kind, line), (small_kind, small), (nothing, _) = values["chosen"]
        assert kind == small_kind == PEER
        assert line.startswith(f"algorithm: {algorithm} (by rule: ") and "one_shot (by rule: a small call" in small
        assert nothing == "from the GPU through host memory (nothing to sum)"


def results_of(job, ranks):
    """What each of the first ranks has found, once all of them have; then the job ends."""
    with job:
        for rank in range(ranks):
            job.reached(rank, "result", 40)
    return [job.result(rank) for rank in range(ranks)]


@pytest.mark.parametrize("algorithm", ["sra", "two_level"])
@pytest.mark.parametrize("loss", ["kill", "stop"])
def test_a_rank_that_is_lost_on_another_node(tmp_path, loss, algorithm):
    """The runs of all others end within the deadline."""
    variables = {"CGXFFCV_EMULATED_DEVICES": 4, "CGXFFCV_COMM_TIMEOUT": 60 if loss == "kill" else 4}
    arguments = [json.dumps({"algorithm": algorithm}), loss]
    job = start(Launch("shm", 4, 2), tmp_path, "lost", *arguments, script="worker_device.py", **variables)
    results = results_of(job, 3)
    for found in results:
        assert found["type"] in (("PeerLost",) if loss == "kill" else ("CommTimeout", "CommError")), job.text()
        assert loss == "stop" or re.search("rank 3 .*died", found["text"]), found
        assert found["end_s"] < 3, "nobody waits for those who do not come"
    assert loss == "kill" or any(found["type"] == "CommTimeout" for found in results)


@pytest.mark.parametrize("algorithm", ["sra", "two_level"])
def test_a_rank_on_another_node_that_is_lost_in_mid_run(tmp_path, algorithm):
    variables = {"CGXFFCV_EMULATED_DEVICES": 4, "CGXFFCV_COMM_TIMEOUT": 60}
    way = json.dumps({"algorithm": algorithm})
    job = start(Launch("shm", 4, 2), tmp_path, "midway", way, script="worker_device.py", **variables)
    results = results_of(job, 3)
    for found in results:
        assert found["type"] == "PeerLost" and re.search("rank 3 .*died", found["text"]), found


SCARCE = {"script": "worker_device.py", "CGXFFCV_EMULATED_DEVICES": 4}
MEMORY = {1: str(40 << 20), 2: str(24 << 20)}  # enough for windows, but not for another 32 MB


@only_emulated
@pytest.mark.parametrize("nodes", [1, 2])
def test_a_gpu_without_memory_for_a_plan(tmp_path, nodes):
    """That plan fails at once, and so does what the others do next: they learn why."""
    job = start(Launch("shm", 4, nodes), tmp_path, "scarce", "3", MEMORY[nodes], **SCARCE)
    found = results_of(job, 4)
    assert found[3]["type"] == "MemoryError" and "GPU memory" in found[3]["text"], found
    for values in found[:3]:
        assert values["type"] == "CommError" and re.search("rank 3 failed: .*GPU memory", values["text"]), found
    assert max(values["seconds"] for values in found) < 10, found


@only_emulated
@pytest.mark.parametrize(
    ("variable", "bits"),
    [
        ("CGXFFCV_COMM_WINDOW_KIB", 4),
        ("CGXFFCV_COMM_KERNELS", 4),
        ("CGXFFCV_COMM_EXACT_KIB", 32),
        ("CGXFFCV_COMM_PIECE_KIB", 32),
    ],
)
def test_a_variable_of_one_rank_that_cannot_be_followed(tmp_path, variable, bits):
    """Fails the others, too, which would wait for that rank."""
    by_nccl = {"CGXFFCV_COMM_EXACT_KIB": 0, "CGXFFCV_NCCL_LIBRARY": _cgxffcv.__file__} if "PIECE" in variable else {}
    how = {"script": "worker_device.py", "CGXFFCV_EMULATED_DEVICES": 2, **by_nccl}
    job = start(Launch("shm", 2, 1), tmp_path, "malformed", variable, str(bits), "1", **how)
    told, mine = results_of(job, 2)
    words = f"{variable}='many': " + ("0 or 1" if "KERNELS" in variable else "a whole number of KiB")
    assert mine["type"] == "ValueError" and words in mine["text"], mine
    assert told["type"] == "CommError" and f"rank 1 failed: {words}" in told["text"] and told["seconds"] < 10, told


@only_emulated
@pytest.mark.parametrize("staged", [False, True])
def test_a_forked_child_keeps_no_memory_of_the_ranks(tmp_path, staged):
    variables = {"CGXFFCV_EMULATED_DEVICES": 4} | ({"CGXFFCV_P2P": 0} if staged else {})
    for values in run(Launch("shm", 4, 2), tmp_path, "forked", script="worker_device.py", limit=60, **variables):
        assert values == {"left": [], "kind": STAGED if staged else PEER}
