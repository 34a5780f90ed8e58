"""train_cifar_ffcv_cgx.py from end to end on a slice of the shipped sample: alone, on ranks, stopped and resumed."""

import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import small_data
from _cgxffcv import build_info, jpeg_encode
from checkout import ROOT, run_command, start_command, wait_until

from cgxffcv import checkpoint, files
from cgxffcv.app.folder_lock import FolderLock
from cgxffcv.cifar import sample

LIMIT = 240
TINY = [
    "--training.recipe=airbench94",
    "--recipe.widths=16,16,16",
    "--batch-size",
    "200",
    "--epochs",
    "2",
    "--recipe.whiten_images=500",
    "--val-batch-size",
    "100",
]

pytestmark = [
    pytest.mark.skipif(not build_info()["onednn"], reason="this build has no oneDNN"),
    pytest.mark.medium,
]
needs_mpi = pytest.mark.skipif(
    shutil.which("mpirun") is None or not build_info()["mpi"], reason="mpirun or a build with MPI is not there"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """800 training and 100 test images."""
    folder = tmp_path_factory.mktemp("data")
    images, labels = sample.load()
    images = images.transpose(0, 2, 3, 1)
    for name, part in (("cifar_train", slice(0, 800)), ("cifar_test", slice(5000, 5100))):
        small_data.write(folder / f"{name}.beton", images[part], labels[part].astype(int))
    return folder


def words(data, log, *options, ranks=0):
    script = [str(ROOT / "train_cifar_ffcv_cgx.py"), "--dataset-dir", str(data), "--log-dir", str(log), "--no-cuda"]
    script += options
    launch = ["-m", "cgxffcv", "launch", "-np", str(ranks)] if ranks else []
    return [sys.executable, *launch, *script]


def train(data, log, *options, ranks=0, status=0):
    return run_command(*words(data, log, *options, ranks=ranks), status=status, limit=LIMIT)


def events(log, name):
    records = [json.loads(line) for line in (log / "run.jsonl").read_text().splitlines()]
    return [record for record in records if record["event"] == name]


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    log = tmp_path_factory.mktemp("alone") / "log"
    done = train(data, log, *TINY)
    return log, done


def test_alone(alone):
    log, done = alone
    assert "configuration: what differs from the defaults and recipe airbench94" in done.stdout
    assert re.search(r"training.batch_size += 200 +\(--batch-size\)", done.stdout) and "training.lr " not in done.stdout
    assert "cifar_train.beton: 800 training images of 10 classes, 32 x 32 pixels\n" in done.stdout
    assert "epoch   2/2" in done.stderr and "test accuracy" in done.stderr and "Traceback" not in done.stderr
    names = {"run.jsonl", "log.csv", "config.yaml", "last.safetensors", "best.safetensors"}
    assert {path.name for path in log.iterdir()} == names
    losses = [record["loss"] for record in events(log, "step")]
    assert len(losses) == 8 and losses[-1] < losses[0]
    assert [record["images"] for record in events(log, "step")] == [200] * 8


def test_the_same_again_gives_the_same_bytes(alone, data, tmp_path):
    train(data, tmp_path, "--config-file", str(alone[0] / "config.yaml"))
    assert (tmp_path / "last.safetensors").read_bytes() == (alone[0] / "last.safetensors").read_bytes()


@needs_mpi
@pytest.mark.parametrize("ranks, backend, bits", [(2, "cgx", 4), (2, "nccl", 32), (3, "cgx", 8)])
def test_ranks(data, tmp_path, ranks, backend, bits):
    batch = str(240 if ranks == 3 else 200)
    options = ["--dist-backend", backend, "--quantization-bits", str(bits), "--batch-size", batch]
    done = train(data, tmp_path, *TINY, *options, ranks=ranks)
    assert f"{ranks} processes, {batch} images per step" in done.stderr and "each rank sent" in done.stderr
    assert all(record["wire_bytes"] > 0 and record["skipped"] == 0 for record in events(tmp_path, "epoch"))


@needs_mpi
def test_four_bits_send_an_eighth(data, tmp_path):
    sent = {}
    for bits, backend in ((4, "cgx"), (32, "nccl")):
        log = tmp_path / str(bits)
        # wide enough that nearly all parameters are weights of convolutions
        wide = ["--recipe.widths=32,64,64", "--epochs", "1"]
        train(data, log, *TINY, *wide, "--quantization-bits", str(bits), "--dist-backend", backend, ranks=2)
        sent[bits] = events(log, "epoch")[0]["wire_bytes"]
    assert 0.12 < sent[4] / sent[32] < 0.14


def wait_for_epoch(process, log):
    wait_until((log / "last.safetensors").exists, LIMIT, process)


LONGER = [*TINY, "--epochs", "6"]


@needs_mpi
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stopped_and_resumed_gives_the_same_bytes(data, tmp_path, number):
    ranks, bits = 2, ["--dist-backend", "cgx", "--quantization-bits", "4"]
    train(data, tmp_path / "whole", *LONGER, *bits, ranks=ranks)
    log = tmp_path / "parts"
    process = start_command(*words(data, log, *LONGER, *bits, ranks=ranks))
    wait_for_epoch(process, log)
    process.send_signal(number)
    process.communicate(timeout=LIMIT)
    assert process.returncode != 0
    before = checkpoint.load(log / "last.safetensors")
    again = train(data, log, *LONGER, *bits, "--resume", ranks=ranks)
    assert "resuming from" in again.stderr, again.stderr
    assert (log / "last.safetensors").read_bytes() == (tmp_path / "whole/last.safetensors").read_bytes()
    assert len(events(log, "start")) == 2 and before


def pids_of_ranks(process, ranks):
    """The ranks below a process of launch or mpirun, found by their own environment."""
    found, left = {}, [process.pid]
    while left:
        pid = left.pop()
        for children in Path(f"/proc/{pid}/task").glob("*/children"):  # of any thread
            left += map(int, children.read_text().split())
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        found |= {int(v.partition(b"=")[2]): pid for v in variables if v.startswith(b"OMPI_COMM_WORLD_RANK=")}
    assert sorted(found) == list(range(ranks)), found
    return found


@needs_mpi
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_with_the_way_to_go_on(data, tmp_path, victim):
    process = start_command(*words(data, tmp_path, *LONGER, "--epochs", "500", ranks=2))
    wait_for_epoch(process, tmp_path)
    os.kill(pids_of_ranks(process, 2)[victim], signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=LIMIT)
    hint = f"{tmp_path}/last.safetensors exists: the same command with --resume continues from it"
    assert process.returncode != 0 and (stdout + stderr).count(hint) == 1 and "Traceback" not in stderr, stderr


@needs_mpi
def test_a_frozen_rank_ends_with_the_way_to_go_on(data, tmp_path):
    process = start_command(*words(data, tmp_path, *LONGER, "--epochs", "500", "--comm.timeout=4", ranks=2))
    wait_for_epoch(process, tmp_path)
    os.kill(pids_of_ranks(process, 2)[1], signal.SIGSTOP)
    _, stderr = process.communicate(timeout=LIMIT)
    assert process.returncode != 0 and "Traceback" not in stderr, stderr
    assert "rank 0 waited 4 s for rank 1" in stderr and "continues from it" in stderr


def test_ctrl_c_alone_keeps_what_was_done(data, tmp_path):
    whole, log = tmp_path / "whole", tmp_path / "parts"
    train(data, whole, *LONGER)
    process = start_command(*words(data, log, *LONGER))
    wait_for_epoch(process, log)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=LIMIT)
    assert process.returncode == 130 and "--resume" in stderr and "Traceback" not in stderr, stderr
    train(data, log, *LONGER, "--resume")
    assert (log / "last.safetensors").read_bytes() == (whole / "last.safetensors").read_bytes()


