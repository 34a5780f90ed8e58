"""Several ranks that train on GPUs: sums through NCCL (the emulator's, if GPUs are emulated) and through host memory
give the same bytes, sums in pieces during backward change nothing, replicas are equal."""

import contextlib
import json
from pathlib import Path

import _cgxffcv
import numpy as np
import pytest
import small_data
from gpus import EMULATED, needs_gpu, needs_nccl
from ranks import Launch, needs_mpirun, start
from trainings import MUON

from cgxffcv import checkpoint, comm
from cgxffcv.train import Trainer

pytestmark = needs_gpu

SMALL = MUON.replace(widths=(8, 8, 8), head_scale=1 / 8, batch_size=16, whiten_images=50)
PLAIN, NARROW = {"bits": 32}, {"bits": 4, "bucket_size": 64, "layer_min_size": 16}
SHM2 = Launch("shm", 2)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return small_data.make(tmp_path_factory.mktemp("data"), train=50, test=21)


def launch(out, case, files, compression=PLAIN, how=SHM2, recipe=SMALL, gpus=2, **variables):
    variables = {"CGXFFCV_EMULATED_DEVICES": gpus, "TEST_DEVICE": "gpu", **variables}
    variables["CGXFFCV_CACHE"] = Path(files[0]).parent / "cache"
    variables.setdefault("CGXFFCV_COMM_EXACT_KIB", 0)  # these sums are small: NCCL where it is
    if EMULATED:
        variables["CGXFFCV_NCCL_LIBRARY"] = _cgxffcv.__file__
    arguments = [json.dumps(recipe.as_dict()), *files, json.dumps(compression)]
    return start(how, out, case, *arguments, script="worker_train.py", **variables)


def train(out, files, *args, limit=120, **kwargs):
    job = launch(out, "train", files, *args, **kwargs)
    results = job.wait(limit)
    assert all(result is not None for result in results), job.text()
    return results, checkpoint.load(out / "final.safetensors")


def same(a, b):
    return all(np.array_equal(a[name], b[name]) for name in a if isinstance(a[name], np.ndarray))


def choose_convolutions(folder, files, *args, **kwargs):
    """Timing convolutions may choose others than the next process does, and equal bytes need one choice: this training
    makes it, and keeps it in the cache."""
    if not EMULATED:
        train(folder / "choice", files, *args, **kwargs)


@pytest.fixture(scope="module")
def through_host(tmp_path_factory, files):
    switches = {"CGXFFCV_COMM_NCCL": 0, "CGXFFCV_COMM_KERNELS": 0}
    choose_convolutions(tmp_path_factory.mktemp("timing"), files, **switches)
    return train(tmp_path_factory.mktemp("host") / "out", files, **switches)


def test_through_host_memory(through_host):
    results, _ = through_host
    assert results[0]["hashes"] == results[1]["hashes"] and results[0]["tested"] == 21
    assert results[0]["explain"].startswith("from the GPU through host memory (rank 0: CGXFFCV_COMM_NCCL=0)\n")
    assert not results[0]["skipped"] and results[0]["losses"] != results[1]["losses"]


@pytest.fixture(scope="module")
def compressed(tmp_path_factory, files, through_host):
    results, state = train(tmp_path_factory.mktemp("compressed") / "out", files, NARROW, CGXFFCV_COMM_KERNELS=0)
    assert results[0]["explain"].startswith("from the GPU through host memory (rank 0: CGXFFCV_COMM_KERNELS=0)")
    return results, state


class AloneOnNccl(Trainer):
    """One rank whose sums go through NCCL nevertheless, as far as a single GPU can test it."""

    def _build(self, *args):
        self.ranks = 2
        super()._build(*args)
        self.ranks = 1


@pytest.mark.skipif(not (EMULATED or _cgxffcv.nccl_version()), reason="no NCCL in this build or on this machine")
@pytest.mark.parametrize("graphs", [True] if EMULATED else [True, False])
def test_nccl_with_one_rank_changes_nothing(files, monkeypatch, graphs):
    """Connecting, sums in pieces on a second stream, recorded (eight steps at once, and one) and not, the end; a mean
    over one rank is the same."""
    monkeypatch.setenv("CGXFFCV_COMM_PIECE_KIB", "1")
    if EMULATED:
        monkeypatch.setenv("CGXFFCV_NCCL_LIBRARY", _cgxffcv.__file__)
    states, short = [], SMALL.replace(epochs=1, batch_size=5)
    for kind in (Trainer, AloneOnNccl):
        with contextlib.ExitStack() as stack:
            world = stack.enter_context(comm.world(timeout=60))
            options = {"threads": 1, "num_workers": 1, "device": "gpu", "deterministic": True, "graphs": graphs}
            trainer = stack.enter_context(kind(short, *files, comm=world, compression=PLAIN, **options))
            assert (kind is Trainer) != ("on the GPUs by NCCL" in trainer.explain())
            while not trainer.finished:
                list(trainer.run_epoch())
                trainer.end_epoch()
            assert (trainer._device.core.graphs() > 0) == graphs
            states.append(trainer.state_dict())
    assert same(*states)


