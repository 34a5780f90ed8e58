"""Whole trainings on small data: learning, determinism, resuming, testing, refusals."""

import signal

import _cgxffcv
import numpy as np
import pytest
import small_data
from thread_ranks import all_good, run_ranks
from trainings import finish, same_state

from cgxffcv import checkpoint, costs, nn, recipes
from cgxffcv.errors import DataError
from cgxffcv.fields import BytesField, IntField, RGBImageField
from cgxffcv.recipes import SIX, RecipeError
from cgxffcv.train import Compression, Trainer, TrainingDiverged
from cgxffcv.train.evaluate import least_confident
from cgxffcv.train.plan import training_flops
from cgxffcv.train.state import compare, my_residual
from cgxffcv.train.steps import host_room
from cgxffcv.train.team import Team
from cgxffcv.writer import DatasetWriter

pytestmark = pytest.mark.skipif(not _cgxffcv.build_info()["onednn"], reason="networks need oneDNN (see cgxffcv doctor)")

MUON = recipes.get("airbench94").replace(
    name="small", widths=(16, 16, 16), head_scale=1 / 16, batch_size=50, epochs=2, whiten_images=100, lr=0.1,
    whiten_bias_epochs=1,
)  # fmt: skip
SMALL = {
    "muon": MUON,
    "savers": MUON.replace(
        depths=(2, 3, 2), resolutions=((0, 16), (0.3, 24), (0.6, 32)), hardest=((0.4, 0.5),), epochs=3,
        freeze_block1_share=0.2, activation="relu", whiten_bias_random=False, whiten_bias_epochs=0.5,
    ),
    "averaging": recipes.get("airbench93").replace(
        name="small", widths=(16, 16, 16), batch_size=50, epochs=2.6, whiten_images=100, lr=250.0
    ),
    "sgd": recipes.get("ffcv").replace(name="small", batch_size=10, epochs=0.2, lr=0.05, lr_peak_epoch=0.1),
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return small_data.make(tmp_path_factory.mktemp("data"))


def trainer_of(files, name, **options):
    usual = {"threads": 2, "precision": "float32", "num_workers": 2, "device": "cpu"}
    return Trainer(SMALL[name], *files, **(usual | options))


@pytest.mark.parametrize("name", ["muon", "savers", "averaging"])
def test_it_learns_and_repeats_itself(files, name):
    with trainer_of(files, name, seed=3) as trainer:
        steps, epochs = finish(trainer)
        test = trainer.evaluate()
        state = trainer.state_dict()
        assert trainer.best_accuracy == test.accuracy
        assert (trainer.epoch, trainer.step) == (trainer.epochs, trainer.steps)
    assert [s.step for s in steps] == list(range(len(steps)))
    assert not any(s.skipped for s in steps)
    assert np.mean([s.loss for s in steps[-3:]]) < 0.8 * np.mean([s.loss for s in steps[:2]])
    assert test.images == 103 and test.correct == round(103 * test.accuracy) and test.accuracy > 0.5
    assert epochs[-1].images == 50 * sum(s.epoch == steps[-1].epoch for s in steps)
    with trainer_of(files, name, seed=3, threads=1, num_workers=1) as again:
        assert finish(again)[1][-1].replica_hash == epochs[-1].replica_hash
        assert again.evaluate()._replace(seconds=0) == test._replace(seconds=0)
        same_state(state, again.state_dict())
    with trainer_of(files, name, seed=4) as other:
        assert finish(other)[1][-1].replica_hash != epochs[-1].replica_hash


@pytest.mark.parametrize("name, stop", [("muon", 3), ("muon", 5), ("savers", 6), ("averaging", 7), ("sgd", 2)])
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
    """To the byte, and that of a training that was never interrupted is the same."""
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
    """At a constant rate, to the same bytes as if it had been that long from the start."""
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


def on_ranks(ranks, name, files, work):
    """work(trainer) on so many ranks; the results."""
    return all_good(run_ranks(ranks, lambda world, rank: _with(trainer_of(files, name, threads=1, comm=world), work)))


def _with(trainer, work):
    with trainer:
        return work(trainer)


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
    match = r"on 2 processes, not on 1: recipe small takes 10 images .* with 10 images a step instead of 20; start 2"
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
        return all_good(run_ranks(size, lambda c, r: _with(trainer_of(files, "shared", comm=c, **options), work)))

    ranks(2, save, four)
    assert ranks(2, go_on, four) == [[], []]
    (told,) = ranks(2, go_on, {"bucket_size": 64})[0]
    assert told == (
        "gradients travelled compressed with bits 4, error_feedback True, and now with bits 32, error_feedback False"
    )
    assert "and now 1" in ranks(1, go_on, four)[0][0] and len(ranks(1, go_on, four)[0]) == 1


def test_what_error_feedback_owes_is_kept_when_blocks_freeze(files):
    """The first step with a frozen block still pays what the layers that go on owe from the steps before."""
    SMALL["freezing"] = MUON.replace(whiten_bias_epochs=0.4, epochs=1, batch_size=48)  # 2 steps with, 3 without it
    compression = {"bits": 2, "bucket_size": 64, "layer_min_size": 0, "error_feedback": True}

    def parameters(forgets):
        def work(trainer):
            assert [phase.first_step for phase in trainer.plan.phases] == [0, 2]
            steps = trainer.run_epoch()
            next(steps), next(steps)
            owed = trainer._core.read("residual")
            assert np.abs(owed).max() > 0
            if forgets:
                trainer._core.write("residual", np.zeros_like(owed))
            next(steps)
            steps.close()
            return trainer._core.read("parameters")

        options = {"threads": 1, "compression": compression}
        ranks = run_ranks(2, lambda world, rank: _with(trainer_of(files, "freezing", comm=world, **options), work))
        return all_good(ranks)[0]

    assert parameters(forgets=False).tobytes() == parameters(forgets=False).tobytes()
    assert parameters(forgets=False).tobytes() != parameters(forgets=True).tobytes()


def test_calibrated_costs_send_plain_gradients_where_that_is_faster(files, monkeypatch):
    """All lengths of a training that freezes, or none. Nothing is measured for it, and bits alone ask for lines."""
    lines = {"sra": (1e-4, 0.0, 0.0), "exact": (1e-5, 0.0, 0.0)}
    kept = []
    SMALL["freezing"] = MUON.replace(whiten_bias_epochs=0.4, epochs=1, batch_size=48)
    monkeypatch.setattr(costs, "kept", lambda world, gpu: kept.append((world.size, gpu)) or lines)

    def work(trainer):
        steps, _ = finish(trainer)
        return trainer.explain(), {step.wire_bytes for step in steps}

    def trained(**compression):
        options = {"threads": 1, "compression": {"bucket_size": 64, "layer_min_size": 16, **compression}}
        return all_good(
            run_ranks(2, lambda world, rank: _with(trainer_of(files, "freezing", comm=world, **options), work))
        )

    text, plain = trained(bits=4)[0]
    assert "exact (by measured costs: plain is the faster here, 10.0 us; 4 bits by sra take 100.0 us)" in text
    assert len(plain) > 1 and kept == [(2, None)] * 2
    lines["exact"] = (1e-3, 0.0, 0.0)
    text, wire = trained(bits=4)[0]
    assert "sra (by measured costs: the cheapest" in text and 0 < max(wire) < min(plain)
    assert trained(bits=32)[0][1] == plain and len(kept) == 4


def test_what_error_feedback_owes_is_shared_out_again():
    """The sum over ranks stays where gradients are summed, the mean where they are averaged."""
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
        assert checkpoint.read_header(path)["recipe"]["widths"] == [16, 16, 16]


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


def test_divergence_is_reported_and_nothing_is_updated(files):
    SMALL["wild"] = MUON.replace(bias_lr=1e38, head_lr=1e38, epochs=6)
    with trainer_of(files, "wild") as trainer:
        skipped = []
        with pytest.raises(TrainingDiverged, match="not finite in 10 steps in a row"):
            while not trainer.finished:
                for report in trainer.run_epoch():
                    skipped.append(report.skipped)
        assert any(skipped)
        state = trainer.state_dict()
        assert all(np.isfinite(v).all() for n, v in state.items() if "running" in n)


def test_skipped_steps_have_no_part_in_the_mean_loss(files):
    with Trainer(MUON.replace(bias_lr=1e38, head_lr=1e38, epochs=1), files[0], threads=1, num_workers=1) as trainer:
        steps = list(trainer.run_epoch())
        good = [s.loss for s in steps if not s.skipped]
        epoch = trainer.end_epoch()
    assert 0 < len(good) < len(steps) and epoch.skipped == len(steps) - len(good)
    assert epoch.loss == pytest.approx(np.mean(good), rel=1e-12)


def whole_test(network, images, labels, recipe, share):
    """The test by its definition, from the logits of single views (float64)."""
    plan = network.plan(len(images), 32, training=False)
    mean, std = np.array(recipe.mean), np.array(recipe.std)
    single = []
    for view in SIX:
        padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        seen = padded[:, 1 + view.dy : 33 + view.dy, 1 + view.dx : 33 + view.dx]
        seen = seen[:, :, ::-1] if view.mirror else seen
        single.append(plan.evaluate(np.ascontiguousarray(((seen - mean) / std).astype(np.float32))).astype(np.float64))
    plain = single[0]
    mixed = sum(view.weight * logits for view, logits in zip(SIX, single, strict=True))
    soft = np.exp(plain - plain.max(1, keepdims=True))
    confidence = (soft / soft.sum(1, keepdims=True)).max(1)
    chosen = np.argsort(confidence, kind="stable")[: round(share * len(images))]
    logits = plain.copy()
    logits[chosen] = mixed[chosen]
    log_sum = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    return int((logits.argmax(1) == labels).sum()), float((log_sum - logits[np.arange(len(labels)), labels]).mean())


@pytest.mark.parametrize("share", [1.0, 0.25, 0.0])
def test_the_test_is_what_its_definition_says(files, share):
    SMALL["tested"] = MUON.replace(epochs=1, test_share=share)
    images, labels = small_data.images_and_labels(103, 1)
    with trainer_of(files, "tested", test_batch=40) as trainer:
        finish(trainer)
        report = trainer.evaluate()
        correct, loss = whole_test(trainer.network, images, labels, SMALL["tested"], share)
        assert (report.correct, report.images) == (correct, 103)
        assert report.loss == pytest.approx(loss, rel=1e-4)
        plain, _ = whole_test(trainer.network, images, labels, SMALL["tested"], 0.0)
        assert trainer.evaluate(tta=False).correct == plain


def test_least_confident():
    ids, confidence = np.array([4, 9, 2, 7]), np.array([0.5, 0.2, 0.5, 0.9])
    assert list(least_confident(confidence, ids, 3)) == [9, 2, 4]


def test_whitening(files):
    """The first layer's outputs on the whitening images have a second moment of about one."""
    images, _ = small_data.images_and_labels(250)
    with trainer_of(files, "muon") as trainer:
        filters = trainer.network.parameter("whiten.weight").astype(np.float64)
        assert filters.shape == (24, 2, 2, 3)
        normal = ((images[:100] - np.array(MUON.mean)) / np.array(MUON.std)).astype(np.float32).astype(np.float64)
        patches = np.lib.stride_tricks.sliding_window_view(normal, (2, 2), axis=(1, 2))  # n, y, x, c, ky, kx
        patches = patches.transpose(0, 1, 2, 4, 5, 3).reshape(-1, 12)
        out = patches @ filters.reshape(24, 12).T
        moments = (out.T @ out / len(out))[:12, :12]
        values = np.linalg.eigvalsh(patches.T @ patches / len(patches))[::-1]
        np.testing.assert_allclose(moments, np.diag(values / (values + 5e-4)), atol=2e-5)
        np.testing.assert_array_equal(filters[12:], -filters[:12])


def test_samples_chosen_by_a_mask(files):
    mask = np.arange(250) % 5 != 1
    states = []
    for chosen in (mask, np.flatnonzero(mask)):
        with trainer_of(files, "muon", train_indices=chosen, test_indices=np.arange(103) < 50) as trainer:
            assert (trainer.samples, trainer.test_images) == (200, 50)
            finish(trainer)
            states.append(trainer.state_dict())
    same_state(*states)
    with pytest.raises(IndexError, match="indices is a boolean mask of 249 entries, but the file has 250 samples"):
        trainer_of(files, "muon", train_indices=mask[1:])


def test_operations_agree_with_the_plan(files):
    for name in ("muon", "savers", "sgd"):
        with trainer_of(files, name) as trainer:
            assert trainer.total_flops()["train"] == pytest.approx(training_flops(SMALL[name], 250), rel=1e-12)
            assert trainer.flops_per_image > 0


@pytest.mark.parametrize("name", ["muon", "savers"])
def test_rates_reach_the_core(files, name):
    with trainer_of(files, name) as trainer:
        for g, group in enumerate(trainer.plan.groups):
            steps, factors = zip(*group.points, strict=True)
            for step in range(trainer.steps):
                rate, active, project = trainer._core.rate(g, step)
                assert rate == pytest.approx(group.base * np.interp(step, steps, factors), rel=1e-6, abs=1e-9)
                assert active == (group.steps[0] <= step < group.steps[1]) and project


def test_wrong_data(files, tmp_path):
    images, labels = small_data.images_and_labels(60)
    for label in (10, -1):
        bad = labels.copy()
        bad[17] = label
        path = small_data.write(tmp_path / "a.beton", images, bad)
        for train, test in ((path, None), (files[0], path)):
            with pytest.raises(DataError, match=f"a.beton: sample 17 has the label {label}; expected 0 to 9"):
                Trainer(MUON.replace(batch_size=30), train, test, threads=1)
        Trainer(MUON.replace(batch_size=10), path, threads=1, train_indices=np.arange(17)).close()
    small = small_data.write(tmp_path / "b.beton", np.ascontiguousarray(images[:, :28, :28]), labels)
    with pytest.raises(DataError, match="images of 28 x 28"):
        Trainer(MUON, small, threads=1)
    with pytest.raises(DataError, match="training needs a field 'image' of colour images"):
        Trainer(MUON, small_data.write(tmp_path / "d.beton", images, labels, image="picture"), threads=1)
    empty = small_data.write(tmp_path / "e.beton", images[:0], labels[:0])
    for train, test in ((empty, None), (files[0], empty)):
        with pytest.raises(DataError, match="e.beton: holds no samples"):
            Trainer(MUON, train, test, threads=1)
    with pytest.raises(DataError, match="none of its 60 samples is chosen"):
        Trainer(MUON, small_data.write(tmp_path / "f.beton", images, labels), train_indices=[])
    with pytest.raises(RecipeError, match="the training set has only 60"):
        Trainer(MUON.replace(batch_size=61), small_data.write(tmp_path / "c.beton", images, labels))
    with pytest.raises(RecipeError, match="iterations must be 1 to 20, not 0"):
        Trainer(MUON.replace(muon_iterations=0), files[0], threads=1)
    with pytest.raises(OSError, match=r"none\.beton"):
        Trainer(MUON, tmp_path / "none.beton")


def test_fields_in_another_order_and_beside_the_needed_ones(files, tmp_path):
    recipe, (images, labels) = MUON.replace(epochs=1), small_data.images_and_labels(250)
    path = tmp_path / "f.beton"
    fields = {"label": IntField(), "other": RGBImageField(), "image": RGBImageField(), "note": BytesField()}
    notes = [b"x" * (i % 3) for i in range(250)]
    DatasetWriter(path, fields).from_iterable(zip(labels.tolist(), 255 - images, images, notes, strict=True))
    ends = []
    for file in (files[0], path):
        with Trainer(recipe, file, file, threads=1, num_workers=1) as trainer:
            ends.append((finish(trainer)[1][-1].replica_hash, trainer.evaluate().loss))
    assert ends[0] == ends[1]


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


def test_wrong_use(files):
    with pytest.raises(ValueError, match="algorithm must be one of auto, one_shot"):
        Compression(algorithm="best")
    with Trainer(MUON.replace(epochs=0.2), files[0], threads=1) as trainer:
        with pytest.raises(Exception, match="without a test file"):
            trainer.evaluate()
        finish(trainer)
        with pytest.raises(Exception, match="training is over"):
            next(trainer.run_epoch())
    with pytest.raises(ValueError, match="closed"):
        trainer.evaluate() if trainer._test else trainer._core.hash()


def test_an_epoch_can_be_left_and_taken_up(files):
    with trainer_of(files, "muon") as whole, trainer_of(files, "muon") as broken:
        finish(whole)
        for report in broken.run_epoch():
            if report.step == 2:
                break
        assert broken.step == 3
        finish(broken)
        same_state(whole.state_dict(), broken.state_dict())


def test_an_interrupted_step_has_not_happened(files):
    """A signal in the middle of a step ends it; what is then trained is what would have been trained anyway."""

    class Stop(Exception):
        pass

    def stop(signum, frame):
        raise Stop

    with trainer_of(files, "sgd") as whole, trainer_of(files, "sgd") as broken:
        finish(whole)
        before = signal.signal(signal.SIGALRM, stop)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
            interruptions = 0
            while not broken.finished:
                try:
                    for _ in broken.run_epoch():
                        pass
                except Stop:
                    interruptions += 1
                    if interruptions > 3:
                        signal.setitimer(signal.ITIMER_REAL, 0)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert interruptions > 0
        same_state(whole.state_dict(), broken.state_dict())


def test_averaging_is_followed_step_by_step(files):
    """slow = d slow + (1 - d) p after every fifth step, from a copy of the run without averaging between them."""
    with trainer_of(files, "averaging") as trainer:
        names = [layer.name for layer in trainer.network.layers if layer.trained]
        assert trainer.plan.lookahead_every == 5
        reports = trainer.run_epoch()
        for _ in range(5):
            next(reports)
        after = trainer.state_dict()
        for name in names:
            np.testing.assert_array_equal(after[name], after[f"slow.{name}"])


@pytest.mark.needs_bfloat16
def test_bfloat16_learns_too(files):
    with trainer_of(files, "muon", precision="bfloat16") as trainer:
        assert trainer.precision == "bfloat16"
        finish(trainer)
        assert trainer.evaluate().accuracy > 0.5


def test_networks_of_all_recipes_can_be_described():
    from cgxffcv.nn.recipe import describe

    for recipe in recipes.RECIPES.values():
        assert isinstance(describe(recipe), nn.Description)


def test_a_container_limits_what_the_host_has_room_for(tmp_path):
    """Half of what is available, at most half of the limit; a file that is not there, or says "max", sets none."""
    meminfo, limit, none = tmp_path / "meminfo", tmp_path / "limit", tmp_path / "none"
    meminfo.write_text("MemTotal: 900 kB\nMemAvailable:      640 kB\nBuffers: 1 kB\n")
    for text, room in (("max\n", 320 * 1024), ("1000\n", 500), (f"{1 << 62}\n", 320 * 1024), ("", 320 * 1024)):
        limit.write_text(text)
        assert host_room(Team(), str(meminfo), (str(none), str(limit))) == room
    assert host_room(Team()) > 0
