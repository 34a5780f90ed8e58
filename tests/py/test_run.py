"""From a configuration to a run that reports, with a trainer that only pretends to train."""

import contextlib
import csv
import json
import math
import time

import _cgxffcv
import numpy as np
import pytest
import small_data

from cgxffcv import device, rank_claim, recipes
from cgxffcv.app import config, session
from cgxffcv.app.overlap import shared_images
from cgxffcv.app.report import RunLog
from cgxffcv.app.run import Run, cheapest, forecast, gigaflops
from cgxffcv.errors import ConfigError, UserError
from cgxffcv.train.interface import EpochReport, EvaluationReport, StepReport
from cgxffcv.train.plan import image_flops
from cgxffcv.train.tally import TrainingDiverged

STEPS = 5


class PretendTrainer:
    """The trainer's interface over made-up numbers: epoch e has test accuracy ACCURACY[e]."""

    ACCURACY = (0.3, 0.5, 0.4)

    def __init__(self, recipe=None, rank=0, ranks=1, seconds=0.01):
        self.recipe, self.rank, self.ranks, self.seconds = recipe or recipes.get("demo"), rank, ranks, seconds
        self.epochs, self.steps_per_epoch, self.images_per_step = len(self.ACCURACY), STEPS, 100 * ranks
        self.steps, self.test_images = STEPS * self.epochs, 50
        self.epoch = self.step = 0
        self.best_accuracy, self.skipped, self.saved = 0.0, 0, []
        self.gpu, self.precision = None, "float32"

    flops_per_image = 1e9 * gigaflops(recipes.get("demo"))

    def total_flops(self):
        test = self.test_images * image_flops(self.recipe)[0]
        return {"train": self.steps * self.images_per_step * self.flops_per_image, "optimizer": 0.0, "test": test}

    @property
    def finished(self):
        return self.epoch == self.epochs

    def run_epoch(self):
        for _ in range(STEPS):
            loss = 2.0 - self.step / self.steps
            yield StepReport(self.epoch, self.step, self.steps, 100, loss, 40, 0.1, self.seconds, 0.0, 1000, False, 32)
            self.step += 1

    def end_epoch(self):
        self.epoch += 1
        images = STEPS * self.images_per_step
        return EpochReport(self.epoch - 1, images, 1.5, 40 * STEPS, 0.4, 2.0, 5000 * self.ranks, 0, "abc")

    def evaluate(self, tta=True):
        accuracy = self.ACCURACY[self.epoch - 1]
        self.best_accuracy = max(self.best_accuracy, accuracy)
        return EvaluationReport(self.epoch, 50, int(50 * accuracy), accuracy, 1.2, 0.5)

    def algorithms(self):
        """One more plan with each of the first two epochs."""
        plans = [{"layer": "conv", "side": side} for side in (24, 32)[: self.epoch]]
        return {"device": "cpu", "library": "none 1", "cache": "", "note": "", "plans": plans}

    def save(self, path, *, best=False):
        self.saved.append((path.name, self.epoch, best))
        if self.rank == 0:
            path.write_text(str(self.epoch))


def settings(folder, *argv):
    return config.load(["--log-dir", str(folder), "--log.progress=lines", "--log.interval=0", *argv], environ={})


def go(trainer, folder, *argv, resumed=None, stop_at=None):
    c = settings(folder, *argv)
    session.choose_recipe(c, lambda text: None)
    with Run(c, trainer, time.monotonic(), resumed) as run:
        while not trainer.finished:
            for step in trainer.run_epoch():
                if step.step == stop_at:
                    raise KeyboardInterrupt
                run.step(step)
            epoch = trainer.end_epoch()
            run.epoch(epoch, trainer.evaluate() if run.test_is_due() else None)


def events(folder):
    return [json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines()]