@needs_nccl
@pytest.mark.parametrize("kib, streams", [(1, "late"), (1, ""), (2048, "late")])
def test_nccl_gives_the_same_bytes_in_any_pieces(tmp_path, files, through_host, kib, streams):
    """Emulated streams run at once, or as late as they can, so that a missing wait between the two shows."""
    more = {"CGXFFCV_COMM_PIECE_KIB": kib, "CGXFFCV_EMULATED_STREAMS": streams}
    results, state = train(tmp_path / "out", files, **more)
    how = "in pieces of at least 1 KiB during the backward pass" if kib == 1 else "as a whole"  # all are below 2 MiB
    assert results[0]["explain"].endswith(f"uncompressed, {how}\n")
    if EMULATED:  # both add two numbers and halve; a real NCCL may round the half elsewhere
        assert same(state, through_host[1]) and results[0]["losses"] == through_host[0][0]["losses"]
    assert results[0]["hashes"] == results[1]["hashes"]


@pytest.mark.parametrize("nccl", [0, pytest.param(1, marks=needs_nccl)])
@pytest.mark.parametrize("fed", ["0", "1", "01"])
def test_ranks_whose_sets_do_not_fit_are_fed(tmp_path, files, through_host, nccl, fed):
    """Some of them or all: each reads only its share, and all get the same bytes as with resident data."""
    variables = {"TEST_FED_RANKS": fed, "CGXFFCV_COMM_NCCL": nccl, "CGXFFCV_COMM_PIECE_KIB": 1}
    results, state = train(tmp_path / "out", files, CGXFFCV_EMULATED_STREAMS="late", **variables)
    assert [result["resident"] for result in results] == [str(rank) not in fed for rank in range(2)]
    assert results[0]["hashes"] == results[1]["hashes"] and results[0]["tested"] == 21
    assert results[0]["explain"].startswith("on the GPUs by NCCL" if nccl else "on the GPUs by kernels")
    if EMULATED or not nccl:
        assert same(state, through_host[1]) and results[0]["loss"] == through_host[0][0]["loss"]


@pytest.mark.parametrize("nccl", [0, pytest.param(1, marks=needs_nccl)])
@pytest.mark.parametrize("fed", ["", "0"])
def test_a_rank_that_dies_ends_the_others(tmp_path, files, nccl, fed):
    """Also one whose next upload waits for a step that waits for the dead rank; and NCCL, which detects an error first
    and releases nothing while recorded steps hold sums, hides neither which rank it was nor the end."""
    variables = {"TEST_FED_RANKS": fed, "CGXFFCV_COMM_NCCL": nccl, "CGXFFCV_EMULATED_STREAMS": "late"}
    job = launch(tmp_path / "out", "leave", files, **variables)
    first, second = job.wait(120)
    assert second is None and first["error"] is not None, job.text()
    assert "PeerLost" in first["error"] and first["step"] <= 2


@pytest.fixture(scope="module")
def many_steps(tmp_path_factory):
    """More steps than a driver's queue of launches takes."""
    return small_data.make(tmp_path_factory.mktemp("many"), train=48 if EMULATED else 8000, test=21)


@pytest.mark.parametrize("nccl", [0, pytest.param(1, marks=needs_nccl)])
@pytest.mark.parametrize("fed", ["", "0"])
def test_a_rank_that_is_stopped_ends_the_others_in_time(tmp_path, many_steps, nccl, fed):
    """Far more steps are left than the device's queue takes: the host stays within it, where its waits end."""
    variables = {"TEST_FED_RANKS": fed, "CGXFFCV_COMM_NCCL": nccl, "CGXFFCV_COMM_TIMEOUT": 5}
    emulated = {"CGXFFCV_EMULATED_STREAMS": "late", "CGXFFCV_EMULATED_QUEUE": 5}
    with launch(
        tmp_path / "out", "stop", many_steps, recipe=SMALL.replace(batch_size=4), **variables, **emulated
    ) as job:
        job.reached(0, "result", 50)
    result = job.result(0)
    assert result["error"].startswith("CommTimeout") and result["step"] <= 2, job.text()


@pytest.mark.parametrize("case, error", [("leave", "PeerLost"), ("stop", "CommTimeout")])
def test_kernels_do_not_wait_for_a_lost_rank(tmp_path, files, case, error):
    """Kernels that add what the lost rank has not sent end, and whatever waits for them gets an error that names the
    rank."""
    limits = {"CGXFFCV_COMM_TIMEOUT": 5, "CGXFFCV_EMULATED_STREAMS": "late"}
    with launch(tmp_path / "out", case, files, NARROW, **limits) as job:
        job.reached(0, "result", 60)
    result = job.result(0)
    assert error in result["error"] and "1" in result["error"] and result["step"] <= 2, job.text()


