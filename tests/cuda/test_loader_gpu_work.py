"""What comes after ToDevice is done on the GPU: the same pixels as in the workers, draw for draw."""

import re

import _cgxffcv
import numpy as np
import pytest
import tiny_beton
from gpu_batches import CHAINS, COUNT
from gpus import needs_gpu

from cgxffcv import transforms as tf
from cgxffcv.decoders import (
    CenterCropRGBImageDecoder,
    IntDecoder,
    NDArrayDecoder,
    RandomResizedCropRGBImageDecoder,
    SimpleRGBImageDecoder,
)
from cgxffcv.loader import Loader, OrderOption, PipelineSpec

pytestmark = [
    needs_gpu,
    pytest.mark.usefixtures("without_torch"),
]
MEAN, STD = [125.3, 122.9, 113.8], [62.9, 62.1, 66.7]
SMALL = 13
FILL = (125, 122, 113)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Images of 9 x 8, whose rows do not fill vectors, and of 8 x 8; arrays of other kinds."""
    random = np.random.default_rng(9)

    def pixels(*shape):
        return list(random.integers(0, 256, (SMALL, *shape), dtype=np.uint8))

    fields = {
        "odd": ("image", pixels(9, 5, 3)),
        "even": ("image", pixels(8, 8, 3)),
        "array": ("array", pixels(8, 8, 3)),
        "grey": ("array", pixels(8, 8, 1)),
        "wide": ("array", [image.astype(np.uint16) for image in pixels(8, 8, 3)]),
        "label": ("int", list(range(SMALL))),
    }
    return tiny_beton.write(tmp_path_factory.mktemp("small") / "a.beton", fields)


def here(array):
    return array.copy(-1).numpy() if isinstance(array, _cgxffcv.Tensor) else array.copy()


def compare(path, field, decoder, before, behind, batch=5, epochs=(0, 3), evaluate=False, worked=True, **options):
    """Compares the two loaders' batches; and how the second one describes its work."""
    options = {"order": OrderOption.RANDOM, "seed": 1 << 63 | 77, "num_workers": 2, "drop_last": False, **options}
    options = {**options, "arrays": "numpy", "evaluate": evaluate, "ids": True}
    moved = {field: [decoder, *before, tf.ToDevice(0), *behind]}
    plain = {field: [decoder, *before, *behind]}
    with (
        Loader(path, batch, pipelines=only(path, plain), **options) as a,
        Loader(path, batch, pipelines=only(path, moved), **options) as b,
    ):
        assert b._core.moves()[0][0] == (2 if worked else 1), b.explain()
        for epoch in epochs:
            a.next_epoch = b.next_epoch = epoch
            for (want, ids), (there, same) in zip(a, b, strict=True):
                np.testing.assert_array_equal(ids, same)
                assert isinstance(there, _cgxffcv.Tensor) and there.shape == want.shape
                np.testing.assert_array_equal(here(there), want)
        np.testing.assert_array_equal(here(b.get_batch([2, 0, 2], 1)[0]), a.get_batch([2, 0, 2], 1)[0])
        return b.explain()


def only(path, pipelines):
    with Loader(path, 1) as loader:
        names = [output.name for output in loader.outputs]
    return {**dict.fromkeys(names), **pipelines}


@pytest.mark.parametrize("evaluate", [False, True])
@pytest.mark.parametrize("name", [name for name in CHAINS if CHAINS[name]])
def test_chains(data, name, evaluate):
    path = data[0]
    compare(path, "image", SimpleRGBImageDecoder(), [], CHAINS[name], 20, (4,), evaluate)


