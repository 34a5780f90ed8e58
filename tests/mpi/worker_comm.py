"""The ranks of tests/mpi/test_comm*.py: worker_comm.py CASE OUT [ARGUMENTS]. Each case writes OUT/result.RANK."""

import json
import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

import _cgxffcv
import numpy as np

from cgxffcv import comm

CASE, OUT, ARGUMENTS = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]


def join(**options):
    """The communicator of the job; writes this process's pid where the test can read it."""
    if "TEST_FD" in os.environ:
        options.pop("slot_bytes", None)
        world = comm.attach(*(int(os.environ[name]) for name in ("TEST_FD", "TEST_RANK", "TEST_SIZE")), **options)
    else:
        world = comm.world(**options)
    put(f"pid.{world.rank}", os.getpid())
    return world


def put(name, value=""):
    partial = OUT / f".{name}"
    partial.write_text(str(value))
    partial.rename(OUT / name)


def wait_for(name):
    while not (OUT / name).exists():
        time.sleep(0.01)


def result(me, /, **values):
    put(f"result.{me}", json.dumps(values))


def leave(size, *without):
    """Ends this process once the results of all ranks (except those) are there: mpirun may end the others as soon as
    one has ended."""
    end = time.monotonic() + 20
    others = [r for r in range(size) if r not in without]
    while time.monotonic() < end and not all((OUT / f"result.{r}").exists() for r in others):
        time.sleep(0.01)
    sys.exit(0)


def caught(world, function):
    """What calling `function` raises, as a dict; and the next call's message."""
    try:
        function()
    except BaseException as error:
        values = {"type": type(error).__name__, "text": str(error)}
        values |= {name: getattr(error, name, None) for name in ("rank", "operation")}
    else:
        values = {"type": None}
    values["broken"] = world.broken
    return values


# --- what works ----------------------------------------------------------------------------------------------------


def collectives():
    world = join()
    rank, size = world.rank, world.size
    for n in (0, 1, 511, 512, 513, 100_000, 3_000_001):
        root = n % size
        payload = np.random.default_rng(n).bytes(n)
        assert world.broadcast(payload if rank == root else None, root) == payload
        array = np.full(n, rank, np.uint8)
        assert world.broadcast(array, root) is array
        assert (array == root).all()
    for n in (0, 3, 600, 70_000):
        blocks = world.allgather(bytes([rank]) * (n * (rank + 1)))
        assert blocks == [bytes([r]) * (n * (r + 1)) for r in range(size)]
    for _ in range(50):
        world.barrier()
    if size > 1:
        everyone = world.allgather(f"{rank} {world.node} {world.local_rank} {world.local_size}".encode())
    else:
        everyone = [f"0 {world.node} {world.local_rank} {world.local_size}".encode()]
    result(rank, size=size, nodes=world.nodes, everyone=[text.decode() for text in everyone])
    world.close()


def splits():
    world = join()
    rank, size = world.rank, world.size
    odd = world.split(rank % 2, key=-rank)
    members = [int(b) for b in odd.allgather(str(rank).encode())]
    assert members == sorted((r for r in range(size) if r % 2 == rank % 2), reverse=True)
    node = world.split(world.node)
    assert node.size == world.local_size and node.rank == world.local_rank and node.nodes == 1
    across = world.split(world.local_rank)
    assert across.nodes == across.size
    nobody = world.split(-1 if rank == 0 else 5)
    assert (nobody is None) == (rank == 0)
    # Different communicators, different orders of calls: they must not disturb each other.
    data = np.random.default_rng(1).bytes(1_000_000)
    for part in [odd, across, node] if rank % 2 else [odd, node, across][:1] + [across, node]:
        assert part.broadcast(data if part.rank == 0 else None) == data
    if nobody is not None:
        assert nobody.size == size - 1
        nobody.barrier()
    world.close()  # the parts outlive their parent
    odd.barrier()
    again = odd.split(0)
    assert again.allgather(b"x") == [b"x"] * odd.size
    result(rank)


def worlds():
    """Made and closed many times: no descriptor, mapping or thread is left."""
    first = join()
    rank = first.rank

    def count():
        maps = Path("/proc/self/maps").read_text().count("memfd:cgxffcv")
        fds = sum("memfd" in os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _exists(fd))
        return maps, fds

    before = count()
    for _ in range(20):
        part = first.split(0)
        part.barrier()
        part.close()
    after = count()
    inherited = 1 if "TEST_FD" in os.environ else 0
    first.barrier()
    first.close()
    result(rank, before=before, after=after, closed=count(), inherited=inherited)


def _exists(fd):
    return os.path.lexists(f"/proc/self/fd/{fd}")


def mpi4py():
    from mpi4py import MPI

    world = join()
    assert (world.rank, world.size) == (MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size)
    assert MPI.COMM_WORLD.allreduce(1) == world.size
    assert world.allgather(b"a") == [b"a"] * world.size
    result(world.rank)


# --- what fails ----------------------------------------------------------------------------------------------------

OPERATIONS = {
    "barrier": lambda world: world.barrier(),
    "broadcast": lambda world: world.broadcast(np.zeros(20_000_000, np.uint8)),
    "allgather": lambda world: world.allgather(bytes(2_000_000)),
}


def killed():
    operation, victim = ARGUMENTS[0], int(ARGUMENTS[1])
    world = join(timeout=100)
    world.barrier()
    if world.rank == victim:
        os.kill(os.getpid(), signal.SIGKILL)
    values = caught(world, lambda: OPERATIONS[operation](world))
    result(world.rank, **values, again=caught(world, world.barrier))
    leave(world.size, victim)


