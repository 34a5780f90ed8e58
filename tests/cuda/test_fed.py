"""Training on batches that a loader streams to a GPU: the CPU's pixels, the same bytes as with resident data, also
after failures, interruptions and early ends."""

import os
import signal
import threading

import _cgxffcv
import numpy as np
import pytest
import small_data
from checkout import run_python
from gpu_batches import CHAINS, COUNT, core_trainer, loader_of
from gpu_trainings import MUON, trainer_of, what
from gpus import EMULATED, needs_gpu
from trainings import finish, same_state

import cgxffcv
from cgxffcv.decoders import IntDecoder, SimpleRGBImageDecoder
from cgxffcv.fields import IntField, RGBImageField
from cgxffcv.loader import Loader, OrderOption
from cgxffcv.train import steps as steps_module
from cgxffcv.train.data import core_operations, feeding_loader, share_of
from cgxffcv.train.fed import FedEvaluation, FedTraining
from cgxffcv.train.resident import ResidentEvaluation, ResidentTraining
from cgxffcv.writer import DatasetWriter

pytestmark = needs_gpu

BATCH = 20


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return small_data.make(tmp_path_factory.mktemp("data"), train=27, test=7)


def fed_of(path, chain, seed=7, batch=BATCH, **options):
    network, core = core_trainer(batch=batch, **options)
    return network, core, FedTraining(core, feeding_loader(path, batch, 2, 0, None), core_operations(chain), seed)


@pytest.mark.parametrize("name", CHAINS)
def test_batches_are_the_loaders(data, name):
    path, _, _ = data
    seed = 1 << 63 | 12345
    _, core, fed = fed_of(path, CHAINS[name], seed)
    with loader_of(path, CHAINS[name], BATCH, order=OrderOption.RANDOM, seed=seed) as loader:
        for epoch in (0, 1, 4):
            loader.next_epoch = epoch
            batches = [tuple(np.array(part) for part in batch) for batch in loader]
            fed.expect(np.concatenate([batch[-1] for batch in batches]), epoch)
            for images, labels, ids in batches:
                got, got_labels = fed.core.look(fed.passes.take(ids, epoch), epoch)
                fed.passes.taken()
                np.testing.assert_array_equal(got, images)
                np.testing.assert_array_equal(got_labels, labels.reshape(-1))
    fed.close()
    core.close()


def test_whitening_is_that_of_resident_data(data):
    path, _, _ = data
    filters = []
    _, core = core_trainer()
    with loader_of(path, [], 8, seed=0, evaluate=True, drop_last=False) as loader:
        resident = ResidentTraining(core, loader, 7)
    resident.whiten(37, 5e-4)
    filters.append(core.read("parameters"))
    resident.close()
    _, core, fed = fed_of(path, [])
    with loader_of(path, [], 8, seed=0, evaluate=True, drop_last=False, indices=np.arange(37)) as loader:
        fed.whiten(loader, 5e-4)
    filters.append(core.read("parameters"))
    assert np.abs(filters[0]).max() > 0
    np.testing.assert_array_equal(*filters)
    with pytest.raises(ValueError, match="the sample set has 0 of its 0 images"):
        fed.core.whiten(2, 1, 5e-4)


VIEWS = [(0, 0, False, 0.5), (0, 0, True, 0.25), (-1, 1, False, 0.25)]