@pytest.mark.parametrize(
    "options, code, message",
    [
        (["--epoch", "3"], 2, "unknown option --epoch; did you mean --epochs?"),
        (["--training.recipe=airbench49"], 2, "did you mean airbench"),
        (["--data.train_dataset=none.beton"], 1, "none.beton: no such file"),
        (["--batch-size", "5000"], 1, "batch"),
        (["--training.device=gpu", "--data.gpu=99"], 1, "gpu"),
        (["--resume", "nowhere.safetensors"], 1, "nowhere.safetensors does not exist"),
        (["--recipe.network=resnet9", "--recipe.optimizer=muon"], 2, "optimizer"),
    ],
)
def test_mistakes_end_in_a_message(data, tmp_path, options, code, message):
    done = train(data, tmp_path, *TINY, *options, status=code)
    assert message in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_files_that_do_not_fit(data, tmp_path):
    (tmp_path / "bad.beton").write_bytes((data / "cifar_train.beton").read_bytes()[:100_000])
    done = train(data, tmp_path / "log", *TINY, f"--data.train_dataset={tmp_path}/bad.beton", status=1)
    assert "bad.beton" in done.stderr and "Traceback" not in done.stderr, done.stderr
    (tmp_path / "bad.safetensors").write_bytes(b"x" * 100)
    done = train(data, tmp_path / "log", *TINY, "--resume", str(tmp_path / "bad.safetensors"), status=1)
    assert "bad.safetensors" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_the_second_run_in_a_folder_is_refused(data, tmp_path):
    first = start_command(*words(data, tmp_path, *LONGER, "--epochs", "500"))
    try:
        wait_for_epoch(first, tmp_path)
        for again in ([], ["--resume"]):
            done = train(data, tmp_path, *TINY, *again, status=1)
            assert f"another run is writing to it: process {first.pid} on" in done.stderr
            assert len(events(tmp_path, "start")) == 1
    finally:
        first.kill()
        first.communicate()
    train(data, tmp_path, *TINY, "--epochs", "1")


