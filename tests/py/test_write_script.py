"""write_datasets.py end to end, and cgxffcv info and verify on what it writes."""

import json

import numpy as np
import pytest
from checkout import ROOT, run_python

from cgxffcv.app import cli
from cgxffcv.cifar import sample
from cgxffcv.errors import ConfigError
from cgxffcv.reader import Reader


def run(*arguments, cwd=ROOT, status=0):
    return run_python(*arguments, status=status, cwd=cwd)


def write(*arguments, **options):
    return run(ROOT / "write_datasets.py", *arguments, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("betons")
    done = write("--config-file", "default_config.yaml", "--dataset-dir", str(folder), "--data.source=sample")
    assert "5,000 samples" in done.stdout and "1,000 samples" in done.stdout
    return folder


def test_the_files_hold_the_sample(folder):
    images, labels = sample.load()
    images = images.transpose(0, 2, 3, 1)
    for name, begin, end in (("cifar_train", 0, 5000), ("cifar_test", 5000, 6000)):
        with Reader(folder / f"{name}.beton") as reader:
            assert len(reader) == end - begin
            for i in (*range(0, end - begin, 97), end - begin - 1):
                assert np.array_equal(reader[i]["image"], images[begin + i])
                assert reader[i]["label"] == labels[begin + i]


def test_writing_again_gives_the_same_bytes(folder, tmp_path):
    write("--dataset-dir", str(tmp_path / "a/b"), "--data.source=sample", "--data.num_workers=1")
    for name in ("cifar_train.beton", "cifar_test.beton"):
        assert (tmp_path / "a/b" / name).read_bytes() == (folder / name).read_bytes()


def test_relative_paths_belong_to_the_working_directory(tmp_path):
    write("--data.source=sample", cwd=tmp_path)
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == ["cifar_test.beton", "cifar_train.beton"]


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["--data.sauce=auto"], 2, "unknown option --data.sauce; did you mean --data.source?"),
        (["--data.source=cloud"], 2, "expected one of auto, local, download, sample"),
        (["--data.train_dataset=x.beton", "--data.val_dataset=./x.beton"], 2, "are the same file: x.beton"),
        (["--data.num_workers=2000"], 2, "expected a whole number from 1 to 1024, or -1"),
        (["--data.source=local", "--data.root=/proc/nowhere"], 1, "no CIFAR-10 in /proc/nowhere"),
        (["--data.source=sample", "--data.train_dataset=/proc/none/x.beton"], 1, "/proc/none"),
    ],
)
def test_mistakes(arguments, code, message):
    done = write(*arguments, status=code)
    assert message in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_info(folder):
    done = run("-m", "cgxffcv", "info", str(folder / "cifar_train.beton"))
    assert "5,000 samples" in done.stdout and "    label  int\n" in done.stdout
    found = json.loads(run("-m", "cgxffcv", "info", "--json", str(folder / "cifar_test.beton")).stdout)
    assert found["num_samples"] == 1000 and [f["name"] for f in found["fields"]] == ["image", "label"]


def test_verify(folder, tmp_path):
    done = run("-m", "cgxffcv", "verify", str(folder / "cifar_test.beton"))
    assert "no problems" in done.stdout
    cut = tmp_path / "cut.beton"
    cut.write_bytes((folder / "cifar_test.beton").read_bytes()[:-24])
    done = run("-m", "cgxffcv", "verify", str(cut), status=1)
    assert "1 problem\n" in done.stdout and "Traceback" not in done.stderr
    assert json.loads(run("-m", "cgxffcv", "verify", "--json", str(cut), status=1).stdout)["ok"] is False


@pytest.mark.parametrize("command", ["info", "verify"])
def test_files_that_are_none(command, tmp_path):
    done = run("-m", "cgxffcv", command, str(tmp_path / "none.beton"), status=1)
    assert "none.beton" in done.stderr and "No such file" in done.stderr
    assert "Traceback" not in done.stderr
    (tmp_path / "text.beton").write_text("hello")
    done = run("-m", "cgxffcv", command, str(tmp_path / "text.beton"), status=1)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["train", "write"])
@pytest.mark.parametrize("options", [[], ["--data.source=local"], ["--data.source=sample"]])
def test_a_folder_that_would_not_be_read_is_refused(tmp_path, monkeypatch, command, options):
    """It used to be ignored, and what was trained on were files from another time."""
    monkeypatch.chdir(tmp_path)
    for key in ("data.folder", "data.val_folder"):
        with pytest.raises(ConfigError, match=f"{key} = .* is read with data.source = folder only, but .*: add --data"):
            cli.run([command, f"--{key}=pictures", *options])
    assert not (tmp_path / "runs").exists()
