"""Every callable of the C core, found by looking at the module, under hostile calls: wrong types, huge and negative
numbers, containers that change while they are read, objects that are closed or called again meanwhile, or used by
several threads at once. Whatever comes ends in a plain exception: never in a crash, a hang, or SystemError."""

import subprocess
import sys

import hostile_calls
import pytest
from checkout import environ


@pytest.mark.parametrize("group", hostile_calls.GROUPS)
def test_hostile_calls_end_in_plain_exceptions(tmp_path, group):
    command = [sys.executable, hostile_calls.__file__, group]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environ(OMP_NUM_THREADS=1),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=500,
        check=False,
    )
    last = (tmp_path / "call").read_text(errors="replace") if (tmp_path / "call").exists() else ""
    assert done.returncode == 0, f"rc {done.returncode} in {last}\n{done.stdout[-4000:]}\n{done.stderr[-6000:]}"
