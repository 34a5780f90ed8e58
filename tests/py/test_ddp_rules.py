"""What a state of the hook for DistributedDataParallel makes of parameters, names and hosts, without PyTorch;
each check is a function of tests/support/ddp_rules_stand_in.py."""

import re

import pytest
from checkout import ROOT, run_python

from cgxffcv.interop.ddp.settings import Environment, PerLayer, check_bits

SUPPORT = ROOT / "tests/support"
PROGRAM = SUPPORT / "ddp_rules_stand_in.py"
CHECKS = re.findall(r"^def (\w+)\(\):", PROGRAM.read_text(), re.M)


@pytest.mark.parametrize("check", CHECKS)
def test_checks_with_a_stand_in_for_torch(tmp_path, check):
    done = run_python(PROGRAM, check, cwd=tmp_path, folders=[SUPPORT / "fake_torch", SUPPORT])
    assert done.stdout == f"{check}\n"


def test_words_of_the_environment_may_have_spaces_around_them(monkeypatch):
    monkeypatch.setenv("CGX_INNER_REDUCTION_TYPE", " ring ")
    monkeypatch.setenv("CGX_INTRA_COMPRESS", "0 ")
    read = Environment.read()
    assert read.algorithm == "ring" and not read.compresses_inside


def test_a_name_that_looks_like_a_pattern_is_a_name():
    rules = PerLayer("bits", {"blocks[0].weight": 3}, 32, check_bits)
    rules.check_names(["blocks[0].weight"])
    assert rules.of("blocks[0].weight") == (3, True) and rules.of("blocks0.weight") == (3, False)
