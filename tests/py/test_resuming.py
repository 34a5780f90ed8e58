"""Trainings that are resumed, by the same ranks or others, longer, with other data; what checkpoints hold."""

import _cgxffcv
import numpy as np
import pytest
import small_data
from thread_ranks import all_good, run_ranks
from trainings import MUON, SMALL, finish, on_ranks, same_state, trainer_of, with_it

from cgxffcv import checkpoint, recipes
from cgxffcv.train import Trainer
from cgxffcv.train.state import compare, my_residual

pytestmark = pytest.mark.skipif(not _cgxffcv.build_info()["onednn"], reason="networks need oneDNN (see cgxffcv doctor)")


@pytest.mark.parametrize(
    "name, stop", [("muon", 3), ("muon", 5), ("savers", 6), ("averaging", 7), ("resnet18", 3), ("sgd", 2)]
)
def test_resuming_continues_bit_for_bit(files, tmp_path, name, stop):
    path = tmp_path / "last.safetensors"
    with trainer_of(files, name) as whole:
        steps, _ = finish(whole)
        whole_test = whole.evaluate()
        expected = whole.state_dict()
    with trainer_of(files, name) as first:
        while first.step < stop:
            for report in first.run_epoch():
                if report.step == stop - 1:
                    break
        first.save(path)
    with trainer_of(files, name) as second:
        second.resume(path)
        assert second.step == stop
        rest, _ = finish(second)
        assert [(s.step, s.loss, s.correct, s.resolution) for s in rest] == [
            (s.step, s.loss, s.correct, s.resolution) for s in steps[stop:]
        ]
        assert second.evaluate()._replace(seconds=0) == whole_test._replace(seconds=0)
        same_state(expected, second.state_dict())


