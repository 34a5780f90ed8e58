"""Random rectangles of images in arrays: the same as those of an image field, resampled by the same rules."""

import crop_reference as reference
import numpy as np
import pytest

from cgxffcv import DatasetWriter
from cgxffcv import transforms as tf
from cgxffcv.fields import NDArrayField, RGBImageField
from cgxffcv.fields.decoders import NDArrayDecoder, RandomResizedCropRGBImageDecoder
from cgxffcv.loader import Loader, PipelineSpec

COUNT, SIDES, SEED = 17, (37, 52), 7
SCALE, RATIO = (0.05, 1.0), (0.75, 4 / 3)
FILTERS = ("area", "bilinear_antialias", "nearest")
FORMATS = {"grey": ("uint8", ()), "pair": ("uint8", (2,)), "deep": ("uint16", ()), "real": ("float32", (3,))}
FORMATS |= {"deep4": ("uint16", (4,)), "real1": ("float32", (1,))}


def values_of(name):
    """(COUNT, height, width, channels)"""
    dtype, channels = FORMATS[name]
    rng = np.random.default_rng(len(name))
    shape = (COUNT, *SIDES, *(channels or (1,)))
    most = 1 if dtype == "float32" else np.iinfo(dtype).max
    return (rng.random(shape) * most).astype(dtype)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("crops") / "a.beton"
    pixels = np.random.default_rng(5).integers(0, 256, (COUNT, *SIDES, 3), np.uint8)
    fields = {"image": RGBImageField(), "array": NDArrayField("uint8", (*SIDES, 3))}
    fields |= {name: NDArrayField(dtype, (*SIDES, *channels)) for name, (dtype, channels) in FORMATS.items()}
    columns = [pixels, pixels, *(values_of(name).reshape(COUNT, *fields[name].shape) for name in FORMATS)]
    DatasetWriter(path, {**fields, "real64": NDArrayField("float64", SIDES)}, progress=False).from_arrays(
        *columns, np.zeros((COUNT, *SIDES))
    )
    return path


def loaded(path, pipelines, **options):
    pipelines = {**dict.fromkeys(("image", "array", "real64", *FORMATS)), **pipelines}
    with Loader(path, 6, 2, pipelines=pipelines, seed=SEED, drop_last=False, **options) as loader:
        return [np.concatenate(parts) for parts in zip(*loader, strict=True)]


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("evaluate", [False, True])
def test_as_of_an_image_field(path, interpolation, evaluate):
    """Colour images of uint8, with the operations after the crop."""
    after = [tf.RandomHorizontalFlip(), tf.NormalizeImage(100, 50, np.float16), tf.ToTorchImage(False)]
    crop = tf.RandomResizedCrop(SCALE, RATIO, (20, 31), interpolation)
    decoder = RandomResizedCropRGBImageDecoder((20, 31), SCALE, RATIO, interpolation)
    pipelines = {
        "image": PipelineSpec("image", decoder, after, draws=5),
        "array": PipelineSpec("array", NDArrayDecoder(), [crop, *after], draws=5),
    }
    image, array = loaded(path, pipelines, evaluate=evaluate, arrays="numpy")
    assert image.dtype == np.float16 and image.shape == (COUNT, 3, 20, 31)
    np.testing.assert_array_equal(image, array)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("out", [(20, 31), (60, 9), (1, 1)])
def test_other_formats(path, name, out):
    dtype, channels = FORMATS[name]
    crops = {kind: tf.RandomResizedCrop(SCALE, RATIO, out, kind) for kind in FILTERS}
    pipelines = {kind: PipelineSpec(name, NDArrayDecoder(), [crop], draws=3) for kind, crop in crops.items()}
    area, bilinear, nearest = loaded(path, pipelines, arrays="numpy")
    assert area.shape == bilinear.shape == nearest.shape == (COUNT, *out, *channels)
    assert area.dtype == bilinear.dtype == nearest.dtype == dtype
    whole = dtype != "float32"
    for i, image in enumerate(values_of(name)):
        y, x, h, w = reference.drawn(*SIDES, (SEED, 0, i), SCALE, RATIO, 3)
        part = image[y : y + h, x : x + w]
        made = [kind[i].reshape(*out, -1) for kind in (area, bilinear, nearest)]
        wanted = [reference.means, reference.bilinear, reference.nearest]
        for got, want in zip(made, (rule(part, out) for rule in wanted), strict=True):
            error = np.abs(got.astype(np.float64) - want)
            assert error.max() <= (0.5 + 1e-6 if whole else 1e-6)


def test_exact_halves_are_rounded_up(tmp_path):
    pixels = np.array([[0, 1], [65535, 65534], [7, 8], [2, 2]], np.uint16).reshape(4, 1, 2)
    DatasetWriter(tmp_path / "a", {"x": NDArrayField("uint16", (1, 2))}, progress=False).from_arrays(pixels)
    crop = tf.RandomResizedCrop((1, 1), (2, 2), 1)
    with Loader(tmp_path / "a", 4, pipelines={"x": [NDArrayDecoder(), crop]}, arrays="numpy") as loader:
        assert next(iter(loader))[0].ravel().tolist() == [1, 65535, 8, 2]
        assert "NDArrayDecoder() > RandomResizedCrop" in loader.explain()


def test_what_is_no_image_is_refused(path):
    crop = tf.RandomResizedCrop(SCALE, RATIO, 8)
    with pytest.raises(TypeError, match=r"RandomResizedCrop takes images: .* not of float64 with shape \(37, 52\)"):
        Loader(path, 4, pipelines={"real64": [crop]})
    with pytest.raises(TypeError, match="must come first"):
        Loader(path, 4, pipelines={"grey": [tf.RandomHorizontalFlip(), crop]})