def test_a_whole_run(tmp_path, capsys):
    trainer = PretendTrainer()
    go(trainer, tmp_path / "log")
    out = capsys.readouterr().err
    assert "training demo: 3 epochs, 15 steps, 1 process, 100 images per step" in out
    assert "epoch   2/3: loss 1.500, train 40.00%, test 50.00%, 250 img/s, 2.0 s + 0.5 s\n" in out
    assert "test accuracy 40.00% (20 of 50 images), best 50.00%" in out and "sent" not in out
    bar = next(line for line in out.splitlines() if line.startswith("epoch 1/3"))
    assert "img/s" in bar and "loss 2.000" in bar and "acc 40.0%" in bar
    last, best = "last.safetensors", "best.safetensors"
    assert trainer.saved == [(last, 1, False), (best, 1, True), (last, 2, False), (best, 2, True), (last, 3, False)]
    names = [event["event"] for event in events(tmp_path / "log")]
    assert names[0] == "start" and names[-1] == "end" and names.count("step") == 15 and names.count("epoch") == 3
    plans = [event for event in events(tmp_path / "log") if event["event"] == "plans"]
    assert [[plan["side"] for plan in event["plans"]] for event in plans] == [[24], [32]]
    assert all(event["library"] == "none 1" for event in plans) and names.index("plans") < names.index("epoch")
    rows = list(csv.DictReader((tmp_path / "log/log.csv").open()))
    assert [float(row["test_accuracy"]) for row in rows] == [0.3, 0.5, 0.4]
    again = config.load(["--config-file", str(tmp_path / "log/config.yaml")], environ={})
    assert again.training.recipe == "resnet9" and again.training.batch_size == 512


def test_tests_may_be_rarer(tmp_path, capsys):
    trainer = PretendTrainer()
    go(trainer, tmp_path, "--training.test_every=2")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch   ")]
    assert [line.split()[1] for line in lines] == ["2/3:", "3/3:"] and all("test" in line for line in lines)
    assert [name for name, _, _ in trainer.saved].count("last.safetensors") == 3
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [row["test_accuracy"] for row in rows] == ["", "0.5", "0.4"]


@pytest.mark.parametrize(
    "name, changes, expected",
    [
        ("resnet9", {}, "of 50 images, mean of 2 views), best"),
        ("airbench90", {}, "of 50 images, mean of 6 views for the least sure 25%), best"),
        ("airbench90", {"test_share": 0}, "of 50 images), best"),
    ],
)
def test_the_last_test_says_what_it_looked_at(tmp_path, capsys, name, changes, expected):
    go(PretendTrainer(recipes.get(name).replace(**changes)), tmp_path)
    assert expected in capsys.readouterr().err


def test_several_ranks_say_what_they_sent(tmp_path, capsys):
    go(PretendTrainer(ranks=2), tmp_path)
    out = capsys.readouterr().err
    assert "2 processes, 200 images per step" in out and ", 10.0 kB sent" in out
    assert "each rank sent 15.0 kB for gradients" in out


def test_other_ranks_are_silent_and_keep_nothing(tmp_path, capsys):
    trainer = PretendTrainer(rank=1, ranks=2)
    go(trainer, tmp_path / "log")
    assert capsys.readouterr() == ("", "")
    assert not (tmp_path / "log").exists() and len(trainer.saved) == 5


@pytest.mark.parametrize(
    "skipped, loss, expected", [(8, 1.2, "8 of 15 steps were skipped, because"), (0, math.nan, "not finite")]
)
def test_a_training_that_came_to_nothing_ends_with_an_error(tmp_path, capsys, skipped, loss, expected):
    trainer = PretendTrainer()
    trainer.skipped, test = skipped, trainer.evaluate
    trainer.evaluate = lambda: test()._replace(loss=loss)
    with pytest.raises(TrainingDiverged, match=f"diverged: .*{expected}.*; lower the learning rate"):
        go(trainer, tmp_path)
    assert [event["event"] for event in events(tmp_path)][-2:] == ["end", "failed"]
    assert ("8 of 15 steps were skipped (see above)" in capsys.readouterr().err) == (skipped > 0)


def test_half_of_the_steps_are_too_many_to_leave_out(tmp_path):
    for skipped, enough in ((4, True), (5, False)):
        trainer = PretendTrainer()
        trainer.epochs, trainer.steps, trainer.skipped = 2, 2 * STEPS, skipped
        with contextlib.nullcontext() if enough else pytest.raises(TrainingDiverged, match="5 of 10 steps"):
            go(trainer, tmp_path)


def test_a_few_steps_left_out_are_told(tmp_path, capsys):
    trainer = PretendTrainer()
    trainer.skipped = 7
    go(trainer, tmp_path)
    assert "7 of 15 steps were skipped" in capsys.readouterr().err


def test_a_warning_stands_at_both_ends_and_changes_after_the_start(tmp_path, capsys):
    c = settings(tmp_path)
    trainer = PretendTrainer()
    with Run(c, trainer, time.monotonic(), None, [], "BEWARE") as run:
        while not trainer.finished:
            list(map(run.step, trainer.run_epoch()))
            run.epoch(trainer.end_epoch(), trainer.evaluate())
    lines = capsys.readouterr().err.splitlines()
    assert lines.count("BEWARE") == 2 and lines.index("BEWARE") < 3
    assert events(tmp_path)[0]["warning"] == "BEWARE"
    with Run(c, trainer, time.monotonic(), tmp_path / "last.safetensors", ["another length"]):
        pass
    assert "note: another length" in capsys.readouterr().err


