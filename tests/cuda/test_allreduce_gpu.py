"""Quantised sums on GPUs: kernels of several ranks give the same results as the CPU, byte for byte."""

import json

import _cgxffcv
import pytest
from gpus import EMULATED, needs_gpu, needs_nccl
from ranks import Launch, run, start

pytestmark = needs_gpu

PEER = "on the GPUs by kernels that write into each other's memory"
STAGED = "on the GPUs by kernels that write into page-locked host memory"


def match(out, ranks, ways, gpus=4, **variables):
    results = run(
        Launch("shm", ranks),
        out,
        "match",
        json.dumps(ways),
        script="worker_device.py",
        CGXFFCV_EMULATED_DEVICES=gpus,
        **variables,
    )
    return results[0]


def test_one_shot(tmp_path):
    ways = [
        {"algorithm": "one_shot"},
        {"algorithm": "one_shot", "average": False, "bits": 3, "bucket_size": 33, "rounding": "stochastic", "seed": 7},
        {"algorithm": "one_shot", "error_feedback": True, "bits": 2, "dtype": "float16"},
        {"algorithm": "one_shot", "codec": "maxmin_spikes", "bits": 2, "error_feedback": True},
        {"algorithm": "one_shot", "codec": "sign", "dtype": "bfloat16", "half_metadata": True, "error_feedback": True},
        {"algorithm": "one_shot", "codec": "rotated", "bits": 2, "error_feedback": True, "seed": 9},
        {"algorithm": "one_shot", "codec": "rotated", "bucket_size": 2048, "dtype": "bfloat16"},
    ]
    ways += [way | {"error_feedback": "int8"} for way in ways]
    assert match(tmp_path, 2, ways)["kinds"] == [PEER]


def test_scatter_reduce(tmp_path):
    """Three ranks, a number by which averages do not divide exactly."""
    ways = [
        {"algorithm": "sra"},
        {"algorithm": "sra", "average": False, "bits": 8, "bucket_size": 2500, "rounding": "stochastic", "seed": 7},
        {"algorithm": "sra", "error_feedback": True, "bits": 2, "dtype": "bfloat16", "half_metadata": True},
        {"algorithm": "sra", "codec": "maxmin_spikes", "bits": 3, "error_feedback": True, "dtype": "float16"},
        {"algorithm": "sra", "codec": "maxmin_spikes", "bits": 3, "dtype": "float16", "half_metadata": True},
        {"algorithm": "sra", "codec": "sign"},
        {"algorithm": "sra", "codec": "rotated", "bits": 1, "bucket_size": 1024, "average": False},
        {"algorithm": "sra", "codec": "rotated", "bucket_size": 4096, "error_feedback": True, "dtype": "float16"},
    ]
    ways += [way | {"error_feedback": "int8"} for way in ways]
    assert match(tmp_path, 3, ways)["kinds"] == [PEER]


def test_eight_ranks_share_two_gpus(tmp_path):
    ways = [{"algorithm": algorithm, "bits": 4, "error_feedback": True} for algorithm in ("sra", "one_shot")]
    assert match(tmp_path, 8, ways, gpus=2)["kinds"] == [PEER]


@pytest.mark.parametrize("algorithm, ranks", [("one_shot", 2), ("sra", 3)])
def test_whole_pieces(tmp_path, algorithm, ranks):
    """Buckets of 128 to 1,024 elements and codes of 2, 4 and 8 bits, which have separate kernels, in layers that begin
    at any element and end within a piece."""
    shapes = [(4, 1024), (2, 1024), (8, 1024), (4, 512), (8, 128), (2, 256)]
    ways = [{"algorithm": algorithm, "bits": bits, "bucket_size": bucket} for bits, bucket in shapes]
    ways += [way | {"error_feedback": True, "average": False} for way in ways[2:4]]
    ways += [ways[0] | {"dtype": "float16"}, ways[4] | {"dtype": "bfloat16", "error_feedback": True}]
    ways += [way | {"error_feedback": "int8"} for way in ways]
    assert match(tmp_path, ranks, ways)["kinds"] == [PEER]


