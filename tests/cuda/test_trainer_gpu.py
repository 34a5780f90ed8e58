"""Trainings on a GPU: as on the CPU, with and without recorded steps, resident or not, resumed, restarted."""

import json
from pathlib import Path

import _cgxffcv
import numpy as np
import pytest
import small_data
from checkout import run_python
from gpu_trainings import MUON, TINY, trainer_of, what
from gpus import EMULATED, needs_gpu
from trainings import finish, same_state

import cgxffcv
from cgxffcv import checkpoint, nn
from cgxffcv.errors import DataError
from cgxffcv.train import TrainingDiverged

pytestmark = needs_gpu

NAMES = list(TINY)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return small_data.make(tmp_path_factory.mktemp("data"), train=27, test=7)


@pytest.fixture(scope="module")
def whole(files):
    """whole(name): steps, epochs, test and state of a training with seed 1, made once."""
    made = {}

    def get(name):
        if name not in made:
            with trainer_of(files, name, seed=1) as trainer:
                assert trainer.resident and trainer.gpu == 0
                steps, epochs = finish(trainer)
                assert trainer.field_seconds > 0
                test = trainer.evaluate()
                made[name] = steps, epochs, test, trainer.state_dict()
                assert trainer._device.core.graphs() > 0
        return made[name]

    return get


@pytest.mark.skipif(
    not cgxffcv.build_info()["onednn"], reason="this build has no oneDNN, so no convolutions on the CPU to compare with"
)
@pytest.mark.parametrize("name", NAMES)
def test_it_trains_as_the_cpu_does(files, whole, name):
    steps, epochs, test, state = whole(name)
    with trainer_of(files, name, seed=1, device="cpu") as trainer:
        assert trainer.gpu is None and trainer.field_seconds is None
        expected, expected_epochs = finish(trainer)
        expected_test = trainer.evaluate()
        plain = trainer.state_dict()
    assert [(s.epoch, s.step, s.images, s.resolution, s.skipped) for s in steps] == [
        (s.epoch, s.step, s.images, s.resolution, s.skipped) for s in expected
    ]
    assert [s.rate for s in steps] == [s.rate for s in expected]
    np.testing.assert_allclose([s.loss for s in steps[:3]], [s.loss for s in expected[:3]], rtol=2e-4)
    np.testing.assert_allclose([s.loss for s in steps], [s.loss for s in expected], rtol=5e-2)
    assert set(state) == set(plain) and test.images == expected_test.images == 7
    assert [e.images for e in epochs] == [e.images for e in expected_epochs]


