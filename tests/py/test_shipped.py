"""`cgxffcv train --data.source=sample`: everything that a first try needs, with one command."""

import os
import sys

import pytest
from _cgxffcv import build_info
from checkout import start_command

from cgxffcv import Reader
from cgxffcv.app import cli, config, session, shipped
from cgxffcv.errors import UserError

needs_networks = pytest.mark.skipif(not build_info()["onednn"], reason="this build has no oneDNN")
SAMPLE = "--data.source=sample"
PAIR = ("data/cifar_train.beton", "data/cifar_test.beton")


def settings(*words):
    return config.load([SAMPLE, *words], environ={})


@pytest.mark.medium
@needs_networks
def test_one_command_writes_trains_and_tests(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["train", SAMPLE, "--epochs=1", "--recipe.widths=16,16,16", "--no-cuda", "--training.num_workers=1"]
    assert cli.run(words) == 0
    said = "".join(capsys.readouterr())
    assert "data/cifar_test.beton: 1,000 samples" in said and "(for the sample on a CPU)" in said
    assert "training airbench90: " in said and "of 1,000 images" in said
    made = [os.stat(path).st_mtime_ns for path in PAIR]
    assert cli.run(words) == 0
    assert [os.stat(path).st_mtime_ns for path in PAIR] == made


def test_ranks_wait_for_the_one_that_writes(tmp_path):
    code = f"from cgxffcv.app import config, shipped; shipped.prepare(config.load([{SAMPLE!r}], environ={{}}))"
    ranks = [start_command(sys.executable, "-c", code, cwd=tmp_path) for _ in range(3)]
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0, 0]
    assert sum("samples" in text for text in said) == 1, said  # other ranks may report that they wait
    with Reader(tmp_path / PAIR[0]) as train, Reader(tmp_path / PAIR[1]) as test:
        assert (len(train), len(test)) == (5000, 1000)


def test_files_that_are_there_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("data")
    with open(PAIR[0], "wb") as file:
        file.write(b"somebody's")
    with pytest.raises(UserError, match="cifar_test.beton: no such file"):
        session.make_files(settings())
    with open(PAIR[0], "rb") as file:
        assert file.read() == b"somebody's"


@pytest.mark.parametrize(
    ("words", "gpus", "recipe", "epochs"),
    [
        ([], 0, "airbench90", 20),
        (["--epochs=3"], 0, "airbench90", 3),
        ([], 1, "resnet9", None),
        (["--no-cuda"], 1, "airbench90", 20),
        (["--training.device=gpu"], 0, "resnet9", None),  # which is refused later
        (["--training.recipe=demo"], 0, "demo", None),
    ],
)
def test_a_recipe_for_the_processor_where_none_is_named(monkeypatch, words, gpus, recipe, epochs):
    monkeypatch.setattr("cgxffcv.device.devices", lambda: [{}] * gpus)
    c = settings(*words)
    shipped.suit_cpu(c)
    assert (c.training.recipe, c.training.epochs) == (recipe, epochs)
