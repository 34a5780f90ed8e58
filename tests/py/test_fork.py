"""Objects with threads, collected as garbage or used in a forked child, which has none of the threads: no hang, no
crash.

Other packages' data loaders and writers fork at any moment, and the garbage collector may run at any time.
"""

import pytest
from checkout import run_python

import cgxffcv

MAKERS = {
    "encoder": """
from cgxffcv.fields import IntField
def make():
    return _cgxffcv.Encoder([IntField().describe("n")], seed=0, threads=THREADS, skip_bad=False)
def use(encoder):
    encoder.encode(0, [(i,) for i in range(100)])
""",
    "writer": """
from cgxffcv.fields import IntField
def make():
    return _cgxffcv.Writer(PATH, [IntField().describe("n")], page_size=1 << 21, small_pages=False, checksums=True,
                           durable=False, expected_samples=1, threads=THREADS, seed=0, skip_bad=False)
def use(writer):
    pass
""",
    "optimizer": """
from cgxffcv.train import Muon, Optimizer, Rate
def make():
    weights = np.ones((64, 64), np.float32)
    return Optimizer([Muon()], [(weights, weights.copy(), 0)], threads=THREADS)
def use(optimizer):
    optimizer.step([Rate(0.1)])
""",
    "allreduce": """
from cgxffcv import allreduce, comm
def make():
    world = comm.attach(comm.segment(1, 1 << 20), 0, 1)
    return allreduce.AllreducePlan(world, [(100, 100)], bits=4, threads=THREADS)
def use(plan):
    pass
""",
    "network": """
from cgxffcv import nn
def make():
    network = nn.Network(nn.airbench((8, 16, 24)), threads=THREADS)
    network.initialise(0)
    return network
def use(network):
    pass
""",
}

SCRIPT = """
import gc, os, signal, sys, time
import numpy as np
import _cgxffcv
THREADS, PATH = int(sys.argv[1]), sys.argv[2]
{maker}
class Loop:
    def __init__(self, held):
        self.held, self.itself = held, self
gc.disable()
kept = make()
Loop(make())
time.sleep(0.1)  # the threads wait for work
child = os.fork()
if child == 0:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(20)
    use(kept)
    gc.collect()
    del kept
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
use(kept)
"""


# Python's own warning, from 3.12 on, to a program that forks while threads run: there may be no other output.
THE_PROGRAM_FORKS = ["-W", "ignore:This process (pid=:DeprecationWarning:__main__"]

OWN_FORKS = """
import sys, threading
from cgxffcv.fields import IntField
from cgxffcv.writer import DatasetWriter
waiting = threading.Event()
threading.Thread(target=waiting.wait).start()
class Numbers:
    def __len__(self):
        return 100
    def __getitem__(self, index):
        return (index,)
writer = DatasetWriter(sys.argv[1], {"n": IntField()}, num_workers=2, worker_kind="process")
writer.from_indexed_dataset(Numbers(), chunksize=10)
waiting.set()
"""


@pytest.mark.parametrize("warnings", ["always", "error"])
def test_the_packages_own_forks_warn_of_nothing(tmp_path, warnings):
    """Whatever a user's warning filters are: test runners show all warnings, and some fail at one."""
    assert run_python("-W", warnings, "-c", OWN_FORKS, tmp_path / "x.beton").stderr == ""


@pytest.mark.parametrize("threads", [2, 5])
@pytest.mark.parametrize("what", MAKERS)
def test_threads_of_the_parent(tmp_path, what, threads):
    if what == "network" and not cgxffcv.build_info()["onednn"]:
        pytest.skip("this build has no oneDNN, so no networks on the CPU")
    script = SCRIPT.format(maker=MAKERS[what])
    assert run_python(*THE_PROGRAM_FORKS, "-c", script, threads, tmp_path / "x.beton").stderr == ""