def test_a_new_run_keeps_the_old_one(tmp_path, capsys):
    go(PretendTrainer(), tmp_path)
    go(PretendTrainer(), tmp_path)
    old = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(old) == 1 and (old[0] / "last.safetensors").read_text() == "3" and len(events(old[0])) == 20 + 3
    assert f"is now in {old[0]}" in capsys.readouterr().out


def test_interrupted_and_resumed(tmp_path, capsys):
    trainer = PretendTrainer()
    with pytest.raises(KeyboardInterrupt):
        go(trainer, tmp_path, stop_at=7)
    assert "the same command with --resume continues from it" in capsys.readouterr().err
    assert trainer.saved[-1] == ("last.safetensors", 1, False) and events(tmp_path)[-1]["event"] == "interrupted"
    checkpoint = session.checkpoint_to_resume(settings(tmp_path, "--resume"))
    again = PretendTrainer()
    again.epoch, again.step, again.best_accuracy = 1, STEPS, 0.3
    go(again, tmp_path, resumed=checkpoint)
    assert "resuming from" in capsys.readouterr().err
    assert [e["event"] for e in events(tmp_path)].count("start") == 2  # the log is continued
    assert ("best.safetensors", 2, True) in again.saved and ("best.safetensors", 3, True) not in again.saved


def test_another_rank_tells_how_to_go_on_only_where_rank_0_could_not(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rank_claim, "is_first_left", lambda: True)

    def end_of_rank_1():
        trainer = PretendTrainer()
        trainer.rank, trainer.ranks = 1, 2
        with pytest.raises(KeyboardInterrupt):
            go(trainer, tmp_path, stop_at=7)
        return capsys.readouterr().err.count("the same command with --resume continues from it")

    go(PretendTrainer(), tmp_path)  # rank 0, which says nothing about an interruption
    capsys.readouterr()
    assert end_of_rank_1() == 1
    with RunLog(tmp_path, resume=True) as log:
        log.event("interrupted", {"step": 7})
    assert end_of_rank_1() == 0


def test_resumed_into_another_folder_it_keeps_a_best_network_there(tmp_path, capsys):
    go(PretendTrainer(), tmp_path / "old", stop_at=None)
    again = PretendTrainer()
    again.epoch, again.step, again.best_accuracy = 2, 2 * STEPS, 0.5
    go(again, tmp_path / "new", resumed=tmp_path / "old/last.safetensors")
    assert again.saved == [("last.safetensors", 3, False), ("best.safetensors", 3, True)]
    assert "test accuracy 40.00% (20 of 50 images), best 50.00%" in capsys.readouterr().err


def test_an_interrupted_rank_among_others_does_not_save(tmp_path, capsys):
    trainer = PretendTrainer(ranks=2)
    with pytest.raises(KeyboardInterrupt):
        go(trainer, tmp_path, stop_at=2)
    assert trainer.saved == [] and "--resume" not in capsys.readouterr().err


def test_a_failure_is_in_the_log(tmp_path):
    trainer = PretendTrainer()
    trainer.evaluate = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        go(trainer, tmp_path)
    assert events(tmp_path)[-1]["error"] == "ZeroDivisionError: division by zero"


def test_resumed_when_all_is_done(tmp_path, capsys):
    trainer = PretendTrainer()
    trainer.epoch = trainer.epochs
    go(trainer, tmp_path)
    assert "all 3 epochs are already done; with more than 20 epochs (--epochs) the training" in capsys.readouterr().err


# --- the forecast --------------------------------------------------------------------------------------------------


def test_cost_of_the_recipes():
    # the multiplications and additions that docs give for the two networks, forward and backward
    assert gigaflops(recipes.get("demo")) == pytest.approx(1.744, rel=1e-3)
    assert gigaflops(recipes.get("airbench94")) == pytest.approx(0.70, abs=0.02)