OPERATIONS = [
    tf.RandomHorizontalFlip(),
    tf.RandomVerticalFlip(),
    tf.AlternatingFlip(),
    tf.RandomTranslate(2, fill=FILL),
    tf.RandomCrop((9, 5), padding=2, fill="reflect"),
    tf.Cutout(3, fill=FILL),
    tf.RandomErasing(p=0.8, fill=FILL),
    tf.RandomBrightness(0.7),
    tf.RandomContrast(0.7),
    tf.RandomSaturation(0.7),
    tf.RandomHue(0.4),
    tf.RandomGrayscale(0.5),
    tf.Solarization(),
    tf.GaussianBlur(3),
    tf.RandAugment(2, 20),
    tf.ImageMixup(0.7, same_lambda=False),
    tf.ImageMixup(0.7, same_lambda=True),
    tf.CutMix(1, same_lambda=False),
]


@pytest.mark.parametrize("batch", [1, 5, SMALL])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda op: type(op).__name__)
def test_each_operation(small, operation, batch):
    compare(small, "odd", SimpleRGBImageDecoder(), [], [operation], batch)


FINISHES = {
    "float16": [tf.NormalizeImage(MEAN, STD, np.float16), tf.ToTorchImage()],
    "float32 planes": [tf.NormalizeImage(MEAN, STD, np.float32), tf.ToTorchImage(channels_last=False)],
    "rounded twice": [tf.NormalizeImage(MEAN, STD, np.float32), tf.Convert(np.float16)],
    "bfloat16": [tf.NormalizeImage(100, 50, "bfloat16"), tf.ToTorchImage()],
    "converted": [tf.Convert(np.float32)],
    "planes": [tf.ToTorchImage()],
}


@pytest.mark.parametrize("field", ["odd", "even", "array"])
@pytest.mark.parametrize("finish", FINISHES)
def test_what_is_behind_operations(small, field, finish):
    decoder = NDArrayDecoder() if field == "array" else SimpleRGBImageDecoder()
    chain = [tf.RandomHorizontalFlip(), tf.RandomTranslate(2), tf.Cutout(3)]
    compare(small, field, decoder, [], [*chain, *FINISHES[finish]])
    compare(small, field, decoder, [], [*chain, *FINISHES[finish]], evaluate=True)
    if field != "array" or finish != "planes":
        compare(small, field, decoder, [tf.RandomVerticalFlip()], FINISHES[finish])


def test_the_move_may_stand_anywhere(small):
    """Two operations of one kind have separate draws, wherever they are; RandAugment is several in the core."""
    chain = [
        tf.RandomHorizontalFlip(),
        tf.RandAugment(1, 20),
        tf.RandomTranslate(1),
        tf.RandomHorizontalFlip(),
        tf.ImageMixup(0.5, same_lambda=False),
        tf.RandomBrightness(0.5),
        tf.RandAugment(1, 20),
        tf.Cutout(3),
        tf.NormalizeImage(MEAN, STD, np.float16),
        tf.ToTorchImage(),
    ]
    for at in range(len(chain) - 1):
        compare(small, "even", SimpleRGBImageDecoder(), chain[:at], chain[at:], epochs=(2,))
    for at in (len(chain) - 1, len(chain)):
        compare(small, "even", SimpleRGBImageDecoder(), chain[:at], chain[at:], epochs=(2,), worked=False)


@pytest.mark.parametrize(
    "decoder",
    [RandomResizedCropRGBImageDecoder((7, 4)), CenterCropRGBImageDecoder((6, 8), 0.9)],
    ids=["random", "centre"],
)
def test_behind_decoders_that_crop(small, decoder):
    said = compare(small, "odd", decoder, [], [tf.RandomHorizontalFlip(), tf.NormalizeImage(MEAN, STD, np.float32)])
    lines = [line.strip() for line in said.splitlines()]
    assert re.fullmatch(r"odd: float32 \(\d, \d, 3\), .* per sample", lines[1])
    assert lines[2].startswith(f"each sample, in a worker: {type(decoder).__name__}(") and " > " not in lines[2]
    assert lines[3].startswith("each batch, when it is made: its copy to GPU 0, which then does RandomHorizontalFlip(")
    assert "> NormalizeImage(" in lines[3] and any("on the GPU" in line for line in lines[4:])


def test_a_crop_before_the_move_decides_the_size(small):
    compare(
        small, "even", SimpleRGBImageDecoder(), [tf.RandomCrop(5, padding=1)], [tf.RandomTranslate(2), tf.Cutout(3)]
    )