@pytest.mark.parametrize("ranks", [1, 3])
def test_tests_give_the_same_logits(data, ranks):
    """All views, then few images again; of every rank's share. More batches than are tested between two checks."""
    path, _, labels = data
    network, core = core_trainer(test_batch=3)
    network.initialise(3)
    resident = _cgxffcv.Runner(core, (), 7, True)
    seen = []
    pipelines = {"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]}
    for rank in range(ranks):
        with Loader(
            path, 3, pipelines=pipelines, num_workers=1, drop_last=False, rank=rank, world_size=ranks, seed=0, ids=True
        ) as loader:
            ids = share_of(loader)
            assert ids.tolist() == np.concatenate([batch[-1] for batch in loader]).tolist()
            on_gpu = ResidentEvaluation(resident, loader)
        fed = FedEvaluation(resident, feeding_loader(path, 3, 1, 0, ids, keep=False), ids)
        mine = fed.first(VIEWS)
        np.testing.assert_array_equal(mine[0], labels[ids])
        for part, theirs in zip(mine, on_gpu.first(VIEWS), strict=True):
            np.testing.assert_array_equal(part, theirs)
        few = np.array([5, 0, 2, 3])
        np.testing.assert_array_equal(fed.again(few, VIEWS[1:]), on_gpu.again(few, VIEWS[1:]))
        seen += ids.tolist()
        fed.close()
    assert sorted(seen) == list(range(COUNT))
    nothing = FedEvaluation(resident, feeding_loader(path, 3, 1, 0, None, keep=False), ids[:0])
    assert [len(part) for part in nothing.first(VIEWS)] == [0, 0, 0]


@pytest.mark.parametrize("at_once", [1, 2, None])
def test_an_epoch_left_early_goes_on(files, at_once):
    """The loader is then ahead of the training, or has been used for a test."""
    with trainer_of(files, "muon", seed=1) as trainer:
        steps, epochs = finish(trainer)
        state = trainer.state_dict()
    with trainer_of(files, "muon", seed=1, resident=False) as trainer:
        trainer.steps_at_once = at_once
        seen = []
        while not trainer.finished:
            first = trainer.step
            for report in trainer.run_epoch():
                seen.append(report)
                break
            assert trainer.step == min(first + (at_once or 3), 3 if first < 3 else 6)
            trainer.evaluate(tta=False)
        expected = dict(enumerate(what(steps)))
        assert all(expected[report[1]] == report for report in what(seen))
        assert trainer.end_epoch()._replace(seconds=0) == epochs[-1]._replace(seconds=0)
        same_state(state | {"best_accuracy": 0}, trainer.state_dict() | {"best_accuracy": 0})


def test_two_passes_at_a_time(files):
    """A generator that was abandoned does not disturb the next one."""
    with trainer_of(files, "muon", seed=1) as trainer:
        steps, _ = finish(trainer)
        state = trainer.state_dict()
    with trainer_of(files, "muon", seed=1, resident=False) as trainer:
        trainer.steps_at_once = 1
        old, new = trainer.run_epoch(), trainer.run_epoch()
        seen = [next(old), next(new), next(old)]
        assert list(new) == []
        assert what(seen) == what(steps[:3])
        finish(trainer)
        same_state(state, trainer.state_dict())


def parameters(trainer):
    return {name: trainer._core.read(name).tobytes() for name in ("parameters", "statistics", "momentum")}


@pytest.mark.parametrize("graphs", [True, False])
def test_a_loader_that_fails_leaves_whole_steps(tmp_path, graphs):
    """A file truncated in mid-epoch; what the loader has read before is still used."""
    path = small_data.write(tmp_path / "a.beton", *small_data.images_and_labels(80))
    recipe = MUON.replace(epochs=1)
    after = []
    with trainer_of((path, None), recipe, seed=1) as trainer:
        trainer.steps_at_once = 1
        for _ in trainer.run_epoch():
            after.append(parameters(trainer))
    with trainer_of((path, None), recipe, seed=1, resident=False, graphs=graphs) as trainer:
        trainer.steps_at_once = 2
        reports = trainer.run_epoch()
        seen = [next(reports)]
        os.truncate(path, 8192)
        with pytest.raises((_cgxffcv.BetonError, OSError), match="a.beton"):
            seen += list(reports)
        assert 2 <= trainer.step < 10 and len(seen) <= trainer.step
        assert parameters(trainer) == after[trainer.step - 1]
        assert trainer._tally.sums.images == 8 * trainer.step
        with pytest.raises((_cgxffcv.BetonError, OSError), match="a.beton"):
            list(trainer.run_epoch())


def test_a_signal_ends_the_run_after_a_whole_step(files):
    """Wherever it comes; the training then continues as if nothing had happened."""
    recipe = MUON.replace(batch_size=3, epochs=2)
    with trainer_of(files, recipe, seed=1) as trainer:
        finish(trainer)
        state = trainer.state_dict()
    interrupted = []
    with trainer_of(files, recipe, seed=1, resident=False) as trainer:
        for delay in (0.002, 0.05, 0.2):
            if trainer.finished:
                break
            timer = threading.Timer(delay, signal.raise_signal, [signal.SIGINT])
            try:
                timer.start()
                for _ in trainer.run_epoch():
                    pass
                timer.join()
            except KeyboardInterrupt:
                interrupted.append(trainer.step)
            finally:
                timer.cancel()
                timer.join()
        finish(trainer)
        same_state(state, trainer.state_dict())
    assert interrupted


@pytest.mark.skipif(not EMULATED, reason="needs the emulator, whose GPU can be lost")
@pytest.mark.parametrize("lost", [1, 40, 120, 260])
def test_a_gpu_lost_in_mid_copy_is_said(files, monkeypatch, lost):
    """Lost after that many pieces of work on streams."""
    with trainer_of(files, "muon", resident=False) as trainer:
        list(trainer.run_epoch())
        monkeypatch.setenv("CGXFFCV_EMULATED_LOST", str(lost))
        with pytest.raises(cgxffcv.CudaError, match="unspecified launch failure"):
            list(trainer.run_epoch())
        assert trainer.step == 3
        with pytest.raises(cgxffcv.CudaError):
            trainer.evaluate()
        monkeypatch.delenv("CGXFFCV_EMULATED_LOST")


@pytest.mark.skipif(not _cgxffcv.build_info()["jpeg"], reason="this build has no libjpeg-turbo")
def test_jpeg_images_are_decoded_again_where_they_are_too_many(tmp_path, monkeypatch):
    images, labels = small_data.images_and_labels(27)
    fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=90), "label": IntField()}
    DatasetWriter(str(tmp_path / "a.beton"), fields).from_arrays(image=images, label=labels)
    states, memory = [], []
    for resident, room in ((True, 0), (False, 1 << 40), (False, 1)):
        monkeypatch.setattr(steps_module, "host_room", lambda team, room=room: room)
        with trainer_of((tmp_path / "a.beton", None), "muon", seed=1, resident=resident) as trainer:
            finish(trainer)
            states.append(trainer.state_dict())
            if not resident:
                memory.append(trainer._device.passes.loader.stats()["memory_bytes"])
    for state in states[1:]:
        same_state(states[0], state)
    scratch = images[0].nbytes  # held by the thread that decodes an image again
    assert memory[0] - memory[1] >= images.nbytes - scratch


