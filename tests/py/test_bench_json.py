"""--json of the small benchmarks: alone on standard output, or into a file in addition to the table."""

import json

import pytest
from checkout import run_python

SMALL = {
    "beton": ["--images", "200", "--samples", "1000", "--photographs", "2", "--runs", "1", "--data-root", "nowhere"],
    "quantize": ["--size", "64K", "--bits", "4", "--rounds", "1"],
    "allreduce": ["-b", "4K", "-e", "4K", "-n", "1", "-w", "0", "--rounds", "1"],
}


def bench(name, *options, cwd, status=0):
    return run_python("-m", "cgxffcv", "bench", name, *SMALL[name], *options, status=status, cwd=cwd)


@pytest.mark.parametrize("name", SMALL)
def test_json_alone_or_in_a_file(tmp_path, name):
    alone = bench(name, "--json", cwd=tmp_path)
    beside = bench(name, "--json", "figures.json", cwd=tmp_path)
    assert json.loads(alone.stdout).keys() == json.loads((tmp_path / "figures.json").read_text()).keys()
    assert len(beside.stdout.splitlines()) > 2, "the table"
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


@pytest.mark.parametrize("name", SMALL)
def test_a_file_that_cannot_be_written_is_a_message(tmp_path, name):
    done = bench(name, "--json", "nowhere/x.json", cwd=tmp_path, status=1)
    assert "nowhere/x.json" in done.stderr and "Traceback" not in done.stderr
