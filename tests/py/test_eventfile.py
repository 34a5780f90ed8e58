"""TensorBoard's event files: read back by TensorBoard's own reader."""

import numpy as np
import pytest

from cgxffcv.app import eventfile, report
from cgxffcv.app.commands import train
from cgxffcv.errors import UserError

STEP = {"epoch": 0, "loss": 2.5, "correct": 3, "images": 10, "rate": 0.5, "seconds": 0.25, "wire_bytes": 100}
EPOCH = {"epoch": 1, "train_loss": 2.0, "train_accuracy": 0.3, "images_per_second": 40.0, "wire_bytes": 500}


@pytest.fixture
def curves():
    """Each curve's (step, value) in a folder, as TensorBoard shows them."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )

    def read(folder):
        found = accumulator.EventAccumulator(str(folder)).Reload()
        return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}, found

    return read


def write(folder, steps, *, done=0, epoch=None, resume=False):
    with report.RunLog(folder, resume=resume, tensorboard=done) as log:
        log.event("start", {"step": done, "config": {"training": {"lr": 0.5}}})
        for step in steps:
            log.event("step", STEP | {"step": step})
        if epoch is not None:
            log.event("epoch", EPOCH | {"steps": done + len(steps), **epoch})
        log.event("end", {"seconds": 1.0})


def test_each_number_stands_at_the_steps_done(tmp_path, curves):
    write(tmp_path, range(5), epoch={"test_accuracy": 0.25, "test_loss": float("nan")})
    found, all_of_it = curves(tmp_path)
    assert found["step/loss"] == [(step, 2.5) for step in range(1, 6)]
    assert found["step/lr"] == [(step, 0.5) for step in range(1, 6)]
    assert found["step/wire_bytes"][0] == (1, 100.0) and found["step/seconds"][0] == (1, 0.25)
    assert found["loss/train"] == [(5, 2.0)] and found["accuracy/train"] == [(5, pytest.approx(0.3))]
    assert found["accuracy/test"] == [(5, 0.25)] and np.isnan(found["loss/test"][0][1])
    assert found["images_per_second"] == [(5, 40.0)] and found["wire_bytes"] == [(5, 500.0)]
    assert b'"lr": 0.5' in all_of_it.Tensors("config")[0].tensor_proto.string_val[0]


def test_an_epoch_without_a_test_has_no_point_of_one(tmp_path, curves):
    write(tmp_path, [0], epoch={})
    assert "accuracy/test" not in curves(tmp_path)[0]


def test_a_run_that_goes_on_takes_back_what_came_after_its_checkpoint(tmp_path, curves):
    write(tmp_path, range(5), epoch={})
    write(tmp_path, range(3, 6), done=3, resume=True)
    found, _ = curves(tmp_path)
    assert [step for step, _ in found["step/loss"]] == [1, 2, 3, 4, 5, 6]
    assert "loss/train" not in found or found["loss/train"] == []  # of step 5, which is done again


def test_an_earlier_runs_goes_where_its_log_goes(tmp_path, curves):
    write(tmp_path, [0])
    (name,) = (path.name for path in tmp_path.glob(eventfile.PATTERN))
    aside = report.set_aside(tmp_path)
    assert (aside / name).is_file() and not list(tmp_path.glob(eventfile.PATTERN))


def test_where_it_is_missing_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(eventfile.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="log.tensorboard needs the package tensorboard: pip install tensorboard"):
        train.main("train", ["--log.tensorboard=true", f"--log-dir={tmp_path / 'log'}"])
    assert not (tmp_path / "log").exists()