@pytest.mark.parametrize("device", ["gpu", "auto", "cpu"])
def test_a_checkpoint_from_a_gpu_answers_anywhere(whole, tmp_path, device):
    if device == "cpu" and not cgxffcv.build_info()["onednn"]:
        pytest.skip("this build has no oneDNN, so no convolutions on the CPU")
    _, _, test, state = whole("muon")
    checkpoint.save(tmp_path / "a.safetensors", state)
    network = nn.load(tmp_path / "a.safetensors", device=device, precision="float32")
    assert (network.network.backend == "cpu") == (device == "cpu")
    images, labels = small_data.images_and_labels(7, 1)
    probabilities = network.probabilities(images)
    loss = -np.log(probabilities[np.arange(7), labels].astype(np.float64)).mean()
    assert loss == pytest.approx(test.loss, rel=1e-4)
    np.testing.assert_allclose(network.probabilities(images[:2]), probabilities[:2], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_graphs_change_nothing(files, whole, name):
    steps, epochs, test, state = whole(name)
    with trainer_of(files, name, seed=1, graphs=False) as trainer:
        got = finish(trainer)
        assert trainer._device.core.graphs() == 0
        assert what(got[0]) == what(steps)
        assert [e._replace(seconds=0) for e in got[1]] == [e._replace(seconds=0) for e in epochs]
        assert trainer.evaluate()._replace(seconds=0) == test._replace(seconds=0)
        same_state(state, trainer.state_dict())


@pytest.mark.parametrize("name", ["muon", "savers"])
def test_graphs_of_several_steps_change_nothing(files, name):
    """Nine steps per epoch: eight in one graph, or as many single ones if a phase begins in between."""
    recipe = TINY[name].replace(batch_size=3, epochs=1 if name == "muon" else 2)
    results = []
    for graphs in (True, False):
        with trainer_of(files, recipe, seed=1, graphs=graphs) as trainer:
            steps, _ = finish(trainer)
            results.append((what(steps), trainer.state_dict()))
    assert results[0][0] == results[1][0] and len(results[0][0]) >= 9
    same_state(results[0][1], results[1][1])


@pytest.mark.parametrize("precision", ["float16"] if EMULATED else ["float32", "bfloat16", "float16"])
def test_deterministic_trainings_give_the_same_bytes(tmp_path, precision):
    """Twice with recorded steps, once without; on a GPU with maps large enough for sums in parts."""
    files = small_data.make(tmp_path, train=16 if EMULATED else 600, test=7)
    wide = {"widths": (64, 128, 128), "head_scale": 1 / 128, "batch_size": 200, "whiten_images": 300}
    recipe = MUON.replace(**({"epochs": 1} if EMULATED else wide))
    results = []
    for graphs in (True, True, False):
        with trainer_of(files, recipe, seed=1, precision=precision, graphs=graphs) as trainer:
            steps, _ = finish(trainer)
            assert (trainer._device.core.graphs() > 0) == graphs
            results.append((what(steps), trainer.evaluate()._replace(seconds=0), trainer.state_dict()))
    for steps, test, state in results[1:]:
        assert (steps, test) == results[0][:2]
        same_state(results[0][2], state)


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_batches_from_host_memory_give_the_same_bytes(files, whole, name, graphs):
    steps, epochs, test, state = whole(name)
    with trainer_of(files, name, seed=1, resident=False, graphs=graphs) as trainer:
        assert not trainer.resident
        got = finish(trainer)
        assert (trainer._device.core.graphs() > 0) == graphs and trainer.field_seconds > 0
        assert what(got[0]) == what(steps)
        assert [e._replace(seconds=0) for e in got[1]] == [e._replace(seconds=0) for e in epochs]
        assert trainer.evaluate()._replace(seconds=0) == test._replace(seconds=0)
        same_state(state, trainer.state_dict())


@pytest.mark.parametrize("name, stop", [("muon", 2), ("savers", 4), ("averaging", 5)])
@pytest.mark.parametrize("before, after", [(True, True), (False, False), (True, False), (False, True)])
def test_resuming_continues_bit_for_bit(files, whole, tmp_path, name, stop, before, after):
    """Also if the data are in a different place afterwards: resident or not."""
    steps, _, test, state = whole(name)
    path = tmp_path / "last.safetensors"
    with trainer_of(files, name, seed=1, resident=before) as first:
        first.steps_at_once = 1
        while first.step < stop:
            for report in first.run_epoch():
                if report.step == stop - 1:
                    break
        assert first.step == stop
        first.save(path)
    with trainer_of(files, name, seed=1, resident=after) as second:
        second.resume(path)
        assert second.resident == after
        rest, _ = finish(second)
        assert what(rest) == what(steps[stop:])
        assert second.evaluate()._replace(seconds=0) == test._replace(seconds=0)
        same_state(state, second.state_dict())
    assert checkpoint.load(path)["precision"] == "float32"


@pytest.mark.parametrize("name, resident", [*((name, True) for name in NAMES), ("muon", False)])
def test_a_restart_is_a_fresh_trainer(files, whole, name, resident):
    steps, _, test, state = whole(name)
    if not resident:
        with trainer_of(files, name, seed=1, resident=False) as trainer:
            steps, _ = finish(trainer)
            test, state = trainer.evaluate(), trainer.state_dict()
    with trainer_of(files, name, seed=5, resident=resident) as trainer:
        first = finish(trainer)[0]
        assert what(first) != what(steps)
        graphs = trainer._device.core.graphs() if resident else 0
        trainer.restart(1)
        assert trainer.step == 0 and trainer.best_accuracy == 0
        assert what(finish(trainer)[0]) == what(steps)
        assert trainer.evaluate()._replace(seconds=0) == test._replace(seconds=0)
        same_state(state, trainer.state_dict())
        assert not resident or trainer._device.core.graphs() == graphs


def test_an_epoch_left_early_is_whole(files, whole):
    steps, epochs, _, _ = whole("muon")
    with trainer_of(files, "muon", seed=1) as trainer:
        for _ in trainer.run_epoch():
            break
        assert trainer.step == 3
        assert trainer.end_epoch()._replace(seconds=0) == epochs[0]._replace(seconds=0)
        assert what(trainer.run_epoch()) == what(steps[3:])


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_it_learns_in_half(tmp_path, precision):
    files = small_data.make(tmp_path, train=40, test=7)
    recipe = MUON.replace(batch_size=20, epochs=3, whiten_images=20)
    with trainer_of(files, recipe, precision=precision) as trainer:
        steps, _ = finish(trainer)
        assert trainer.precision == precision and not any(s.skipped for s in steps)
        assert np.mean([s.loss for s in steps[-2:]]) < 0.9 * np.mean([s.loss for s in steps[:2]])
        assert np.isfinite(trainer.evaluate().loss)


@pytest.mark.parametrize("resident", [True, False])
def test_steps_that_are_not_finite_are_skipped(files, resident):
    wild = MUON.replace(bias_lr=1e38, head_lr=1e38, epochs=6)
    with trainer_of(files, wild, resident=resident) as trainer:
        good, skipped = [], []
        with pytest.raises(TrainingDiverged, match="not finite in 10 steps in a row"):
            while not trainer.finished:
                for report in trainer.run_epoch():
                    (skipped if report.skipped else good).append(report)
        assert len(skipped) >= 9 and good and all(np.isfinite(r.loss) for r in good)
        state = trainer.state_dict()
        assert all(np.isfinite(v).all() for n, v in state.items() if "running" in n)


def test_skipped_steps_change_nothing(files):
    """After the first bad step of `wild`, parameters and statistics stay as they were."""
    wild = MUON.replace(bias_lr=1e38, head_lr=1e38, epochs=3)
    with trainer_of(files, wild) as trainer:
        trainer.steps_at_once = 1
        before = None
        for report in trainer.run_epoch():
            after = [trainer._core.read(name) for name in ("parameters", "statistics", "momentum")]
            if report.skipped:
                for was, now in zip(before, after, strict=True):
                    np.testing.assert_array_equal(was, now)
            before = after
        assert report.skipped


def test_wrong_data(files, tmp_path):
    images, labels = small_data.images_and_labels(20)
    labels[17] = 10
    path = small_data.write(tmp_path / "a.beton", images, labels)
    with pytest.raises(DataError, match="sample 17 has the label 10"):
        trainer_of((path, None), "muon")
    few = small_data.write(tmp_path / "b.beton", *small_data.images_and_labels(5))
    with pytest.raises(ValueError, match="the training set has only 5"):
        trainer_of((few, None), "muon")
    with (
        trainer_of(files, MUON.replace(widths=(8, 12, 24))) as trainer,
        pytest.raises(ValueError, match="multiple of 8"),
    ):
        next(trainer.run_epoch())


@pytest.mark.skipif(not EMULATED, reason="needs the emulator, whose GPU can be lost")
@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("resident", [True, False])
def test_a_gpu_lost_in_mid_run_is_said(files, monkeypatch, resident, graphs):
    with trainer_of(files, "muon", resident=resident, graphs=graphs) as trainer:
        list(trainer.run_epoch())
        monkeypatch.setenv("CGXFFCV_EMULATED_LOST", "250")  # pieces of work on streams, a few more than a step has
        with pytest.raises(cgxffcv.CudaError, match="unspecified launch failure"):
            list(trainer.run_epoch())
        assert trainer.step == 3 or not resident
        with pytest.raises(cgxffcv.CudaError):
            trainer.state_dict()
        monkeypatch.delenv("CGXFFCV_EMULATED_LOST")


@pytest.mark.skipif(not EMULATED, reason="needs the emulator, whose memory can be made small")
@pytest.mark.parametrize("resident", [True, False])
def test_too_little_memory_for_a_plan_is_said(files, whole, monkeypatch, resident):
    """And a trainer whose plan did not fit continues once there is room."""
    with trainer_of(files, "muon", seed=1, resident=resident) as trainer:
        monkeypatch.setenv("CGXFFCV_EMULATED_MEMORY", str(1 << 20))
        with pytest.raises(MemoryError, match="cannot allocate .* of GPU memory.*use a smaller batch"):
            list(trainer.run_epoch())
        assert trainer.step == 0
        monkeypatch.delenv("CGXFFCV_EMULATED_MEMORY")
        steps = list(trainer.run_epoch())
        assert not resident or what(steps) == what(whole("muon")[0][:3])


ALGORITHMS = """
import json, sys
from gpu_trainings import trainer_of
from trainings import finish
with trainer_of(sys.argv[1:3], "savers", resident=sys.argv[3] == "resident") as trainer:
    assert trainer.algorithms()["plans"] == []
    finish(trainer)
    trainer.evaluate()
    plans = trainer.algorithms()["plans"]
with trainer_of(sys.argv[1:3], "savers") as trainer:  # finds them where the first has put them
    finish(trainer)
    assert {plan["source"] for plan in trainer.algorithms()["plans"]} == {plan["source"] for plan in plans}
    print(json.dumps(trainer.algorithms() | {"plans": plans}))
"""


@pytest.mark.parametrize("source", ["resident", "host"])
def test_the_plans_that_a_run_used_are_known(files, tmp_path, source):
    """Searched for and timed by the first process, found in the cache by the second, which reports the same about
    them."""
    (tmp_path / "script.py").write_text(ALGORITHMS)
    records = []
    for _ in range(2):
        done = run_python(tmp_path / "script.py", *files, source, limit=240, CGXFFCV_CACHE=tmp_path / "cache")
        records.append(json.loads(done.stdout.splitlines()[-1]))
    first, second = records
    assert first["device"] == _cgxffcv.devices()[0]["name"] and first["library"] and first["note"] == ""
    assert Path(first["cache"]).parent == tmp_path / "cache" and Path(first["cache"]).exists()
    plans = first["plans"]
    assert {plan["side"] for plan in plans} == {16, 24, 32} and {plan["images"] for plan in plans} == {8}
    trained = {(p["layer"], p["pass"]) for p in plans if p["side"] == 24 and not p["test"]}
    layers = {f"b{block}.conv{i}" for block, depth in ((1, 2), (2, 3), (3, 2)) for i in range(1, depth + 1)}
    assert trained == {
        (layer, f"conv {which}") for layer in layers for which in ("forward", "data gradient", "filter gradient")
    }
    assert {p["layer"] for p in plans if p["test"]} == layers
    assert all(p["source"] == "timed" and p["milliseconds"] > 0 and p["algorithm"] for p in plans)
    for plan, again in zip(plans, second["plans"], strict=True):
        assert again.pop("milliseconds") == pytest.approx(plan.pop("milliseconds"), abs=1e-6)  # kept as whole ns
        assert again == plan | {"source": "cached"}
    assert {k: v for k, v in second.items() if k != "plans"} == {k: v for k, v in first.items() if k != "plans"}


def hash_of(words):
    """The definition: the sum of SplitMix64's finaliser over place and word."""
    with np.errstate(over="ignore"):
        x = np.arange(len(words), dtype=np.uint64) << np.uint64(32) | words
        x += np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        return int(np.sum(x ^ x >> np.uint64(31), dtype=np.uint64))


def test_the_hash_of_a_replica(files):
    """It follows its definition; any flipped bit of any parameter or momentum, and two swapped values change it."""
    with trainer_of(files, "muon", seed=3) as trainer:
        list(trainer.run_epoch())
        core, rng = trainer._core, np.random.default_rng(5)
        kept = {name: core.read(name).copy() for name in ("parameters", "momentum")}
        words = np.concatenate([array.view(np.uint32) for array in kept.values()])
        right = core.hash()
        assert right == hash_of(words) == core.hash()
        for name, array in kept.items():
            places = [0, 1, 255, 256, len(array) - 1, *rng.integers(0, len(array), 12)]
            for place, bit in zip(places, [31, 0, *rng.integers(0, 32, len(places) - 2)], strict=True):
                other = array.copy()
                other.view(np.uint32)[place] ^= np.uint32(1 << int(bit))
                core.write(name, other)
                assert core.hash() != right, (name, place, bit)
            first, second = np.flatnonzero(array)[[0, -1]]
            other = array.copy()
            other[[first, second]] = array[[second, first]]
            core.write(name, other)
            assert core.hash() == right if array[first] == array[second] else core.hash() != right
            core.write(name, array)
        assert core.hash() == right
