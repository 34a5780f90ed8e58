"""`bench ddp` under real PyTorch, two ranks on the CPU over gloo."""

import importlib.util
import json

import pytest
from checkout import run_python

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs PyTorch: make test-torch"),
]
QUICK = ["--model", "tiny", "--device", "cpu", "--gpus", "2", "--steps", "3", "--warmup", "4", "--timeout", "60"]


def bench(tmp_path, ways, **variables):
    """(exit code, table, rows by "way")"""
    command = ["-m", "cgxffcv", "bench", "ddp", *QUICK, "--ways", ways, "--json", tmp_path / "rows.json"]
    done = run_python(*command, status=None, limit=600, cwd=tmp_path, **variables)
    assert "Traceback" not in done.stderr, done.stderr
    kept = json.loads((tmp_path / "rows.json").read_text())
    return done.returncode, done.stdout, {row["way"]: row for row in kept["rows"]}


def test_all_ways_train_replicas(tmp_path):
    code, table, rows = bench(tmp_path, "floor,plain,bf16,powersgd,ours8,ours4,ours3,ours2")
    assert code == 0, table
    elems = 64 * 96 + 96 + 96 * 48 + 48 + 48 * 10 + 10
    assert [rows[way]["wire_bytes"] for way in ("floor", "plain", "bf16")] == [0, 4 * elems, 2 * elems]
    assert 0 < rows["powersgd"]["wire_bytes"] < 4 * elems
    assert not rows["floor"]["replicas_equal"]
    for way in ("plain", "bf16", "powersgd", "ours8", "ours4", "ours3", "ours2"):
        row = rows[way]
        assert row["replicas_equal"] and row["parameters"] == elems and len(row["steps_seconds"]) == 3
        assert row["items_per_second"] == pytest.approx(32 / row["step_seconds"])
        assert abs(row["loss"] - rows["plain"]["loss"]) < 0.05
    assert "cgx_hook, 4 bits" in table and "4 bits, buckets of 1024" in rows["ours4"]["explain"]


def test_a_way_that_fails_says_why_and_stops_no_other(tmp_path):
    code, table, rows = bench(tmp_path, "ours4,plain", CGX_INNER_REDUCTION_TYPE="TREE")
    assert code == 1 and "CGX_INNER_REDUCTION_TYPE must be one of" in rows["ours4"]["error"]
    assert rows["ours4"]["error"] in table and rows["plain"]["replicas_equal"]
