"""`bench allreduce` between two GPUs: our sums and NCCL's are right in device memory, recorded and not."""

import json
import sys

import _cgxffcv
import pytest
from checkout import run_command
from gpus import DEVICES, EMULATED, NCCL, needs_gpu
from ranks import environment, mpirun, needs_mpirun

pytestmark = [needs_mpirun, needs_gpu]


def run(tmp_path, *words, **variables):
    """The output of a command of two ranks."""
    variables |= {"CGXFFCV_EMULATED_DEVICES": 2, "CGXFFCV_CACHE": tmp_path}
    variables |= {"CGXFFCV_NCCL_LIBRARY": _cgxffcv.__file__} if EMULATED else {}
    command = [*mpirun(2, False), sys.executable, "-m", "cgxffcv", *words, "--device", "gpu"]
    return run_command(*command, cwd=tmp_path, env=environment(**variables)).stdout


def rows_of(tmp_path, *words, **variables):
    kept = tmp_path / "rows.json"
    run(tmp_path, "bench", "allreduce", "--json", str(kept), *words, **variables)
    return json.loads(kept.read_text())["rows"]


@pytest.mark.parametrize("words", ["--bits 4", "--bits 32 --link no-peer", "--bits 3 --link sockets --no-graph"])
def test_ours_and_rivals_are_right(tmp_path, words):
    rows = rows_of(tmp_path, "-b", "6000", "-e", "24000", "-n", "3", "--rounds", "2", *words.split())
    assert [row["count"] for row in rows] == [1500, 6000]
    for row in rows:
        assert row["wrong"] == 0 and (row["relative_error"] > 1e-5) == ("32" not in words)
        assert len(row["times_us"]) == 2 and min(row["times_us"]) > 0
        assert list(row["rivals"]) == (["nccl_float32", "nccl_bfloat16"] if NCCL else [])
        for key, rival in row["rivals"].items():
            assert rival["time_us"] > 0 and rival["relative_error"] < (1e-4 if "bf" in key else 1e-12)


def test_calibrated_lines_choose_between_gpus(tmp_path):
    nccl = {"CGXFFCV_COMM_EXACT_KIB": 0}
    run(tmp_path, "calibrate", "--sizes", "2048", "8192", "--repeats", "1", "--spread", "1e9", **nccl)
    [path] = tmp_path.glob("costs-*.json")
    held = json.loads(path.read_text())
    assert set(held["lines"]) == {"one_shot", "sra", "exact"} and held["about"]["site"] == "device"
    assert [rank["bus"] for rank in held["about"]["ranks"]] == [
        DEVICES[rank % len(DEVICES)]["bus"] for rank in range(2)
    ] or EMULATED
    for latency, chosen in ((1.0, "sra"), (1e-6, "exact")):
        held["lines"] = {"sra": [1e-3, 0.0, 0.0], "exact": [latency, 0.0, 0.0]}
        path.write_text(json.dumps(held))
        [row] = rows_of(tmp_path, "--sizes", "8K", "-n", "2", "--rounds", "1", "--no-rival", **nccl)
        assert row["algorithm"] == chosen and row["wrong"] == 0
        assert ("plain is faster here, 1.0 us; 4 bits with sra" in row["explain"]) == (chosen == "exact")
        assert ("by NCCL" in row["explain"]) == (chosen == "exact" and NCCL)
