"""Images of one to four channels of uint8, uint16 and float32 in arrays, against NumPy, operation by operation."""

import augment_reference as reference
import numpy as np
import pytest
import tiny_beton

from cgxffcv import transforms as tf
from cgxffcv.loader import Loader, OrderOption, PipelineSpec

COUNT, SEED = 12, 0x1234567890
SIZE = (13, 18)
TYPES = ("uint8", "uint16", "float32")
SHAPES = {"flat": SIZE, **{f"{channels} channels": (*SIZE, channels) for channels in (1, 2, 3, 4)}}
FORMATS = [(shape, dtype) for shape in SHAPES for dtype in TYPES]
GREY, COLOURS = ("flat", "1 channels"), ("3 channels",)
ANY = {
    "flips": [tf.RandomHorizontalFlip(), tf.RandomVerticalFlip(), tf.AlternatingFlip()],
    "translate": [tf.RandomTranslate(4, 9), tf.RandomHorizontalFlip()],
    "translate far": [tf.RandomTranslate(40, 7)],
    "crop": [tf.RandomHorizontalFlip(), tf.RandomCrop((9, 20), 3, 200)],
    "crop reflect": [tf.RandomCrop((14, 11), 5, "reflect"), tf.RandomVerticalFlip()],
    "holes": [tf.Cutout((3, 5), 17), tf.RandomErasing(0.8, fill=3), tf.RandomHorizontalFlip(), tf.Cutout(2)],
    "brightness": [tf.RandomBrightness(0.7), tf.RandomBrightness(3, p=0.4)],
    "blur": [tf.GaussianBlur(5, p=0.8), tf.RandomTranslate(1)],
    "blur wide": [tf.GaussianBlur(25, (2, 5), 1)],
    "blur twice": [tf.GaussianBlur(3, p=1), tf.Cutout(3, 1), tf.GaussianBlur(7, p=0.7)],
}
OF_GREY = {"contrast": [tf.RandomContrast(0.6, 0.8), tf.RandomCrop(10), tf.RandomContrast(3, 0.5)]}
OF_COLOURS = {
    **OF_GREY,
    "saturation": [tf.RandomSaturation(0.6, 0.8), tf.RandomSaturation(4)],
    "hue": [tf.RandomHue(0.5, 1), tf.RandomHue(0.1)],
    "grey": [tf.RandomGrayscale(0.5), tf.RandomVerticalFlip()],
    "jitter": [tf.RandomBrightness(0.4), tf.RandomContrast(0.4), tf.RandomSaturation(0.4), tf.RandomHue(0.2)],
}
CASES = [
    *[(case, *kind) for case in ANY for kind in FORMATS],
    *[("contrast", shape, dtype) for shape in GREY for dtype in TYPES],
    *[(case, shape, dtype) for case in OF_COLOURS for shape in COLOURS for dtype in TYPES],
    *[("solarization", shape, "uint8") for shape in SHAPES],
]
STEPS = {**ANY, **OF_COLOURS, "solarization": [tf.Solarization(100, 0.7)]}