@pytest.mark.parametrize(
    "algorithm, ranks, bits, streams", [("one_shot", 4, 4, "late"), ("sra", 2, 8, "late"), ("sra", 3, 4, "at once")]
)
def test_several_rounds(tmp_path, algorithm, ranks, bits, streams):
    """Windows so small that a run takes several rounds, in host memory, of ranks that share GPUs, which run at once or
    as late as possible."""
    way = {"algorithm": algorithm, "error_feedback": True, "rounding": "stochastic", "bits": bits}
    small = {"CGXFFCV_COMM_WINDOW_KIB": 8, "CGXFFCV_P2P": 0, "CGXFFCV_EMULATED_STREAMS": streams}
    quick = way | {"rounding": "nearest", "bucket_size": 512}
    eight = {"error_feedback": "int8"}
    found = match(tmp_path, ranks, [way, quick, way | eight, quick | eight, way], ranks // 2, **small)
    assert found["kinds"] == [STAGED] and not found["rounds"].endswith("in 1 round")


@pytest.mark.parametrize("staged", [False, True])
def test_the_rule_for_two_ranks_goes_by_the_way_between_them(tmp_path, staged):
    """A bus transfers in both directions at once at full speed, which only the owners' kernels of scatter-reduce
    use."""
    calls = [(1 << 22, 4, "auto"), ((1 << 22) - 1024, 4, "auto"), (1 << 21, 8, "auto"), (1 << 22, 4, "one_shot")]
    calls += [(1 << 15, 4, "auto")]
    how = {"script": "worker_device.py", "CGXFFCV_EMULATED_DEVICES": 2, "CGXFFCV_COMM_WINDOW_KIB": 64}
    how |= {"CGXFFCV_P2P": 0} if staged else {}
    results = run(Launch("shm", 2), tmp_path, "choose", json.dumps(calls), limit=120, **how)
    bus = "algorithm: sra (by rule: two ranks through host memory, in both directions at once)"
    two = "algorithm: one_shot (by rule: two ranks, one quantisation)"
    asked = "algorithm: one_shot (as requested)"
    small = "algorithm: one_shot (by rule: a small call, latency decides)"
    expected = [bus, two, bus, asked, small] if staged else [two, two, two, asked, small]
    for values in results:
        assert values["chosen"] == [[STAGED if staged else PEER, line] for line in expected]


# ---- what is not quantised ----

ALL, PART = "uncompressed, each adding everything", "uncompressed, each adding a part"
TYPES = ("float32", "float16", "bfloat16")


def exact(out, ranks, ways, gpus=4, **variables):
    how = {"script": "worker_device.py", "CGXFFCV_EMULATED_DEVICES": gpus, "CGXFFCV_COMM_NCCL": 0} | variables
    return run(Launch("shm", ranks), out, "exact", json.dumps(ways), limit=120, **how)


@pytest.mark.parametrize("ranks", [2, 3])
def test_exact_sums(tmp_path, ranks):
    """All types, buffers that begin anywhere, two blocks and one that is not full, plans run alternately."""
    ways = [(11001, 0, 2, {"dtype": dtype, "average": average}) for dtype in TYPES for average in (False, True)]
    ways += [(5000, offset, 1, {"dtype": "bfloat16", "algorithm": "sra"}) for offset in (0, 3)]
    ways += [(5000, 1, 1, {"algorithm": "one_shot"}), (2, 0, 1, {}), (1, 0, 1, {"algorithm": "sra"})]
    results = exact(tmp_path, ranks, ways, CGXFFCV_COMM_WINDOW_KIB=256)
    parts = [False] * 6 + [True, True, False, False, True]
    for values in results:
        assert values["lines"] == [f"{PEER}, in 1 round, {PART if part else ALL}" for part in parts]
        for (elems, _, _, options), part, (wire, plain) in zip(ways, parts, values["bytes"], strict=True):
            item = 4 if options.get("dtype", "float32") == "float32" else 2
            assert wire == plain and (part or wire == elems * item * (ranks - 1))
    for way, (elems, _, _, options) in enumerate(ways):  # those that are sent in parts, over all ranks
        item = 4 if options.get("dtype", "float32") == "float32" else 2
        if parts[way]:
            assert sum(values["bytes"][way][0] for values in results) == 2 * elems * item * (ranks - 1)


@pytest.mark.parametrize("algorithm, streams, seed", [("one_shot", "late", 1), ("sra", "", 2), ("sra", "late", 3)])
def test_exact_sums_in_several_rounds(tmp_path, algorithm, streams, seed):
    """Windows so small that blocks go through them again and again, in host memory, of ranks that share a GPU; and each
    process has its blocks in a different order."""
    ways = [(elems, 0, 2, {"algorithm": algorithm, "dtype": "float16"}) for elems in (9000, 100, 20001)]
    variables = {"CGXFFCV_COMM_WINDOW_KIB": 16, "CGXFFCV_P2P": 0, "CGXFFCV_EMULATED_STREAMS": streams}
    results = exact(tmp_path, 3, ways, gpus=2, CGXFFCV_EMULATED_SEED=seed, **variables)
    for line, several in zip(results[0]["lines"], (True, False, True), strict=True):
        assert line.startswith(STAGED) and line.endswith(ALL if algorithm == "one_shot" else PART)
        assert (" in 1 round, " in line) != several


@pytest.mark.parametrize("algorithm", ["one_shot", "sra"])
def test_exact_sums_in_few_blocks(tmp_path, algorithm):
    """One block on rank 0, two on rank 1, which move from place to place: in one round, and in several."""
    ways = [(60000, 0, 2, {"algorithm": algorithm, "beside": True}), (300, 0, 1, {"algorithm": algorithm})]
    for kib in (512, 32):
        results = exact(tmp_path / str(kib), 2, ways, CGXFFCV_COMM_WINDOW_KIB=kib)
        assert (" in 1 round, " in results[0]["lines"][0]) == (kib == 512)


# ---- a rank that dies while another waits through CUDA ----


@pytest.mark.parametrize("way", ["quantised", "exact", pytest.param("nccl", marks=needs_nccl)])
def test_waits_of_the_framework_end(tmp_path, way):
    """Nothing polls for the sum; the process's heartbeat thread ends it, and the next call says which rank died."""
    variables = {"CGXFFCV_EMULATED_DEVICES": 2, "CGXFFCV_EMULATED_STREAMS": "late", "CGXFFCV_COMM_WINDOW_KIB": 64}
    if EMULATED:
        variables["CGXFFCV_NCCL_LIBRARY"] = _cgxffcv.__file__
    options = {"bits": 4 if way == "quantised" else 32}
    if way == "nccl":
        variables["CGXFFCV_COMM_KERNELS"] = 0
    job = start(Launch("shm", 2), tmp_path, "unwatched", json.dumps(options), script="worker_device.py", **variables)
    found = job.wait(150)[0]
    assert found is not None, job.text()
    assert found["line"].startswith("on the GPUs by NCCL" if way == "nccl" else "on the GPUs by kernels")
    assert (found["first"]["type"], found["first"]["rank"]) == ("PeerLost", 1), found
    assert "the communicator is broken" in found["second"]["text"], found


def test_bits_are_adapted(tmp_path):
    ways = [{"error_feedback": True}, {"dtype": "float16", "codec": "rotated"}]
    how = {"script": "worker_device.py", "CGXFFCV_EMULATED_DEVICES": 2, "CGXFFCV_COMM_WINDOW_KIB": 64}
    first, second = run(Launch("shm", 2), tmp_path, "adapt", json.dumps(ways), limit=120, **how)
    assert first["chosen"] == second["chosen"] and len({tuple(bits) for bits in first["chosen"]}) > 2
