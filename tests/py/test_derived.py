"""Classes that a user derives from ours: what they override is called, or the Loader says that it would not be."""

import numpy as np
import pytest
import tiny_beton

from cgxffcv import Loader
from cgxffcv import transforms as tf
from cgxffcv.decoders import IntDecoder, NDArrayDecoder, SimpleRGBImageDecoder
from cgxffcv.pipeline import PipelineSpec
from cgxffcv.pipeline.operation import AllocationQuery, Operation

COUNT = 12
FLIP = tf.RandomHorizontalFlip(0.5)


@pytest.fixture
def path(tmp_path):
    images = list(np.random.default_rng(3).integers(1, 256, (COUNT, 4, 6, 3), dtype=np.uint8))
    fields = {"image": ("image", images), "array": ("array", images), "label": ("int", list(range(1, COUNT + 1)))}
    return tiny_beton.write(tmp_path / "a.beton", fields)


def first(path, **pipelines):
    with Loader(path, COUNT, pipelines={"image": None, "array": None, "label": None, **pipelines}, seed=1) as loader:
        assert "Own" in loader.explain()
        return next(iter(loader))[0]


def called(base):
    """Of this class, with a `__call__` that negates."""
    return type("Own", (base,), {"__call__": lambda self, batch: 255 - batch})


def generating(base):
    """The same, as FFCV's operations are written."""

    def generate_code(self):
        return lambda batch, memory: np.subtract(255, batch, out=memory)

    def declare_state_and_memory(self, previous_state):
        return previous_state, AllocationQuery(previous_state.shape, previous_state.dtype)

    members = {"generate_code": generate_code, "declare_state_and_memory": declare_state_and_memory}
    return type("Own", (base,), members)


@pytest.mark.parametrize("derived", [called, generating])
@pytest.mark.parametrize(
    "base, given",
    [
        (tf.RandomHorizontalFlip, (1,)),
        (tf.NormalizeImage, (100, 50, np.float32)),
        (tf.ToTensor, ()),
        (tf.ToDevice, ("cpu",)),
        (tf.ToTorchImage, ()),
        (tf.Convert, (np.float16,)),
        (tf.ImageMixup, (0.5, True)),
        (tf.RandomResizedCrop, ((0.1, 1), (0.5, 2), 3)),
        (tf.View, (np.int8,)),
    ],
)
@pytest.mark.parametrize("field, decoder", [("image", SimpleRGBImageDecoder), ("array", NDArrayDecoder)])
def test_what_a_derived_transform_does_is_done(path, derived, base, given, field, decoder):
    own = derived(base)(*given)
    got = first(path, **{field: [decoder(), own, FLIP]})
    want = first(path, **{field: [decoder(), named(lambda batch: 255 - batch), FLIP]})
    np.testing.assert_array_equal(got, want)


def named(step):
    step.__name__ = "Own"
    return step


def test_of_labels(path):
    for derived in called, generating:
        label = first(path, label=[IntDecoder(), derived(tf.ReplaceLabel)([0], 77)])
        assert label[:, 0].tolist() == list(range(254, 254 - COUNT, -1))

    class Own(tf.LabelMixup):
        with_indices = True

        def __call__(self, batch, ids):
            return batch[:, 0] - ids

    assert first(path, label=[IntDecoder(), Own(0.5, True)]).tolist() == [1] * COUNT


def test_one_that_overrides_nothing_stays_what_it_is(path):
    class Own(tf.RandomHorizontalFlip):
        def __init__(self):
            super().__init__(1)

    with Loader(path, COUNT, pipelines={"image": [SimpleRGBImageDecoder(), Own()]}, arrays="numpy") as loader:
        assert loader.outputs[0].steps == [] and "in a worker: SimpleRGBImageDecoder" in loader.explain()


@pytest.mark.parametrize("base", [IntDecoder, Operation])
def test_a_decoder_that_would_have_to_be_compiled_is_refused(path, base):
    class Own(base):
        def generate_code(self):
            return None

    with pytest.raises(TypeError, match="pipeline 'label': generate_code of Own would not be called.*FunctionDecoder"):
        first(path, label=PipelineSpec("label", Own()))


def test_a_users_operation_may_call_its_attributes_and_methods_as_it_likes():
    class Own(Operation):
        def __init__(self):
            self.inner = np.arange(3)
            self.array, self.size = self.inner, 7
            self._check_size()

        def _check_size(self):
            assert self.size == 7

        def __getattr__(self, name):
            return getattr(self.inner, name)

    own = Own()
    assert own.array is own.inner and own.nbytes == own.inner.nbytes


def test_a_derived_move_is_the_object_that_was_given(path):
    class Own(tf.ToDevice):
        calls = 0

        def __call__(self, batch):
            self.calls += 1
            return super().__call__(batch)

    own = Own("cpu")
    first(path, image=[SimpleRGBImageDecoder(), own])
    assert own.calls == 1
