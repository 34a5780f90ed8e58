"""Training on several ranks: equal to NumPy on the union of the batches, replicas identical, faults reported to all."""

import json

import _cgxffcv
import numpy as np
import pytest
import small_data
from optim_reference import reference_step
from ranks import Launch, needs_mpirun, start
from trainings import MUON

from cgxffcv import checkpoint, nn
from cgxffcv.decoders import IntDecoder, SimpleRGBImageDecoder
from cgxffcv.loader import Loader, OrderOption
from cgxffcv.nn.recipe import describe
from cgxffcv.train import Muon, Rate, Trainer
from cgxffcv.train.data import augmentation
from cgxffcv.train.plan import make_plan

pytestmark = pytest.mark.skipif(not _cgxffcv.build_info()["onednn"], reason="networks need oneDNN (see cgxffcv doctor)")

SMALL = MUON.replace(batch_size=48)
MEAN = SMALL.replace(optimizer="sgd", lr=0.05, momentum=0.9, loss_sum=False, batch_scope="process", batch_size=24)
HARDEST = SMALL.replace(hardest=((0.3, 0.5),), epochs=3, test_share=0.25)
PLAIN = {"bits": 32}
MPI2 = pytest.param(Launch("mpi", 2), marks=needs_mpirun, id="mpi2")
SHM2, SHM3 = Launch("shm", 2), Launch("shm", 3)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return small_data.make(tmp_path_factory.mktemp("data"))


def run(launch, out, case, recipe, files, compression=PLAIN, limit=90):
    arguments = [json.dumps(recipe.as_dict()), *files, json.dumps(compression)]
    job = start(launch, out, case, *arguments, script="worker_train.py")
    results = job.wait(limit)
    assert all(result is not None for result in results), job.text()
    return results


def rate_of(group, step):
    steps, factors = zip(*group.points, strict=True)
    return Rate(group.base * float(np.interp(step, steps, factors)), group.steps[0] <= step < group.steps[1], True)


def numpy_training(recipe, files, ranks):
    """The parameters after the training and rank 0's running statistics: gradients of each rank's batches from the
    network's own operators, everything else in float64 NumPy."""
    plan = make_plan(recipe, 250, ranks)
    network = nn.Network(describe(recipe), precision="float32", threads=1)
    with Trainer(recipe, files[0], threads=1, num_workers=1, precision="float32", device="cpu") as start_from:
        network.parameters[:] = start_from.network.parameters
    network.running[:] = 0
    for norm in network.statistics:
        network.running_variance(norm.name)[:] = 1
    layers = [layer for layer in network.layers if layer.trained]
    group_of = {
        layer.name: next(g for g in plan.groups if layer.kind in g.kinds and g.blocks[0] <= layer.block < g.blocks[1])
        for layer in layers
    }
    value = {layer.name: network.parameter(layer.name).astype(np.float64) for layer in layers}
    momentum = {name: np.zeros_like(v) for name, v in value.items()}
    step_plan = network.plan(plan.local_batch, 32)
    options = {"label_smoothing": recipe.label_smoothing, "mean": recipe.mean, "std": recipe.std}
    reduction = "sum" if recipe.loss_sum else "mean"
    pipelines = {"image": [SimpleRGBImageDecoder(), *augmentation(recipe)], "label": [IntDecoder()]}
    chosen = {"order": OrderOption.RANDOM, "seed": 0, "pipelines": pipelines, "world_size": ranks}
    loaders = [Loader(files[0], plan.local_batch, rank=rank, **chosen) for rank in range(ranks)]
    step = 0
    for _ in range(plan.epochs):
        for batches in zip(*loaders, strict=True):
            phase = [p for p in plan.phases if p.first_step <= step][-1]
            total = dict.fromkeys(value, 0.0)
            for rank in reversed(range(ranks)):
                kept = network.running.copy()
                images, labels = batches[rank]
                step_plan.step(
                    images, labels.reshape(-1), reduction=reduction, first_block=phase.first_block, **options
                )
                if rank > 0:
                    network.running[:] = kept
                for name in total:
                    total[name] = total[name] + network.gradient(name).astype(np.float64)
            for name in value:
                gradient = total[name] if recipe.loss_sum else total[name] / ranks
                rule, rate = group_of[name].rule, rate_of(group_of[name], step)
                value[name], momentum[name] = reference_step(rule, value[name], gradient, momentum[name], rate)
                network.parameter(name)[...] = value[name]
            step += 1
    assert step == plan.steps
    return value, network


