"""Unit tests under ThreadSanitizer: the transport uses atomics alone, so its ordering must be right; the loader hands
batches from thread to thread; the pool's loops share counters, and the writer and the verifier run in such loops."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from c_units import Compiler, LinkError

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    return Compiler(tmp_path_factory.mktemp("threads"), "-fsanitize=thread")


@pytest.mark.parametrize("name", ["test_base", "test_beton", "test_comm", "test_loader"])
def test_no_data_race(compiler, name):
    try:
        program = compiler.program(HERE / f"{name}.c")
    except LinkError as error:
        if "cannot find" in str(error) and "tsan" in str(error):
            pytest.skip("gcc has no ThreadSanitizer here (libtsan)")
        raise
    # Old ThreadSanitizers cannot bear how much newer kernels randomise addresses.
    plain = ["setarch", "-R"] if shutil.which("setarch") else []
    # test_beton asks for too much memory on purpose, and children of test_comm start threads
    environ = {**os.environ, "TSAN_OPTIONS": "allocator_may_return_null=1:die_after_fork=0"}
    done = subprocess.run([*plain, str(program)], capture_output=True, text=True, timeout=300, check=False, env=environ)
    if "personality" in done.stderr or "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer does not run on this kernel")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checks, 0 failures" in done.stdout
