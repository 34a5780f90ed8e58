"""Communicators of one to five ranks, in shared memory and over MPI between simulated nodes: what works."""

import os
import shutil
import subprocess
import types

import pytest
from ranks import OWN_USERS, Launch, needs_mpirun, run

from cgxffcv import comm

SHM = [Launch("shm", 2), Launch("shm", 3, 2), Launch("shm", 5)]
MPI = [
    pytest.param(Launch("mpi", *shape), marks=needs_mpirun, id=str(Launch("mpi", *shape)))
    for shape in [(1,), (2,), (3,), (2, 2), (4, 2), (3, 3), (5, 2)]
]
ALL = [pytest.param(launch, id=str(launch)) for launch in SHM] + MPI


@pytest.mark.parametrize("launch", ALL)
def test_collectives_and_topology(launch, tmp_path):
    results = run(launch, tmp_path, "collectives")
    nodes = launch.nodes or 1
    node_of = [r * nodes // launch.size for r in range(launch.size)]
    expected = [
        f"{r} {node_of[r]} {sum(node_of[q] == node_of[r] for q in range(r))} {node_of.count(node_of[r])}"
        for r in range(launch.size)
    ]
    for values in results:
        assert values == {"size": launch.size, "nodes": nodes, "everyone": expected}


@pytest.mark.parametrize("launch", ALL)
def test_split(launch, tmp_path):
    if launch.size == 1:
        pytest.skip("splits of several ranks")
    run(launch, tmp_path, "splits")


@pytest.mark.parametrize("launch", ALL)
def test_nothing_is_left_open(launch, tmp_path):
    for values in run(launch, tmp_path, "worlds"):
        maps, fds = values["before"]
        assert maps == 1 and fds == values["inherited"]
        assert values["after"] == values["before"]
        assert values["closed"] == [0, values["inherited"]]


def can_unshare():
    return (
        shutil.which("unshare") is not None and not subprocess.run([*OWN_USERS, "true"], capture_output=True).returncode
    )


@needs_mpirun
@pytest.mark.parametrize("case", ["collectives", "splits"])
def test_ranks_in_user_namespaces_of_their_own(case, tmp_path):
    """They cannot open each other's memory: MPI carries everything, and they are still on one node."""
    if not can_unshare():
        pytest.skip("user namespaces cannot be made here")
    size = 3
    results = run(Launch("mpi", size), tmp_path, case, within=OWN_USERS)
    for values in results:
        if case == "collectives":
            assert values == {"size": size, "nodes": 1, "everyone": [f"{rank} 0 {rank} {size}" for rank in range(size)]}


@needs_mpirun
def test_beside_mpi4py(tmp_path):
    pytest.importorskip("mpi4py")
    run(Launch("mpi", 2), tmp_path, "mpi4py")


def test_alone():
    with comm.world() as world:
        assert (world.rank, world.size, world.node, world.nodes, world.local_rank, world.local_size) == (
            0,
            1,
            0,
            1,
            0,
            1,
        )
        world.barrier()
        assert world.broadcast(b"abc") == b"abc" and world.allgather(b"de") == [b"de"]
        part = world.split(3)
        assert part.size == 1
        assert world.split(-1) is None
        assert world.broken is None and not world.closed
    assert world.closed


def test_options():
    with comm.world(timeout=7.5, slot_bytes=8192) as world:
        assert world.timeout == 7.5 and world.slot_bytes == 8192 and world.slots >= 4
    with pytest.raises(ValueError, match="timeout"):
        comm.world(timeout=0)
    with pytest.raises(ValueError, match="timeout"):
        comm.world(timeout=float("nan"))
    with pytest.raises(ValueError, match="nodes=2"):
        comm.world(nodes=2)
    with pytest.raises(ValueError, match="nodes must be in 1"):
        comm.world(nodes=0)
    for slot_bytes in (4095, 4097, 1 << 23):
        with pytest.raises(ValueError, match=f"{slot_bytes}"):
            comm.world(slot_bytes=slot_bytes)


def test_environment(monkeypatch):
    monkeypatch.setenv("CGXFFCV_COMM_TIMEOUT", "12.5")
    with comm.world() as world:
        assert world.timeout == 12.5
    with comm.world(timeout=3) as world:
        assert world.timeout == 3
    monkeypatch.setenv("CGXFFCV_COMM_TIMEOUT", "soon")
    with pytest.raises(ValueError, match="CGXFFCV_COMM_TIMEOUT='soon'"):
        comm.world()
    monkeypatch.delenv("CGXFFCV_COMM_TIMEOUT")
    monkeypatch.setenv("CGXFFCV_COMM_NODES", "0")
    with pytest.raises(ValueError, match="CGXFFCV_COMM_NODES='0'"):
        comm.world()


def test_arguments():
    with comm.world() as world:
        with pytest.raises(ValueError, match="root=1"):
            world.broadcast(b"", root=1)
        with pytest.raises((TypeError, BufferError)):
            world.broadcast("text")
        with pytest.raises(BufferError):
            world.broadcast(memoryview(b"abc"))
        with pytest.raises(TypeError):
            world.allgather("text")
        with pytest.raises(ValueError, match="timeout=-1"):
            world.barrier(timeout=-1)
        with pytest.raises(TypeError, match="__exit__"):
            world.__exit__(5, types.SimpleNamespace(code=1), None)
        with pytest.raises(IndexError):
            world.node_of(1)
        assert world.node_of(0) == 0 and world.broken is None
    with pytest.raises(ValueError, match="stall=nan"):
        comm.world(stall=float("nan"))
    with pytest.raises(TypeError):
        comm.Comm()


def test_segment_and_attach_refuse_nonsense():
    with pytest.raises(ValueError, match="0 ranks"):
        comm.segment(0)
    fd = comm.segment(2)
    try:
        with pytest.raises(ValueError, match="rank 2"):
            comm.attach(fd, 2, 2)
        with pytest.raises(ValueError, match="for 2 ranks, not 3"):
            comm.attach(fd, 0, 3)
        with pytest.raises(comm.CommTimeout, match="rank 1"):
            comm.attach(fd, 0, 2, timeout=0.2)
        with pytest.raises(ValueError, match="taken"):
            comm.attach(fd, 0, 2, timeout=0.2)
    finally:
        os.close(fd)
    with pytest.raises(OSError):
        comm.attach(fd, 0, 2)
    fd = os.memfd_create("other")
    try:
        with pytest.raises(ValueError, match="not a shared segment"):
            comm.attach(fd, 0, 2)
        os.truncate(fd, 1 << 20)
        with pytest.raises(comm.CommError, match="not a segment"):
            comm.attach(fd, 0, 2)
    finally:
        os.close(fd)