def images(shape, dtype):
    random = np.random.default_rng([len(shape), *shape, TYPES.index(dtype)])
    if dtype == "float32":
        return random.normal(3, 100, (COUNT, *shape)).astype(np.float32)
    return random.integers(0, np.iinfo(dtype).max, (COUNT, *shape), dtype, endpoint=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A field for each format, named "flat uint8" and so on; before them bytes of odd lengths, so that no value is
    aligned."""
    fields = {f"{shape} {dtype}"[:16]: ("array", list(images(SHAPES[shape], dtype))) for shape, dtype in FORMATS}
    odd = [bytes(2 * i + 1) for i in range(COUNT)]
    return tiny_beton.write(tmp_path_factory.mktemp("general") / "a.beton", {"odd": ("bytes", odd), **fields})


def load(path, pipelines, epoch=0, batch_size=5, **options):
    """The values of each sample in the file's order."""
    options = {"num_workers": 2, "seed": SEED, "drop_last": False, "arrays": "numpy", **options}
    with Loader(path, batch_size, pipelines={"odd": None, **pipelines}, ids=True, **options) as loader:
        loader.next_epoch = epoch
        *batches, ids = (np.concatenate(parts) for parts in zip(*loader, strict=True))
    return [batch[np.argsort(ids)] for batch in batches]


def only(shape, dtype, steps):
    """Pipelines with only this field."""
    name = f"{shape} {dtype}"[:16]
    others = {f"{s} {d}"[:16]: None for s, d in FORMATS}
    return {**others, name: PipelineSpec(name, None, steps, draws=0)}


def expect(shape, dtype, steps, epoch=0, evaluate=False):
    """The expected image; if channels come first, with the channel that a flat image lacks."""
    out = []
    for i, image in enumerate(images(SHAPES[shape], dtype)):
        deep = image if image.ndim == 3 else image[..., None]
        one = reference.pipeline(steps, deep, (SEED, epoch, i), evaluate=evaluate)
        out.append(one[..., 0] if shape == "flat" and not isinstance(steps[-1], tf.ToTorchImage) else one)
    return np.stack(out)


def same(got, want):
    assert got.dtype == want.dtype and got.shape == want.shape
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("case, shape, dtype", CASES)
def test_operations(path, case, shape, dtype):
    for epoch, evaluate in ((0, False), (3, False), (1, True)):
        (got,) = load(path, only(shape, dtype, STEPS[case]), epoch, evaluate=evaluate)
        same(got, expect(shape, dtype, STEPS[case], epoch, evaluate))


@pytest.mark.parametrize("shape, dtype", FORMATS)
@pytest.mark.parametrize("type_", ["float16", "float32", "bfloat16"])
def test_conversions_and_layouts(path, shape, dtype, type_):
    channels = 1 if shape == "flat" else SHAPES[shape][2]
    mean, std = [30 + 7.5 * c for c in range(channels)], [90 + c / 3 for c in range(channels)]
    hole = tf.Cutout(5, [0.25 - c for c in range(channels)])
    fill = tf.RandomTranslate(2, [c + 1 for c in range(channels)])
    for steps in (
        [fill, tf.NormalizeImage(mean, std, type_)],
        [tf.NormalizeImage(31, 20.5, type_), hole, tf.ToTorchImage(False)],
        [fill, tf.Convert(type_)],
        [tf.RandomHorizontalFlip(), tf.Convert(type_), tf.ToTorchImage(channels_last=False)],
        [tf.NormalizeImage(mean, std, "float32"), tf.Convert(type_), tf.ToTorchImage(channels_last=True)],
        [tf.RandomHorizontalFlip(), tf.ToTorchImage(channels_last=True)],
    ):
        with np.errstate(over="ignore"):  # 65,535 and more are beyond float16
            want = expect(shape, dtype, steps)
            (got,) = load(path, only(shape, dtype, steps))
        same(got, want)


@pytest.mark.parametrize("shape, dtype", FORMATS)
@pytest.mark.parametrize("each", [True, False])
def test_mixing(path, shape, dtype, each):
    """Against the pixels before and the labels' lambda from the same draws: uint8 images of three channels."""
    before, after = [tf.RandomCrop(11, 1, 3), tf.Cutout(3, 5)], [tf.RandomHorizontalFlip(), tf.RandomTranslate(2, 4)]
    steps = [*before, tf.ImageMixup(0.8, not each), *after]
    order = {"batch_size": 5, "order": OrderOption.SEQUENTIAL}
    (got,) = load(path, only(shape, dtype, steps), **order)
    own = expect(shape, dtype, before).astype(np.float64)
    for first in range(0, COUNT, 5):
        ids = list(range(first, min(first + 5, COUNT)))
        for i, n in enumerate(ids):
            words = reference.philox(SEED, 0, n if each else first, reference.AUGMENT, reference.DRAW["ImageMixup"])
            power = ((words[0] + 0.5) / 2**32) ** (1 / 0.8)
            cosine = np.cos(2 * np.pi * (words[1] + 0.5) / 2**32)
            weight = int((0.5 + 0.5 * cosine / np.sqrt(power / (1 - power) + cosine**2)) * 65536 + 0.5)
            mixed = (own[n] * weight + own[ids[i - 1]] * (65536 - weight)) / 65536
            mixed = mixed.astype(dtype) if mixed.ndim == 3 else mixed.astype(dtype)[..., None]
            want = reference.pipeline(after, mixed, (SEED, 0, n))
            np.testing.assert_array_equal(got[n], want.reshape(got[n].shape))


@pytest.mark.parametrize("shape, dtype", FORMATS)
def test_cutmix_takes_pixels_as_they_are(path, shape, dtype):
    """The image's pixels are its sample's and its neighbour's, in the same places as for uint8 images of three
    channels."""
    steps = [tf.RandomVerticalFlip(), tf.CutMix(0.7, False)]
    (got,) = load(path, only(shape, dtype, steps))
    (colours,) = load(path, only("3 channels", "uint8", steps))
    own, own_colours = expect(shape, dtype, steps[:1]), expect("3 channels", "uint8", steps[:1])
    places = (colours != own_colours).any(3)
    assert places.any() and not places.all()
    for first in range(0, COUNT, 5):
        before = np.roll(own[first : first + 5], 1, 0)
        chosen = places[first : first + 5].reshape(*before.shape[:3], *(1,) * (before.ndim - 3))
        np.testing.assert_array_equal(got[first : first + 5], np.where(chosen, before, own[first : first + 5]))


def test_geometry_is_that_of_colour_images(tmp_path):
    """The same draws for an image and its mask: every type and number of channels is cut, shifted and mirrored
    alike."""
    steps = [tf.RandomCrop(12, 2), tf.RandomHorizontalFlip(), tf.RandomTranslate(3), tf.Cutout(4)]
    rows, columns = (part.astype(np.uint8) for part in np.mgrid[1 : SIZE[0] + 1, 1 : SIZE[1] + 1])
    places = 16 * rows + columns % 16
    sample = {"rgb": np.repeat(places[..., None], 3, 2), "mask": places, "deep": places.astype(np.uint16)[..., None]}
    file = tmp_path / "a.beton"
    tiny_beton.write(file, {name: ("array", [value] * COUNT) for name, value in sample.items()})
    pipelines = {name: PipelineSpec(name, None, steps, draws=3) for name in sample}
    with Loader(file, 4, pipelines=pipelines, seed=5, arrays="numpy") as loader:
        for rgb, mask, deep in loader:
            np.testing.assert_array_equal(rgb[..., 0], mask)
            np.testing.assert_array_equal(rgb[..., :1], deep)


def test_values_that_are_no_numbers_stay_where_they_are(tmp_path):
    file = tmp_path / "a.beton"
    values = np.array([[[np.nan, 1, 2], [np.inf, -np.inf, 0]]], np.float32)
    tiny_beton.write(file, {"a": ("array", [values])})
    steps = [tf.RandomHue(0.5, 1), tf.RandomHorizontalFlip(1), tf.Convert("float32")]
    with Loader(file, 1, pipelines={"a": steps}, arrays="numpy") as loader:
        ((got,),) = loader
    np.testing.assert_array_equal(got[0], values[:, ::-1])


@pytest.mark.parametrize(
    "shape, dtype, step, said",
    [
        ("flat", "uint8", tf.RandomHue(0.1), "3 channels, not of 1 channel of uint8"),
        ("2 channels", "uint16", tf.RandomSaturation(1), "3 channels, not of 2 channels of uint16"),
        ("4 channels", "uint8", tf.RandomContrast(1), "1 or 3 channels, not of 4 channels of uint8"),
        ("1 channels", "float32", tf.RandomGrayscale(), "3 channels, not of 1 channel of float32"),
        ("3 channels", "uint16", tf.Solarization(), "uint8, not of 3 channels of uint16"),
        ("3 channels", "float32", tf.RandAugment(), "3 channels of uint8, not of 3 channels of float32"),
        ("1 channels", "uint8", tf.RandAugment(), "3 channels of uint8, not of 1 channel of uint8"),
        (
            "1 channels",
            "uint8",
            tf.Poison(np.zeros((*SIZE, 3)), np.zeros(SIZE), [1]),
            "3 channels of uint8, not of 1 channel of uint8",
        ),
    ],
)
def test_operations_without_a_meaning_are_refused(path, shape, dtype, step, said):
    name = f"{shape} {dtype}"[:16]
    with pytest.raises(TypeError, match=f"{step.operation}: field '{name}': takes images of {said}"):
        Loader(path, 4, pipelines=only(shape, dtype, [tf.RandomHorizontalFlip(), step]))


@pytest.mark.parametrize(
    "shape, dtype, step, said",
    [
        (
            "2 channels",
            "uint8",
            tf.Cutout(2, (1, 2, 3)),
            "Cutout.*fill must be one number, or one per channel.*2 channels",
        ),
        ("flat", "uint8", tf.RandomTranslate(2, (1, 2)), "fill must be one number.* of 1 channel, not 2 numbers"),
        ("flat", "uint8", tf.RandomTranslate(2, 256), "fill must be whole numbers in 0..255, not 256"),
        ("flat", "uint16", tf.RandomTranslate(2, 65536), "fill must be whole numbers in 0..65535, not 65536"),
        ("3 channels", "uint16", tf.Cutout(2, 0.5), "fill must be whole numbers in 0..65535, not 0.5"),
        ("4 channels", "uint8", tf.NormalizeImage((1, 2, 3), 1, "float32"), "NormalizeImage.*mean must be one number"),
        ("1 channels", "uint8", tf.NormalizeImage(1, (1, 2, 3), "float32"), "NormalizeImage.*std must be one number"),
    ],
)
def test_numbers_of_channels_that_differ_are_refused(path, shape, dtype, step, said):
    with pytest.raises(ValueError, match=said):
        Loader(path, 4, pipelines=only(shape, dtype, [step]))


def test_fills_of_other_types_are_taken(path):
    for dtype, fill in (("uint16", 65535), ("float32", -0.3)):
        steps = [tf.RandomTranslate(6, fill), tf.Cutout(2, fill)]
        same(load(path, only("flat", dtype, steps))[0], expect("flat", dtype, steps))


def test_conversions_that_would_round_twice(path):
    """After Convert, values of uint16 or float32 images are no longer pixels."""
    pipelines = only(
        "flat", "uint16", [tf.RandomHorizontalFlip(), tf.Convert("float16"), tf.NormalizeImage(0, 1, "float32")]
    )
    with pytest.raises(TypeError, match="NormalizeImage.*must come before Convert, which rounds pixels of uint16"):
        Loader(path, 4, pipelines=pipelines)
    for steps, last in (
        ([tf.RandomHorizontalFlip(), tf.Convert("float16"), tf.Convert("float32")], np.float32),
        ([tf.RandomHorizontalFlip(), tf.Convert("float64")], np.float64),
        ([tf.RandomHorizontalFlip(), tf.Convert("uint8")], np.uint8),
    ):
        with np.errstate(over="ignore"):
            (got,) = load(path, only("flat", "uint16", steps))
            want = expect("flat", "uint16", steps[:-1]).astype(last)
        same(got, want)


@pytest.mark.parametrize("shape, dtype", [("flat", "uint8"), ("flat", "float32"), ("2 channels", "uint16")])
def test_behind_a_step_of_the_users(path, shape, dtype):
    """The same pixels as in one pass."""
    first, last = [tf.RandomHorizontalFlip(), tf.Cutout(3, 2)], [tf.RandomHorizontalFlip(), tf.GaussianBlur(3)]
    steps = [*first, *last, tf.NormalizeImage(20, 30, "float32")]
    (got,) = load(path, only(shape, dtype, [*first, lambda batch: batch, *steps[len(first) :]]))
    same(got, expect(shape, dtype, steps))
