"""Transforms refuse what they can never do when they are made, and an operation's declaration names the operation."""

import copy

import numpy as np
import pytest
import tiny_beton

from cgxffcv import transforms as tf
from cgxffcv.decoders import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder
from cgxffcv.loader import Loader
from cgxffcv.pipeline.operation import AllocationQuery, Operation

NAN = float("nan")


@pytest.mark.parametrize(
    "make, error, text",
    [
        (lambda: tf.ModuleWrapper(NAN), TypeError, "module must be callable on a batch, which nan is not"),
        (lambda: tf.ModuleWrapper(None), TypeError, "None"),
        (lambda: tf.ModuleWrapper(dict), TypeError, r"write dict\(...\)"),
        (lambda: tf.Squeeze(2**70), ValueError, "a dimension must be in -64..63"),
        (lambda: tf.Squeeze(-65), ValueError, "not -65"),
        (lambda: tf.Squeeze(1.0), TypeError, "a dimension must be a whole number, not 1.0"),
        (lambda: tf.Squeeze(True), TypeError, "whole number, not True"),
        (lambda: tf.MixupToOneHot(2**70), ValueError, "num_classes must be in 1..16777216"),
        (lambda: tf.MixupToOneHot(0), ValueError, "not 0"),
        (lambda: tf.MixupToOneHot("10"), TypeError, "num_classes must be a whole number, not '10'"),
        (lambda: tf.Convert(None), TypeError, "None is not a dtype of numbers"),
        (lambda: tf.Convert(object), TypeError, "object.* is not a dtype of numbers"),
        (lambda: tf.Convert("torch.nonsense"), TypeError, "not a dtype of numbers"),
        (lambda: tf.View("U8"), TypeError, "not a dtype of numbers"),
        (lambda: tf.View([("a", "i4")]), TypeError, "not a dtype of numbers"),
        (lambda: tf.NormalizeImage("abc", 1, np.float32), TypeError, "mean must be one number, or one per channel"),
        (
            lambda: tf.NormalizeImage(NAN, 1, np.float32),
            ValueError,
            "mean must be one number, or one per channel .up to four., finite",
        ),
        (lambda: tf.NormalizeImage(0, [[1], [2, 3]], np.float32), TypeError, "std must be one number"),
        (lambda: tf.RandomErasing(scale="ab"), TypeError, "scale must be two numbers"),
        (lambda: tf.RandomErasing(scale=(0.1, NAN)), ValueError, "scale must be in 0..1"),
        (lambda: tf.RandomErasing(scale=0.5), ValueError, "scale must be two numbers"),
        (lambda: tf.RandomCrop(None), TypeError, "size must be a whole number, not None"),
        (lambda: tf.RandomCrop((1, 2, 3)), ValueError, "size must be a number or"),
        (lambda: tf.RandomCrop("88"), TypeError, "size must be a whole number, not '88'"),
        (lambda: tf.RandomCrop(2**70), (ValueError, OverflowError), "size"),
        (lambda: tf.ReplaceLabel(3, 1), TypeError, "indices must be numbers of samples, not 3"),
        (lambda: tf.ReplaceLabel([2**63], 1), ValueError, "indices holds 9223372036854775808"),
        (lambda: tf.ReplaceLabel([3, -1], 1), ValueError, "indices holds -1: sample numbers start at 0"),
        (lambda: tf.ReplaceLabel(["a"], 1), TypeError, "indices must be numbers of samples"),
        (lambda: tf.Poison("mask", np.zeros((2, 2)), [1]), TypeError, "mask must be an array of numbers"),
        (lambda: tf.Poison(np.full((2, 2, 3), NAN), np.zeros((2, 2)), [1]), ValueError, "mask must be finite"),
    ],
)
def test_nonsense_is_refused_when_the_transform_is_made(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_dtypes_that_are_taken():
    for dtype, name in (
        (np.float16, "float16"),
        ("bfloat16", "bfloat16"),
        ("<f4", "float32"),
        ("torch.int64", "int64"),
        (int, "int64"),
        (np.dtype("bool"), "bool"),
    ):
        assert tf.Convert(dtype).target_dtype == name


def test_squeeze_names_a_dimension_that_the_batch_has_not():
    assert tf.Squeeze(1, -1)(np.zeros((2, 1, 3, 1))).shape == (2, 3)
    with pytest.raises(ValueError, match=r"Squeeze\(dims=\(5,\)\): a batch of shape \(2, 1\) has no dimension 5"):
        tf.Squeeze(5)(np.zeros((2, 1)))


class Odd(Operation):
    def __init__(self, declared, code=lambda: lambda batch, to: batch):
        self.declared, self.code = declared, code

    def declare_state_and_memory(self, previous_state):
        return self.declared(previous_state) if callable(self.declared) else self.declared

    def generate_code(self):
        return self.code()

    def __repr__(self):
        return "Odd()"


@pytest.mark.parametrize(
    "operation, text",
    [
        (Odd(None), r"Odd\(\): declare_state_and_memory must return \(state, AllocationQuery or None\), not None"),
        (Odd((1, 2, 3)), "not .1, 2, 3."),
        (Odd(lambda state: state.nothing), "Odd.*declare_state_and_memory failed: AttributeError: .*nothing"),
        (Odd((None, None), lambda: 3), r"Odd\(\): generate_code must return a function, not 3"),
        (Odd((None, None), lambda: 1 // 0), "Odd.*generate_code failed: ZeroDivisionError"),
        (Odd((None, 5)), r"Odd\(\): declare_state_and_memory asks for memory that is unavailable, 5"),
        (Odd((None, AllocationQuery((-1,), np.float32))), "memory that is unavailable"),
        (Odd((None, AllocationQuery((2,), "nonsense"))), "memory that is unavailable"),
        (Odd((None, AllocationQuery((2**61,), np.float64))), "memory that is unavailable"),
    ],
)
def test_a_declaration_that_fails_names_the_operation(tmp_path, operation, text):
    path = tiny_beton.write(tmp_path / "a.beton", {"label": ("int", [1, 2])})
    with (
        Loader(path, 2, pipelines={"label": [operation]}, arrays="numpy") as loader,
        pytest.raises(TypeError, match=text),
    ):
        list(loader)


CENTRE, RANDOM = CenterCropRGBImageDecoder((5, 4), 0.5), RandomResizedCropRGBImageDecoder((5, 4))
HOLE, NORMAL = tf.Cutout(4), tf.NormalizeImage(100, 50, np.float32)


@pytest.mark.parametrize(
    ("own", "name", "value", "kept"),
    [
        (CENTRE, "output_size", [np.int64(7), 9], (7, 9)),
        (CENTRE, "ratio", 1, 1.0),
        (RANDOM, "scale", [0.5, 1], (0.5, 1.0)),
        (HOLE, "crop_size", 2, (2, 2)),
        (HOLE, "fill", np.array([1, 2, 3]), (1.0, 2.0, 3.0)),
        (NORMAL, "mean", np.array([5, 6, 7]), (5.0, 6.0, 7.0)),
        (NORMAL, "std", 2, (2.0, 2.0, 2.0)),
        (NORMAL, "type", np.float16, "float16"),
        (tf.Convert(np.float32), "target_dtype", np.float16, "float16"),
        (tf.ToDevice("cpu"), "device", "cpu", "cpu"),
        (tf.RandomCrop(3, 1), "padding", np.int32(2), 2),
    ],
)
def test_values_that_are_assigned_are_kept_as_arguments_are(own, name, value, kept):
    own = copy.copy(own)
    setattr(own, name, value)
    assert getattr(own, name) == kept and type(getattr(own, name)) is type(kept)


@pytest.mark.parametrize(
    ("own", "name", "value", "error", "text"),
    [
        (CENTRE, "output_size", 8, TypeError, "output_size .height, width. must be two numbers, not 8"),
        (CENTRE, "ratio", 2, ValueError, "ratio must be above 0 and at most 1, not 2"),
        (CENTRE, "jpeg_mode", "bogus", ValueError, "jpeg_mode must be 'accurate' or 'fast' or 'scaled', not 'bogus'"),
        (CENTRE, "interpolation", "area2", ValueError, "interpolation must be one of 'area'"),
        (RANDOM, "ratio", (0, 1), ValueError, "ratio must be above 0"),
        (HOLE, "crop_size", (1, 2, 3), ValueError, "crop_size must be a number or .height, width."),
        (tf.RandomHorizontalFlip(), "flip_prob", 2, ValueError, r"flip_prob must be in 0\.\.1, not 2"),
        (tf.RandAugment(2, 9), "magnitude", 31, ValueError, "magnitude must be below num_magnitude_bins"),
        (NORMAL, "std", 0, ValueError, "std must be above 0, not 0"),
        (NORMAL, "type", "int8", ValueError, "type must be one of float32"),
        (tf.View(np.int8), "target_dtype", "bogus", TypeError, "'bogus' is not a dtype of numbers"),
        (tf.ToDevice("cpu"), "device", -1, ValueError, "GPUs are numbered from 0, not -1"),
    ],
)
def test_values_that_are_assigned_are_checked_at_once(own, name, value, error, text):
    before = getattr(own, name)
    with pytest.raises(error, match=text):
        setattr(own, name, value)
    assert getattr(own, name) == before


def test_a_users_class_may_set_its_attributes_in_any_order():
    class Own(tf.Cutout):
        def __init__(self):
            self.fill, self.mine = (1.0, 2.0, 3.0), [1]
            self.crop_size = (2, 2)

    own = Own()
    own.crop_size = 3
    assert own.values() == ((3, 3), (1.0, 2.0, 3.0)) and own.mine == [1]


def test_a_users_class_may_have_a_property_for_an_argument():
    class Own(tf.RandomHorizontalFlip):
        @property
        def flip_prob(self):
            return self.now

        @flip_prob.setter
        def flip_prob(self, value):
            self.now = value

    own = Own(0.25)
    assert own.now == 0.25 and own.values() == (0.25,)
