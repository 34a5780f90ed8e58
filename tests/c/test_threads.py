"""Unit tests under ThreadSanitizer: the transport uses atomics alone, so its ordering must be right; the loader hands
batches from thread to thread; the pool's loops share counters, and the writer and the verifier run in such loops."""

import os
import shutil
import subprocess

import pytest
from test_units import CSRC, FLAGS, HERE, compile_objects

SANITIZE = ["-fsanitize=thread"]


@pytest.mark.parametrize("name", ["test_base", "test_beton", "test_comm", "test_loader"])
def test_no_data_race(tmp_path, objects, name):
    program = tmp_path / name
    patterns = (HERE / f"{name}.c").read_text().splitlines()[0].removeprefix("// sources: ").split()
    sources = [path for pattern in patterns for path in sorted(CSRC.glob(pattern))]
    linked = compile_objects([HERE / f"{name}.c", *sources], objects, SANITIZE)
    command = ["gcc", *FLAGS, *SANITIZE, *linked]
    done = subprocess.run([*command, "-o", str(program), "-lm"], capture_output=True, text=True, check=False)
    if "cannot find" in done.stderr and "tsan" in done.stderr:
        pytest.skip("gcc has no ThreadSanitizer here (libtsan)")
    assert done.returncode == 0, done.stderr
    # Old ThreadSanitizers cannot bear how much newer kernels randomise addresses.
    plain = ["setarch", "-R"] if shutil.which("setarch") else []
    # test_beton asks for too much memory on purpose, and children of test_comm start threads
    environ = {**os.environ, "TSAN_OPTIONS": "allocator_may_return_null=1:die_after_fork=0"}
    done = subprocess.run([*plain, str(program)], capture_output=True, text=True, timeout=300, check=False, env=environ)
    if "personality" in done.stderr or "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer does not run on this kernel")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checks, 0 failures" in done.stdout
