"""Which process of a job this is: launchers' environments, and that the communicator and the loader agree on them."""

import os
import re
import types

import _cgxffcv
import pytest
from checkout import run_python

from cgxffcv import comm, process_info, rank_claim
from cgxffcv.app import process
from cgxffcv.loader import find_ranks

PREFIXES = (
    *"OMPI_ PMIX_ PMI_ MPI_ MV2_ MVP_ JSM_ PALS_ ALPS_ FLUX_ HOROVOD_ SLURM_".split(),
    *"RANK WORLD_SIZE LOCAL_ NODE_RANK TORCHELASTIC_".split(),
)


@pytest.fixture(autouse=True)
def nobody_launched_this(monkeypatch):
    for name in list(os.environ):
        if name.startswith(PREFIXES):
            monkeypatch.delenv(name)


def put(monkeypatch, **variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


FOREIGN = {
    "torchrun": {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "TORCHELASTIC_RUN_ID": "none",
    },
    "srun": {
        "SLURM_PROCID": "1",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_ID": "0",
        "SLURM_LOCALID": "1",
    },
    "srun's first": {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"},
    "srun of another age": {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"},
    "MVAPICH": {"MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "2"},
    "MVAPICH 3": {"MVP_COMM_WORLD_RANK": "1", "MVP_COMM_WORLD_SIZE": "2"},
    "jsrun": {"JSM_NAMESPACE_RANK": "1", "JSM_NAMESPACE_SIZE": "2"},
    "flux": {"FLUX_TASK_RANK": "1", "FLUX_JOB_SIZE": "2"},
    "horovodrun": {"HOROVOD_RANK": "1", "HOROVOD_SIZE": "2"},
    "Lightning": {"LOCAL_RANK": "1", "WORLD_SIZE": "2", "NODE_RANK": "0"},
    "Lightning's first": {"LOCAL_RANK": "0", "WORLD_SIZE": "2", "NODE_RANK": "0"},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_job_that_cannot_be_joined_is_refused(name, monkeypatch):
    put(monkeypatch, **FOREIGN[name])
    rank = 0 if "first" in name else 1
    with pytest.raises(comm.CommError, match=rf"process {rank} of 2.*cgxffcv launch -np 2"):
        comm.world()
    assert find_ranks() == (rank, 2) == (process.rank(), process.ranks())


ALONE = {
    "nobody": {},
    "torchrun of one": {"RANK": "0", "WORLD_SIZE": "1"},
    "a shell of salloc": {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7", "SLURM_NPROCS": "4"},
    "a script of sbatch": {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "7"},
    "srun --pty": {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "1"},
    "mpirun of one": {
        "OMPI_COMM_WORLD_RANK": "0",
        "OMPI_COMM_WORLD_SIZE": "1",
        "PMIX_RANK": "0",
        "PMIX_NAMESPACE": "x",
    },
    "half a launcher": {"RANK": "1", "OMPI_COMM_WORLD_RANK": "1", "PMI_SIZE": "3"},
    "no numbers": {"RANK": "first", "WORLD_SIZE": "many"},
    "a node, where torchrun is to be started": {"NODE_RANK": "1", "WORLD_SIZE": "2"},
}


@pytest.mark.parametrize("name", ALONE)
def test_alone(name, monkeypatch):
    put(monkeypatch, **ALONE[name])
    with comm.world() as world:
        assert (world.rank, world.size) == (0, 1) == (process.rank(), process.ranks())
    if process_info.find() is None:
        with pytest.raises(RuntimeError, match="world_size"):
            find_ranks()
    else:
        assert find_ranks() == (0, 1)


def test_who_is_nearest_counts(monkeypatch):
    put(
        monkeypatch,
        **FOREIGN["srun"],
        OMPI_COMM_WORLD_RANK="2",
        OMPI_COMM_WORLD_SIZE="3",
        PMIX_RANK="2",
        PMIX_NAMESPACE="job",
        OMPI_COMM_WORLD_LOCAL_RANK="1",
        OMPI_COMM_WORLD_LOCAL_SIZE="2",
    )
    here = process_info.find()
    assert here.joins and here.job == "job"
    assert (here.rank, here.size, here.local_rank, here.local_size) == (2, 3, 1, 2) == (*find_ranks(), 1, 2)
    assert (process.local_rank(), process.local_ranks()) == (1, 2)


def test_srun_with_pmix_is_joined(monkeypatch):
    put(monkeypatch, **FOREIGN["srun"], PMIX_RANK="1", PMIX_NAMESPACE="slurm.pmix.7.0")
    here = process_info.find()
    assert here.joins and (here.rank, here.size, here.local_rank) == (1, 2, 1)


HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "PMI_FD": "7", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


@pytest.mark.parametrize("more", [{}, FOREIGN["srun"]], ids=["Hydra", "srun with PMI-2"])
def test_the_launcher_of_mpich_is_joined(monkeypatch, more):
    put(monkeypatch, **HYDRA, **more)
    here = process_info.find()
    assert here.joins and (here.rank, here.size, here.local_rank, here.local_size) == (1, 2, 1, 2)


MARK = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}
AROUND = {
    "mpirun, one a node": {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "PMIX_RANK": "1"},
    "mpirun of one": {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1", "PMIX_RANK": "0"},
    "srun with PMI-2, one a node": {"PMI_RANK": "1", "PMI_SIZE": "2", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"},
    "srun with PMIx": {"PMIX_RANK": "1", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"},
}


@pytest.mark.parametrize("name", AROUND)
def test_torchrun_within_another_launcher_counts(name, monkeypatch):
    """Otherwise each process of a node would take the node's share of the samples, or train alone."""
    put(monkeypatch, **AROUND[name], **MARK, RANK="7", WORLD_SIZE="8")
    assert find_ranks() == (7, 8) and (process.local_rank(), process.local_ranks()) == (3, 4)
    with pytest.raises(comm.CommError, match="torchrun says.* process 7 of 8"):
        comm.world()


def test_mpirun_counts_where_torchrun_says_the_same_or_nothing(monkeypatch):
    put(monkeypatch, OMPI_COMM_WORLD_RANK="1", OMPI_COMM_WORLD_SIZE="2", RANK="1", WORLD_SIZE="2", **MARK)
    assert process_info.find().launcher == "mpirun" and process_info.find().joins
    put(monkeypatch, RANK="0", WORLD_SIZE="1")
    assert process_info.find().launcher == "mpirun"
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")  # as in a pod, whose variables a job inside it inherits
    put(monkeypatch, RANK="0", WORLD_SIZE="16")
    assert find_ranks() == (1, 2)


UNTOLD = {
    "srun": ({"SLURM_PROCID": "1", "SLURM_NPROCS": "2"}, "SLURM_PROCID"),
    "PALS": ({"PALS_RANKID": "1"}, "PALS_RANKID"),
    "aprun": ({"ALPS_APP_PE": "1"}, "ALPS_APP_PE"),
    "flux": ({"FLUX_TASK_RANK": "1"}, "FLUX_TASK_RANK"),
    "Lightning": ({"LOCAL_RANK": "0", "WORLD_SIZE": "4", "NODE_RANK": "1"}, "NODE_RANK"),
}


@pytest.mark.parametrize("name", UNTOLD)
def test_a_process_above_0_of_an_untold_number_does_not_run_alone(name, monkeypatch):
    variables, said = UNTOLD[name]
    put(monkeypatch, **variables)
    with pytest.raises(comm.CommError, match=rf"{name} says \({said}\) that this is process 1 of several"):
        comm.world()
    with pytest.raises(RuntimeError, match=rf"{said}.* process 1, .*world_size"):
        find_ranks()
    put(monkeypatch, RANK="1", WORLD_SIZE="2")
    assert find_ranks() == (1, 2)


def test_mpich_without_a_size_is_asked(monkeypatch):
    put(monkeypatch, PMI_ID="1", PMI_PORT="here:1")
    assert process_info.find().joins and (process_info.find().rank, process_info.find().size) == (1, 0)


def test_numbers_may_have_spaces_around_them(monkeypatch):
    put(monkeypatch, RANK=" 1", WORLD_SIZE="2 ")
    assert find_ranks() == (1, 2)


# With the name of MPICH's per-machine launcher, this starts a rank, and that rank another program.
STARTER = """
import ctypes, os, subprocess, sys
from cgxffcv import process_info
above, *rest = sys.argv[1:]
if above == "starter":
    ctypes.CDLL(None).prctl(15, b"hydra_pmi_proxy")
    os.environ |= {"PMI_RANK": "1", "PMI_SIZE": "2"}
else:
    print(os.getppid() if above == "rank" else 0, process_info.find().job, flush=True)
if rest:
    sys.exit(subprocess.run([sys.executable, "-c", os.environ["PROGRAM"], *rest]).returncode)
"""


def test_a_job_of_mpich_has_the_name_of_its_starter():
    """So that a rank's child, which has the same variables, can be told from the rank."""
    done = run_python("-u", "-c", STARTER, "starter", "rank", "child", PROGRAM=STARTER)
    rank, child = (line.split() for line in done.stdout.splitlines())
    assert rank[1:3] == ["hydra_pmi_proxy", rank[0]] and rank[1:] == child[1:]


def test_a_fork_of_a_rank_is_no_rank_also_in_a_job_without_a_name(monkeypatch):
    here = process_info.ProcessInfo("mpirun", 1, 2, 1, 2, True, "", "")
    monkeypatch.setattr(rank_claim, "_held", None)
    rank_claim.take(here)
    rank_claim.take(here)
    monkeypatch.setattr(rank_claim, "_held", (os.getppid(), None))
    with pytest.raises(comm.CommError, match=f"process {os.getppid()} has already joined the job as rank 1"):
        rank_claim.take(here)


def test_only_pmix(monkeypatch):
    put(monkeypatch, PMIX_RANK="1", PMIX_NAMESPACE="job")
    assert process_info.find().joins and process_info.find().size == 0
    with pytest.raises(RuntimeError, match="world_size"):
        find_ranks()  # only MPI knows how many there are
    put(monkeypatch, PMIX_RANK="0", PMIX_NAMESPACE="job")
    assert process_info.find().joins and process_info.find().size == 0


@pytest.mark.skipif(not _cgxffcv.build_info()["mpi"], reason="this build has no MPI")
def test_an_mpi_that_knows_another_rank_is_refused():
    """In a separate process: some versions of Open MPI end it themselves, with their own message."""
    code = "from cgxffcv import comm; comm.world(timeout=20); print('alone')"
    done = run_python("-c", code, status=None, PMIX_RANK=1, PMIX_NAMESPACE="job")
    assert done.returncode != 0 and "alone" not in done.stdout
    said = re.search(r"PMIX_RANK.* rank 1, but MPI says rank 0 of 1", done.stderr, re.S)
    assert said or "MPI" in done.stdout + done.stderr


def test_who_is_absent():
    """Several may be missing because they gave up at the same deadline."""
    one, three = (process_info.ProcessInfo("mpirun", 0, size, 0, size, True, "", "a job of nobody") for size in (1, 3))
    assert rank_claim.absent(one) == (0, "rank 0 of 1 did not call comm.world()")
    assert rank_claim.absent(three) == (0, "ranks 0, 1, 2 of 3 did not call comm.world(), or have given up already")


def torch_of(rank, size):
    group = types.SimpleNamespace(
        is_available=lambda: True, is_initialized=lambda: size > 0, get_rank=lambda: rank, get_world_size=lambda: size
    )
    return types.SimpleNamespace(distributed=group)


def test_torch_distributed(monkeypatch):
    monkeypatch.setitem(process_info.sys.modules, "torch", torch_of(0, 0))
    assert process_info.find() is None
    monkeypatch.setitem(process_info.sys.modules, "torch", torch_of(1, 2))
    assert find_ranks() == (1, 2)
    with pytest.raises(comm.CommError, match="torch.distributed says"):
        comm.world()
    put(monkeypatch, OMPI_COMM_WORLD_RANK="1", OMPI_COMM_WORLD_SIZE="2")
    assert process_info.find().joins  # mpirun and torch.distributed say the same
    put(monkeypatch, OMPI_COMM_WORLD_RANK="0")
    assert find_ranks() == (1, 2) and not process_info.find().joins
    monkeypatch.setitem(process_info.sys.modules, "torch", torch_of(0, 1))
    assert find_ranks() == (0, 2) and process_info.find().joins  # a group of one is not the job
