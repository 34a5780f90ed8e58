"""What is done to chosen samples (Poison, ReplaceLabel), shares of classes, and crops after a plain decoder."""

import gc

import numpy as np
import pytest
import tiny_beton

from cgxffcv import transforms as tf
from cgxffcv.fields.decoders import (
    CenterCropRGBImageDecoder,
    IntDecoder,
    RandomResizedCropRGBImageDecoder,
    SimpleRGBImageDecoder,
)
from cgxffcv.loader import Loader, OrderOption

COUNT, SIZE, CHOSEN = 30, (9, 14), [3, 29, 4, 17, 3]


def images():
    return np.random.default_rng(1).integers(0, 256, (COUNT, *SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    labels = [i % 5 for i in range(COUNT)]
    return tiny_beton.write(
        tmp_path_factory.mktemp("chosen") / "a.beton", {"image": ("image", list(images())), "label": ("int", labels)}
    )


def load(path, image=(), label=(), **options):
    options = {"num_workers": 2, "seed": 5, "drop_last": False, "ids": True, **options}
    return Loader(path, 8, pipelines={"image": list(image), "label": list(label)}, **options)


def picture(seed=2):
    random = np.random.default_rng(seed)
    return random.uniform(-50, 300, (*SIZE, 3)).astype(np.float32), random.uniform(0, 1, SIZE).astype(np.float32)


def poisoned(pixels, mask, alpha, low=0, high=255):
    value = pixels * (1 - alpha.astype(np.float64)[..., None]) + mask.astype(np.float64) * alpha[..., None]
    return np.clip(value + 2e-5, low, high).astype(np.uint8)


@pytest.mark.parametrize("evaluate", [False, True])
@pytest.mark.parametrize("clamp", [(0, 255), (30, 200)])
def test_poison(path, clamp, evaluate):
    mask, alpha = picture()
    with load(path, [tf.Poison(mask, alpha, CHOSEN, clamp)], order=OrderOption.RANDOM, evaluate=evaluate) as loader:
        gc.collect()
        for _ in range(2):
            for got, _, ids in loader:
                for image, sample in zip(got, ids.tolist(), strict=True):
                    plain = images()[sample]
                    want = poisoned(plain, mask, alpha, *clamp) if sample in CHOSEN else plain
                    np.testing.assert_array_equal(image, want)


def test_whole_sums_of_poison_stay_whole(path):
    """0.9 x 100 + 0.1 x 50 is 95 even if the parts are rounded."""
    step = tf.Poison(np.full((*SIZE, 3), 50), np.full(SIZE, 0.1), range(COUNT))
    with load(path, [step]) as loader:
        got = np.concatenate([image for image, _, _ in loader])
    np.testing.assert_array_equal(got, (images().astype(int) * 9 + 50) // 10)


def test_poison_between_others(path):
    """Its place in the chain matters: pixels are flipped after it, and mixed with those of an image that has it."""
    mask, alpha = picture(4)
    steps = [tf.RandomContrast(0.5), tf.Poison(mask, alpha, [9]), tf.GaussianBlur(3, p=1), tf.RandomVerticalFlip(1)]
    with load(path, steps[:1]) as before, load(path, steps[:2]) as after, load(path, steps) as all_of_them:
        plain, changed, last = (loader.get_batch([8, 9], epoch=3)[0] for loader in (before, after, all_of_them))
    np.testing.assert_array_equal(changed[0], plain[0])
    np.testing.assert_array_equal(changed[1], poisoned(plain[1], mask, alpha))
    assert not np.array_equal(last[1], changed[1][::-1])


@pytest.mark.parametrize("evaluate", [False, True])
def test_labels(path, evaluate):
    steps = [IntDecoder(), tf.ReplaceLabel(CHOSEN, 77), tf.ReplaceLabel(np.array([4]), -5)]
    with load(path, label=steps, order=OrderOption.RANDOM, evaluate=evaluate) as loader:
        for _, labels, ids in loader:
            assert labels.dtype == np.int64 and labels.shape == (len(ids), 1)
            want = [-5 if i == 4 else 77 if i in CHOSEN else i % 5 for i in ids.tolist()]
            assert labels[:, 0].tolist() == want


def test_replaced_labels_are_mixed(path):
    steps = [tf.ReplaceLabel([0, 7], 4), tf.LabelMixup(0.5, False), tf.MixupToOneHot(5)]
    with load(path, label=steps) as loader, load(path, label=steps[:2]) as pairs:
        (_, shares, _), (_, mixed, _) = next(iter(loader)), next(iter(pairs))
    labels = [4, 1, 2, 3, 4, 0, 1, 4]
    assert mixed[:, 0].tolist() == labels and mixed[:, 1].tolist() == labels[-1:] + labels[:-1]
    want = np.zeros((8, 5), np.float32)
    for row, (own, previous, share) in enumerate(mixed):
        want[row, int(own)] += share
        want[row, int(previous)] += 1 - share
    np.testing.assert_array_equal(shares, want)
    assert shares[0, 4] == 1  # of two equal labels


@pytest.mark.parametrize("size", [6, (5, 11)])
def test_a_crop_behind_a_plain_decoder_is_the_decoder_that_crops(path, size):
    crop = tf.RandomResizedCrop((0.2, 1), (0.5, 2), size)
    decoder = RandomResizedCropRGBImageDecoder((6, 6) if size == 6 else size, (0.2, 1), (0.5, 2))
    flip = tf.RandomHorizontalFlip()
    with load(path, [SimpleRGBImageDecoder(), crop, flip]) as one, load(path, [decoder, flip]) as other:
        for (got, _, _), (want, _, _) in zip(one, other, strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("chain", [[tf.ReplaceLabel([1], 2), tf.LabelMixup(1, True)], [tf.ReplaceLabel([3], 7)]])
def test_labels_may_be_tensors_first(path, chain):
    with load(path, [], [*chain, tf.ToTensor()]) as one, load(path, [], [tf.ToTensor(), *chain]) as other:
        for (_, got, _), (_, want, _) in zip(one, other, strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    "image, label, error, text",
    [
        (
            [tf.Poison(np.zeros((9, 13, 3)), np.zeros((9, 14)), [1])],
            [],
            ValueError,
            "mask .9x13. and alpha .9x14. must",
        ),
        ([tf.RandomCrop(5), tf.Poison(*picture(), [1])], [], ValueError, "the size of the images, 5x5"),
        ([tf.RandomHorizontalFlip(), tf.RandomResizedCrop((0.1, 1), (1, 1), 4)], [], TypeError, "must come first"),
        (
            [CenterCropRGBImageDecoder((5, 5), 1), tf.RandomResizedCrop((0.1, 1), (1, 1), 4)],
            [],
            TypeError,
            "must come fi",
        ),
        ([], [tf.RandomResizedCrop((0.1, 1), (1, 1), 4)], TypeError, "is for images"),
        ([], [tf.Poison(*picture(), [1])], TypeError, "is for images"),
        ([tf.ReplaceLabel([1], 2)], [], TypeError, "fields of int"),
        ([], [tf.LabelMixup(1, True), tf.ReplaceLabel([1], 2)], TypeError, "must come first"),
        ([], [tf.ReplaceLabel([1], 2)] * 9, ValueError, "at most 8 image operations are allowed in a label"),
    ],
)
def test_bad_pipelines(path, image, label, error, text):
    with pytest.raises(error, match=text):
        load(path, image, label)


@pytest.mark.parametrize(
    "make, error, text",
    [
        (lambda: tf.Poison(np.zeros((4, 4)), np.zeros((4, 4)), [1]), (TypeError, ValueError), "mask"),
        (
            lambda: tf.Poison(np.zeros((4, 4, 1)), np.zeros((4, 4)), [1]),
            ValueError,
            "mask must have shape .height, width, 3",
        ),
        (lambda: tf.Poison(np.zeros((4, 4, 3)), np.full((4, 4), np.nan), [1]), ValueError, "alpha must be finite"),
        (
            lambda: tf.Poison(np.zeros((4, 4, 3)), np.zeros((4, 4)), [1.5]),
            TypeError,
            "indices must be numbers of samples",
        ),
        (
            lambda: tf.Poison(np.zeros((4, 4, 3)), np.zeros((4, 4)), [1], (5, 2)),
            ValueError,
            "the limits of clamp must be in ascending order",
        ),
        (lambda: tf.ReplaceLabel([1], 1.5), TypeError, "new_label must be a whole number"),
        (lambda: tf.MixupToOneHot(0), ValueError, "num_classes"),
        (lambda: tf.MixupToOneHot(3)(np.array([[1, 3, 0.5]], np.float32)), ValueError, "label 3 is not one of"),
        (lambda: tf.MixupToOneHot(3)(np.array([[-1, 2, 0.5]], np.float32)), ValueError, "label -1 is not one of"),
        (lambda: tf.MixupToOneHot(3)(np.zeros((2, 1))), TypeError, "takes labels of LabelMixup"),
        (lambda: tf.RandomResizedCrop((0.1, 2), (1, 1), 4), ValueError, "scale must be within 0..1"),
        (lambda: tf.RandomResizedCrop((0.1, 1), (1, 1), 0), ValueError, "output_size"),
    ],
)
def test_bad_arguments(make, error, text):
    with pytest.raises(error, match=text):
        make()