def stopped():
    world = join(timeout=3, stall=0.6)
    world.barrier()
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        values = caught(world, world.barrier)
    result(world.rank, **values, warnings=[f"{w.category.__name__}: {w.message}" for w in seen])
    os._exit(0)


def warning_as_error():
    warnings.simplefilter("error")
    world = join(timeout=100, stall=0.6)
    world.barrier()
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    result(world.rank, **caught(world, world.barrier))
    os._exit(0)


def different_calls():
    world = join(timeout=100)
    values = caught(world, world.barrier) if world.rank == 1 else caught(world, lambda: world.allgather(b"abc"))
    result(world.rank, **values)


def different_sizes():
    world = join(timeout=100)
    values = caught(world, lambda: world.broadcast(np.zeros(100 + 8 * (world.rank == 1), np.uint8)))
    # All saw the same failure, so all can make a new communicator.
    rank = world.rank
    world.close()
    if "TEST_FD" not in os.environ:
        with comm.world() as fresh:
            values["fresh"] = len(fresh.allgather(b""))
    result(rank, **values)


def aborted():
    where = ARGUMENTS[0]
    world = join(timeout=100)
    last = world.size - 1
    world.barrier()
    if world.rank == last:
        for rank in range(last):
            wait_for(f"waiting.{rank}")
        time.sleep(0.2)
        world.abort("no more cheese")
        result(last, **caught(world, world.barrier))
    elif where == "waiting":
        put(f"waiting.{world.rank}")
        result(world.rank, **caught(world, world.barrier), again=caught(world, world.barrier))
    else:
        put(f"waiting.{world.rank}")
        while world.broken is None:
            time.sleep(0.01)
        result(world.rank, **caught(world, world.barrier))
    leave(world.size)


def raised():
    """An exception on one rank, as the test chooses it; the others wait in a collective."""
    how = ARGUMENTS[0]
    world = join(timeout=100)
    world.barrier()
    if world.rank != 1:
        result(world.rank, **caught(world, world.barrier))
        leave(world.size, *[1] * (how != "with"))
    time.sleep(0.3)  # by then the others have left the first barrier and wait in the second
    if how == "with":
        size = world.size
        try:
            with world:
                raise KeyError("lost key")
        except KeyError:
            result(1, closed=world.closed)
        leave(size)
    if how == "hook":
        raise ZeroDivisionError("one by zero")
    if how == "exit":
        sys.exit(3)
    if how == "with exit":
        with world:
            sys.exit(3)
    if how == "clean":
        with world:
            sys.exit(0)
    raise AssertionError(how)


def crash():
    world = join(timeout=100)
    world.barrier()
    if world.rank == 1:
        raise ZeroDivisionError("one by zero")
    while ARGUMENTS[0] == "computing":
        time.sleep(0.01)
    world.barrier()


def interrupted():
    world = join(timeout=100)
    world.barrier()
    if world.rank == 0:
        wait_for("go")  # the others wait for this rank
        result(0, **caught(world, world.barrier))
    else:
        put(f"waiting.{world.rank}")
        result(world.rank, **caught(world, world.barrier))
    leave(world.size)


def in_a_handler():
    """A signal handler that uses the communicator that is waiting."""
    world = join(timeout=100)
    world.barrier()
    if world.rank == 0:
        refused = []

        def handler(number, frame):
            refused.append(caught(world, world.barrier)["text"])

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        world.barrier()
        result(0, refused=refused)
    else:
        time.sleep(1)
        world.barrier()
        result(world.rank)
    world.barrier()


def used_after_close():
    world = join()
    rank, size = world.rank, world.size
    world.barrier()
    if rank == 0:
        world.close()
        world.close()
        texts = []
        for call in (
            world.barrier,
            lambda: world.rank,
            lambda: world.split(0),
            lambda: world.broadcast(b""),
            world.abort,
        ):
            try:
                call()
            except ValueError as error:
                texts.append(str(error))
        result(0, texts=texts, repr=repr(world))
    else:
        result(rank, **caught(world, world.barrier))
    leave(size)


def forked():
    world = join(timeout=100)
    world.barrier()
    rank = world.rank
    child = os.fork()
    if child == 0:
        text = caught(world, world.barrier)["text"]
        world.close()
        put(f"child.{rank}", text)
        os._exit(0)
    os.waitpid(child, 0)
    world.barrier()  # the child's close() did not close ours
    result(world.rank, child=(OUT / f"child.{world.rank}").read_text())


def threads():
    """abort() and close() from another thread while this one waits."""
    world = join(timeout=100)
    world.barrier()
    refused = []

    def meddle():
        time.sleep(0.3)
        try:
            world.close()
        except comm.CommError as error:
            refused.append(str(error))
        world.abort("from a thread")

    if world.rank == 0:
        thread = threading.Thread(target=meddle)
        thread.start()
        values = caught(world, world.barrier)
        thread.join()
        result(0, **values, refused=refused)
    else:
        while world.broken is None:
            time.sleep(0.01)
        result(world.rank, **caught(world, world.barrier))


def lingering():
    """Runs until it is killed."""
    world = join(timeout=100)
    world.broadcast(np.zeros(5_000_000, np.uint8))
    put(f"up.{world.rank}")
    time.sleep(100)


def late():
    """Ranks that never come: attach and world end at the deadline."""
    if os.environ["TEST_RANK"] == "1":
        result(1)
        return
    try:
        comm.attach(int(os.environ["TEST_FD"]), 0, 2, timeout=0.5)
    except comm.CommTimeout as error:
        result(0, text=str(error), rank=error.rank)


assert _cgxffcv.Comm is comm.Comm


if __name__ == "__main__":
    globals()[CASE]()