@pytest.mark.parametrize("launch", [SHM2, SHM3, MPI2], ids=str)
@pytest.mark.parametrize("recipe", [SMALL.replace(epochs=1), MEAN.replace(epochs=1)], ids=["muon", "sgd"])
def test_ranks_equal_numpy_on_all_batches(files, tmp_path, launch, recipe):
    results = run(launch, tmp_path, "train", recipe, files)
    value, network = numpy_training(recipe, files, launch.size)
    state = checkpoint.load(tmp_path / "final.safetensors")
    for name, expected in value.items():
        scale = max(np.abs(expected).max(), 1e-2)
        np.testing.assert_allclose(state[name], expected, rtol=0, atol=2e-5 * scale, err_msg=name)
    for norm in network.statistics:
        expected = network.running_mean(norm.name)
        np.testing.assert_allclose(
            state[f"{norm.name}.running_mean"], expected, rtol=0, atol=5e-6 * np.abs(expected).max()
        )
    assert all(result["hashes"] == results[0]["hashes"] for result in results)


def test_muon_is_what_the_recipe_uses():
    groups = make_plan(SMALL, 250, 2).groups
    assert any(isinstance(group.rule, Muon) for group in groups)


@pytest.mark.parametrize("launch", [SHM2, SHM3], ids=str)
@pytest.mark.parametrize("bits", [32, 4])
def test_replicas_are_identical_and_the_test_is_shared(files, tmp_path, launch, bits):
    results = run(launch, tmp_path, "train", HARDEST, files, {"bits": bits, "bucket_size": 128, "layer_min_size": 100})
    first = results[0]
    for result in results:
        for name in ("hashes", "accuracy", "tested", "correct", "loss", "images"):
            assert result[name] == first[name], name
        assert result["skipped"] == []
    assert first["tested"] == 103 and first["accuracy"] > 0.5
    share = HARDEST.batch_size
    assert first["images"] == [share * 5] + [share * 2] * 5
    plain, wire = first["plain"], first["wire"][-1]
    assert wire <= plain if bits == 32 else wire < plain / 3


def test_ranks_choose_the_hardest_as_one_does(files, tmp_path):
    """Batch norm sees half of each batch, so losses differ a little; the choice is nearly the same."""
    run(SHM2, tmp_path, "train", HARDEST, files)
    state = checkpoint.load(tmp_path / "final.safetensors")
    assert np.isfinite(state["hardest.losses"]).sum() >= 240
    assert len(state["hardest.order"]) == 125 and len(np.unique(state["hardest.order"])) == 125


@pytest.mark.parametrize(
    "compression",
    [PLAIN, {"bits": 4, "bucket_size": 64, "layer_min_size": 100, "rounding": "stochastic", "error_feedback": True}],
    ids=["plain", "error feedback"],
)
def test_resuming_on_two_ranks_continues_bit_for_bit(files, tmp_path, compression):
    whole = run(SHM2, tmp_path / "whole", "train", HARDEST, files, compression)
    halves = run(SHM2, tmp_path / "halves", "resume", HARDEST, files, compression)
    assert (halves[0]["accuracy"], halves[0]["loss"]) == (whole[0]["accuracy"], whole[0]["loss"])
    states = [checkpoint.load(tmp_path / name / "final.safetensors") for name in ("whole", "halves")]
    for name, value in states[0].items():
        if isinstance(value, np.ndarray):
            assert value.tobytes() == states[1][name].tobytes(), name


@pytest.mark.parametrize("bits", [32, 4])
def test_a_step_that_is_not_finite_on_one_rank_is_left_out_on_all(files, tmp_path, bits):
    results = run(SHM2, tmp_path, "poison", SMALL, files, {"bits": bits, "bucket_size": 128, "layer_min_size": 100})
    for result in results:
        assert result["skipped"] == [2] and result["reported"] == [1, 0]
        assert result["hashes"] == results[0]["hashes"] and result["accuracy"] > 0.4


def test_replicas_that_differ_are_an_error_on_all_ranks(files, tmp_path):
    for result in run(SHM3, tmp_path, "differ", SMALL, files):
        assert "the networks of rank 0 and rank 1 differ after step" in result["error"]


def test_a_checkpoint_that_cannot_be_written_is_an_error_on_all_ranks(files, tmp_path):
    for result in run(SHM2, tmp_path, "unwritable", SMALL, files):
        assert "rank 0 could not write the checkpoint" in result["error"] and "No such file" in result["error"]
