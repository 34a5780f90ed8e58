"""Functions for ranks of cgxffcv.launch: in a module, so that they are sent by name if cloudpickle is not installed."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from checkout import run_python

import cgxffcv
from cgxffcv import comm, process_info
from cgxffcv.loader.ranks import find_ranks


def means(count):
    """Means over two communicators, one after the other."""
    found = []
    for _ in range(2):
        with comm.world() as world:
            mine = np.arange(count, dtype=np.float32) * (world.rank + 1)
            found.append(world.allreduce(mine))
            found.append([int(other) for other in world.allgather(b"%d" % world.rank)])
    return *found, os.getpid()


def worlds_of_threads():
    """Means of the ranks, each over another thread's communicator."""
    begin = threading.Barrier(8)

    def of_one(_):
        begin.wait()
        with comm.world() as world:
            return float(world.allreduce(np.full(1, world.rank, np.float32))[0])

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(of_one, range(8)))


def places():
    here = process_info.find()
    return find_ranks(), here.local_rank, here.local_size, os.environ["OMP_NUM_THREADS"]


def of_a_frozen_launcher():
    """The errors of two tries to get a communicator while the launching process is stopped, then from it again."""
    errors = []
    os.kill(os.getppid(), signal.SIGSTOP)
    try:
        for _ in range(2):
            try:
                comm.world(timeout=0.5)
            except comm.CommError as error:
                errors.append((type(error).__name__, str(error)))
    finally:
        os.kill(os.getppid(), signal.SIGCONT)
    return errors


def printing():
    with comm.world() as world:
        for number in range(3):
            print(f"rank {world.rank} line {number} ü", end="\r" if number == 1 else "\n")
        print(f"error of rank {world.rank}", file=sys.stderr)


def saying_and_waiting(path):
    print("waiting")
    while not os.path.exists(path):
        time.sleep(0.01)
    print("went on")


def printing_on():
    """Prints for ever, whatever signals it gets."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        print("a line")
        time.sleep(0.01)


def raising():
    with comm.world() as world:
        if world.rank == 1:
            print("just before")
            raise ValueError("the second one fails")
        world.barrier()


def leaving():
    sys.exit(3)


def ending():
    os._exit(4)


def unpicklable():
    return threading.Lock()


class OneWay:
    """Can be pickled, but not unpickled."""

    def __reduce__(self):
        return int, ("no number",)


def one_way():
    return OneWay()


def wrong_slots():
    comm.world(slot_bytes="many")


def killed():
    with comm.world() as world:
        if world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        world.barrier()


def crashing():
    if process_info.find().rank == 1:
        ctypes.string_at(0)


def hanging():
    if process_info.find().rank == 1:
        time.sleep(600)
    if process_info.find().rank == 2:
        os.kill(os.getpid(), signal.SIGSTOP)


def absent():
    if process_info.find().rank == 0:
        comm.world()


def nested():
    cgxffcv.launch(means, 2, (4,))


def asked_in_children():
    """What a rank's children get as an answer: one forked, one with a new interpreter."""
    read, write = os.pipe()
    if os.fork() == 0:
        with contextlib.suppress(comm.CommError):
            comm.world()
            os.write(write, b"joined")
        os.write(write, b".")
        os._exit(0)
    os.wait()
    code = "from cgxffcv import comm; print(comm.world().size)"
    return os.read(read, 100), run_python("-c", code).stdout.strip()


def busy(folder, stubborn):
    """Records its own and its child's process number, then waits; `stubborn`: whatever signals it gets."""
    child = subprocess.Popen(["sleep", "600"])
    rank = process_info.find().rank
    part = Path(folder) / f"part.{rank}"
    part.write_text(f"{os.getpid()} {child.pid}")
    part.rename(Path(folder) / f"rank.{rank}")
    while True:
        try:
            time.sleep(600)
        except KeyboardInterrupt:
            (Path(folder) / f"interrupted.{rank}").touch()
            if not stubborn:
                raise