def test_forecast_recommends_a_faster_recipe_for_long_trainings():
    resnet9, images = recipes.get("resnet9"), 50_000
    assert len(forecast(resnet9, 59.9, images)) == 1 and len(forecast(resnet9, 60.0, images)) == 2
    lines = forecast(resnet9, 5400.0, images)
    assert "1 h 30 min" in lines[0] and f"--training.recipe={cheapest(images, resnet9).name}" in lines[1]
    assert len(forecast(cheapest(images, resnet9), 5400.0, images)) == 1
    assert len(forecast(cheapest(images, resnet9).replace(epochs=40), 5400.0, images)) == 1  # it is not its own remedy
    assert len(forecast(resnet9.replace(epochs=0.1), 5400.0, images)) == 1  # the other one takes longer


def test_a_gpu_is_named_and_no_cpu_recommended(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(_cgxffcv, "devices", lambda: [{"name": "NVIDIA H100"}] * 2)
    trainer = PretendTrainer(seconds=500.0, ranks=2)
    trainer.gpu, trainer.precision = 1, "float16"
    trainer.explain = lambda: "on the GPUs by NCCL 2.28.9\nin detail"
    go(trainer, tmp_path)
    text = capsys.readouterr().err
    assert "on GPU 1 (NVIDIA H100), float16" in text and "gradients are reduced on the GPUs by NCCL 2.28.9\n" in text
    assert "This will take about" in text and "made for GPUs" not in text and "in detail" not in text


def test_forecast_comes_after_a_few_steps(tmp_path, capsys):
    go(PretendTrainer(seconds=500.0), tmp_path)
    lines = capsys.readouterr().err.splitlines()
    said = [i for i, line in enumerate(lines) if line.startswith("This will take about")]
    # 11 steps of 500 s are left after 4, and 3 tests of 50 images, a third of whose cost is an image's in training
    assert len(said) == 1 and "1 h 35 min" in lines[said[0]] and "--training.recipe=" in lines[said[0] + 1]


# --- from the configuration ----------------------------------------------------------------------------------------


def chosen(*argv):
    c, said = config.load(list(argv), environ={}), []
    return session.choose_recipe(c, said.append), c, said


def test_resnet9_is_the_default():
    recipe, c, said = chosen()
    t = c.training
    assert (recipe.name, t.batch_size, t.epochs, t.lr, t.momentum) == ("resnet9", 512, 20, 0.5, 0.9)
    assert (t.weight_decay, t.lr_peak_epoch, t.label_smoothing, t.lr_tta) == (5e-4, 5, 0.1, True)
    assert c.origin("training.lr") == "recipe resnet9" and said == []


def test_the_demo_stays_the_demo():
    recipe, c, said = chosen("--training.recipe=demo")
    t = c.training
    assert (recipe.name, t.batch_size, t.epochs, t.lr, t.momentum, t.weight_decay) == ("demo", 256, 20, 0.1, 0.9, 1e-4)
    assert recipe.batch_scope == "process" and c.origin("training.lr") == "recipe demo" and said == []


@pytest.mark.parametrize("recipe, ranks, batch", [("resnet9", 3, 510), ("airbench94", 3, 1998), ("resnet9", 600, 600)])
def test_a_batch_that_the_ranks_can_share(monkeypatch, recipe, ranks, batch):
    monkeypatch.setattr(session.process, "ranks", lambda: ranks)
    found, c, said = chosen(f"--training.recipe={recipe}")
    assert found.batch_size == c.training.batch_size == batch and found.local_batch(ranks) * ranks == batch
    assert f"{batch:,} images" in said[0] and f"{ranks} processes" in said[0]
    assert c.origin("training.batch_size") == f"recipe {recipe}, for {ranks} processes"


def test_a_batch_that_somebody_wants_stays(monkeypatch):
    monkeypatch.setattr(session.process, "ranks", lambda: 3)
    for options in (["--batch-size", "512"], ["--training.recipe=demo"]):
        assert chosen(*options)[0].batch_size in (256, 512) and chosen(*options)[2] == []


def test_a_recipe_with_changes():
    recipe, c, _ = chosen("--training.recipe=airbench94", "--epochs=3", "--recipe.widths=16,64,64")
    assert (recipe.epochs, recipe.widths, recipe.optimizer) == (3, (16, 64, 64), "muon")
    assert c.origin("training.epochs") == "--epochs" and c.origin("recipe.optimizer") == "recipe airbench94"


def test_a_configuration_of_ffcvs_trains_what_ffcv_does():
    theirs = {
        "batch_size": 512,
        "epochs": 16,
        "lr": 0.5,
        "momentum": 0.9,
        "lr_peak_epoch": 4,
        "weight_decay": 5e-4,
        "label_smoothing": 0.1,
        "lr_tta": True,
    }
    recipe = chosen(*(f"--training.{name}={value}" for name, value in theirs.items()))[0]
    ffcv = recipes.get("ffcv").replace(**theirs)
    assert recipe.replace(name="", summary="", batch_scope="process") == ffcv.replace(name="", summary="")
    recipe, _, said = chosen("--training.lr_peak_epoch=4", "--training.recipe=demo")
    assert recipe.name == "demo" and "lr_peak_epoch is not used" in said[0]


@pytest.mark.parametrize(
    "argv, expected",
    [
        (["--training.recipe=airbench49"], "--training.recipe: training.recipe: no recipe 'airbench49'; did you mean"),
        (["--recipe.activation=rlu"], "recipe.activation (--recipe.activation)"),
        (["--recipe.widths=1,2", "--training.recipe=airbench94"], "recipe.widths (--recipe.widths)"),
    ],
)
def test_recipes_that_cannot_be(argv, expected):
    with pytest.raises(ConfigError) as caught:
        chosen(*argv)
    assert expected in str(caught.value)


def test_compression_needs_its_backend():
    said = []
    off = config.load(["--quantization-bits=4"], environ={})
    assert session.choose_compression(off, said.append) is None
    assert "UNCOMPRESSED" in said[0] and "--dist-backend cgx" in said[0]
    on = config.load(["--quantization-bits=4", "--dist-backend=cgx", "--compression.stochastic=1"], environ={})
    found = session.choose_compression(on, said.append)
    assert (found["bits"], found["bucket_size"], found["rounding"], len(said)) == (4, 1024, "stochastic", 1)
    assert session.choose_compression(config.load(["--dist-backend=cgx"], environ={}), said.append) is None


def test_one_file_for_both_sets_is_refused(tmp_path):
    train, _ = small_data.make(tmp_path)
    (tmp_path / "link.beton").symlink_to(train)
    (tmp_path / "hard.beton").hardlink_to(train)
    for name in ("train.beton", "./train.beton", "link.beton", "hard.beton"):
        options = [f"--data.train_dataset={train}", f"--data.val_dataset={tmp_path}/{name}"]
        with pytest.raises(UserError, match=r"is also the training set \(data.val_dataset, --data.val_dataset"):
            session.check_files(config.load(options, environ={}))


def test_images_of_the_training_set_in_the_test_set_are_told(tmp_path, monkeypatch):
    images, labels = small_data.images_and_labels(300)
    train = small_data.write(tmp_path / "train.beton", images[:200], labels[:200])

    def said(numbers):
        test = small_data.write(tmp_path / "test.beton", images[numbers], labels[numbers])
        return session.trained_on(
            config.load([f"--data.train_dataset={train}", f"--data.val_dataset={test}"], environ={})
        )

    assert said(np.arange(200, 300)) is None
    assert "WARNING: 10 of 10 images" in said(np.arange(100))
    assert "WARNING: 10 of 10 images" in said(np.arange(100)[::-1])
    assert "WARNING: 5 of 10 images" in said(np.arange(150, 250))
    assert said(np.r_[100:110, 200:290]) is None  # one in ten may be a duplicate
    monkeypatch.setattr(session.process, "rank", lambda: 1)
    assert said(np.arange(100)) is None


def test_files_without_labelled_images_are_left_to_the_trainer(tmp_path):
    images, labels = small_data.images_and_labels(20)
    good = small_data.write(tmp_path / "a.beton", images, labels)
    other = small_data.write(tmp_path / "b.beton", images, labels, image="picture")
    none = small_data.write(tmp_path / "c.beton", images[:0], labels[:0])
    unlike = small_data.write(tmp_path / "d.beton", images, labels + 100)
    assert [shared_images(*pair) for pair in ((good, other), (other, good), (good, none), (none, good))] == [(0, 0)] * 4
    assert shared_images(unlike, good) == (0, 2)


def test_missing_files_name_the_command(tmp_path):
    with pytest.raises(UserError, match=r"cifar_train.beton: no such file .*cgxffcv write .*python write_datasets.py"):
        session.check_files(config.load(["--dataset-dir", str(tmp_path)], environ={}))


class Machine:
    """GPUs that do not exist, as the C core would report them."""

    def __init__(self, monkeypatch, count, why="", refused=()):
        self.count, self.why, self.refused, self.selected = count, why, refused, []
        for name in ("devices", "why_no_device", "select_device"):
            monkeypatch.setattr(_cgxffcv, name, getattr(self, name))

    def devices(self):
        return [{"name": f"GPU {i}", "compute_capability": (9, 0)} for i in range(self.count)]

    def why_no_device(self):
        return self.why

    def select_device(self, index):
        if index in self.refused:
            raise _cgxffcv.CudaError("no code for compute capability 5.2; rebuild with CGXFFCV_CUDA_ARCH=52")
        self.selected.append(index)


def device_of(*options, said=None):
    return session.choose_device(config.load(list(options), environ={}), [].append if said is None else said.append)


def test_ranks_take_the_gpus_in_turn(monkeypatch):
    machine = Machine(monkeypatch, 3)
    for name in ("SIZE", "LOCAL_SIZE"):
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", "4")
    said, found = [], []
    for rank in range(4):
        for name in ("RANK", "LOCAL_RANK"):
            monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", str(rank))
        found += [device_of(), device_of("--data.gpu=2", said=said)]
    assert found == [0, 2, 1, 0, 2, 1, 0, 2] == machine.selected
    assert "4 ranks share 3 GPUs" in said[0] and len(said) == 4  # only rank 0 prints it


def test_the_cpu_is_taken_when_told_and_when_there_is_nothing_else(monkeypatch):
    machine = Machine(monkeypatch, 2)
    assert device_of("--no-cuda") is None and device_of("--training.device=cpu") is None and not machine.selected
    Machine(monkeypatch, 0, "this build has no CUDA: rebuild")
    said = []
    monkeypatch.setattr(device, "DRIVER", "/proc/nowhere")
    assert device_of(said=said) is None and not said
    monkeypatch.setattr(device, "DRIVER", "/")
    assert device_of(said=said) is None and "seems to be a GPU: this build has no CUDA: rebuild" in said[0]
    assert device_of("--no-cuda", said=said) is None and len(said) == 1


@pytest.mark.parametrize(
    "count, options, expected",
    [
        (
            0,
            ["--training.device=gpu"],
            r"device = gpu \(--training.device\): too old: .*--training.device=cpu",
        ),
        (0, ["--training.precision=float16"], r"float16 \(--training.precision\): only GPUs .*float32 or bfloat16"),
        (1, ["--data.gpu=1"], r"data.gpu = 1 \(--data.gpu\): there is no GPU 1 here: there is GPU 0 only"),
        (4, ["--data.gpu=4"], r"there are GPUs 0 to 3 \(see CUDA_VISIBLE_DEVICES\)"),
        (
            4,
            ["--data.gpu=3"],
            r"GPU 3 cannot be used: no code for .* 5.2; rebuild with CGXFFCV_CUDA_ARCH=52",
        ),
    ],
)
def test_gpus_that_cannot_be(monkeypatch, count, options, expected):
    Machine(monkeypatch, count, "too old: update the driver", refused=[3])
    monkeypatch.setattr(device, "DRIVER", "/proc/nowhere")
    with pytest.raises(UserError, match=expected):
        device_of(*options)


def test_a_build_without_cuda_says_so():
    if _cgxffcv.devices():
        pytest.skip("there is a GPU here")
    with pytest.raises(UserError, match="training.device = gpu .--training.device.: "):
        device_of("--training.device=gpu")
    if not _cgxffcv.build_info()["cuda"]:
        assert "CGXFFCV_CUDA=1" in _cgxffcv.why_no_device()
    with pytest.raises(ValueError, match="auto, cpu or gpu, not 'tpu'"):
        device.check("tpu")


@pytest.mark.parametrize("wish", ["--resume", "--resume={0}", "--resume={0}/x.safetensors"])
def test_resume_names_what_is_missing(tmp_path, wish):
    with pytest.raises(UserError, match="does not exist. Start without --resume"):
        session.checkpoint_to_resume(settings(tmp_path, wish.format(tmp_path)))


def test_threads(monkeypatch):
    said = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(session.process, "cores_of_this_rank", lambda: 1)
    monkeypatch.setattr(session.process, "ranks", lambda: 2)
    monkeypatch.setattr(session.process, "local_ranks", lambda: 2)
    monkeypatch.setattr(session.os, "cpu_count", lambda: 8)
    assert session.set_threads(said.append) == 1 and "--bind-to none" in said[0]
    assert session.os.environ["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert session.set_threads(said.append) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "0")
    assert session.set_threads(said.append) == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(session.process, "ranks", lambda: 1)
    before = list(said)
    assert session.set_threads(said.append) == 1 and said == before, "without mpirun there is nothing to say of it"
    monkeypatch.delenv("OMP_NUM_THREADS")
