"""Quantised sums on GPUs: kernels of several ranks give what the processors give, byte for byte."""

import json

import _cgxffcv
import pytest
from ranks import Launch, run

DEVICES = _cgxffcv.devices()
pytestmark = pytest.mark.skipif(not DEVICES, reason=f"no GPU: {_cgxffcv.why_no_device()}")

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
    assert match(tmp_path, 2, ways)["kinds"] == [PEER]


def test_scatter_reduce(tmp_path):
    """Three ranks, whose number no average divides exactly."""
    ways = [
        {"algorithm": "sra"},
        {"algorithm": "sra", "average": False, "bits": 8, "bucket_size": 2500, "rounding": "stochastic", "seed": 7},
        {"algorithm": "sra", "error_feedback": True, "bits": 2, "dtype": "bfloat16", "half_metadata": True},
        {"algorithm": "sra", "codec": "maxmin_spikes", "bits": 3, "error_feedback": True, "dtype": "float16"},
        {"algorithm": "sra", "codec": "sign"},
        {"algorithm": "sra", "codec": "rotated", "bits": 1, "bucket_size": 1024, "average": False},
        {"algorithm": "sra", "codec": "rotated", "bucket_size": 4096, "error_feedback": True, "dtype": "float16"},
    ]
    assert match(tmp_path, 3, ways)["kinds"] == [PEER]


@pytest.mark.parametrize("algorithm, ranks", [("one_shot", 2), ("sra", 3)])
def test_whole_pieces(tmp_path, algorithm, ranks):
    """Buckets of 128 to 1,024 elements and codes of 2, 4 and 8 bits, which have kernels of their own, in layers that
    begin at any element and end within a piece."""
    shapes = [(4, 1024), (2, 1024), (8, 1024), (4, 512), (8, 128), (2, 256)]
    ways = [{"algorithm": algorithm, "bits": bits, "bucket_size": bucket} for bits, bucket in shapes]
    ways += [way | {"error_feedback": True, "average": False} for way in ways[2:4]]
    ways += [ways[0] | {"dtype": "float16"}, ways[4] | {"dtype": "bfloat16", "error_feedback": True}]
    assert match(tmp_path, ranks, ways)["kinds"] == [PEER]


@pytest.mark.parametrize("algorithm, ranks, bits", [("one_shot", 4, 4), ("sra", 2, 8)])
def test_several_rounds(tmp_path, algorithm, ranks, bits):
    """Windows so small that a run takes several rounds, in host memory, of ranks that share GPUs, as late as can be."""
    way = {"algorithm": algorithm, "error_feedback": True, "rounding": "stochastic", "bits": bits}
    small = {"CGXFFCV_COMM_WINDOW_KIB": 8, "CGXFFCV_P2P": 0, "CGXFFCV_EMULATED_STREAMS": "late"}
    found = match(tmp_path, ranks, [way, way], ranks // 2, **small)
    assert found["kinds"] == [STAGED] and not found["rounds"].endswith("in 1 round")
