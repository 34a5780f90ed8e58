"""Operations written for FFCV run as plain Python on whole batches; what fields without a pipeline return."""

import sys
import types

import numpy as np
import pytest
import tiny_beton

from cgxffcv import transforms as tf
from cgxffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
from cgxffcv.interop import torch as interop
from cgxffcv.loader import Loader, OrderOption, PipelineSpec
from cgxffcv.pipeline.allocation_query import AllocationQuery
from cgxffcv.pipeline.compiler import Compiler
from cgxffcv.pipeline.operation import Operation

COUNT, SIZE = 21, (6, 4)


def images():
    return np.random.default_rng(9).integers(0, 256, (COUNT, *SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    labels, words = [10 * i for i in range(COUNT)], [b"a" * i for i in range(COUNT)]
    fields = {"image": ("image", list(images())), "label": ("int", labels), "text": ("bytes", words)}
    return tiny_beton.write(tmp_path_factory.mktemp("own") / "a.beton", fields)


class Corner(Operation):
    """Reads and writes separate memory, row by row."""

    def __init__(self, side):
        self.side, self.calls, self.states = side, [], []

    def generate_code(self):
        each = Compiler.get_iterator()
        side = self.side

        def code(batch, out):
            self.calls.append(len(batch))
            for i in each(len(batch)):
                out[i] = batch[i, :side, :side]
            return out

        code.is_parallel = True
        return Compiler.compile(code)

    def declare_state_and_memory(self, previous_state):
        self.states.append(previous_state)
        shape = (self.side, self.side, 3)
        return previous_state, AllocationQuery(shape, previous_state.dtype)


class Renumber(Operation):
    def generate_code(self):
        def code(batch, out, indices):
            out[:] = batch + indices[:, None]
            return out

        code.with_indices = True
        return code

    def declare_state_and_memory(self, previous_state):
        return previous_state, AllocationQuery((1,), np.dtype("int64"))


class Halves(Operation):
    """Several memories at once, and none."""

    def __init__(self, query):
        self.query = query

    def generate_code(self):
        def code(batch, out):
            if out is None:
                return batch // 2
            first, second = out
            first[:], second[:] = batch // 2, batch % 2
            return first * 10 + second

        return code

    def declare_state_and_memory(self, previous_state):
        return previous_state, self.query


def load(path, **options):
    return Loader(path, **{"batch_size": 8, "num_workers": 2, "drop_last": False, "seed": 3, "ids": True, **options})


def test_images(path):
    corner = Corner(2)
    steps = [SimpleRGBImageDecoder(), tf.RandomHorizontalFlip(1), corner, tf.ToTensor()]
    with load(path, pipelines={"image": steps, "text": None}, order=OrderOption.RANDOM) as loader:
        kept = list(loader)
    for got, _, ids in kept:  # all of them, which nothing has overwritten
        np.testing.assert_array_equal(got, images()[ids][:, :2, ::-1][:, :, :2])
    assert corner.calls == [8, 8, 5]  # once per batch
    (state,) = corner.states
    assert state.jit_mode and state.shape == (*SIZE, 3) and state.dtype == np.uint8


def test_sample_numbers(path):
    with load(path, pipelines={"label": [IntDecoder(), Renumber()]}, order=OrderOption.RANDOM) as loader:
        for _, labels, _, ids in loader:
            assert labels[:, 0].tolist() == [11 * i for i in ids.tolist()]


@pytest.mark.parametrize(
    "query, want",
    [
        (None, [0, 5, 10]),
        ((AllocationQuery((1,), np.int64), AllocationQuery((1,), np.int32)), [0, 50, 100]),
    ],
)
def test_memories(path, query, want):
    with load(path, pipelines={"label": [IntDecoder(), Halves(query)]}) as loader:
        assert loader.get_batch([0, 1, 2])[1][:, 0].tolist() == want


def test_what_changes_on_the_way_is_told(path):
    """Another shape is another state: code and memory are requested again."""
    corner, later = Corner(3), Corner(2)
    flip = [True, False]
    steps = [corner, lambda batch: batch[:, :, :2] if flip.pop() else batch, later]
    with load(path, pipelines={"image": steps, "label": None, "text": None}, batch_size=10, drop_last=True) as loader:
        assert [image.shape for image, _ in loader] == [(10, 2, 2, 3)] * 2
    assert len(corner.states) == 1 and [state.shape for state in later.states] == [(3, 3, 3), (3, 2, 3)]


def test_refusals(path):
    class Nothing(Operation):
        pass

    loader = load(path, pipelines={"label": [IntDecoder(), Nothing()]})
    with pytest.raises(TypeError, match="Nothing must define declare_state_and_memory"):
        next(iter(loader))
    loader.close()
    with pytest.raises(TypeError, match="Corner is a class"):
        load(path, pipelines={"image": [Corner]})


@pytest.fixture
def torch(monkeypatch):
    """A stand-in: what a default pipeline needs of torch."""

    class Tensor(np.ndarray):
        pass

    module = types.ModuleType("torch")
    module.Tensor, module.from_numpy = Tensor, lambda array: array.view(Tensor)
    module.no_grad = interop.contextlib.nullcontext
    interop.find_torch.cache_clear()
    monkeypatch.setitem(sys.modules, "torch", module)
    yield module
    interop.find_torch.cache_clear()


def kinds(loader):
    return [type(entry).__name__ for entry in next(iter(loader))[:-1]]


def test_default_pipelines_give_tensors_where_torch_is_in_use(path, torch):
    with load(path) as loader:
        assert kinds(loader) == ["Tensor"] * 3
        loader.arrays = "numpy"
        assert kinds(loader) == ["ndarray"] * 3
    chosen = {"image": [], "label": [IntDecoder()], "again": PipelineSpec("image"), "text": None}
    with load(path, pipelines=chosen, arrays="torch") as loader:
        assert kinds(loader) == ["Tensor", "ndarray", "Tensor"]
        assert len(loader.filter("image", lambda row: type(row) is np.ndarray).indices) == COUNT


def test_arrays_where_it_is_not(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    interop.find_torch.cache_clear()
    with load(path) as loader:
        assert kinds(loader) == ["ndarray"] * 3
        with pytest.raises(ImportError, match="torch is not installed"):
            loader.arrays = "torch"
    with pytest.raises(ValueError, match="arrays must be 'numpy', 'torch' or None, not 'jax'"):
        load(path, arrays="jax")
    interop.find_torch.cache_clear()


@pytest.mark.parametrize(
    ("made", "error", "words"),
    [(None, TypeError, "the step returned nothing"), (2, ValueError, "Short.*returned 2 rows of a batch of 4")],
)
def test_batches_that_lose_rows_are_refused(path, made, error, words):
    class Short(Operation):
        def generate_code(self):
            return lambda batch, out: None if made is None else batch[:made]

        def declare_state_and_memory(self, previous_state):
            return previous_state, None

    pipelines = {"image": [SimpleRGBImageDecoder(), Short()], "text": None}
    with Loader(path, 4, pipelines=pipelines) as loader, pytest.raises(error, match=words):
        next(iter(loader))