@needs_mpi
def test_the_ranks_of_a_job_share_the_folder_and_refuse_together(data, tmp_path):
    with FolderLock(tmp_path, print):
        done = train(data, tmp_path, *TINY, ranks=2, status=None)
        assert done.returncode != 0 and f"another run is writing to it: process {os.getpid()}" in done.stderr
    done = train(data, tmp_path, *TINY, "--epochs", "1", ranks=2)
    assert not (tmp_path / ".lock").exists(), done.stderr


@pytest.mark.parametrize("ranks", [0, pytest.param(2, marks=needs_mpi)])
def test_a_training_that_came_to_nothing_ends_with_an_error(data, tmp_path, ranks):
    done = train(data, tmp_path, *TINY, "--base-lr", "1e30", ranks=ranks, status=1)
    assert "Traceback" not in done.stderr, done.stderr
    told = [
        line for line in done.stderr.splitlines() if line.startswith("train_cifar_ffcv_cgx.py: error: this training")
    ]
    assert len(told) == 1 and "steps were skipped, because a loss or a gradient was not finite" in told[0], done.stderr
    assert events(tmp_path, "failed")[0]["error"].startswith("TrainingDiverged")


def test_training_images_in_the_test_set(data, tmp_path):
    train_set = data / "cifar_train.beton"
    done = train(data, tmp_path, *TINY, f"--data.val_dataset={train_set}", status=1)
    assert "is also the training set" in done.stderr, done.stderr
    shutil.copy(train_set, tmp_path / "copy.beton")
    done = train(data, tmp_path / "log", *TINY, "--epochs", "1", f"--data.val_dataset={tmp_path}/copy.beton")
    assert done.stderr.count("WARNING: 64 of 64 images of the test set") == 2, done.stderr


@needs_mpi
def test_a_finished_run_is_prolonged_by_another_number_of_ranks(alone, data, tmp_path):
    shutil.copytree(alone[0], tmp_path / "log")
    done = train(data, tmp_path / "log", *TINY, "--resume")
    assert "nothing to do: all 2 epochs are already done; with more" in done.stderr, done.stderr
    done = train(data, tmp_path / "log", *TINY, "--resume", "--epochs", "3", ranks=2)
    assert "the run had 2 epochs, and now 3" in done.stderr and "had 1 process, and now 2" in done.stderr
    assert [record["epoch"] for record in events(tmp_path / "log", "epoch")] == [1, 2, 3]
    done = train(data, tmp_path / "log", *TINY, "--resume", "--recipe.batch_scope=process", status=1)
    assert "batch_scope is 'global'" in done.stderr and "Traceback" not in done.stderr


@needs_mpi
def test_mistakes_under_mpirun_are_told_by_rank_0_first(data, tmp_path):
    done = train(data, tmp_path, "--epoch", "3", ranks=2, status=None)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert done.stderr.startswith("train_cifar_ffcv_cgx.py: error: unknown option --epoch"), done.stderr


@pytest.mark.parametrize("recipe", [None, "demo"])
def test_the_default_and_the_demo_on_a_few_images(data, tmp_path, recipe):
    chosen = [f"--training.recipe={recipe}"] if recipe else []
    done = train(data, tmp_path, *chosen, "--epochs", "1", "--batch-size", "100", "--quantization-bits", "4")
    assert f"training {recipe or 'resnet9'}: 1 epoch, 8 steps" in done.stderr and "UNCOMPRESSED" in done.stdout
    assert "This will take about" in done.stderr


@needs_mpi
def test_any_number_of_ranks_shares_a_batch(data, tmp_path):
    done = train(data, tmp_path, "--training.recipe=airbench90", "--epochs", "1", "--recipe.hardest=0:1", ranks=3)
    assert "a step takes 498 images" in done.stdout and "3 processes, 498 images per step" in done.stderr


@needs_mpi
def test_two_ranks_train_on_a_folder_in_four_bits(tmp_path):
    images, labels = sample.load()
    for number, (image, label) in enumerate(zip(images[:300].transpose(0, 2, 3, 1), labels[:300], strict=True)):
        place = tmp_path / "pictures" / f"kind{label % 3}"
        place.mkdir(parents=True, exist_ok=True)
        files.write(place / f"{number}.jpg", [jpeg_encode(np.ascontiguousarray(image))])
    options = ["--training.recipe=airbench94", "--recipe.widths=16,16,16", "--epochs", "2", "--dist-backend", "cgx"]
    options += ["--quantization-bits", "4", "--data.source=folder", f"--data.folder={tmp_path / 'pictures'}"]
    options += ["--data.side=24", "--data.num_workers=1"]
    done = train(tmp_path / "data", tmp_path / "run", *options, ranks=2)
    told = done.stdout + done.stderr
    assert told.count("270 images for training and 30 for the test") == 1  # one rank makes the files
    assert "each rank sent" in done.stderr
    header = checkpoint.load(tmp_path / "run" / "last.safetensors")
    assert header["classes"] == ["kind0", "kind1", "kind2"] and header["compression"]["bits"] == 4
