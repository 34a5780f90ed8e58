"""The hook for DistributedDataParallel without PyTorch: what a stand-in can show; `make test-torch` shows the rest."""

import subprocess
import sys

from checkout import ROOT, environ

SUPPORT = ROOT / "tests/support"


def test_the_hook_with_a_stand_in_for_torch(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SUPPORT / "hook_stand_in.py")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
        env=environ(SUPPORT / "fake_torch", SUPPORT),
    )
    assert done.returncode == 0 and done.stdout == "all good\n", done.stdout + done.stderr
