"""`bench cifar`: the figures of small trainings, and their report."""

import json
import math
import statistics
import sys
from pathlib import Path
from types import SimpleNamespace

import _cgxffcv
import numpy as np
import pytest
from checkout import run_python, start_command

from cgxffcv import recipes
from cgxffcv.bench import cifar, peak
from cgxffcv.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "--recipe airbench94 --set widths=[16,16,16] --set head_scale=0.0625 --set batch_size=50 --set epochs=1 --set "
    "lr=0.1 --set whiten_images=100 --threads 1 --target 0.5 --device cpu"
).split()
needs_onednn = pytest.mark.skipif(not _cgxffcv.build_info()["onednn"], reason="networks need oneDNN")


def bench(files, *options, status=0):
    train, test = files
    command = ["-m", "cgxffcv", "bench", "cifar", "--train", train, "--test", test, *options]
    return run_python(*command, status=status, cwd=ROOT)


@needs_onednn
def test_figures_of_two_runs(files, tmp_path):
    out = tmp_path / "figures.json"
    done = bench(files, *SMALL, "--runs", "2", "--json", str(out))
    figures = json.loads(out.read_text())
    summary, runs = figures["summary"], figures["runs"]
    assert [run["seed"] for run in runs] == [0, 1]
    accuracies = [run["accuracy"] for run in runs]
    assert summary["accuracy"]["mean"] == pytest.approx(statistics.fmean(accuracies))
    assert summary["accuracy"]["standard_error"] == pytest.approx(statistics.stdev(accuracies) / math.sqrt(2))
    assert summary["accuracy"]["share_at_target"] == sum(a >= 0.5 for a in accuracies) / 2
    for run in runs:
        seconds = run["seconds"]
        assert 0 < seconds["steps"] < seconds["field"] <= seconds["call"] <= seconds["cold"]
        assert seconds["again"] is None and run["fold"] is None and run["device"] == "cpu"
        assert (run["steps"], run["images"], run["skipped"], run["wire_bytes"]) == (5, 250, 0, 0)
    for run in runs:
        plans = run["plans"]["plans"]
        assert run["plans"]["device"] == "cpu" and run["plans"]["library"].startswith("oneDNN 3.")
        assert {plan["pass"] for plan in plans} >= {"conv forward", "conv data gradient", "conv filter gradient"}
        assert {plan["test"] for plan in plans} == {True, False} and all(plan["algorithm"] for plan in plans)
    assert figures["recipe"]["widths"] == [16, 16, 16] and figures["complete"] is True
    assert summary["seconds"]["field"]["mean"] == pytest.approx(statistics.fmean(r["seconds"]["field"] for r in runs))
    assert summary["share_of_peak"] == pytest.approx(summary["gflops"] / summary["peak_gflops"])
    assert figures["peak"] == f"oneDNN's matrix product in {runs[0]['precision']}"
    assert "cold" in done.stdout and "again" not in done.stdout
    assert f"target      50.00 %, reached by {50 * sum(a >= 0.5 for a in accuracies)} % of the runs" in done.stdout
    again = bench(files, *SMALL, "--runs", "1", "--first-seed", "1", "--json", "-")
    assert json.loads(again.stdout)["runs"][0]["accuracy"] == runs[1]["accuracy"]


@needs_onednn
def test_held_out_images_are_tested_and_not_trained_on(files):
    done = bench(files, *SMALL, "--runs", "1", "--first-seed", "2", "--holdout", "100", "--empty-cache", "--json", "-")
    run = json.loads(done.stdout)["runs"][0]
    assert run["images"] == 150 and 100 * run["accuracy"] == pytest.approx(round(100 * run["accuracy"]))
    assert run["fold"] == 0
    folds = cifar.hold_out(files[0], 100, 1)
    np.testing.assert_array_equal(folds["test_indices"], np.arange(100, 200))
    np.testing.assert_array_equal(folds["train_indices"], [*range(100), *range(200, 250)])


def options(files, *words):
    return cifar._parser().parse_args(["--train", files[0], "--test", files[1], *words])