def test_two_resumed_trainings_have_equal_checkpoints(files, tmp_path):
    """Equal to the byte, and the same as that of a training that was never interrupted."""
    with trainer_of(files, "savers") as trainer:
        for report in trainer.run_epoch():
            if report.step == 2:
                break
        trainer.save(tmp_path / "half")
        finish(trainer)
        trainer.save(tmp_path / "whole")
    for name in ("first", "second"):
        with trainer_of(files, "savers", threads=1) as trainer:
            trainer.resume(tmp_path / "half")
            finish(trainer)
            trainer.save(tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("name", ["muon", "sgd"])
def test_a_finished_training_is_prolonged(files, tmp_path, name):
    """At a constant rate, with the same bytes as if it had been that long from the start."""
    constant = SMALL[name].replace(schedule="constant", whiten_bias_epochs=0.6)
    per_epoch = 5 if name == "muon" else 25
    short = SMALL["short"] = constant.replace(epochs=4 / per_epoch)
    longer = SMALL["longer"] = constant.replace(epochs=13 / per_epoch)
    with trainer_of(files, "short") as trainer:
        finish(trainer)
        trainer.save(tmp_path / "short")
    with trainer_of(files, "longer") as whole, trainer_of(files, "longer") as prolonged:
        _, epochs = finish(whole)
        (told,) = prolonged.resume(tmp_path / "short")
        assert f"had {short.epochs:g} epochs, and now {longer.epochs:g}: from here on the learning rate" in told
        assert told.endswith(f"the next step's rate is {longer.lr:g}") and prolonged.step == 4
        rest, epochs_then = finish(prolonged)
        assert [step.step for step in rest] == list(range(4, 13))
        assert [e._replace(seconds=0) for e in epochs] == [e._replace(seconds=0) for e in epochs_then]
        same_state(whole.state_dict(), prolonged.state_dict())


@pytest.mark.parametrize(
    "name, epochs, longer, same_pass",
    [
        ("muon", 2, 4, True),
        ("triangle", 2, 3, True),
        ("averaging", 2.6, 4.6, True),  # in the middle of a pass
        ("savers", 3, 5, True),
        ("savers", 2.8, 6, False),  # in a pass over the hardest, which the longer one takes over all images
    ],
)
def test_a_prolonged_training_has_the_schedule_of_the_longer_one(files, tmp_path, name, epochs, longer, same_pass):
    SMALL["triangle"] = SMALL["muon"].replace(schedule="triangle", lr_peak_epoch=0.5)
    SMALL["short"], SMALL["longer"] = (SMALL[name].replace(epochs=length) for length in (epochs, longer))
    with trainer_of(files, "short") as trainer:
        finish(trainer)
        done = trainer.steps
        trainer.save(tmp_path / "short")
    with trainer_of(files, "longer") as trainer:
        assert len(trainer.resume(tmp_path / "short")) == 1
        steps, epochs = finish(trainer)
        plan, group = trainer.plan, trainer.plan.groups[0]
        assert [s.step for s in steps] == list(range(done, plan.steps)) and not any(s.skipped for s in steps)
        for s in steps:
            assert s.rate == pytest.approx(group.base * np.interp(s.step, *zip(*group.points, strict=True)), rel=1e-6)
            assert (s.epoch, s.resolution) == (plan.epoch_of(s.step), plan.phase_at(s.step).side)
        ends = [plan.epoch_end(epoch.epoch) for epoch in epochs]
        starts = [plan.epoch_starts[epoch.epoch] for epoch in epochs[1:]]
        first = plan.epoch_starts[epochs[0].epoch] if same_pass else done
        assert same_pass or plan.epoch_starts[epochs[0].epoch] < done
        assert [e.images for e in epochs] == [50 * (b - a) for a, b in zip([first, *starts], ends, strict=True)]
        assert trainer.evaluate().accuracy > 0.5


def test_which_fields_of_a_recipe_may_be_others():
    mine = {"recipe": recipes.get("resnet9").as_dict()}

    def refused(**changes):
        try:
            compare(mine, {"recipe": mine["recipe"] | changes})
        except checkpoint.CheckpointError as error:
            return str(error)
        return None

    assert refused(epochs=30) is refused(epochs=4, lr_peak_epoch=1) is refused(summary="so", target=0.5) is None
    assert "recipe field lr_peak_epoch is 4, this one's 5.0" in refused(lr_peak_epoch=4)
    for name in mine["recipe"]:
        if name not in ("epochs", "summary", "target"):
            assert f"its recipe field {name} is 'other'" in refused(**{name: "other"}), name


def test_checkpoints_from_before_fields_were_added_go_on():
    mine, added = recipes.get("resnet9").as_dict(), ("classes", "side", "decay_on", "nesterov")
    older = {name: value for name, value in mine.items() if name not in added}
    compare({"recipe": mine}, {"recipe": older})
    for changes in ({"classes": 20}, {"decay_on": "weights"}, {"nesterov": True}):
        with pytest.raises(checkpoint.CheckpointError, match=f"recipe field {next(iter(changes))}"):
            compare({"recipe": mine | changes}, {"recipe": older})


def test_a_training_that_is_longer_already_is_not_shortened(files, tmp_path):
    SMALL["one"] = SMALL["muon"].replace(epochs=1)
    with trainer_of(files, "muon") as trainer:
        list(trainer.run_epoch())
        trainer.save(tmp_path / "one")
        finish(trainer)
        trainer.save(tmp_path / "two")
    with trainer_of(files, "one") as trainer:
        with pytest.raises(checkpoint.CheckpointError, match="10 steps, and 1 epoch would be only 5; with more"):
            trainer.resume(tmp_path / "two")
        assert "and now 1" in trainer.resume(tmp_path / "one")[0] and trainer.finished


@pytest.mark.parametrize("before, after", [(2, 1), (1, 2), (3, 2)])
@pytest.mark.parametrize("name", ["muon", "savers"])
def test_another_number_of_ranks_goes_on(files, tmp_path, name, before, after):
    SMALL["shared"], path = SMALL[name].replace(batch_size=48), tmp_path / "half"

    def first(trainer):
        for report in trainer.run_epoch():
            if report.step == 2:
                break
        trainer.save(path)
        return trainer._tally.sums.saved()

    def then(trainer):
        told = trainer.resume(path)
        state = trainer.state_dict()
        _, epochs = finish(trainer)
        return told, state, epochs, trainer.evaluate().accuracy

    sums = on_ranks(before, "shared", files, first)
    results = on_ranks(after, "shared", files, then)
    told, state, epochs, accuracy = results[0]
    kept = checkpoint.load(path)
    assert f"had {before} process" in told[0] and f"and now {after}: they share the same batches" in told[0]
    for name, value in kept.items():
        if isinstance(value, np.ndarray):
            assert value.tobytes() == state[name].tobytes(), name
    for name in ("images", "correct", "wire_bytes"):
        assert sum(s[name] for s in sums) == sum(s[name] for s in state["sums"]), name
    assert epochs[0].images == 48 * 5 and epochs[0].skipped == 0 and accuracy > 0.5
    assert all(r[2][-1].replica_hash == epochs[-1].replica_hash for r in results)


def test_a_batch_of_each_rank_makes_another_training_of_it(files, tmp_path):
    def save(trainer):
        trainer.save(tmp_path / "a")

    on_ranks(2, "sgd", files, save)
    match = r"on 2 processes, not on 1: recipe small takes 10 images .* with 10 images per step instead of 20; start 2"
    with trainer_of(files, "sgd") as trainer, pytest.raises(checkpoint.CheckpointError, match=match):
        trainer.resume(tmp_path / "a")


def test_another_compression_goes_on_and_is_told(files, tmp_path):
    SMALL["shared"], four = MUON.replace(epochs=1), {"bits": 4, "bucket_size": 64, "error_feedback": True}

    def save(trainer):
        next(trainer.run_epoch())
        trainer.save(tmp_path / "a")

    def go_on(trainer):
        told = trainer.resume(tmp_path / "a")
        finish(trainer)
        return told

    def ranks(size, work, compression):
        options = {"threads": 1, "compression": compression}
        return all_good(run_ranks(size, lambda c, r: with_it(trainer_of(files, "shared", comm=c, **options), work)))

    ranks(2, save, four)
    assert ranks(2, go_on, four) == [[], []]
    (told,) = ranks(2, go_on, {"bucket_size": 64})[0]
    assert told == (
        "gradients were compressed with bits 4, error_feedback True, and now with bits 32, error_feedback False"
    )
    assert "and now 1" in ranks(1, go_on, four)[0][0] and len(ranks(1, go_on, four)[0]) == 1


@pytest.mark.parametrize("feedback", (True, "int8"))
def test_what_error_feedback_owes_goes_on_bit_for_bit(files, tmp_path, feedback):
    SMALL["shared"] = MUON.replace(epochs=1)
    compression = {"bits": 2, "bucket_size": 64, "algorithm": "sra", "error_feedback": feedback}

    def left(trainer):
        finish(trainer)
        return [trainer._core.read(name).tobytes() for name in ("parameters", "residual")]

    def stop(trainer):
        steps = trainer.run_epoch()
        next(steps), next(steps)
        steps.close()
        trainer.save(tmp_path / "a")

    def go_on(trainer):
        assert trainer.resume(tmp_path / "a") == []
        return left(trainer)

    def ranks(work):
        options = {"threads": 1, "compression": compression}
        return all_good(run_ranks(2, lambda c, r: with_it(trainer_of(files, "shared", comm=c, **options), work)))

    whole = ranks(left)
    ranks(stop)
    assert ranks(go_on) == whole and any(whole[0][1])


def test_what_error_feedback_owes_is_shared_out_again():
    """The sum over ranks stays the same if gradients are summed, the mean if they are averaged."""
    owed = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    for ranks in (1, 2, 4):
        summed = [my_residual(owed, rank, ranks, loss_sum=True) for rank in range(ranks)]
        np.testing.assert_allclose(np.sum(summed, 0), owed.sum(0), rtol=1e-5, atol=1e-6)
        averaged = [my_residual(owed, rank, ranks, loss_sum=False) for rank in range(ranks)]
        np.testing.assert_allclose(np.mean(averaged, 0), owed.mean(0), rtol=1e-5, atol=1e-6)
    assert (my_residual(owed, 2, 3, loss_sum=True) == owed[2]).all()


@pytest.mark.parametrize("name", ["format", "recipe", "samples", "ranks", "seed", "precision"])
@pytest.mark.parametrize("value", [np.zeros(0), np.zeros(1), np.zeros(3)])
def test_a_tensor_where_a_value_was_expected(name, value):
    identity = {"format": 2, "recipe": MUON.as_dict(), "samples": 5, "ranks": 1, "seed": 0, "precision": "float32"}
    with pytest.raises(checkpoint.CheckpointError, match=f"its {name} is a tensor"):
        compare(identity, identity | {name: value})


def test_a_checkpoint_holds_layers_by_name(files, tmp_path):
    path = tmp_path / "a.safetensors"
    with trainer_of(files, "muon") as trainer:
        trainer.save(path, best=True)
        state = checkpoint.load(path)
        assert state["b1.conv1.weight"].shape == (16, 3, 3, 24)
        np.testing.assert_array_equal(state["b1.conv1.weight"], trainer.network.parameter("b1.conv1.weight"))
        assert (state["b2.norm1.running_variance"] == 1).all() and state["best"] is True
        assert state["recipe"]["widths"] == [16, 16, 16]


def test_resuming_another_training_is_refused(files, tmp_path):
    path = tmp_path / "a.safetensors"
    with trainer_of(files, "muon", seed=1) as trainer:
        trainer.save(path)
        before = trainer.state_dict()
        wrong = dict(before)
        del wrong["b1.conv1.weight"]
        with pytest.raises(checkpoint.CheckpointError, match="b1.conv1.weight is missing"):
            trainer.load_state_dict(wrong)
    with trainer_of(files, "muon", seed=2) as other:
        with pytest.raises(checkpoint.CheckpointError, match="its seed is 1, this one's 2"):
            other.resume(path)
        with pytest.raises(FileNotFoundError):
            other.resume(tmp_path / "none")
    SMALL["changed"] = MUON.replace(lr=0.3)
    match = "recipe field lr is 0.1, this one's 0.3"
    with trainer_of(files, "changed", seed=1) as other, pytest.raises(checkpoint.CheckpointError, match=match):
        other.resume(path)


def test_resuming_with_other_data_is_refused(files, tmp_path):
    images, labels = small_data.images_and_labels(250)
    other = small_data.write(tmp_path / "other.beton", images, np.roll(labels, 1))
    same = small_data.write(tmp_path / "same.beton", images, labels)
    with trainer_of(files, "muon") as trainer:
        trainer.save(tmp_path / "a")
    match = "its checksum of all labels is .*, this one's"
    with (
        Trainer(MUON, other, threads=1, precision="float32", device="cpu") as trainer,
        pytest.raises(checkpoint.CheckpointError, match=match),
    ):
        trainer.resume(tmp_path / "a")
    with Trainer(MUON, same, threads=1, precision="float32", device="cpu") as trainer:
        assert trainer.resume(tmp_path / "a") == []


@pytest.mark.parametrize(
    "change, match",
    [
        ({"momentum": None}, "momentum"),
        ({"momentum": np.zeros(5, np.float32)}, "momentum has"),
        ({"step": 10**30}, "step must be in 0"),
        ({"step": -1}, "step must be"),
        ({"sums": []}, "index"),
        ({"sums": [{"x": 1}]}, "'x'"),
        ({"ranks": 0}, "its ranks are 0"),
        ({"compression": None}, "its compression is None"),
        ({"recipe": MUON.as_dict() | {"epochs": 1e300}}, "epochs"),
        ({"recipe": MUON.as_dict() | {"epochs": "many"}}, "epochs"),
        ({"skipped": None}, "int"),
        ({"best_accuracy": "no"}, "convert"),
        ({"b1.conv1.weight": "text"}, "shape"),
    ],
)
def test_a_state_with_something_wrong_is_refused_as_such(files, change, match):
    with trainer_of(files, "muon") as trainer:
        with pytest.raises(checkpoint.CheckpointError, match=match):
            trainer.load_state_dict(trainer.state_dict() | change)
        state = trainer.state_dict()
        del state["step"]
        with pytest.raises(checkpoint.CheckpointError, match="no 'step'"):
            trainer.load_state_dict(state)
