"""Each test_*.c here, with the rooms that its first line names, under ASan and UBSan."""

import subprocess
from pathlib import Path

import pytest
from c_units import SANITIZE, Compiler

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    return Compiler(tmp_path_factory.mktemp("units"), *SANITIZE)


@pytest.mark.xdist_group("c units")  # one worker compiles what several of them need
@pytest.mark.parametrize("test", sorted(HERE.glob("test_*.c")), ids=lambda p: p.stem)
def test_unit(test, compiler):
    program = compiler.program(test)
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checks, 0 failures" in done.stdout