PLACES = np.zeros((8, 8), np.float32)
REFUSED = {
    "a smaller crop": ("even", [tf.RandomCrop(5, padding=0)], "keeps the size 8 x 8"),
    "placed": ("even", [tf.Poison(PLACES[..., None].repeat(3, 2), PLACES, [1])], "Poison cannot be done on the GPU"),
    "a hole after normalisation": (
        "even",
        [tf.NormalizeImage(MEAN, STD, np.float32), tf.Cutout(3)],
        "nothing can be filled after the normalisation",
    ),
    "too many": (
        "even",
        [tf.RandomHorizontalFlip()] * 9 + [tf.RandomVerticalFlip()] * 8,
        "at most 16 image operations",
    ),
    "grey": ("grey", [tf.RandomHorizontalFlip()], "only on images with three channels of uint8"),
    "uint16": ("wide", [tf.RandomHorizontalFlip()], "only on images with three channels of uint8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_gpu_does_is_done_in_the_workers(small, case):
    field, chain, why = REFUSED[case]
    decoder = SimpleRGBImageDecoder() if field == "even" else NDArrayDecoder()
    said = compare(small, field, decoder, [], chain, worked=False)
    assert "not done on the GPU: " in said and why in said
    worker = next(line for line in said.splitlines() if "in a worker" in line)
    assert all(type(step).__name__ in worker for step in chain)
    assert "its copy to GPU 0" in said and "which then does" not in said


def test_why_nothing_is_done_on_the_gpu(small):
    flip, finish = tf.RandomHorizontalFlip(), tf.ToTorchImage()
    for steps, why in (
        ([tf.ToDevice(0), flip, tf.ToDevice("cuda:0")], "not done on the GPU: the batch moves more than once"),
        ([tf.Convert("float32"), tf.ToDevice(0), finish], "before the move, pixels are no longer as in the file"),
        ([flip, tf.ToDevice(0)], None),
    ):
        pipelines = only(small, {"even": [SimpleRGBImageDecoder(), *steps]})
        with Loader(small, 4, pipelines=pipelines, arrays="numpy") as loader:
            said = loader.explain()
            assert (why or "its copy to GPU 0") in said and (why is not None or "not done" not in said)
            worker = next(line for line in said.splitlines() if "in a worker" in line)
            assert all(type(step).__name__ in worker for step in steps if not isinstance(step, tf.ToDevice))


def test_nothing_is_said_of_the_gpu_where_none_is_asked_for(small):
    pipelines = only(small, {"even": [SimpleRGBImageDecoder(), tf.ToDevice("cpu"), tf.RandomHorizontalFlip()]})
    with Loader(small, 4, pipelines=pipelines, arrays="numpy") as loader:
        assert "GPU" not in loader.explain()


def test_what_is_wrong_anywhere_is_refused_as_before(small):
    for chain in ([tf.Cutout(20)], [tf.RandomHorizontalFlip(), tf.NormalizeImage([1, 2], [3, 4], np.float32)]):
        wrong = only(small, {"even": [SimpleRGBImageDecoder(), tf.ToDevice(0), *chain]})
        right = only(small, {"even": [SimpleRGBImageDecoder(), *chain]})
        with pytest.raises(ValueError) as expected:
            Loader(small, 4, pipelines=right)
        with pytest.raises(ValueError, match=re.escape(str(expected.value))):
            Loader(small, 4, pipelines=wrong)
    mixes = [SimpleRGBImageDecoder(), tf.ToDevice(0), tf.ImageMixup(1, True), tf.CutMix(1, True)]
    with pytest.raises(ValueError, match="images can be mixed only once"):
        Loader(small, 4, pipelines=only(small, {"even": mixes}))


def test_views_share_draws_and_mixing_goes_with_labels(small):
    """Three views of one decoded image, two on the GPU; labels mixed with the same factors."""
    mixed = [tf.RandomTranslate(2), tf.ImageMixup(0.6, same_lambda=False)]
    pipelines = {
        "here": PipelineSpec("even", SimpleRGBImageDecoder(), mixed, draws=3),
        "there": PipelineSpec("even", SimpleRGBImageDecoder(), [mixed[0], tf.ToDevice(0), mixed[1]], draws=3),
        "other": PipelineSpec(
            "even", SimpleRGBImageDecoder(), [tf.ToDevice(0), *mixed, tf.Convert("float32")], draws=3
        ),
        "alone": PipelineSpec("even", SimpleRGBImageDecoder(), [tf.ToDevice(0), *mixed], draws=4),
        "label": PipelineSpec("label", IntDecoder(), [tf.ToDevice(0), tf.LabelMixup(0.6, same_lambda=False)], draws=3),
    }
    options = {"order": OrderOption.RANDOM, "seed": 6, "drop_last": False, "ids": True, "arrays": "numpy"}
    with Loader(small, 5, pipelines=only(small, pipelines), **options) as loader:
        names = [output.name for output in loader.outputs]
        for batch in loader:
            made = dict(zip(names, map(here, batch), strict=False))
            np.testing.assert_array_equal(made["there"], made["here"])
            np.testing.assert_array_equal(made["other"], made["here"].astype(np.float32))
            assert (made["alone"] != made["here"]).any()
            ids = batch[-1]
            np.testing.assert_array_equal(made["label"][:, 0], ids)
            np.testing.assert_array_equal(made["label"][:, 1], np.roll(ids, 1))
    spec = PipelineSpec("label", IntDecoder(), [tf.LabelMixup(0.6, same_lambda=False)], draws=3)
    with Loader(small, 5, pipelines=only(small, {"label": spec}), **options) as loader:
        want = np.concatenate([batch[0].copy() for batch in loader])
    with Loader(small, 5, pipelines=only(small, {"label": pipelines["label"]}), **options) as loader:
        np.testing.assert_array_equal(np.concatenate([here(batch[0]) for batch in loader]), want)


def test_seeds_and_settings_change_what_the_gpu_draws(small):
    flip = tf.RandomHorizontalFlip(0.0)
    pipelines = only(small, {"even": [SimpleRGBImageDecoder(), tf.ToDevice(0), flip, tf.RandomTranslate(3)]})
    plain = only(small, {"even": [SimpleRGBImageDecoder(), flip, tf.RandomTranslate(3)]})
    options = {"arrays": "numpy", "drop_last": False}
    with (
        Loader(small, 5, pipelines=pipelines, seed=1, **options) as a,
        Loader(small, 5, pipelines=plain, seed=1, **options) as b,
    ):
        seen = []
        for seed, probability in ((1, 0.0), (2, 0.0), (2, 1.0)):
            flip.flip_prob = probability
            for loader in (a, b):
                loader.seed, loader.next_epoch = seed, 5
            seen.append(np.concatenate([here(batch[0]) for batch in a]))
            np.testing.assert_array_equal(seen[-1], np.concatenate([here(batch[0]) for batch in b]))
        assert (seen[0] != seen[1]).any() and (seen[1] != seen[2]).any()


def test_a_pass_goes_on_bit_for_bit(data):
    path = data[0]
    pipelines = {"image": [SimpleRGBImageDecoder(), tf.ToDevice(0), *CHAINS["demo"]], "label": None}
    options = {"order": OrderOption.RANDOM, "seed": 4, "num_workers": 1, "drop_last": False}
    with Loader(path, 20, pipelines=pipelines, **options) as loader:
        want = [here(batch[0]) for batch in loader]
        loader.next_epoch = 0
        batches = iter(loader)
        next(batches)
        state = loader.state_dict()
    with Loader(path, 20, pipelines=pipelines, **options) as loader:
        loader.load_state_dict(state)
        left = [here(batch[0]) for batch in loader]
    assert len(want) == 3 and len(left) == 2 and COUNT % 20
    for got, expected in zip(left, want[1:], strict=True):
        np.testing.assert_array_equal(got, expected)
