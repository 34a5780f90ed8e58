"""Operations on images whose pixels are an array or a tensor of the file: the same as for an image field."""

import numpy as np
import pytest
import tiny_beton

from cgxffcv import DatasetWriter
from cgxffcv import transforms as tf
from cgxffcv.fields import NDArrayField, RGBImageField, TorchTensorField
from cgxffcv.fields.decoders import NDArrayDecoder
from cgxffcv.loader import Loader, OrderOption, PipelineSpec

COUNT = 21
STEPS = {
    "plain": [tf.RandomHorizontalFlip(), tf.RandomTranslate(2), tf.Cutout(3)],
    "finished": [tf.RandomContrast(0.5), tf.NormalizeImage(100, 50, np.float16), tf.ToTorchImage(False)],
    "mixed": [tf.RandomCrop(7), tf.CutMix(0.5, False), tf.RandomVerticalFlip(), tf.Convert(np.float32)],
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("arrays") / "a.beton")
    shape = (9, 8, 3)
    fields = {
        "image": RGBImageField(),
        "array": NDArrayField("uint8", shape),
        "tensor": TorchTensorField("uint8", shape),
        "deep": NDArrayField("uint8", (9, 8, 5)),
        "real": NDArrayField("float64", shape),
    }
    pixels = np.random.default_rng(5).integers(0, 256, (COUNT, 9, 8, 3), dtype=np.uint8)
    samples = [(one, one, one, np.repeat(one[..., :1], 5, 2), one.astype(np.float64)) for one in pixels]
    DatasetWriter(path, fields, num_workers=1, progress=False).from_indexed_dataset(samples)
    return path


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("evaluate", [False, True])
def test_as_of_an_image(path, name, evaluate):
    steps = STEPS[name]
    pipelines = {
        "image": PipelineSpec("image", None, steps, draws=5),
        "array": PipelineSpec("array", None, steps, draws=5),
        "tensor": PipelineSpec("tensor", NDArrayDecoder(), steps, draws=5),
        "deep": None,
        "real": None,
    }
    options = {"order": OrderOption.RANDOM, "seed": 3, "drop_last": False, "evaluate": evaluate, "arrays": "numpy"}
    with Loader(path, 8, 2, pipelines=pipelines, **options) as loader:
        for _ in range(2):
            for image, array, tensor in loader:
                assert image.dtype == array.dtype == tensor.dtype
                np.testing.assert_array_equal(image, array)
                np.testing.assert_array_equal(image, tensor)


def test_arrays_without_image_operations_stay_arrays(path):
    steps = [NDArrayDecoder(), tf.ToTorchImage(False), tf.Convert(np.float64)]
    pipelines = {"array": steps, "real": steps, "image": None, "tensor": None, "deep": None}
    with Loader(path, 4, pipelines=pipelines, arrays="numpy") as loader:
        for array, real in loader:
            assert array.shape == (4, 3, 9, 8) and array.dtype == np.float64
            np.testing.assert_array_equal(array, real)
    loader = Loader(
        path, 4, pipelines={**pipelines, "deep": [tf.Squeeze(), lambda batch: batch[0, 0], tf.ToTorchImage()]}
    )
    with pytest.raises(TypeError, match="takes images .batch, height, width, channels., not .8, 5."):
        next(iter(loader))
    loader.close()


@pytest.mark.parametrize("field", ["deep", "real"])
def test_other_arrays_are_refused(path, field):
    got = {"deep": r"uint8 with shape \(9, 8, 5\)", "real": r"float64 with shape \(9, 8, 3\)"}[field]
    for step in (tf.RandomHorizontalFlip(), tf.NormalizeImage(0, 1, np.float32)):
        takes = r"takes images: arrays of uint8, uint16 or float32 with shape .*1 to 4\), not of"
        said = f"field '{field}': {type(step).__name__} {takes} {got}"
        with pytest.raises(TypeError, match=said):
            Loader(path, 4, pipelines={field: [step]})


def test_no_samples(tmp_path):
    path = tiny_beton.write(tmp_path / "a.beton", {"a": ("array", [np.zeros((3, 4, 3), np.uint8)] * 2)})
    with Loader(path, 2, pipelines={"a": [tf.RandomCrop(2)]}, indices=[]) as loader:
        assert list(loader) == [] and loader.get_batch([1])[0].shape == (1, 2, 2, 3)
