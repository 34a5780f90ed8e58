"""Operations that mix a batch's neighbours, against NumPy: what comes before and after them, neighbours, lambda."""

import augment_reference as reference
import numpy as np
import pytest
import tiny_beton

from cgxffcv import BetonError, DatasetWriter, Reader
from cgxffcv import transforms as tf
from cgxffcv.fields import RGBImageField
from cgxffcv.fields.decoders import CenterCropRGBImageDecoder, SimpleRGBImageDecoder
from cgxffcv.loader import Loader, OrderOption, PipelineSpec

COUNT, SEED, NUMBER, FILL = 40, 0x9876543210, 7, (9, 8, 7)
BEFORE = [tf.RandomHorizontalFlip(), tf.RandomTranslate(2, FILL), tf.Cutout(3, FILL), tf.RandomBrightness(0.5)]
AFTER = [tf.RandomCrop(8, 1, FILL), tf.RandomHorizontalFlip(), tf.RandomBrightness(0.3), tf.Cutout(2)]
NORMALIZE = [tf.NormalizeImage((100, 110, 120), (50, 60, 70), np.float32), tf.ToTorchImage(False)]


def images(size=(13, 9)):
    return np.random.default_rng(size).integers(0, 256, (COUNT, *size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    labels = [3 * i - 5 for i in range(COUNT)]
    return tiny_beton.write(
        tmp_path_factory.mktemp("mixup") / "a.beton", {"image": ("image", list(images())), "label": ("int", labels)}
    )


def share(step, epoch, ids, i):
    """Lambda, by the same formula in NumPy, in units of 1 / 65,536."""
    sample = ids[0] if step.same_lambda else ids[i]
    words = reference.philox(SEED, epoch, sample, reference.AUGMENT, NUMBER)
    return int(beta(words, step.alpha) * 65536 + 0.5)


def beta(words, alpha):
    power = ((words[0] + 0.5) / 2**32) ** (1 / alpha)
    cosine = np.cos(2 * np.pi * (words[1] + 0.5) / 2**32)
    return 0.5 + 0.5 * cosine / np.sqrt(power / (1 - power) + cosine**2)


def cut(step, epoch, ids, i, size):
    """(y, x, height, width) of what CutMix takes from the previous image."""
    sample = ids[0] if step.same_lambda else ids[i]
    words = reference.philox(SEED, epoch, sample, reference.AUGMENT, reference.DRAW["CutMix"])
    side = np.sqrt(1 - beta(words, step.alpha))
    height, width = int(side * size[0] + 0.5), int(side * size[1] + 0.5)
    return (
        *(reference.below(w, n + 1) for w, n in zip(words[2:], (size[0] - height, size[1] - width), strict=True)),
        height,
        width,
    )


def numbered(steps):
    """Each step with how many of its kind come before it."""
    return [(step, sum(type(step) is type(other) for other in steps[:i])) for i, step in enumerate(steps)]


def augmented(steps, image, key):
    for step, occurrence in steps:
        image = reference.apply(step, image, reference.draws(step, occurrence, 0, key), key[1], False)
    return image


def expect(before, step, after, epoch, ids):
    """Of one batch."""
    steps = numbered([*before, *after])
    first, second = steps[: len(before)], steps[len(before) :]
    own = [augmented(first, images()[n], (SEED, epoch, n)).astype(np.float64) for n in ids]
    out = []
    for i, n in enumerate(ids):
        weight = share(step, epoch, ids, i) / 65536
        mixed = (weight * own[i] + (1 - weight) * own[i - 1]).astype(np.uint8)
        out.append(augmented(second, mixed, (SEED, epoch, n)))
    return np.stack(out)


def expect_cut(before, step, after, epoch, ids):
    """Of one batch."""
    steps = numbered([*before, *after])
    first, second = steps[: len(before)], steps[len(before) :]
    own = [augmented(first, images()[n], (SEED, epoch, n)) for n in ids]
    out = []
    for i, n in enumerate(ids):
        y, x, height, width = cut(step, epoch, ids, i, own[i].shape[:2])
        mixed = own[i].copy()
        mixed[y : y + height, x : x + width] = own[i - 1][y : y + height, x : x + width]
        out.append(augmented(second, mixed, (SEED, epoch, n)))
    return np.stack(out)


def loader(path, image, label=(), **options):
    options = {"num_workers": 2, "seed": SEED, "drop_last": False, "ids": True, **options}
    return Loader(path, 7, pipelines={"image": list(image), "label": list(label)}, **options)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("before, after", [([], []), (BEFORE, []), ([], AFTER), (BEFORE, AFTER)])
def test_images(path, before, after, same):
    step = tf.ImageMixup(0.8, same)
    with loader(path, [*before, step, *after], order=OrderOption.RANDOM) as batches:
        for epoch in range(2):
            for got, _, ids in batches:
                np.testing.assert_array_equal(got, expect(before, step, after, epoch, ids.tolist()))


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("before, after", [([], []), (BEFORE, AFTER), ([tf.RandomCrop(5), tf.GaussianBlur(3)], [])])
def test_cut_images_and_their_labels(path, before, after, same):
    step, size = tf.CutMix(0.8, same), (5, 5) if before and after == [] else (13, 9)
    with loader(path, [*before, step, *after], [tf.LabelCutMix(size, 0.8, same)], order=OrderOption.RANDOM) as batches:
        for got, labels, ids in batches:
            np.testing.assert_array_equal(got, expect_cut(before, step, after, 0, ids.tolist()))
            np.testing.assert_array_equal(labels[:, :2], np.stack([3 * ids - 5, np.roll(3 * ids - 5, 1)], 1))
            for i, share in enumerate(labels[:, 2]):
                _, _, height, width = cut(step, 0, ids.tolist(), i, size)
                assert share == np.float32(1 - height * width / (size[0] * size[1]))
        got, labels, _ = batches.get_batch([3, 9], evaluate=True)
        np.testing.assert_array_equal(labels, [[4, 22, 1], [22, 4, 1]])


def test_what_follows_the_normalisation(path):
    step = tf.ImageMixup(0.8, True)
    with loader(path, [*BEFORE, step, *NORMALIZE]) as batches:
        for got, _, ids in batches:
            mixed = expect(BEFORE, step, [], 0, ids.tolist())
            want = np.stack([reference.pipeline(NORMALIZE, image, (SEED, 0, 0)) for image in mixed])
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("same", [True, False])
def test_labels_have_the_lambda_of_the_images(path, same):
    with loader(path, [tf.ImageMixup(0.3, same)], [tf.LabelMixup(0.3, same)], order=OrderOption.RANDOM) as batches:
        for got, labels, ids in batches:
            assert labels.dtype == np.float32 and labels.shape == (len(ids), 3)
            np.testing.assert_array_equal(labels[:, 0], 3 * ids - 5)
            np.testing.assert_array_equal(labels[:, 1], np.roll(3 * ids - 5, 1))
            assert (len(set(labels[:, 2])) == 1) is (same or len(ids) == 1)
            weight = labels[:, 2, None, None, None].astype(np.float64)
            own = images()[ids].astype(np.float64)
            np.testing.assert_array_equal(got, (weight * own + (1 - weight) * np.roll(own, 1, 0)).astype(np.uint8))


def test_workers_and_chunks_change_nothing(path):
    def all_of(workers, batch):
        steps = {"image": [*BEFORE, tf.ImageMixup(0.5, False)], "label": [tf.LabelMixup(0.5, False)]}
        with Loader(path, batch, pipelines=steps, num_workers=workers, seed=SEED) as batches:
            return [np.concatenate(arrays) for arrays in zip(*batches, strict=True)]

    for one, other in zip(all_of(1, COUNT), all_of(4, COUNT), strict=True):
        np.testing.assert_array_equal(one, other)


def test_neutral_and_alone(path):
    with loader(path, [tf.ImageMixup(0.5, False)], [tf.LabelMixup(0.5, True)]) as batches:
        got, labels, _ = batches.get_batch([3, 9, 4], evaluate=True)
        np.testing.assert_array_equal(got, images()[[3, 9, 4]])
        np.testing.assert_array_equal(labels, [[4, 7, 1], [22, 4, 1], [7, 22, 1]])
        got, labels, _ = batches.get_batch([5])
        np.testing.assert_array_equal(got[0], images()[5])  # mixed with itself
        assert labels[0, 0] == labels[0, 1] == 10


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    "decoder", [SimpleRGBImageDecoder(), CenterCropRGBImageDecoder((9, 9), 1.0)], ids=["all", "crop"]
)
def test_of_the_bad_samples_the_first_is_told(tmp_path, decoder, workers):
    """Also if the first image is mixed with the last one, which is also bad."""
    path = str(tmp_path / "a.beton")
    picture = np.random.default_rng(3).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    writer = DatasetWriter(path, {"image": RGBImageField(write_mode="jpg")}, progress=False)
    writer.from_indexed_dataset([(picture,)] * 12)
    for bad in ([11], [5, 11]):
        with Reader(path) as reader, open(path, "r+b") as file:
            for sample in bad:
                begin, end = reader.sample_span(sample)
                file.seek((begin + end) // 2)
                file.write(bytes(end - (begin + end) // 2))
        with Loader(path, 12, workers, pipelines={"image": [decoder, tf.ImageMixup(0.5, False)]}) as loader:
            with pytest.raises(BetonError) as caught:
                list(loader)
            assert caught.value.sample == bad[0]


@pytest.mark.parametrize(
    "steps",
    [
        [tf.ImageMixup(1, False), tf.RandomCrop(9)],
        [tf.RandomCrop(20), tf.CutMix(1, False), tf.RandomVerticalFlip(), tf.RandomCrop(5)],
        [tf.Cutout(9), tf.RandomCrop(7), tf.RandomContrast(1)],
        [tf.RandomContrast(1, 1), tf.GaussianBlur(7, p=1), tf.RandomCrop(11)],
    ],
    ids=str,
)
def test_a_jpeg_is_decoded_as_far_as_the_chain_looks(tmp_path, steps):
    """The same as for images whose pixels are all there."""
    noise = np.random.default_rng(3).integers(0, 256, (14, 5, 6, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    jpeg, raw = str(tmp_path / "jpeg.beton"), str(tmp_path / "raw.beton")
    DatasetWriter(jpeg, {"image": RGBImageField("jpg")}, progress=False).from_indexed_dataset([(one,) for one in noise])
    with Loader(jpeg, 14, num_workers=1) as decoded:
        pixels = next(iter(decoded))[0]
        tiny_beton.write(raw, {"image": ("image", list(pixels))})
    found = []
    for path in (jpeg, raw):
        with Loader(path, 7, pipelines={"image": steps}, seed=SEED, num_workers=2) as batches:
            found.append(np.concatenate([image for (image,) in batches]))
    np.testing.assert_array_equal(*found)


def test_two_views_of_one_image(path):
    views = {
        "image": [tf.ImageMixup(0.5, True)],
        "label": [tf.LabelMixup(0.5, True)],
        "plain": PipelineSpec("image"),
    }
    with Loader(path, 8, pipelines=views, seed=SEED, num_workers=1) as batches:
        for mixed, labels, plain in batches:
            weight = float(labels[0, 2])
            want = weight * plain.astype(np.float64) + (1 - weight) * np.roll(plain, 1, 0)
            np.testing.assert_array_equal(mixed, want.astype(np.uint8))


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1, 3.7, 200])
def test_lambda_has_the_beta_distribution(alpha):
    """Moments, and the numbers below a few points, within five standard deviations; the seed is fixed."""
    step, n = tf.ImageMixup(alpha, False), 4000
    lambdas = np.array([share(step, 1, range(n), i) for i in range(n)]) / 65536
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(lambdas.mean() - 0.5) < 5 * np.sqrt(variance / n)
    sample = np.random.default_rng(1).beta(alpha, alpha, 1_000_000)
    for point in (0.01, 0.2, 0.45, 0.5, 0.52, 0.9):
        want = np.mean(sample <= point)
        assert abs(np.mean(lambdas <= point) - want) <= 5 * np.sqrt(want * (1 - want) / n) + 1e-3, point


@pytest.mark.parametrize("step", [tf.LabelMixup(1, True), tf.LabelCutMix(1, True)])
def test_labels_that_float32_cannot_hold_are_refused(tmp_path, step):
    limit = 1 << 24
    for bad in (limit + 1, -limit - 1):
        name = tiny_beton.write(tmp_path / "a.beton", {"label": ("int", [limit, -limit, bad, 0])})
        with Loader(name, 4, pipelines={"label": [tf.ReplaceLabel([2], 5), step]}) as loader:
            np.testing.assert_array_equal(
                next(iter(loader))[0][:, :2], [[limit, 0], [-limit, limit], [5, -limit], [0, 5]]
            )
        with Loader(name, 4, pipelines={"label": [step]}) as loader, pytest.raises(ValueError) as caught:
            next(iter(loader))
        assert f"sample 2: field 'label': the label {bad} is beyond" in str(caught.value)


@pytest.mark.parametrize(
    "image, label, text",
    [
        ([tf.ImageMixup(1, True), tf.ImageMixup(1, True)], [], "once"),
        ([NORMALIZE[0], tf.ImageMixup(1, True)], [], "must come before"),
        ([tf.LabelMixup(1, True)], [], "for fields of int"),
        ([], [tf.ImageMixup(1, True)], "for images"),
        ([], [tf.Squeeze(), tf.LabelMixup(1, True)], "must come first: labels are replaced, then paired once"),
        ([], [tf.LabelMixup(1, True), tf.LabelMixup(1, True)], "must come first"),
    ],
)
def test_refusals(path, image, label, text):
    with pytest.raises((TypeError, ValueError), match=text):
        loader(path, image, label)


@pytest.mark.parametrize(
    "make, error, text",
    [
        (lambda: tf.ImageMixup(0, True), ValueError, "alpha must be in 0.001..1000, not 0"),
        (lambda: tf.LabelMixup(float("nan"), True), ValueError, "alpha"),
        (lambda: tf.ImageMixup(1), TypeError, "same_lambda"),
    ],
)
def test_bad_arguments(make, error, text):
    with pytest.raises(error, match=text):
        make()
