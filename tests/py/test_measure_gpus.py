"""tools/measure_gpus.sh runs on machines with GPUs only; here its commands are read."""

import shlex
import sys

import pytest
from checkout import ROOT, run_command

from cgxffcv.allreduce import CODECS
from cgxffcv.bench import allreduce, cifar, ddp, quantize, table

SCRIPT = ROOT / "tools/measure_gpus.sh"
PARSERS = {
    "allreduce": allreduce.parse,
    "quantize": quantize.parse,
    "cifar": cifar._parser().parse_args,
    "ddp": ddp._parser().parse_args,
    "table": table._parser().parse_args,
}


def dry_run(folder, gpus, *parts, status=0):
    variables = {"PATH": "/usr/bin:/bin", "GPUS": gpus, "DRY_RUN": 1, "PYTHON": sys.executable}
    return run_command(SCRIPT, folder, *parts, status=status, **variables)


def commands(*arguments):
    done = dry_run(*arguments)
    lines = [line.split(": ", 2) for line in done.stdout.splitlines() if line.startswith("measure: ")]
    return {name: shlex.split(command) for _, name, command in lines}


@pytest.mark.parametrize("gpus", [1, 2, 8])
def test_every_command_is_one_of_the_benchmarks(tmp_path, gpus):
    found = commands(tmp_path, gpus)
    for words in found.values():
        if "bench" in words:
            name, *arguments = words[words.index("bench") + 1 :]
            PARSERS[name](arguments)
        else:
            assert all((ROOT / word).is_file() for word in words if word.startswith("tests/"))
    trained = [name for name in found if name.startswith("training-airbench94-")]
    assert len(trained) == {1: 1, 2: 3, 8: 7}[gpus]
    assert {f"quantizer-{codec}" for codec in CODECS} <= found.keys()
    assert ("sums-any" in found) == ("ddp-gpt2" in found) == (gpus > 1)


def test_parts_are_checked_before_anything_runs(tmp_path):
    assert list(commands(tmp_path, 2, "table")) == ["table"]
    done = dry_run(tmp_path, 2, "table", "sum", status=2)
    assert "'sum' is not a part" in done.stderr and "measure: table" not in done.stdout