@pytest.mark.parametrize("nccl", [0, pytest.param(1, marks=needs_nccl)])
def test_ranks_skip_the_same_steps(tmp_path, files, nccl):
    """Gradients and sums of float16 networks that are not finite, in different places on each rank."""
    wild = SMALL.replace(bias_lr=1e38, head_lr=1e38)
    results, state = train(
        tmp_path / "out", files, recipe=wild, CGXFFCV_COMM_NCCL=nccl, CGXFFCV_COMM_PIECE_KIB=1, TEST_PRECISION="float16"
    )
    assert results[0]["hashes"] == results[1]["hashes"]
    assert results[0]["skipped"] and results[0]["skipped"] == results[1]["skipped"]
    assert all(np.isfinite(value).all() for name, value in state.items() if "running" in name)


def test_ranks_that_share_a_gpu(tmp_path, files, through_host):
    results, state = train(tmp_path / "out", files, gpus=1, CUDA_VISIBLE_DEVICES=0)
    assert results[0]["explain"].startswith("on the GPUs by kernels")
    assert same(state, through_host[1])


@needs_mpirun
def test_under_mpirun(tmp_path, files, through_host):
    """One of the ranks with resident data."""
    results, state = train(tmp_path / "out", files, how=Launch("mpi", 2), TEST_FED_RANKS="1")
    assert [result["resident"] for result in results] == [True, False]
    assert not EMULATED or same(state, through_host[1])


@pytest.mark.parametrize("way", [{}, {"CGXFFCV_P2P": 0}, {"CGXFFCV_EMULATED_STREAMS": "late"}])
def test_compressed_gradients(tmp_path, files, compressed, way):
    """Kernels give the CPU's sums, through either kind of memory, at whatever time they run."""
    results, state = train(tmp_path / "out", files, NARROW, **way)
    first = results[0]
    assert first["hashes"] == results[1]["hashes"]
    assert max(first["wire"]) < first["plain"] / 3
    memory = "page-locked host memory" if way == {"CGXFFCV_P2P": 0} else "each other's memory"
    assert first["explain"].startswith(f"on the GPUs by kernels that write into {memory}") or not EMULATED
    assert same(state, compressed[1]) and first["losses"] == compressed[0][0]["losses"]


@pytest.mark.parametrize(
    ("how", "streams"),
    [(Launch("shm", 2, 2), "late"), pytest.param(Launch("mpi", 2, 2), "", marks=needs_mpirun)],
    ids=["shm late", "mpi"],
)
def test_compressed_gradients_between_nodes(tmp_path, files, compressed, how, streams):
    """Kernels hand over the data for another node; a thread sends them on."""
    results, state = train(tmp_path / "out", files, NARROW, how=how, CGXFFCV_EMULATED_STREAMS=streams)
    assert results[0]["hashes"] == results[1]["hashes"]
    assert results[0]["explain"].startswith("on the GPUs by kernels that write into host memory, from where it is sent")
    assert same(state, compressed[1]) and results[0]["losses"] == compressed[0][0]["losses"]


@pytest.mark.medium
def test_compressed_gradients_in_two_levels(tmp_path, files):
    """Two ranks on each of two nodes: recorded steps give the CPU's sums."""
    four = {"how": Launch("shm", 4, 2), "gpus": 4, "recipe": SMALL.replace(batch_size=8)}
    levels = NARROW | {"algorithm": "two_level", "error_feedback": True}
    choose_convolutions(tmp_path, files, levels, **four)
    results, state = train(tmp_path / "kernels", files, levels, **four)
    others, expected = train(tmp_path / "host", files, levels, CGXFFCV_COMM_KERNELS=0, **four)
    assert all(result["hashes"] == results[0]["hashes"] for result in results)
    memory = "each other's memory and, between nodes, into host memory"
    assert results[0]["explain"].startswith(f"on the GPUs by kernels that write into {memory}") or not EMULATED
    assert others[0]["explain"].startswith("from the GPU through host memory")
    assert same(state, expected) and results[0]["losses"] == others[0]["losses"]


@needs_nccl
def test_ranks_with_different_layers_are_refused(tmp_path, files):
    """Before anything is summed: NCCL itself would sum whatever it gets."""
    job = launch(tmp_path / "out", "train", files, TEST_WIDE_RANK=1)
    assert all(result is None for result in job.wait(120)), job.text()
    assert "the ranks have different layers; the first that differs is number" in job.text()


@needs_nccl
def test_pieces_that_ranks_cut_differently_are_refused(tmp_path, files):
    job = launch(tmp_path / "out", "train", files, CGXFFCV_COMM_PIECE_KIB="many")
    assert job.wait(60) == [None, None]
    assert "a whole number of KiB" in job.text()
