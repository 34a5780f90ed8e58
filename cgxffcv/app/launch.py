"""mpirun for one machine: the options that a newcomer would have to find out one after another.

Open MPI has to be told that it may run as root (in containers) and with more ranks than slots; and by default it binds
each of two ranks to one core, however many there are. Here ranks are not bound and share the cores evenly. They
communicate through shared memory; on a machine without a network Open MPI 5 complains about TCP, which is not needed.

The command is a program, a script.py, -m MODULE, or one of this package's own commands that run on several ranks.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence

from cgxffcv.app import supervise
from cgxffcv.errors import UsageError, UserError
from cgxffcv.nearest import suggest
from cgxffcv.process_info import MOST_RANKS
from cgxffcv.wording import counted

NO_MPIRUN = (
    "mpirun is not installed. On Debian or Ubuntu: sudo apt-get install -y openmpi-bin; anywhere: "
    "pip install 'cgxffcv[mpi]'"
)
OWN = ("train", "bench", "calibrate")
ALONE = ("write", "convert", "predict", "launch", "info", "verify", "doctor")


def mpirun() -> str | None:
    """The mpirun on PATH, else the one next to Python, where the MPI wheels put theirs; None if there is none."""
    own = os.path.join(os.path.dirname(sys.executable), "mpirun")
    return "mpirun" if shutil.which("mpirun") else shutil.which(own)


def command(np: int, program: Sequence[str], cores: int, root: bool, environ: Mapping[str, str]) -> list[str]:
    """The mpirun command for `np` ranks of `program` on `cores` cores."""
    words = [mpirun() or "mpirun", "-np", str(np), "--oversubscribe", "--bind-to", "none"]
    if "OMPI_MCA_btl" not in environ:
        words += ["--mca", "btl", "^tcp"]
    if root:
        words.append("--allow-run-as-root")
    if "OMP_NUM_THREADS" not in environ:
        words += ["-x", f"OMP_NUM_THREADS={max(cores // np, 1)}"]
    return words + _resolved(program)


def _resolved(program: Sequence[str]) -> list[str]:
    """`program` with the interpreter before what Python runs."""
    words = list(program)
    if words[0] in OWN:
        return [sys.executable, "-m", "cgxffcv", *words]
    if words[0] == "-m" or words[0].endswith(".py"):
        return [sys.executable, *words]
    return words


def _check(np: int, program: Sequence[str]) -> None:
    """Reports what every rank would otherwise report, in mpirun's words."""
    if mpirun() is None:
        raise UserError(NO_MPIRUN)
    first = program[0]
    if first.endswith(".py"):
        if not os.path.isfile(first):
            raise UserError(
                f"launch: {first}: no such script here (cgxffcv's own training is: cgxffcv launch -np {np} train ...)"
            )
    elif first in ALONE:
        raise UsageError(f"launch: {first} runs in one process, not on several ranks: cgxffcv {first} ...")
    elif first not in OWN and first != "-m" and shutil.which(first) is None:
        meant = suggest(first, (*OWN, *ALONE)) or "; a script's name ends in .py, a module comes after -m"
        raise UserError(f"launch: {first}: no such program{meant}")


def main(np: int, program: Sequence[str], dry: bool = False) -> int:
    """Runs mpirun and returns its exit code; UserError if it cannot be run."""
    words = list(program[1:] if program[:1] == ["--"] else program)
    if not words or words == ["-m"]:
        raise UsageError("launch: no command given; for example: cgxffcv launch -np 2 train --dist-backend cgx")
    if np > MOST_RANKS:
        raise UsageError(
            f"launch: -np {np}: at most {MOST_RANKS} ranks can share one machine's memory; for more, start them on "
            "several machines with mpirun"
        )
    if not dry:
        _check(np, words)
    cores = len(os.sched_getaffinity(0))
    line = command(np, words, cores, os.geteuid() == 0, os.environ)
    print("+ " + shlex.join(line), flush=True)
    if np > cores:
        print(f"({np} ranks on {counted(cores, 'core')}: they take turns, so more ranks are no faster)", flush=True)
    return 0 if dry else supervise.run(line)