def test_page_locked_batches_are_batches(data):
    """For programs that copy them themselves; kept batches stay valid after the loader's end."""
    path, images, _ = data
    with Loader(path, 8, pipelines={"label": None}, drop_last=False, page_locked=0) as loader:
        kept = [batch for (batch,) in loader]
        assert loader.stats()["slots_held"] == len(kept) == 7
    np.testing.assert_array_equal(np.concatenate(kept), images)
    del kept


DEVICES = """
import sys
import _cgxffcv, gpu_batches
free = []
for index in (0, 1):
    _cgxffcv.select_device(index)
    if index == 0:
        held = gpu_batches.core_trainer()
    free.append(_cgxffcv.device_free_memory())
assert free[0] < free[1]
for index in (0, 1):
    _cgxffcv.select_device(index)
    with gpu_batches.loader_of(sys.argv[1], [], 8, page_locked=1 - index) as loader:
        kept = [loader.get_batch(range(count)) for count in (8, 20)]
    assert _cgxffcv.device_free_memory() == free[index], index
"""


@pytest.mark.skipif(not EMULATED, reason="counts two GPUs' free memory, which others may use, too")
def test_page_locked_batches_leave_the_threads_gpu(data, tmp_path):
    path, _, _ = data
    run_python("-c", DEVICES, path, cwd=tmp_path, CGXFFCV_EMULATED_DEVICES=2)