def test_folds(files):
    assert cifar.in_order(options(files, "--runs", "4")) == [0, 1, 2, 3]
    assert cifar.in_order(options(files, "--runs", "5", "--holdout", "100")) == [0, 2, 4, 1, 3]
    assert cifar.in_order(options(files, "--runs", "4", "--holdout", "50", "--folds", "3")) == [0, 3, 1, 2]
    assert cifar.folds(options(files, "--holdout", "50")) == 5
    for words, message in (
        (("--holdout", "250"), "--holdout 250: expected 1 to 249"),
        (("--folds", "1"), "--holdout 5000: expected 1 to 249"),
        (("--folds", "3", "--holdout", "100"), "--folds 3: 250 images have 1 to 2 folds of 100"),
    ):
        with pytest.raises(UserError, match=message):
            cifar.folds(options(files, *words))


class FreshTrainer:
    """What bench cifar needs of a trainer that can start afresh, as on a GPU: counts, and learns nothing."""

    made = []

    def __init__(self, recipe, train, test, *, seed, device, train_indices=None, test_indices=None, **others):
        self.made.append(([seed], None if test_indices is None else int(test_indices[0]), device))
        self.seed, self.load_seconds, self.whitening_seconds, self.step, self.steps = seed, 0.0, 0.0, 0, 3
        self.images_per_step, self.threads, self.precision, self.gpu = 10, 1, "float16", 0
        self.field_seconds = None

    def restart(self, seed):
        self.made[-1][0].append(seed)
        self.seed, self.step, self.field_seconds = seed, 0, None

    finished = property(lambda self: self.step == self.steps)

    def run_epoch(self):
        self.step += 1
        yield None

    def end_epoch(self):
        return SimpleNamespace(wire_bytes=0, skipped=0, loss=1.0)

    def evaluate(self):
        assert self.finished
        self.field_seconds = 0.5 + self.seed / 100
        return SimpleNamespace(accuracy=0.9 + self.seed / 1000, loss=0.3)

    def algorithms(self):
        return {"device": "a GPU", "plans": [{"layer": "conv", "milliseconds": 0.5}]}

    def total_flops(self):
        return {"train": 3e12, "optimizer": 1e12, "test": 1e12}

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass


RECIPE = ("--recipe", "airbench94")


def test_a_trainer_that_can_start_afresh(files, monkeypatch):
    import cgxffcv.train

    monkeypatch.setattr(cgxffcv.train, "Trainer", FreshTrainer)
    monkeypatch.setattr(FreshTrainer, "made", [])
    monkeypatch.setattr(cifar, "devices", lambda: [{"name": "A100"}])
    waiting, runs = cifar.in_order(options(files, *RECIPE, "--runs", "5", "--holdout", "100")), []
    while waiting:
        words = [*RECIPE, "--holdout", "100", "--device", "gpu", "--seeds", ",".join(map(str, waiting))]
        taken = list(cifar.train_here(options(files, *words)))
        runs, waiting = runs + taken, waiting[len(taken) :]
    assert FreshTrainer.made == [([0, 2, 4], 0, "gpu"), ([1, 3], 100, "gpu")]
    assert [run["seed"] for run in runs] == [0, 2, 4, 1, 3] and [run["fold"] for run in runs] == [0, 0, 0, 1, 1]
    assert [run["seconds"]["field"] for run in runs] == [0.5, 0.52, 0.54, 0.51, 0.53]
    for run, first in zip(runs, (True, False, False, True, False), strict=True):
        seconds = run["seconds"]
        assert (seconds["call"] is not None, seconds["again"] is None, seconds["cold"] is not None) == (first,) * 3
    summary = cifar.summarise(runs, 0.902, 1e4)
    assert summary["accuracy"]["share_at_target"] == 3 / 5 and summary["seconds"]["again"]["runs"] == 3
    assert summary["field_share_of_peak"] == pytest.approx(statistics.fmean(50 / (50 + s) for s in range(5)))
    text = cifar.show(cifar.choose_recipe(options(files, *RECIPE)), summary, runs, "a product")
    assert (
        "3 steps each, A100, float16" in text
        and "the GPU's own clock" in text
        and "2 of the runs" in text
        and "a held-out fold" in text
    )
    fresh = list(cifar.train_here(options(files, *RECIPE, "--seeds", "7,8", "--fresh")))
    assert [run["seed"] for run in fresh] == [7]


