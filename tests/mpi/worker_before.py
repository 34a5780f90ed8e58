"""The ranks of tests/mpi/test_before_world.py: worker_before.py CASE OUT [ARGUMENTS], as in worker_comm.py."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

from worker_comm import ARGUMENTS, CASE, OUT, leave, put, result, wait_for

from cgxffcv import comm

RANK = int(os.environ["OMPI_COMM_WORLD_RANK"])


def tried(**options):
    """What world() raises, as a dict; its size if it does not."""
    try:
        with comm.world(**options) as world:
            return {"type": None, "size": world.size}
    except BaseException as error:
        names = ("rank", "operation")
        return {"type": type(error).__name__, "text": str(error)} | {n: getattr(error, n, None) for n in names}


def absent():
    how, timeout = ARGUMENTS[0], float((*ARGUMENTS, 2)[1])
    put(f"pid.{RANK}", os.getpid())
    if RANK == 1 and how == "frozen":
        os.kill(os.getpid(), signal.SIGSTOP)
    if RANK == 1:
        time.sleep(100)
    result(RANK, **tried(timeout=timeout))
    time.sleep(100)  # mpirun would end the others with this one


def frozen_inside():
    """Rank 1 stops just after it has announced itself, while MPI starts."""
    put(f"pid.{RANK}", os.getpid())
    if RANK == 1:
        from cgxffcv import rank_claim

        take = rank_claim.take

        def stop_after(here):
            take(here)
            os.kill(os.getpid(), signal.SIGSTOP)

        rank_claim.take = stop_after
    result(RANK, **tried(timeout=4))
    time.sleep(100)


def second_try():
    if RANK == 1:
        wait_for("come")
    else:
        assert tried(timeout=1)["type"] == "CommTimeout"
        put("timeout.0")
    result(RANK, **tried(timeout=60))


def dies():
    how = ARGUMENTS[0]
    if RANK == 1:
        if how == "raise":
            raise ValueError("before the world")
        if how == "exit":
            sys.exit(0)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(100)
    # A rank that exits with 0 before MPI_Init ends the job with some versions of Open MPI; with others the deadline
    # does.
    comm.world(timeout=2 if how in ("absent", "exit") else 100)


def child():
    wait_for(ARGUMENTS[0])
    print(json.dumps(tried(timeout=100)))


def forked():
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.write(writing, json.dumps(tried(timeout=100)).encode())
        os._exit(0)
    os.wait()
    return os.read(reading, 65536).decode()


def parent():
    how, joined = ARGUMENTS[0], f"joined.{RANK}"
    words = [sys.executable, sys.argv[0], "child", str(OUT), joined]
    early = subprocess.Popen(words, stdout=subprocess.PIPE, text=True) if how == "early subprocess" else None
    world = comm.world(timeout=100)
    world.barrier()
    put(joined)
    if how == "fork":
        said = forked()
    else:
        process = early or subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        said = process.communicate(timeout=50)[0]
    world.barrier()
    result(RANK, child=said, pid=os.getpid(), size=world.size)
    world.close()


def plain():
    result(RANK, **tried(timeout=100))


def wrapper():
    subprocess.run([sys.executable, sys.argv[0], "plain", str(OUT)], check=True)


def miscounted():
    os.environ["OMPI_COMM_WORLD_SIZE"] = "3"
    values = tried(timeout=30)
    result(RANK, **values)
    leave(2)


if __name__ == "__main__":
    watchdog = threading.Timer(110, os._exit, (9,))
    watchdog.daemon = True
    watchdog.start()
    globals()[CASE]()