def test_refusals(data, tmp_path):
    path, images, labels = data
    _, core, fed = fed_of(path, [])
    records = np.zeros((1, 5))
    pipelines = {"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]}
    only_images, idle = (Loader(path, BATCH, pipelines=chosen) for chosen in ({"label": None}, pipelines))
    with pytest.raises(ValueError, match="gives uint8 images of 32 x 32 x 3 and int64 labels, and nothing else"):
        fed.core.run(only_images._core, 0, records, None)
    with pytest.raises(ValueError, match="the loader gave 0 images where a step takes 20"):
        fed.core.run(idle._core, 0, records, None)
    with Loader(path, BATCH - 1, pipelines=pipelines) as few, pytest.raises(ValueError, match="gave 19 images where"):
        few._core.begin(0, 0, True, False, None)
        fed.core.run(few._core, 0, records, None)
    with Loader(path, BATCH + 1, pipelines=pipelines) as many, pytest.raises(ValueError, match="room for 20"):
        many._core.begin(0, 0, True, False, None)
        fed.core.evaluate_fed(many._core, COUNT, VIEWS)
    with pytest.raises(ValueError, match="5 steps at once"):
        fed.core.run(idle._core, 0, np.zeros((5, 5)), None)
    with pytest.raises(ValueError, match="closed"):
        closed = Loader(path, BATCH, pipelines=pipelines)
        closed.close()
        fed.core.run(closed._core, 0, records, None)
    wrong = labels.copy()
    wrong[:] = 10
    bad = small_data.write(tmp_path / "bad.beton", images, wrong)
    with Loader(bad, BATCH, pipelines=pipelines) as loader:
        loader._core.begin(0, 0, True, False, None)
        with pytest.raises(ValueError, match="sample 0 has the label 10; expected 0 to 9"):
            fed.core.run(loader._core, 0, records, None)
    with pytest.raises(ValueError, match="there is no GPU 77"), Loader(path, 8, page_locked=77) as far:
        next(iter(far))
    assert core.steps_done == 0


def test_a_failed_run_takes_its_batches_again(data, tmp_path):
    """The first batch had been taken when it was refused."""
    _, images, labels = data
    path = small_data.write(tmp_path / "bad.beton", images, labels + 10)
    _, core, fed = fed_of(path, [])
    for _ in range(2):
        with pytest.raises(ValueError, match="sample 0 has the label 10; expected 0 to 9"):
            fed.run(np.arange(BATCH), 0, np.zeros((1, 5)), None)
    assert core.steps_done == 0
    fed.close()
    core.close()


FALLBACK = """
import os, sys, warnings
from gpu_trainings import trainer_of
def step(**options):
    with warnings.catch_warnings(record=True) as notes, trainer_of((sys.argv[1], None), "muon", **options) as trainer:
        trainer.steps_at_once = 1
        next(trainer.run_epoch())
        return trainer.resident, [str(note.message) for note in notes], trainer._core.read("parameters").tobytes()
fed = step()
os.environ["CGXFFCV_EMULATED_MEMORY"] = str(1 << 30)
resident = step()
assert fed[2] == resident[2] and resident[:2] == (True, [])
print(*fed[:2])
"""


@pytest.mark.skipif(not EMULATED, reason="needs the emulator, whose memory can be made small")
def test_a_set_that_does_not_fit_is_fed(tmp_path):
    path = small_data.write(tmp_path / "a.beton", *small_data.images_and_labels(4000))
    script = tmp_path / "fallback.py"
    script.write_text(FALLBACK)
    done = run_python(script, path, CGXFFCV_EMULATED_MEMORY=12 << 20)
    assert done.stdout.startswith("False ['the training set stays in host memory: ")
