"""The fused image pass against NumPy, pixel by pixel and bit by bit."""

import colorsys
import hashlib
import itertools
import sys
from pathlib import Path

import augment_reference as reference
import instruction_sets
import numpy as np
import pytest
import tiny_beton
from checkout import run_python

from cgxffcv import transforms as tf
from cgxffcv.loader import Loader

MEAN, STD = (125.307, 122.961, 113.8575), (51.5865, 50.847, 51.255)
FILL = (125, 122, 113)
CASES = {
    "nothing": [],
    "flip": [tf.RandomHorizontalFlip()],
    "flip always": [tf.RandomHorizontalFlip(1)],
    "flip never": [tf.RandomHorizontalFlip(0)],
    "flip twice": [tf.RandomHorizontalFlip(), tf.RandomHorizontalFlip(0.3)],
    "alternate": [tf.AlternatingFlip()],
    "translate": [tf.RandomTranslate(2, FILL)],
    "translate far": [tf.RandomTranslate(40, FILL)],
    "translate none": [tf.RandomTranslate(0)],
    "crop": [tf.RandomCrop(28)],
    "crop oblong": [tf.RandomCrop((20, 33), 4, FILL)],
    "crop large": [tf.RandomCrop(39, 4, FILL)],
    "crop narrow": [tf.RandomCrop((30, 5), 1, FILL)],
    "crop reflect": [tf.RandomCrop(32, 2, "reflect")],
    "crop reflect far": [tf.RandomCrop((13, 24), 12, "reflect")],
    "cutout": [tf.Cutout(8, FILL)],
    "cutout all": [tf.Cutout((13, 24), FILL)],
    "cutout twice": [tf.Cutout(3, 7), tf.Cutout((5, 2), FILL)],
    "ffcv": [tf.RandomHorizontalFlip(), tf.RandomTranslate(2, FILL), tf.Cutout(4, FILL)],
    "airbench": [tf.RandomCrop(32, 2, "reflect"), tf.AlternatingFlip()],
    "airbench reversed": [tf.AlternatingFlip(), tf.RandomCrop(32, 2, "reflect")],
    "translate flip": [tf.RandomTranslate(3, FILL), tf.RandomHorizontalFlip(), tf.Cutout(4)],
    "staged: cutout flip": [tf.Cutout((3, 5), FILL), tf.RandomHorizontalFlip()],
    "staged: two paddings": [tf.RandomTranslate(3, FILL), tf.RandomCrop(30, 2, (1, 2, 3)), tf.RandomHorizontalFlip()],
    "brightness": [tf.RandomBrightness(0.4)],
    "brightness, much": [tf.RandomBrightness(3, p=1), tf.RandomBrightness(1, p=0.7)],
    "brightness among others": [
        tf.Cutout(4, FILL),
        tf.RandomBrightness(0.5, 1),
        tf.RandomTranslate(3, FILL),
        tf.RandomBrightness(0.2),
        tf.RandomHorizontalFlip(),
        tf.Cutout(3, (250, 1, 99)),
    ],
    "vertical": [tf.RandomVerticalFlip(), tf.RandomHorizontalFlip()],
    "vertical, padded": [tf.RandomVerticalFlip(0.6), tf.RandomCrop((9, 20), 3, "reflect"), tf.RandomVerticalFlip()],
    "vertical among others": [
        tf.RandomCrop(8),
        tf.RandomVerticalFlip(),
        tf.Cutout(3, FILL),
        tf.RandomVerticalFlip(),
        tf.RandomTranslate(2, FILL),
        tf.RandomHorizontalFlip(),
    ],
    "contrast": [tf.RandomContrast(0.6, 0.8), tf.RandomContrast(3, 0.5)],
    "saturation": [tf.RandomSaturation(0.6, 0.8), tf.RandomSaturation(4)],
    "hue": [tf.RandomHue(0.5, 1), tf.RandomHue(0.1)],
    "grey and inverted": [tf.RandomGrayscale(0.4), tf.Solarization(), tf.Solarization(17.5, 0.7)],
    "erasing": [tf.RandomErasing(0.8, fill=FILL), tf.RandomErasing(1, (0.3, 0.9), (0.2, 9), 7)],
    "blur": [tf.GaussianBlur(5, p=0.8)],
    "blur wide": [tf.GaussianBlur(13, (3, 4), 1), tf.GaussianBlur(3, (0.01, 0.3))],
    "blur wider than the image": [tf.GaussianBlur(31, (2, 6), 1)],
    "jitter": [
        tf.RandomCrop(9, 1, FILL),
        tf.RandomBrightness(0.4),
        tf.RandomContrast(0.4),
        tf.RandomSaturation(0.2),
        tf.RandomHue(0.1),
        tf.RandomGrayscale(0.2),
        tf.GaussianBlur(3),
        tf.Solarization(),
        tf.RandomErasing(),
    ],
    "blur among others": [
        tf.GaussianBlur(5),
        tf.Cutout(4, FILL),
        tf.RandomContrast(2),
        tf.GaussianBlur(3, p=0.7),
        tf.RandomVerticalFlip(),
        tf.RandomTranslate(2),
        tf.GaussianBlur(7),
    ],
    "randaugment": [tf.RandAugment()],
    "randaugment, much": [tf.RandAugment(4, 30, fill=FILL)],
    "randaugment, little": [tf.RandAugment(3, 1, 12), tf.RandAugment(1, 4, 5)],
    "randaugment among others": [
        tf.RandomCrop(9, 2, FILL),
        tf.RandomHorizontalFlip(),
        tf.RandAugment(2, 15, fill=FILL),
        tf.GaussianBlur(3),
        tf.RandomVerticalFlip(),
        tf.RandAugment(2, 20),
        tf.Cutout(3, FILL),
    ],
    "staged: cutout crop": [tf.Cutout(4, FILL), tf.RandomCrop((12, 20), 3, "reflect"), tf.RandomTranslate(1)],
}
FINISHES = {
    "uint8": [],
    "uint8 chw": [tf.ToTorchImage(channels_last=False)],
    "float16 chw": [tf.NormalizeImage(MEAN, STD, np.float16), tf.ToTorchImage(channels_last=False)],
    "float16 last": [tf.NormalizeImage(MEAN, STD, np.float16), tf.ToTorchImage(channels_last=True)],
    "float32 chw": [tf.NormalizeImage(MEAN, STD, np.float32), tf.ToTorchImage(channels_last=False)],
    "float32": [tf.NormalizeImage(MEAN, STD, np.float32)],
    "bfloat16 chw": [tf.NormalizeImage(MEAN, STD, "bfloat16"), tf.ToTorchImage(channels_last=False)],
    "bfloat16": [tf.NormalizeImage(MEAN, STD, "bfloat16")],
    "converted": [tf.Convert(np.float32), tf.ToTorchImage(False)],
    "narrowed": [tf.NormalizeImage(MEAN, STD, np.float32), tf.Convert("float16"), tf.ToTorchImage(False)],
    "widened": [tf.NormalizeImage(MEAN, STD, np.float16), tf.Convert("float32")],
    "hole after": [tf.NormalizeImage(MEAN, STD, np.float16), tf.Cutout(5, (0, 0.25, -1)), tf.ToTorchImage(False)],
    "holes before and after": [
        tf.Cutout(2, FILL),
        tf.RandomHorizontalFlip(),
        tf.NormalizeImage(MEAN, STD, np.float16),
        tf.Cutout(5, (0, 0.25, -1)),
        tf.ToTorchImage(False),
    ],
    "bfloat16 hole": [tf.NormalizeImage(MEAN, STD, "bfloat16"), tf.Cutout(5, (0, 0.3, -1)), tf.ToTorchImage(False)],
}
SIZES = {"32x32": (32, 32), "13x24": (13, 24), "40x33": (40, 33), "9x7": (9, 7), "35x64": (35, 64), "1x1": (1, 1)}
COUNT = 24


