"""Data sets in a GPU's memory: batches against the CPU's loader byte for byte, whitening."""

import _cgxffcv
import numpy as np
import pytest
from gpu_batches import CHAINS, COUNT, RECIPE, core_trainer, loader_of
from gpus import needs_gpu

from cgxffcv.loader import OrderOption
from cgxffcv.train import patch_moments, whitening_filters
from cgxffcv.train.resident import ResidentTraining
from cgxffcv.transforms import (
    AlternatingFlip,
    CutMix,
    GaussianBlur,
    Poison,
    RandAugment,
    RandomCrop,
    RandomHorizontalFlip,
    RandomVerticalFlip,
)

pytestmark = needs_gpu


def resident_of(path, chain, seed=7, indices=None, **options):
    network, core = core_trainer(**options)
    with loader_of(path, chain, 8, seed=0, evaluate=True, drop_last=False, indices=indices) as loader:
        return network, core, ResidentTraining(core, loader, seed)


@pytest.mark.parametrize("name", CHAINS)
def test_batches_are_the_loaders(data, name):
    path, _, _ = data
    seed = 1 << 63 | 12345
    _, core, resident = resident_of(path, CHAINS[name], seed)
    with loader_of(path, CHAINS[name], 20, order=OrderOption.RANDOM, seed=seed, drop_last=False) as loader:
        for epoch in (0, 1, 4):
            loader.next_epoch = epoch
            for images, labels, ids in loader:
                got, got_labels = resident.core.look(resident.positions(ids), epoch)
                np.testing.assert_array_equal(got, images)
                np.testing.assert_array_equal(got_labels, labels.reshape(-1))
    resident.close()
    core.close()


def test_a_restart_changes_the_draws(data):
    path, _, _ = data
    chain = CHAINS["demo"]
    _, _, resident = resident_of(path, chain, 1)
    _, _, other = resident_of(path, chain, 2)
    positions = np.arange(20, dtype=np.int32)
    before, expected = resident.core.look(positions, 3)[0], other.core.look(positions, 3)[0]
    assert (before != expected).any()
    resident.core.restart(2)
    np.testing.assert_array_equal(resident.core.look(positions, 3)[0], expected)


def test_chosen_samples_keep_their_numbers(data):
    path, images, labels = data
    chosen = np.array([40, 3, 17, 52, 8])
    _, _, resident = resident_of(path, [], indices=chosen)
    got, got_labels = resident.core.look(resident.positions(np.array([52, 3, 40])), 0)
    np.testing.assert_array_equal(got, images[[52, 3, 40]])
    np.testing.assert_array_equal(got_labels, labels[[52, 3, 40]])


@pytest.mark.parametrize("count", [1, 37, COUNT])
def test_whitening_is_the_cpus(data, count):
    path, images, _ = data
    network, core, resident = resident_of(path, [])
    resident.core.whiten(0, count, 5e-4)
    mean, std = np.array(RECIPE.mean), np.array(RECIPE.std)
    normal = ((images[:count] - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)
    patches = np.lib.stride_tricks.sliding_window_view(normal.astype(np.float64), (2, 2), axis=(2, 3))
    patches = patches.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 12)
    layer = next(item for item in core.layers() if not item[3])
    filters = core.read("parameters")[layer[5] : layer[5] + 288].reshape(24, 2, 2, 3).transpose(0, 3, 1, 2)
    expected = whitening_filters(patches.T @ patches / len(patches), 5e-4).reshape(24, 3, 2, 2)
    np.testing.assert_allclose(filters, expected, rtol=1e-4, atol=1e-4)
    on_cpu = whitening_filters(patch_moments(np.ascontiguousarray(normal), threads=1), 5e-4).reshape(24, 3, 2, 2)
    np.testing.assert_allclose(filters, on_cpu, rtol=1e-2, atol=1e-2)
    assert resident.core.seconds() > 0 and resident.core.seconds() == 0


def test_refusals(data):
    path, images, labels = data
    _, core, resident = resident_of(path, [])
    core2 = resident.core
    ids = np.arange(COUNT)
    with pytest.raises(ValueError, match="there is room for 0"):
        core2.put(0, images[:1], labels[:1], ids[:1])
    with pytest.raises(ValueError, match="the test set has 0 of its 0 images"):
        core2.evaluate(1, None, 3, [(0, 0, False, 1.0)])
    core2.begin(1, 3)
    for wrong in (10, -1):
        with pytest.raises(ValueError, match=f"sample 1 has the label {wrong}; expected 0 to 9"):
            core2.put(1, images[:3], np.array([0, wrong, 2]), ids[:3])
    with pytest.raises(ValueError, match="3 images, but 2 labels and 3 numbers"):
        core2.put(1, images[:3], labels[:2], ids[:3])
    with pytest.raises(ValueError, match=r"shape \(N, 32, 32, 3\)"):
        core2.put(1, np.ascontiguousarray(images[:3, :28]), labels[:3], ids[:3])
    core2.put(1, images[:2], labels[:2], ids[:2])
    with pytest.raises(ValueError, match="the test set has 2 of its 3 images"):
        core2.evaluate(1, None, 2, [(0, 0, False, 1.0)])
    order, records = np.arange(20, dtype=np.int32), np.zeros((1, 5))
    with pytest.raises(IndexError, match="position 53"):
        core2.run(order + 34, 0, records, None)
    with pytest.raises(ValueError, match="3 steps at once, but a pass over the set has 2"):
        core2.run(np.zeros(60, np.int32), 0, np.zeros((3, 5)), None)
    with pytest.raises(ValueError, match="records must have the shape"):
        core2.run(order, 0, np.zeros((2, 5)), None)
    core2.begin(0, 19)
    core2.put(0, images[:19], labels[:19], ids[:19])
    with pytest.raises(ValueError, match="a batch of 20 images, but the training set has only 19"):
        core2.run(order, 0, records, None)
    with pytest.raises(ValueError, match="close its Runner first"):
        core.close()
    resident.close()
    with pytest.raises(ValueError, match="closed"):
        core2.look(order, 0)
    core.close()
    wide = [RandomCrop(28, padding=0)]
    with pytest.raises(ValueError, match="keeps the size 32 x 32"):
        resident_of(path, wide)
    many = [RandomHorizontalFlip(), RandomVerticalFlip()] * 8 + [AlternatingFlip()]
    with pytest.raises(ValueError, match="at most 16 image operations"):
        resident_of(path, many)
    with pytest.raises(ValueError, match="at most 3 operations may mix, blur or sharpen .* RandAugment does, not 4"):
        resident_of(path, [GaussianBlur(3), CutMix(), RandAugment(2)])
    with pytest.raises(ValueError, match="Poison cannot be done on the GPU"):
        resident_of(path, [Poison(np.zeros((32, 32, 3)), np.zeros((32, 32)), [1])])
    with pytest.raises(TypeError, match="expected a Trainer"):
        _cgxffcv.Runner(3, (), 0, True)
