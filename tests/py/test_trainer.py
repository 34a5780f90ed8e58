"""Whole trainings on small data: learning, determinism, testing, refusals."""

import os
import signal

import _cgxffcv
import numpy as np
import pytest
import small_data
from thread_ranks import all_good, run_ranks
from trainings import MUON, SMALL, finish, same_state, trainer_of, with_it

from cgxffcv import costs, nn, recipes
from cgxffcv.decoders import IntDecoder, SimpleRGBImageDecoder
from cgxffcv.errors import DataError
from cgxffcv.fields import BytesField, IntField, RGBImageField
from cgxffcv.loader import Loader
from cgxffcv.recipes import SIX, RecipeError
from cgxffcv.train import Compression, Trainer, TrainingDiverged
from cgxffcv.train.evaluate import least_confident
from cgxffcv.train.plan import training_flops
from cgxffcv.train.steps import host_room
from cgxffcv.train.team import Team
from cgxffcv.writer import DatasetWriter

pytestmark = pytest.mark.skipif(not _cgxffcv.build_info()["onednn"], reason="networks need oneDNN (see cgxffcv doctor)")


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


@pytest.mark.parametrize("feedback", (True, "int8"))
def test_what_error_feedback_owes_is_kept_when_blocks_freeze(files, feedback):
    """The first step with a frozen block still adds what the remaining layers lost in the steps before."""
    SMALL["freezing"] = MUON.replace(whiten_bias_epochs=0.4, epochs=1, batch_size=48)  # 2 steps with, 3 without it
    compression = {"bits": 2, "bucket_size": 64, "layer_min_size": 0, "error_feedback": feedback}

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
        ranks = run_ranks(2, lambda world, rank: with_it(trainer_of(files, "freezing", comm=world, **options), work))
        return all_good(ranks)[0]

    assert parameters(forgets=False).tobytes() == parameters(forgets=False).tobytes()
    assert parameters(forgets=False).tobytes() != parameters(forgets=True).tobytes()


def test_calibrated_costs_send_plain_gradients_where_that_is_faster(files, monkeypatch):
    """For all lengths of a training that freezes, or for none. Nothing is measured for it, and lines are read only if
    bits are chosen."""
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
            run_ranks(2, lambda world, rank: with_it(trainer_of(files, "freezing", comm=world, **options), work))
        )

    text, plain = trained(bits=4)[0]
    assert "exact (by measured costs: plain is faster here, 10.0 us; 4 bits with sra would take 100.0 us)" in text
    assert len(plain) > 1 and kept == [(2, None)] * 2
    lines["exact"] = (1e-3, 0.0, 0.0)
    text, wire = trained(bits=4)[0]
    assert "sra (by measured costs: the cheapest" in text and 0 < max(wire) < min(plain)
    assert trained(bits=32)[0][1] == plain and len(kept) == 4


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
    Trainer(MUON, small_data.write(tmp_path / "d.beton", images, labels, image="picture"), threads=1).close()
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


@pytest.mark.parametrize("at_once", [2, 100])
@pytest.mark.parametrize("name", ["muon", "savers", "averaging"])
def test_many_steps_at_once_are_the_same_steps(files, name, at_once):
    """Reports and states; if it is left in mid-epoch, the training is after the steps that were done at once."""

    def what(steps):
        return [step._replace(seconds=0, load_seconds=0) for step in steps]

    with trainer_of(files, name) as one, trainer_of(files, name) as many:
        many.steps_at_once = at_once
        reports = many.run_epoch()
        first = next(reports)
        reports.close()
        done = min(at_once, many.plan.epoch_end(0))
        assert many.step == done
        one_by_one, _ = finish(one)
        assert what([first, *finish(many)[0]]) == what([one_by_one[0], *one_by_one[done:]])
        assert one.evaluate()._replace(seconds=0) == many.evaluate()._replace(seconds=0)
        same_state(one.state_dict(), many.state_dict())


def test_a_file_cut_short_leaves_whole_steps(tmp_path):
    """What the loader has read before is trained on and counted, although all steps were to be done at once."""
    path = small_data.write(tmp_path / "a.beton", *small_data.images_and_labels(1000))
    recipe, after = MUON.replace(epochs=1), []

    def parameters(trainer):
        return {name: trainer._core.read(name).tobytes() for name in ("parameters", "statistics", "momentum")}

    with trainer_of((path,), recipe) as trainer:
        for _ in trainer.run_epoch():
            after.append(parameters(trainer))
    with trainer_of((path,), recipe) as trainer:
        next(trainer.run_epoch())
        trainer.steps_at_once = 100
        os.truncate(path, 8192)
        with pytest.raises((_cgxffcv.BetonError, OSError), match="a.beton"):
            list(trainer.run_epoch())
        assert 1 <= trainer.step < 20
        assert parameters(trainer) == after[trainer.step - 1]
        assert trainer._tally.sums.images == 50 * trainer.step


def test_what_the_core_takes_no_batches_of(files):
    """GPU-only calls are refused on a CPU, and so is a loader whose batches a step cannot take."""
    pipelines = {"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]}
    with trainer_of(files, "muon") as trainer:
        core, records = trainer._steps.data.core, np.zeros((1, 5))
        for call in (
            lambda: core.begin(0, 5),
            lambda: core.put(0, np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, np.int64), np.zeros(1, np.int64)),
            lambda: core.drop(0),
            lambda: core.whiten(0, 5, 1e-3),
            lambda: core.run(np.zeros(50, np.int32), 0, records, None),
            lambda: core.evaluate(1, None, 5, [(0, 0, False, 1.0)]),
            lambda: core.look(np.zeros(50, np.int32), 0),
            lambda: core.seconds(),
        ):
            with pytest.raises(ValueError, match="data sets are kept in GPU memory, and this trainer is on the CPU"):
                call()
        with pytest.raises(ValueError, match="already has a Runner"):
            _cgxffcv.Runner(trainer._core, (), 0, False)
        for batch, chosen, match in (
            (50, pipelines | {"label": None}, "gives uint8 images of 32 x 32 x 3 and int64 labels, and nothing else"),
            (49, pipelines, "the loader gave 49 images where a step takes 50"),
        ):
            with Loader(files[0], batch, pipelines=chosen) as loader, pytest.raises(ValueError, match=match):
                loader._core.begin(0, 0, False, False, None)
                core.run(loader._core, 0, records, None)
        with Loader(files[0], 50, pipelines=pipelines) as idle, pytest.raises(ValueError, match="gave 0 images where"):
            core.run(idle._core, 0, records, None)
        assert trainer.step == 0


@pytest.mark.parametrize("at_once", [1, 100])
def test_an_interrupted_step_has_not_happened(files, at_once):
    """A signal in the middle of a step ends it; what is then trained is what would have been trained anyway."""

    class Stop(Exception):
        pass

    def stop(signum, frame):
        raise Stop

    with trainer_of(files, "sgd") as whole, trainer_of(files, "sgd") as broken:
        finish(whole)
        broken.steps_at_once = at_once
        before = signal.signal(signal.SIGALRM, stop)
        try:
            interruptions = 0
            while not broken.finished:
                try:
                    # One signal each time, so that none arrives where nothing catches it.
                    signal.setitimer(signal.ITIMER_REAL, 0.05 if interruptions < 4 else 0)
                    for _ in broken.run_epoch():
                        pass
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except Stop:
                    interruptions += 1
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