def fits(steps, size):
    """Whether crops and holes fit images of this size."""
    height, width = size
    for step in steps:
        if isinstance(step, tf.Cutout) and (step.crop_size[0] > height or step.crop_size[1] > width):
            return False
        if isinstance(step, tf.GaussianBlur) and step.kernel_size // 2 >= min(height, width):
            return False
        if isinstance(step, tf.RandomCrop):
            if step.fill == "reflect" and step.padding >= min(height, width):
                return False
            if step.size[0] > height + 2 * step.padding or step.size[1] > width + 2 * step.padding:
                return False
            height, width = step.size
    return True


def images(size):
    return np.random.default_rng(size).integers(0, 256, (COUNT, *size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    return {
        name: tiny_beton.write(folder / f"{name}.beton", {"image": ("image", list(images(size)))})
        for name, size in SIZES.items()
    }


def bits(array):
    return np.ascontiguousarray(array).view(np.uint8)


def load(path, steps, epoch, evaluate=False, **options):
    options = {"batch_size": 7, "num_workers": 2, "seed": 0x1234567890, "drop_last": False, **options}
    with Loader(path, pipelines={"image": steps}, evaluate=evaluate, **options) as loader:
        loader.next_epoch = epoch
        return np.concatenate([batch for (batch,) in loader])


def expect(size, steps, epoch, evaluate=False, seed=0x1234567890):
    return np.stack(
        [reference.pipeline(steps, image, (seed, epoch, i), evaluate=evaluate) for i, image in enumerate(images(size))]
    )


@pytest.mark.parametrize(
    "case, size", [(case, size) for case in CASES for size in SIZES if fits(CASES[case], SIZES[size])]
)
def test_operations(files, case, size):
    for epoch, evaluate in ((0, False), (3, False), (1, True)):
        got = load(files[size], CASES[case], epoch, evaluate)
        want = expect(SIZES[size], CASES[case], epoch, evaluate)
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("finish", FINISHES)
@pytest.mark.parametrize("case", ["nothing", "ffcv", "airbench", "staged: cutout flip", "crop narrow"])
@pytest.mark.parametrize("size", ["32x32", "40x33", "35x64"])
def test_conversions_and_layouts(files, case, finish, size):
    steps = CASES[case] + FINISHES[finish]
    got, want = load(files[size], steps, 2), expect(SIZES[size], steps, 2)
    assert got.dtype == want.dtype and got.shape == want.shape
    np.testing.assert_array_equal(bits(got), bits(want))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    "mean, std",
    [
        ((0, 0, 0), (1, 1, 1)),
        ((127.5, 0, 255), (127.5, 255, 0.125)),
        ((128, 1e6, -3.7), (1e-3, 7e4, 3e-7)),
        ((125.30691805, 122.95039414, 113.86538318), (62.99321928, 62.08870764, 66.70489964)),
        ((1 / 3, 2e-9, 254.9), (3, 1e9, 0.7)),
    ],
)
def test_every_level_is_rounded_once_from_float64(tmp_path, dtype, mean, std):
    """All 256 levels of each channel, whether the vector kernels' arithmetic or the table gives them."""
    levels = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    path = tiny_beton.write(tmp_path / "levels.beton", {"image": ("image", [levels])})
    steps = [tf.NormalizeImage(mean, std, dtype)]
    with np.errstate(over="ignore"):
        want = reference.pipeline(steps, levels, (0, 0, 0))[None]
    np.testing.assert_array_equal(bits(load(path, steps, 0)), bits(want))


def test_every_level_on_every_instruction_set():
    instruction_sets.pass_on(["scalar", "avx2", "avx512"], "every_level_is_rounded or ties", __file__)


def test_ties_of_bfloat16_go_to_even(tmp_path):
    """(v + 256) / 1 has nine bits: every odd level lies half-way between two numbers of bfloat16's eight."""
    levels = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    path = tiny_beton.write(tmp_path / "levels.beton", {"image": ("image", [levels])})
    got = load(path, [tf.NormalizeImage((-256,) * 3, (1,) * 3, "bfloat16")], 0)
    exact = (levels.astype(np.float32) + 256).view(np.uint32)
    down, rest = exact >> 16, exact & 0xFFFF
    assert np.count_nonzero(rest == 0x8000) == 128 * 3
    np.testing.assert_array_equal(got[0], down + ((rest == 0x8000) & (down & 1 == 1)))


def test_instruction_sets_agree_to_the_bit(files):
    """The scalar reference, AVX2 and AVX-512, each in a separate process."""
    found = {}
    for level in ("scalar", "avx2", "avx512"):
        named = [f"{name}={path}" for name, path in files.items()]
        found[level] = run_python(__file__, *named, limit=300, CGXFFCV_CPU=level).stdout
    assert len(found["scalar"]) == 65 and len(set(found.values())) == 1, found


def digest(files):
    everything = hashlib.sha256()
    for (name, size), case, finish in itertools.product(SIZES.items(), CASES.values(), FINISHES.values()):
        hole = [step for step in finish if isinstance(step, tf.Cutout)]
        if fits(case + hole, size):
            everything.update(bits(load(files[name], case + finish, 5, num_workers=1)).tobytes())
    return everything.hexdigest()


def test_hue_is_that_of_the_colour_wheel():
    """Against the standard library's floating-point HSV, to within one step of 255."""
    image = images((32, 32))[0]
    for turn in (-32768, -9001, 1, 20000, 32768):
        want = [
            colorsys.hsv_to_rgb((hue + turn / 65536) % 1, saturation, value)
            for hue, saturation, value in (colorsys.rgb_to_hsv(*pixel) for pixel in image.reshape(-1, 3) / 255)
        ]
        off = reference.turned_hue(image, turn).reshape(-1, 3) - np.array(want) * 255
        assert np.abs(off).max() < 0.51, turn


PILLOW_DIFFERS = {"Brightness": 1, "Color": 2, "Contrast": 2, "Sharpness": 1, "AutoContrast": 1}


@pytest.mark.parametrize("change", reference.RAND_CHANGES)
def test_changes_of_randaugment_are_those_of_pillow(change):
    """torchvision's recipe, in Pillow: levels to within its rounding, and the same places except for a few pixels."""
    pytest.importorskip("PIL", reason="needs Pillow")
    from PIL import Image, ImageEnhance, ImageFilter, ImageOps

    image = images((40, 33))[0]
    image = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(2)))
    given = Image.fromarray(image)
    for magnitude, sign in ((9, 1), (9, -1), (29, -1), (30, 1)):
        share, factor = magnitude / 30, 1 + sign * 0.9 * magnitude / 30
        shear, moved = sign * 0.3 * share, [sign * int(150 / 331 * side * share) for side in (33, 40)]
        affine = {
            "ShearX": (1, shear, 0, 0, 1, 0),
            "ShearY": (1, 0, 0, shear, 1, 0),
            "TranslateX": (1, 0, -moved[0], 0, 1, 0),
            "TranslateY": (1, 0, 0, 0, 1, -moved[1]),
        }
        if change in affine:
            want = given.transform(given.size, Image.Transform.AFFINE, affine[change], fillcolor=FILL)
        else:
            want = {
                "Identity": lambda: given,
                "Rotate": lambda angle=sign * 30 * share: given.rotate(angle, fillcolor=FILL),
                "Brightness": lambda by=factor: ImageEnhance.Brightness(given).enhance(by),
                "Color": lambda by=factor: ImageEnhance.Color(given).enhance(by),
                "Contrast": lambda by=factor: ImageEnhance.Contrast(given).enhance(by),
                "Sharpness": lambda by=factor: ImageEnhance.Sharpness(given).enhance(by),
                "Posterize": lambda by=share: ImageOps.posterize(given, 8 - round(4 * by)),
                "Solarize": lambda at=255 * (1 - share): ImageOps.solarize(given, at),
                "AutoContrast": lambda: ImageOps.autocontrast(given),
                "Equalize": lambda: ImageOps.equalize(given),
            }[change]()
        got = reference.rand_changed(image, change, sign, magnitude, 31, FILL)
        off = np.abs(got.astype(int) - np.asarray(want))
        if change in affine or change == "Rotate":
            assert (off.max(2) > 0).mean() < 0.01, (change, magnitude)
        else:
            assert off.max() <= PILLOW_DIFFERS.get(change, 0), (change, magnitude, off.max())


