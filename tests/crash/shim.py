"""Programs under shim.c, which notes the system calls that put a file on the disk, and lets one of them fail."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Shim:
    """Compiled into a folder; runs Python code under it."""

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
        environ = {**os.environ, "LD_PRELOAD": preload, "SHIM_LOG": str(log),
                   "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}  # fmt: skip
        if fail is not None:
            environ["SHIM_FAIL"] = "{}:{}:{}".format(*fail)
        done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], env=environ, capture_output=True,
                              text=True, timeout=120, check=False)  # fmt: skip
        return done, log.read_text().splitlines() if log.exists() else []
