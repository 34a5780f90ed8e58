"""Errors in a step on whole batches say which step, on what, and on which samples."""

import re

import numpy as np
import pytest
import tiny_beton

from cgxffcv import DatasetWriter, Loader, Reader
from cgxffcv import transforms as tf
from cgxffcv.decoders import BytesDecoder, JSONDecoder
from cgxffcv.fields import Field, IntField
from cgxffcv.pipeline.operation import Operation

COUNT = 20


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    images = [np.full((6, 6, 3), i, np.uint8) for i in range(COUNT)]
    columns = {
        "image": ("image", images),
        "label": ("int", list(range(COUNT))),
        "text": ("bytes", [bytes(i % 4) for i in range(COUNT)]),
        "more": ("json", [{"n": i} for i in range(COUNT)]),
    }
    return tiny_beton.write(tmp_path_factory.mktemp("errors") / "x.beton", columns)


def fragile(batch):
    return 1 // int(batch[0, 0] != 10)


class Fragile(Operation):
    def declare_state_and_memory(self, previous_state):
        return previous_state, None

    def generate_code(self):
        def code(batch, destination):
            assert batch[0, 0] != 10
            return batch

        return code


class Closed(Exception):
    __slots__ = ()

    def __setattr__(self, name, value):
        raise AttributeError(name)


def raise_closed(batch):
    raise Closed("shut")


@pytest.mark.parametrize(
    "step, error, name",
    [(fragile, ZeroDivisionError, "fragile"), (Fragile(), AssertionError, r"Fragile\(\)")],
)
def test_the_error_is_the_steps_own_and_names_it(path, step, error, name):
    pipelines = {"label": [step], "image": None, "text": None, "more": None}
    note = rf"pipeline 'label', step {name}, on int64 \(10, 1\), 10 samples \(10, 11, .*, 17, \.\.\.\); get_batch"
    with Loader(path, 10, pipelines=pipelines) as loader:
        batches = iter(loader)
        next(batches)
        with pytest.raises(error) as caught:
            next(batches)
        assert len(caught.value.__notes__) == 1
        assert re.match(note, caught.value.__notes__[0])
        with pytest.raises(error) as caught:
            loader.get_batch([10])
        assert "1 sample (10);" in caught.value.__notes__[0]
        loader.pipelines = {**pipelines, "label": [raise_closed]}
        with pytest.raises(Closed, match="shut"):
            next(iter(loader))


def test_a_step_that_returns_nothing_is_refused(path):
    def forgotten(batch):
        batch += 1

    with Loader(path, 5, pipelines={"label": [forgotten]}) as loader, pytest.raises(TypeError) as caught:
        next(iter(loader))
    assert str(caught.value) == "the step returned nothing: it must return the batch"
    assert "step forgotten" in caught.value.__notes__[0]


class Exhausted(Operation):
    def declare_state_and_memory(self, previous_state):
        return previous_state, None

    def generate_code(self):
        return lambda batch, destination: next(iter(()))


@pytest.mark.parametrize("step", [lambda batch: next(iter(())), Exhausted()])
def test_a_step_that_raises_stop_iteration_ends_no_loop(path, step):
    """A loop would take it for the end of the epoch."""
    with Loader(path, 5, pipelines={"label": [step]}) as loader, pytest.raises(RuntimeError) as caught:
        for _ in loader:
            pass
    assert str(caught.value) == "the step raised StopIteration" and "pipeline 'label'" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    "field, steps, text",
    [
        (
            "text",
            [tf.View("float64")],
            r"View\(.*'float64'\): the last dimension of uint8 \(5, 3\) does not hold a whole",
        ),
        ("more", [JSONDecoder(), tf.Convert("float32")], r"Convert\(.*\) takes one array or tensor, not a list"),
        ("more", [JSONDecoder(), tf.Squeeze()], "Squeeze.* not a list"),
        ("more", [JSONDecoder(), tf.View("int8")], "View.* not a list"),
        ("more", [JSONDecoder(), tf.MixupToOneHot(3)], "MixupToOneHot.* not a list"),
        ("text", [BytesDecoder(lengths=True), tf.Convert("int64")], "Convert.* not a pair of arrays"),
        ("image", [list, tf.ToTorchImage()], "class"),
        ("image", [lambda batch: list(batch), tf.ToTorchImage()], "ToTorchImage.* not a list"),
        ("image", [lambda batch: list(batch), tf.NormalizeImage(1, 2, np.float32)], "NormalizeImage.* not a list"),
        ("image", [lambda batch: batch[0, 0], tf.ToTorchImage()], r"ToTorchImage.* not \(6, 3\)"),
    ],
)
def test_what_a_step_cannot_work_on(path, field, steps, text):
    others = dict.fromkeys(("image", "label", "text", "more"))
    with pytest.raises(TypeError, match=text), Loader(path, 5, pipelines={**others, field: steps}) as loader:
        next(iter(loader))


def test_other_functions_of_the_users_are_told_the_sample(path, tmp_path):
    class Own(Field):
        metadata_type = np.dtype([("x", "<i4")])

        def encode(self, destination, value, malloc):
            destination["x"] = value

        def decode(self, record, data):
            return 1 // (3 - int(record["x"]))

    def samples():
        yield from range(4)
        raise LookupError("no more")

    with Loader(path, 6) as loader, pytest.raises(ZeroDivisionError) as caught:
        loader.filter("label", lambda label: 1 // int(13 - label[0]))
    assert caught.value.__notes__ == ["filter: the condition was asked about sample 13"]
    DatasetWriter(tmp_path / "a", {"own": Own()}, progress=False).from_iterable(range(5))
    with Reader(tmp_path / "a", {"own": Own}) as reader, pytest.raises(ZeroDivisionError) as caught:
        list(reader)
    assert caught.value.__notes__ == [f"{tmp_path / 'a'}: sample 3: field 'own': Own.decode"]
    with pytest.raises(LookupError) as caught:
        DatasetWriter(tmp_path / "b", {"n": IntField()}, progress=False).from_iterable(samples())
    assert caught.value.__notes__ == ["sample 4 was asked for"]


def test_both_of_a_pair_become_tensors(path, monkeypatch):
    class Tensor:
        def __init__(self, array):
            self.array = array

    class Torch:
        from_numpy = Tensor

    monkeypatch.setattr(tf, "find_torch", lambda: Torch)
    values, lengths = tf.ToTensor()((np.zeros((2, 3), np.uint8), np.arange(2)))
    assert isinstance(values, Tensor) and isinstance(lengths, Tensor) and lengths.array.tolist() == [0, 1]
