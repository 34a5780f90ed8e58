"""Runs programs under shim.c, which records the system calls that put a file on the disk, and makes one of them
fail."""

import os
import subprocess
from pathlib import Path

from checkout import run_python


class Shim:
    """The shim, compiled into a folder; runs Python code under it."""

    def __init__(self, folder):
        self.folder, self.library = folder, folder / "shim.so"
        source = Path(__file__).with_name("shim.c")
        command = ["gcc", "-D_GNU_SOURCE", "-shared", "-fPIC", "-O1", str(source), "-o", str(self.library), "-ldl"]
        subprocess.run(command, check=True)

    def run(self, code, *arguments, fail=None):
        """(the finished process, the calls in their order). fail: (name, which, error number)."""
        log = self.folder / "calls"
        log.unlink(missing_ok=True)
        preload = " ".join(filter(None, [os.environ.get("LD_PRELOAD"), str(self.library)]))
        failure = {} if fail is None else {"SHIM_FAIL": "{}:{}:{}".format(*fail)}
        done = run_python("-c", code, *arguments, status=None, LD_PRELOAD=preload, SHIM_LOG=log, **failure)
        return done, log.read_text().splitlines() if log.exists() else []