def test_rounds_of_randaugment_do_each_change_alike_often():
    """Each count is within five standard deviations, and both directions occur."""
    n = 14 * 300
    key = [reference.philox(5, 0, i, reference.AUGMENT, reference.DRAW["RandAugment"]) for i in range(n)]
    changes = [reference.rand_change(words) for words in key]
    for change in reference.RAND_CHANGES:
        signs = [sign for name, sign in changes if name == change]
        assert abs(len(signs) - 300) < 5 * 300**0.5 and set(signs) == {-1, 1}


def test_blur_is_a_gaussian():
    """Against float64, to within the rounding of the result and of the weights."""
    image = images((40, 33))[0]
    for size, sigma in ((3, 0.5), (9, 2.0), (31, 6.0)):
        bell = np.exp(-0.5 * (np.arange(size) - size // 2) ** 2 / sigma**2)
        padded = np.pad(image.astype(float), [(size // 2, size // 2)] * 2 + [(0, 0)], mode="reflect")
        rows = sum(w * padded[:, i : i + 33] for i, w in enumerate(bell / bell.sum()))
        want = sum(w * rows[i : i + 40] for i, w in enumerate(bell / bell.sum()))
        assert np.abs(reference.blurred(image, size, sigma) - want).max() < 0.5 + 1 / 512 + 255 * 2 * size / 65536


@pytest.mark.parametrize(
    "kind, most", [("RandomTranslate", 2), ("RandomCrop", 4), ("Cutout", 12), ("RandomHorizontalFlip", 1)]
)
def test_draws_are_uniform(kind, most):
    """Each value's count is within five standard deviations; the seed is fixed, so this either always passes or
    never."""
    n, counts = 4000, np.zeros((2, most + 1 if kind != "RandomTranslate" else 5), int)
    for sample in range(n):
        words = reference.philox(99, 1, sample, reference.AUGMENT, reference.DRAW[kind])
        for axis in range(2):
            counts[axis, reference.below(words[axis], counts.shape[1])] += 1
    p = 1 / counts.shape[1]
    assert (np.abs(counts - n * p) < 5 * np.sqrt(n * p * (1 - p))).all(), counts


def test_draws_reach_every_place(tmp_path):
    """Counted on pixels: one white pixel in the middle of black ones shows where each image went."""
    image = np.zeros((9, 9, 3), np.uint8)
    image[4, 4] = 255
    path = tiny_beton.write(tmp_path / "dot.beton", {"image": ("image", [image] * 2000)})
    moved = load(path, [tf.RandomTranslate(2)], 0, batch_size=500)
    places = np.argwhere(moved[..., 0] == 255)[:, 1:] - 4
    assert len(places) == 2000
    counts = np.zeros((5, 5), int)
    np.add.at(counts, tuple((places + 2).T), 1)
    assert counts.min() > 80 - 5 * 8.8 and counts.max() < 80 + 5 * 8.8
    flipped = load(path, [tf.RandomCrop((9, 5)), tf.RandomHorizontalFlip()], 0, batch_size=500)
    assert set(np.argwhere(flipped[..., 0] == 255)[:, 2]) == {0, 1, 2, 3, 4}


def test_alternating_flip_shows_both_ways_in_two_epochs(files):
    first, second, third = (load(files["32x32"], [tf.AlternatingFlip()], epoch) for epoch in range(3))
    np.testing.assert_array_equal(first, second[:, :, ::-1])
    np.testing.assert_array_equal(first, third)
    mirrored = [not np.array_equal(a, b) for a, b in zip(first, images((32, 32)), strict=True)]
    assert 0 < sum(mirrored) < COUNT


def test_draws_do_not_depend_on_steps_without_draws(files):
    plain = load(files["32x32"], [tf.RandomHorizontalFlip(), tf.Cutout(4)], 1)
    more = load(files["32x32"], [tf.RandomHorizontalFlip(), tf.Cutout(4), tf.Convert("float32")], 1)
    np.testing.assert_array_equal(plain, more)


@pytest.mark.parametrize(
    "make, error, text",
    [
        (lambda: tf.RandomHorizontalFlip(1.5), ValueError, "flip_prob"),
        (lambda: tf.RandomTranslate(-1), ValueError, "padding"),
        (lambda: tf.RandomTranslate(1.5), TypeError, "padding"),
        (lambda: tf.RandomCrop(0), ValueError, "size"),
        (lambda: tf.RandomCrop(8, 2, "mirror"), ValueError, "reflect"),
        (lambda: tf.Cutout(4, (1, 2, 3, 4, 5)), ValueError, "fill"),
        (lambda: tf.NormalizeImage(MEAN, (1, 0, 1), np.float32), ValueError, "std"),
        (lambda: tf.NormalizeImage(MEAN, STD, np.int32), ValueError, "int32"),
        (lambda: tf.NormalizeImage((1, 2), STD, np.float32), ValueError, "mean"),
        (lambda: tf.Convert("flot16"), TypeError, "flot16"),
        (lambda: tf.RandomBrightness(-0.1), ValueError, "magnitude must be in 0..100, not -0.1"),
        (lambda: tf.RandomBrightness(0.1, 2), ValueError, "p must be in 0..1"),
        (lambda: tf.RandomBrightness(), TypeError, "RandomBrightness: missing a required argument: 'magnitude'"),
        (lambda: tf.RandomBrightness("much"), TypeError, "magnitude must be a number, not 'much'"),
        (lambda: tf.GaussianBlur(4), ValueError, "kernel_size must be odd, not 4"),
        (lambda: tf.GaussianBlur(33), ValueError, "kernel_size must be in 1..31, not 33"),
        (lambda: tf.GaussianBlur(3, (2, 1)), ValueError, "sigma must be in ascending order, not 2 and 1"),
        (lambda: tf.GaussianBlur(3, 2), ValueError, "sigma must be two numbers"),
        (lambda: tf.RandomErasing(ratio=(0, 1)), ValueError, "ratio must be in 0.001..1000, not 0"),
        (lambda: tf.RandomHue(0.6), ValueError, "magnitude must be in 0..0.5"),
        (lambda: tf.CutMix(0), ValueError, "alpha"),
        (lambda: tf.RandAugment(5), ValueError, "num_ops must be in 1..4, not 5"),
        (lambda: tf.RandAugment(2, 31), ValueError, r"magnitude must be below num_magnitude_bins \(31\), not 31"),
        (lambda: tf.RandAugment(2, 0, 1), ValueError, "num_magnitude_bins must be in 2..1001"),
        (lambda: tf.RandAugment(2, 1.5), TypeError, "magnitude must be a whole number"),
    ],
)
def test_bad_arguments(make, error, text):
    with pytest.raises(error, match=text):
        make()


@pytest.mark.parametrize("front", [[], [tf.ToTorchImage()], [tf.ToTorchImage(channels_last=False)]])
@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_normalising_behind_a_users_step(files, front, kind):
    """On the whole batch, to the same values as in the workers; channels are where ToTorchImage has put them."""
    normalise = tf.NormalizeImage((125.3, 123.0, 113.9), (63.0, 62.1, 66.7), kind)
    chains = [[*front, normalise], [*front, lambda batch: batch, normalise], [lambda batch: batch, *front, normalise]]
    batches = []
    for chain in chains:
        with Loader(files["32x32"], 4, pipelines={"image": chain}) as loader:
            batches.append(next(iter(loader))[0].copy())
    assert batches[0].shape == ((4, 3, 32, 32) if front else (4, 32, 32, 3)) and batches[0].dtype == kind
    for got in batches[1:]:
        np.testing.assert_array_equal(got, batches[0])
    bad = [lambda batch: batch[..., :2], normalise]
    with (
        Loader(files["32x32"], 4, pipelines={"image": bad}) as loader,
        pytest.raises(ValueError, match="of 2 channels"),
    ):
        next(iter(loader))
    bad = [lambda batch: np.repeat(batch, 2, 3), normalise]
    with Loader(files["32x32"], 4, pipelines={"image": bad}) as loader, pytest.raises(TypeError, match="takes images"):
        next(iter(loader))


def test_images_are_turned_once(files):
    turn, same = tf.ToTorchImage(), tf.ModuleWrapper(lambda batch: batch)
    for steps in ([turn, turn], [same, turn, tf.Convert(np.float32), turn], [turn, tf.ToTensor(), tf.Squeeze(), turn]):
        with pytest.raises(TypeError, match="pipeline 'image' has ToTorchImage twice.*leave out ToTorchImage"):
            Loader(files["32x32"], 4, pipelines={"image": steps})
    back = [turn, lambda batch: np.moveaxis(batch, 1, 3), turn]
    with Loader(files["32x32"], 4, pipelines={"image": back}) as loader:
        assert next(iter(loader))[0].shape == (4, 3, 32, 32)


@pytest.mark.parametrize(
    "steps, error, text",
    [
        ([tf.RandomCrop(50)], ValueError, "50x50"),
        ([tf.RandomCrop(32, 32, "reflect")], ValueError, "padding must be in 0..31"),
        ([tf.RandomCrop((32, 9)), tf.RandomCrop(9, 9, "reflect")], ValueError, "in 0..8 for images of 32x9, not 9"),
        ([tf.RandomCrop((9, 32)), tf.RandomCrop(9, 9, "reflect")], ValueError, "in 0..8 for images of 9x32, not 9"),
        ([tf.Cutout(33)], ValueError, "33x33"),
        (
            [tf.RandomCrop((4, 32)), tf.GaussianBlur(9)],
            ValueError,
            "needs images with sides of at least 5 pixels, not 4x32",
        ),
        ([tf.RandomTranslate(2, (0, 0.5, 0))], ValueError, "0..255"),
        ([tf.Cutout(2, 256)], ValueError, "0..255"),
        (
            [tf.Cutout(4, (1, 2))],
            ValueError,
            "fill must be one number, or one per channel, for images of 3 channels, not 2",
        ),
        (
            [tf.RandomHorizontalFlip()] * 17,
            ValueError,
            "RandomHorizontalFlip can occur at most 16 times in one pipeline",
        ),
        (
            [tf.RandAugment(4), tf.RandAugment(4), tf.RandAugment(1)],
            ValueError,
            "at most 32 .* RandAugment counts as four",
        ),
        ([FINISHES["float32"][0], tf.RandomTranslate(2)], TypeError, "must come before"),
        ([FINISHES["float32"][0]] * 2, TypeError, "twice"),
        ([lambda batch: batch, tf.ImageMixup(1, True)], TypeError, "other than one that mixes a batch"),
        ([tf.Cutout], TypeError, "class"),
        ([3], TypeError, "3"),
    ],
)
def test_bad_pipelines(files, steps, error, text):
    with pytest.raises(error, match=text) as caught:
        Loader(files["32x32"], 4, pipelines={"image": steps})
    assert "image" in str(caught.value)


if __name__ == "__main__":
    print(digest({name: Path(path) for name, path in (pair.split("=") for pair in sys.argv[1:])}))
