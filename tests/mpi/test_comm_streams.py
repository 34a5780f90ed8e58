"""Streams of slices under mpirun, in C and under ASan: random sizes, groups and lanes, read in any order."""

import re
import subprocess
from pathlib import Path

import pytest
from c_units import FLAGS, INCLUDE, SANITIZE, sources
from ranks import WORKERS, Launch, environment, mpirun, needs_mpirun

SHAPES = [Launch("mpi", *shape) for shape in [(1,), (2,), (2, 2), (3, 3), (4, 2), (5, 2)]]

pytestmark = needs_mpirun


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    target = tmp_path_factory.mktemp("streams") / "streams"
    files = [WORKERS / "streams.c", *sources("base", "device", "comm", others=["mpi"])]
    subprocess.run(["gcc", *FLAGS, *SANITIZE, *INCLUDE, *map(str, files), "-o", str(target), "-lm"], check=True)
    return target


@pytest.mark.parametrize("slot_bytes", [4096, 262144])
@pytest.mark.parametrize("launch", SHAPES, ids=str)
def test_streams(program, launch, slot_bytes, tmp_path):
    slices, rounds = (150, 3) if slot_bytes == 4096 else (40, 2)
    log = tmp_path / "log"
    # Open MPI leaks memory, and its hooks in mmap would replace ASan's.
    options = {"ASAN_OPTIONS": "detect_leaks=0", "OMPI_MCA_memory": "^patcher"}
    if launch.nodes:
        options["CGXFFCV_COMM_NODES"] = str(launch.nodes)
    with open(log, "w") as out:
        done = subprocess.run(
            [*mpirun(launch.size, recover=False), str(program), str(slices), str(rounds), str(slot_bytes)],
            env=environment(**options),
            stdout=out,
            stderr=subprocess.STDOUT,
            timeout=100,
            check=False,
        )
    text = Path(log).read_text()
    assert done.returncode == 0, text
    fine = re.findall(r"rank (\d+) of (\d+): fine", text)
    assert sorted(fine) == [(str(rank), str(launch.size)) for rank in range(launch.size)]
