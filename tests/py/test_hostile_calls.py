"""Every callable of the C core, found by looking at the module, under hostile calls: wrong types, huge and negative
numbers, containers that change while they are read, objects that are closed or called again meanwhile, or used by
several threads at once. Whatever comes ends in a plain exception: never in a crash, a hang, or SystemError."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_calls import GROUPS

HERE = Path(__file__).resolve().parent


@pytest.mark.parametrize("group", GROUPS)
def test_hostile_calls_end_in_plain_exceptions(tmp_path, group):
    command = [sys.executable, str(HERE / "hostile_calls.py"), group]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=500,
        check=False,
    )
    last = (tmp_path / "call").read_text(errors="replace") if (tmp_path / "call").exists() else ""
    assert done.returncode == 0, f"rc {done.returncode} in {last}\n{done.stdout[-4000:]}\n{done.stderr[-6000:]}"
