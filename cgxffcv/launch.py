"""mpirun for one machine: the options that a newcomer would have to find out one after another.

As root (containers) Open MPI wants to be allowed; with fewer slots than ranks it wants to be told; and by default it
binds each of two ranks to one core, however many there are. Here ranks are not bound and share the cores evenly.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence

from cgxffcv.errors import UserError

MPIRUN = "mpirun"


def command(np: int, program: Sequence[str], cores: int, root: bool, environ: Mapping[str, str]) -> list[str]:
    """The mpirun command for `np` ranks of `program` on `cores` cores."""
    words = [MPIRUN, "-np", str(np), "--oversubscribe", "--bind-to", "none"]
    if root:
        words.append("--allow-run-as-root")
    if "OMP_NUM_THREADS" not in environ:
        words += ["-x", f"OMP_NUM_THREADS={max(cores // np, 1)}"]
    script = list(program)
    if script[0].endswith(".py"):
        script.insert(0, sys.executable)
    return words + script


def main(np: int, program: Sequence[str], dry: bool = False) -> int:
    """Replaces this process by mpirun; UserError if that cannot be."""
    if np < 1:
        raise UserError(f"-np {np}: expected at least 1 rank")
    words = [word for word in program if word != "--"] if program[:1] == ["--"] else list(program)
    if not words:
        raise UserError("launch: no command given; for example: cgxffcv launch -np 2 train_cifar_ffcv_cgx.py")
    line = command(np, words, len(os.sched_getaffinity(0)), os.geteuid() == 0, os.environ)
    print("+ " + shlex.join(line), flush=True)
    if dry:
        return 0
    if shutil.which(MPIRUN) is None:
        raise UserError(
            "mpirun is not installed. On Debian or Ubuntu: sudo apt-get install -y openmpi-bin libopenmpi-dev"
        )
    return os.execvp(MPIRUN, line)  # does not return