@needs_onednn
def test_an_interrupted_benchmark_leaves_its_runs(files, tmp_path):
    out, (train, test) = tmp_path / "figures.json", files
    command = [sys.executable, "-m", "cgxffcv", "bench", "cifar", "--train", train, "--test", test, *SMALL]
    asked = start_command(*command, "--runs", 500, "--json", out, cwd=ROOT)
    lines = [asked.stdout.readline() for _ in range(2)]
    asked.terminate()
    rest, errors = asked.communicate(timeout=60)
    assert asked.returncode == 143 and lines[1].startswith("seed 1: "), errors
    figures = json.loads(out.read_text())
    assert figures["complete"] is False and 2 <= figures["summary"]["runs"] == len(figures["runs"]) < 500
    assert f"{len(figures['runs'])} runs, 5 steps each" in rest


@pytest.mark.parametrize(
    "options, message",
    [
        (["--recipe", "airbench9"], "no recipe 'airbench9'; did you mean"),
        (["--set", "epochs"], "--set epochs: expected FIELD=VALUE"),
        (["--set", "epoch=3"], "no field 'epoch'; did you mean epochs"),
        (["--folds", "2"], "--holdout 5000: expected 1 to 249"),
        (["--json", "nowhere/x.json"], "nowhere/x.json: its folder does not exist"),
        (["--runs", "0"], "--runs: expected a whole number from 1, not '0'"),
        (["--test", "nowhere.beton"], "nowhere.beton: no such file"),
    ],
)
def test_mistakes(files, options, message):
    done = bench(files, *options, status=None)
    assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr


def test_a_test_on_the_training_set_is_refused(files, tmp_path):
    link = tmp_path / "other.beton"
    link.symlink_to(files[0])
    done = bench(files, "--test", str(link), status=None)
    assert done.returncode != 0 and f"--test {link} is also the training set" in done.stderr


@pytest.mark.parametrize(
    "device, gpus, expected",
    [
        ("cpu", ["H100"], "airbench90"),
        ("auto", [], "airbench90"),
        ("auto", ["H100"], "airbench94"),
        ("gpu", ["H100"], "airbench94"),
    ],
)
def test_the_usual_recipe_fits_the_device(monkeypatch, device, gpus, expected):
    monkeypatch.setattr(cifar.machine, "usable_gpus", lambda: (gpus, ""))
    assert cifar.usual_recipe(device) == expected and expected in recipes.RECIPES


@needs_onednn
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_training_is_measured_against_products_of_its_own_type(precision):
    if precision == "bfloat16" and not _cgxffcv.build_info()["cpu"]["avx512_bf16"]:
        pytest.skip("this processor has no products of bfloat16")
    rate, name = peak.measure("cpu", precision)
    assert rate > 0 and name == f"oneDNN's matrix product in {precision}"


@needs_onednn
def test_a_failing_run_is_told(files):
    done = bench(files, *SMALL, "--set", "batch_size=251", "--runs", "1", status=1)
    assert "the training set has only 250" in done.stderr and "the run with seed 0 failed with exit code" in done.stderr


def test_summary_of_one_run_has_no_deviation():
    run = {
        "accuracy": 0.9,
        "flops": {"train": 1e12, "optimizer": 0.0, "test": 0.0},
        "images": 100,
        "seconds": {"steps": 10.0, "field": 12.5, "again": None},
    }
    summary = cifar.summarise([run], 0.9, 200.0)
    assert summary["accuracy"]["deviation"] is None and summary["accuracy"]["standard_error"] is None
    assert (summary["gflops"], summary["share_of_peak"], summary["images_per_second"]) == (100.0, 0.5, 10.0)
    assert (summary["field_gflops"], summary["field_share_of_peak"]) == (80.0, 0.4)
    assert set(summary["seconds"]) == {"steps", "field"}
    assert cifar.summarise([run], 0.9, None)["share_of_peak"] is None
