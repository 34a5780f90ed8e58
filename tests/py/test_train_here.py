"""What `make train` starts."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import small_data
from checkout import run_python

from cgxffcv import device, recipes
from cgxffcv.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Calls tools/train_here.py on a small data set; returns the command that it would become."""
    spec = importlib.util.spec_from_file_location("train_here", ROOT / "tools/train_here.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    commands = []
    monkeypatch.setattr(os, "execv", lambda program, words: commands.append((program, words)))
    monkeypatch.chdir(ROOT)
    train, _ = small_data.make(tmp_path)

    def call(ranks, *options):
        module.main(ranks, [f"--data.train_dataset={train}", *options])
        return commands.pop()

    return call


def test_what_the_user_says_counts(started, monkeypatch):
    monkeypatch.setattr(device, "devices", list)
    program, words = started("2", "--epochs", "3")
    assert program == sys.executable and words[:6] == [sys.executable, "-m", "cgxffcv", "launch", "-np", "2"]
    assert not [word for word in words if word.startswith("--training.batch_size")]
    assert words.index("3") > words.index("20")  # the user's value comes later and wins


def test_without_a_number_it_takes_what_is_there(started, monkeypatch, capsys):
    monkeypatch.setattr(device, "devices", list)
    words = started("auto")[1]
    assert words[5] == "2" and "--training.recipe=airbench90" in words and "on 2 GPUs" not in capsys.readouterr().out
    monkeypatch.setattr(device, "devices", lambda: [{}] * 3)
    words = started("auto")[1]
    assert words[5] == "3" and "--training.recipe=airbench94" in words
    assert "--quantization-bits" not in words and "3 ranks on 3 GPUs" in capsys.readouterr().out
    assert "--training.recipe=airbench90" in started("auto", "--no-cuda")[1]
    with pytest.raises(UserError, match="there is no GPU 3 here"):
        started("auto", "--data.gpu=3")


def test_gpus_train_as_many_steps_of_fewer_images(started, monkeypatch):
    monkeypatch.setattr(device, "devices", lambda: [{}])
    words = started("auto")[1]
    epochs = float(words[words.index("--epochs") + 1])
    whole = recipes.get("airbench94").epochs * 50_000
    assert epochs == pytest.approx(whole / 250, abs=0.5)


@pytest.mark.parametrize("ranks", ["0", "two", "-1", ""])
def test_wrong_numbers_of_ranks(started, ranks):
    with pytest.raises(UserError, match="expected a whole number from 1"):
        started(ranks)


def test_mistakes_are_told_without_a_traceback(tmp_path):
    for words, told in (
        (["auto", "--lerning_rate=1"], "unknown option --lerning_rate; did you mean --training.lr?"),
        (["none"], "RANKS = 'none': expected a whole number"),
        (["auto", f"--dataset-dir={tmp_path}"], "cifar_train.beton: cannot open the file"),
    ):
        done = run_python(ROOT / "tools/train_here.py", *words, status=None, cwd=ROOT)
        assert told in done.stderr and done.stderr.count("\n") == 1 and done.returncode in (1, 2), done.stderr
