"""Starts the ranks of a test, with mpirun or as plain processes over one segment, and never lets them outlive it."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import _cgxffcv
import pytest
from checkout import ROOT, environ, run_command

from cgxffcv import comm

WORKERS = ROOT / "tests/mpi"

OWN_USERS = ("unshare", "--user", "--map-root-user")  # a user namespace for each rank, as containers make them
needs_mpirun = pytest.mark.skipif(
    shutil.which("mpirun") is None or not _cgxffcv.build_info()["mpi"], reason="needs mpirun and a build with MPI"
)


@dataclass
class Launch:
    """How ranks are started: over "shm", by "mpi" or as "torchrun" does, and on how many (simulated) nodes."""

    how: str
    size: int
    nodes: int = 0

    def __str__(self):
        return f"{self.how}{self.size}" + (f"on{self.nodes}" if self.nodes else "")


@dataclass
class Job:
    """Ranks under way, which end with the context; `pid(rank)` once a rank has said ready()."""

    launch: Launch
    out: Path
    processes: list = field(default_factory=list)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.kill()

    def pid(self, rank, limit=30):
        return int(self._await(f"pid.{rank}", limit))

    def reached(self, rank, name, limit=30):
        self._await(f"{name}.{rank}", limit)

    def go(self, name):
        """Lets the ranks that wait for `name` (worker.wait_for) continue."""
        (self.out / name).touch()

    def _await(self, name, limit):
        end = time.monotonic() + limit
        path = self.out / name
        while not path.exists():
            assert time.monotonic() < end, f"no {name} within {limit} s\n{self.text()}"
            time.sleep(0.01)
        return path.read_text()

    def wait(self, limit=60):
        """The results by rank (None if a rank wrote none); kills whatever runs past the limit, and fails."""
        end = time.monotonic() + limit
        late = False
        for process in self.processes:
            try:
                process.wait(max(end - time.monotonic(), 0.01))
            except subprocess.TimeoutExpired:
                late = True
        alive = self.alive() if late else ""
        self.kill()
        assert not late, f"{self.launch} ran past {limit} s\n{self.text()}\n--- still there\n{alive}"
        return [self.result(rank) for rank in range(self.launch.size)]

    def alive(self):
        if shutil.which("ps") is None:
            return "no ps here"
        groups = ",".join(str(process.pid) for process in self.processes)
        return run_command("ps", "-o", "pid,stat,wchan:20,args", "-s", groups, status=None).stdout

    def result(self, rank):
        path = self.out / f"result.{rank}"
        return json.loads(path.read_text()) if path.exists() else None

    def kill(self):
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGCONT)
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for process in self.processes:
            process.wait(10)

    def text(self):
        return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in sorted(self.out.glob("log*")))

    def codes(self):
        """Exit codes by rank, or that of mpirun alone."""
        return [process.returncode for process in self.processes]


def environment(**more):
    job = re.compile("OMPI_(?!MCA_)|PMIX_|CGXFFCV_COMM")  # not how this machine's Open MPI is set up
    inherited = {name: value for name, value in environ().items() if not job.match(name)}
    chosen = {"OMPI_ALLOW_RUN_AS_ROOT": 1, "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": 1, "OMP_NUM_THREADS": 1, **more}
    return inherited | {name: str(value) for name, value in chosen.items()}


def mpirun(size, recover):
    """With `recover`, mpirun leaves the others alive when one rank dies, so that their messages can be seen."""
    words = ["mpirun", "-np", str(size), "--oversubscribe", "--bind-to", "none"]
    return words + ["--enable-recovery"] * recover


def start(launch, out, case, *arguments, script="worker_comm.py", recover=True, within=(), **variables):
    """Starts worker `case`, with the command `within` in front of each rank's; `variables` go into the environment of
    all ranks."""
    out.mkdir(parents=True, exist_ok=True)
    job = Job(launch, out)
    command = [*within, sys.executable, "-u", str(WORKERS / script), case, str(out), *map(str, arguments)]
    if launch.nodes:
        variables["CGXFFCV_COMM_NODES"] = launch.nodes
    if launch.how == "mpi":
        with open(out / "log", "w") as log:
            job.processes.append(
                subprocess.Popen(
                    mpirun(launch.size, recover) + command,
                    env=environment(**variables),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        return job
    if launch.how == "torchrun":
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        for rank in range(launch.size):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": launch.size, "LOCAL_WORLD_SIZE": launch.size}
            _spawn(job, command, rank, variables | place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})
        return job
    fd = comm.segment(launch.size)
    try:
        for rank in range(launch.size):
            _spawn(job, command, rank, dict(variables, TEST_FD=fd, TEST_RANK=rank, TEST_SIZE=launch.size), [fd])
    finally:
        os.close(fd)
    return job


def _spawn(job, command, rank, variables, fds=()):
    with open(job.out / f"log.{rank}", "w") as log:
        job.processes.append(
            subprocess.Popen(
                command,
                env=environment(**variables),
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=fds,
                start_new_session=True,
            )
        )


def run(launch, out, case, *arguments, limit=60, recover=False, **options):
    job = start(launch, out, case, *arguments, recover=recover, **options)
    results = job.wait(limit)
    assert all(result is not None for result in results), job.text()
    return results
