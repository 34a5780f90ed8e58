"""Programs that a benchmark starts: each has a separate session, so that everything it starts can be ended with it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

GRACE_SECONDS = 8.0  # for mpirun to end its ranks by itself

CACHE = "CGXFFCV_CACHE"  # names the folder of what is cached between runs: plans of convolutions

ROOT = Path(__file__).resolve().parents[2]  # where this package is


def environment(cache: str | os.PathLike[str] | None = None) -> dict[str, str]:
    """This process's environment, in which programs also find this very package; `cache`: another folder of plans."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    chosen = {} if cache is None else {CACHE: os.fspath(cache)}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **chosen}


def members(session: int) -> list[int]:
    """The processes of a session that are still running."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] not in "ZX":
            found.append(int(name))
    return found


class Program:
    """A running program; a context manager that ends it on exit, with every process that it started."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str] | None = None, **streams: Any):
        self.began = time.time()
        env = environment() if environ is None else dict(environ)
        streams = {"stdin": subprocess.DEVNULL, **streams}
        self.process = subprocess.Popen(list(command), env=env, start_new_session=True, **streams)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    def end(self) -> None:
        """Asks the program to end, then kills it and what is left of its session."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE_SECONDS)
        for number in members(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self.process.wait()
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # of what it has not read
                self.process.stdin.close()
        if self.process.stdout is not None:
            self.process.stdout.close()


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def free_port() -> int:
    """A port of this machine that nobody is listening on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def interpreter(*words: str) -> list[str]:
    """The command for a Python module or script."""
    return [sys.executable, *words]
