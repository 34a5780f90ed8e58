"""Image operations after a user's own step: on whole batches, with the same pixels as in the workers."""

import _cgxffcv
import numpy as np
import pytest
import small_data

from cgxffcv import Loader, OrderOption
from cgxffcv import transforms as tf
from cgxffcv.pipeline.later import core_operation
from cgxffcv.pipeline.operation import Operation

SIDE = 24
FLIP, SHIFT, HOLE = tf.RandomHorizontalFlip(), tf.RandomTranslate(3, (1, 2, 3)), tf.Cutout(6, (9, 8, 7))
COLOUR, CROP, BLUR = tf.RandomBrightness(0.5), tf.RandomCrop((20, 16), 2), tf.GaussianBlur(3)


def same(batch):
    return batch


class Same(Operation):
    def generate_code(self):
        return lambda batch, destination: batch

    def declare_state_and_memory(self, previous_state):
        return previous_state, None


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    images = np.random.default_rng(0).integers(0, 256, (20, SIDE, SIDE, 3), dtype=np.uint8)
    return small_data.write(tmp_path_factory.mktemp("later") / "x.beton", images, np.arange(20))


def epochs(path, chain, **options):
    """The images of two epochs, and of some samples as the second would make them."""
    options = {"order": OrderOption.RANDOM, "seed": 3, "drop_last": False, **options}
    with Loader(path, 8, pipelines={"image": chain, "label": None}, **options) as loader:
        seen = [image.copy() for _ in range(2) for (image,) in loader]
        return [*seen, loader.get_batch([7, 2, 7])[0].copy(), loader.get_batch([5], epoch=9, evaluate=True)[0].copy()]


@pytest.mark.parametrize(
    "chain, parts",
    [
        ([FLIP], [same, FLIP]),
        ([FLIP, SHIFT, HOLE], [Same(), FLIP, SHIFT, HOLE]),
        ([FLIP, SHIFT, HOLE], [FLIP, same, SHIFT, Same(), HOLE]),
        ([FLIP, HOLE, FLIP, COLOUR, FLIP], [FLIP, HOLE, same, FLIP, COLOUR, same, FLIP]),
        ([CROP, COLOUR, BLUR, FLIP], [CROP, same, COLOUR, BLUR, FLIP]),
        ([tf.RandAugment(), HOLE], [tf.RandAugment(), same, HOLE]),
        ([FLIP, tf.RandAugment(1)], [FLIP, same, tf.RandAugment(1)]),
    ],
)
@pytest.mark.parametrize("end", [[], [tf.NormalizeImage(100, 50, np.float32), tf.ToTorchImage(channels_last=False)]])
@pytest.mark.parametrize("evaluate", [False, True])
def test_the_same_pixels_as_in_one_pass(path, chain, parts, end, evaluate):
    for got, want in zip(
        epochs(path, parts + end, evaluate=evaluate), epochs(path, chain + end, evaluate=evaluate), strict=True
    ):
        np.testing.assert_array_equal(got, want)


def test_values_are_read_when_a_batch_is_made(path):
    flip = tf.RandomHorizontalFlip(0.0)
    options = {"pipelines": {"image": [same, flip], "label": None}, "seed": 1}
    with Loader(path, 8, **options) as loader:
        before = next(iter(loader))[0].copy()
        flip.flip_prob = 1.0
        np.testing.assert_array_equal(next(iter(loader))[0], before[:, :, ::-1])


def test_it_is_explained(path):
    with Loader(path, 8, pipelines={"image": [FLIP, same, SHIFT, HOLE], "label": None}) as loader:
        assert "in the thread that iterates: same > RandomTranslate(padding=3" in loader.explain()


@pytest.mark.parametrize(
    "chain, text",
    [
        ([same, tf.ToTensor(), FLIP], r"RandomHorizontalFlip.* must come before ToTensor\(\)"),
        ([tf.ToTensor(), same, FLIP], r"must come before ToTensor\(\)"),
        ([tf.ToTorchImage(), same, FLIP], r"must come before ToTorchImage"),
        ([tf.NormalizeImage(1, 2, np.float32), same, FLIP], "must come before NormalizeImage"),
        ([same, tf.NormalizeImage(1, 2, np.float32), HOLE], "must come before NormalizeImage"),
        ([tf.Convert("float32"), same, FLIP], "must come before"),
        ([same, tf.ImageMixup(1, True)], "must come before .*other than one that mixes a batch"),
        ([same, tf.RandomResizedCrop((0.1, 1), (1, 1), 4)], "must come first"),
    ],
)
def test_refusals(path, chain, text):
    with pytest.raises(TypeError, match=text):
        Loader(path, 8, pipelines={"image": chain})


@pytest.mark.parametrize(
    "step, text",
    [
        (lambda batch: batch / 2, r"works on arrays of uint8, .*; the step before it gives float64 \(8, 24, 24, 3\)"),
        (lambda batch: batch[0, 0], r"the step before it gives uint8 \(24, 3\)"),
        (lambda batch: batch[0], r"take a batch \(8, height, width, 1 to 4\), not \(24, 24, 3, 1\)"),
        (lambda batch: list(batch), "the step before it gives list"),
        (lambda batch: np.repeat(batch, 2, 3), r"take a batch \(8, height, width, 1 to 4\), not \(8, 24, 24, 6\)"),
        (lambda batch: batch[1:], r"take a batch \(8, height, width, 1 to 4\), not \(7, 24, 24, 3\)"),
        (lambda batch: batch[:, :0], r"not \(8, 0, 24, 3\)"),
        (lambda batch: batch[:, :4, :4], "6x6"),
    ],
)
def test_what_a_step_must_give(path, step, text):
    with (
        Loader(path, 8, pipelines={"image": [step, HOLE]}) as loader,
        pytest.raises((TypeError, ValueError), match=text),
    ):
        next(iter(loader))


def test_the_core_checks_for_itself():
    images, ids = np.zeros((2, 8, 8, 3), np.uint8), np.arange(2)
    flip, mixup = core_operation(FLIP, 0), core_operation(tf.ImageMixup(1, True), 0)
    assert _cgxffcv.augment_images(images, ids, (flip,), 5, 1, 2, False).shape == images.shape  # none is left
    assert _cgxffcv.augment_images(images[:0], ids[:0], (flip,), 0, 1, 2, False).shape == (0, 8, 8, 3)
    for arguments, error, text in [
        ((images, ids, (mixup,), 0, 1, 2, False), ValueError, "mixes a batch must come before"),
        ((images[:, ::2], ids, (flip,), 0, 1, 2, False), TypeError, "C-contiguous"),
        ((images, ids[:1], (flip,), 0, 1, 2, False), TypeError, "take a batch .1, height"),
        ((images, ids, (flip,) * 17, 0, 1, 2, False), ValueError, "at most 16 times"),
        ((images, ids, (flip, 3), 0, 1, 2, False), TypeError, "dict"),
        ((images, ids, (flip,), 0, 1, 2**32, False), (OverflowError, ValueError), "epoch"),
        ((images, ids, (flip,), -1, 1, 2, False), (OverflowError, ValueError), "done"),
        ((images.astype(float), ids, (flip,), 0, 1, 2, False), TypeError, "the batch"),
    ]:
        with pytest.raises(error, match=text):
            _cgxffcv.augment_images(*arguments)
