"""`bench cifar`: the figures of small trainings, and what is said of them."""

import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import _cgxffcv
import numpy as np
import pytest
import small_data

from cgxffcv.bench import cifar
from cgxffcv.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "--recipe", "airbench94", "--set", "widths=[16,16,16]", "--set", "head_scale=0.0625", "--set", "batch_size=50",
    "--set", "epochs=1", "--set", "lr=0.1", "--set", "whiten_images=100", "--threads", "1", "--target", "0.5",
]  # fmt: skip
needs_onednn = pytest.mark.skipif(not _cgxffcv.build_info()["onednn"], reason="networks need oneDNN")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return small_data.make(tmp_path_factory.mktemp("data"))


def bench(files, *options):
    train, test = files
    command = [sys.executable, "-m", "cgxffcv", "bench", "cifar", "--train", train, "--test", test, *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@needs_onednn
def test_figures_of_two_runs(files, tmp_path):
    out = tmp_path / "figures.json"
    done = bench(files, *SMALL, "--runs", "2", "--json", str(out))
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    summary, runs = figures["summary"], figures["runs"]
    assert [run["seed"] for run in runs] == [0, 1]
    accuracies = [run["accuracy"] for run in runs]
    assert summary["accuracy"]["mean"] == pytest.approx(statistics.fmean(accuracies))
    assert summary["accuracy"]["standard_error"] == pytest.approx(statistics.stdev(accuracies) / math.sqrt(2))
    assert summary["accuracy"]["share_at_target"] == sum(a >= 0.5 for a in accuracies) / 2
    for run in runs:
        seconds = run["seconds"]
        assert 0 < seconds["steps"] < seconds["training"] <= seconds["call"] <= seconds["process"]
        assert (run["steps"], run["images"], run["skipped"], run["wire_bytes"]) == (5, 250, 0, 0)
    assert figures["recipe"]["widths"] == [16, 16, 16]
    assert f"target      50.00 %, reached by {50 * sum(a >= 0.5 for a in accuracies)} % of the runs" in done.stdout
    again = bench(files, *SMALL, "--runs", "1", "--first-seed", "1", "--json", "-")
    assert json.loads(again.stdout)["runs"][0]["accuracy"] == runs[1]["accuracy"]


@needs_onednn
def test_held_out_images_are_tested_and_not_trained_on(files):
    done = bench(files, *SMALL, "--runs", "1", "--first-seed", "2", "--holdout", "100", "--json", "-")
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)["runs"][0]
    assert run["images"] == 150 and 100 * run["accuracy"] == pytest.approx(round(100 * run["accuracy"]))
    folds = cifar.hold_out(files[0], 100, 3)
    np.testing.assert_array_equal(folds["test_indices"], np.arange(100, 200))
    np.testing.assert_array_equal(folds["train_indices"], [*range(100), *range(200, 250)])
    with pytest.raises(UserError, match="--holdout 250: expected 1 to 249"):
        cifar.hold_out(files[0], 250, 0)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--recipe", "airbench9"], "no recipe 'airbench9'; did you mean"),
        (["--set", "epochs"], "--set epochs: expected FIELD=VALUE"),
        (["--set", "epoch=3"], "no field 'epoch'; did you mean epochs"),
        (["--runs", "0"], "--runs 0: expected at least 1"),
        (["--test", "nowhere.beton"], "nowhere.beton: no such file"),
    ],
)
def test_mistakes(files, options, message):
    done = bench(files, *options)
    assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr


@needs_onednn
def test_a_failing_run_is_told(files):
    done = bench(files, *SMALL, "--set", "batch_size=251", "--runs", "1")
    assert done.returncode == 1
    assert "the training set has only 250" in done.stderr and "the run with seed 0 failed with exit code" in done.stderr


def test_summary_of_one_run_has_no_deviation():
    run = {
        "accuracy": 0.9, "flops": {"train": 1e12, "optimizer": 0.0, "test": 0.0}, "images": 100,
        "seconds": {"steps": 10.0, "training": 12.0},
    }  # fmt: skip
    summary = cifar.summarise([run], 0.9, 200.0)
    assert summary["accuracy"]["deviation"] is None and summary["accuracy"]["standard_error"] is None
    assert (summary["gflops"], summary["share_of_peak"], summary["images_per_second"]) == (100.0, 0.5, 10.0)
