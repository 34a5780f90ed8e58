"""Where the checkout is, and the processes that a test starts and waits for."""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"


def environ(*folders, **more):
    """This process's environment, in which Python finds the modules in `folders` first, then what this process
    finds."""
    paths = [*map(str, folders), *filter(None, sys.path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **{name: str(value) for name, value in more.items()}}


def run_command(*words, status=0, limit=120, cwd=None, env=None, folders=(), **variables):
    """The finished process of a command, with what it printed as text. Fails, and shows that, unless it ends with
    `status` (None: with any) within `limit` seconds. Its environment is `env`, or that of `environ`."""
    command, env = list(map(str, words)), environ(*folders, **variables) if env is None else env
    options = {"capture_output": True, "text": True, "errors": "replace", "check": False}
    done = subprocess.run(command, timeout=limit, cwd=cwd, env=env, **options)
    said = f"exit code {done.returncode}\n{done.stdout[-8000:]}\n{done.stderr[-8000:]}"
    assert status is None or done.returncode == status, said
    return done


def start_command(*words, cwd=None, **options):
    """A process of a command that is under way, with pipes for what it prints as text."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(list(map(str, words)), cwd=cwd, env=environ(), **pipes, **options)


def wait_until(holds, limit=60, process=None):
    """Waits until holds() is true; fails if that takes more than `limit` seconds, or if `process` ends before."""
    end = time.monotonic() + limit
    while not holds():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"not within {limit} s"
        time.sleep(0.01)


def gone(pid):
    """True if the process has ended, whether or not its parent knows."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def run_python(*words, **options):
    """`run_command` of this interpreter with these words."""
    return run_command(sys.executable, *words, **options)
