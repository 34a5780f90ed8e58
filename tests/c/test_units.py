"""Each test_*.c here, with the rooms that its first line names, under ASan and UBSan."""

from pathlib import Path

import pytest
from c_units import SANITIZE, Compiler
from checkout import run_command

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    return Compiler(tmp_path_factory.mktemp("units"), *SANITIZE)


@pytest.mark.xdist_group("c units")  # one worker compiles what several of them need
@pytest.mark.parametrize("test", sorted(HERE.glob("test_*.c")), ids=lambda p: p.stem)
def test_unit(test, compiler):
    program = compiler.program(test)
    assert "checks, 0 failures" in run_command(program, limit=300).stdout
