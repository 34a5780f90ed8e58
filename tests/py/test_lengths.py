"""Lengths that a caller chooses: what has more entries than memory is refused before it is copied, since a system that
promises more memory than it has would not refuse; a limit of this process's memory shows whether that is so. What never
ends ends with a message, too."""

import importlib
import itertools
import resource

import numpy as np
import pytest
import small_data

from cgxffcv import DatasetWriter, Loader, comm, launch, lengths
from cgxffcv import transforms as tf
from cgxffcv.adaptive import AdaptiveBits
from cgxffcv.allreduce import AllreducePlan
from cgxffcv.bench import allreduce
from cgxffcv.errors import UsageError
from cgxffcv.fields import FloatField, IntField, JSONField, NDArrayField
from cgxffcv.nn import describe
from cgxffcv.pipeline import PipelineSpec
from cgxffcv.recipes import RECIPES, RecipeError
from cgxffcv.writer.webshards import expand

MASK, ALPHA = np.zeros((16, 16, 3), np.float32), np.zeros((16, 16), np.float32)


class Long:
    """A data set, or a column, of its own kind."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return (1,)


@pytest.fixture(autouse=True)
def little_memory():
    """Room for another GiB."""
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + (1 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    images = np.zeros((4, 16, 16, 3), np.uint8)
    return small_data.write(tmp_path_factory.mktemp("file") / "a.beton", images, np.arange(4))


def load(path, **options):
    return list(Loader(path, batch_size=2, num_workers=1, **options))


@pytest.mark.parametrize("many", [range(2**40), range(2**70)], ids=["2^40", "2^70"])
@pytest.mark.parametrize("options", [{"indices": 0}, {"order": 0}, {"order": 1}], ids=["indices", "order", "function"])
def test_samples_of_a_loader(path, many, options):
    name = next(iter(options))
    given = many if options[name] == 0 else lambda epoch: many
    with pytest.raises(MemoryError, match=f"{name}: copies of so many entries .* do not fit in this machine's memory"):
        load(path, **{name: given})


def test_ranges_that_fit_are_samples(path):
    assert [len(labels) for _, labels in load(path, indices=range(3), order=range(1, 3))] == [2]


def test_steps_of_a_pipeline(path):
    with pytest.raises(ValueError, match="a pipeline has at most 1024 steps, not range"):
        load(path, pipelines={"label": range(2**40)})


def test_steps_are_not_asked_for_their_texts():
    class Mute:
        def __repr__(self):
            raise RuntimeError("not yet")

    assert len(PipelineSpec("label", transforms=[Mute(), Mute()]).transforms) == 2


@pytest.mark.parametrize("options", [{}, {"indices": range(2**40)}], ids=["data set", "indices"])
def test_samples_that_are_written(tmp_path, options):
    writer = DatasetWriter(tmp_path / "a.beton", {"a": IntField()}, num_workers=1)
    with pytest.raises(MemoryError, match="(the data set|indices): copies of so many entries"):
        writer.from_indexed_dataset(Long(5 if options else 2**40), **options)


@pytest.mark.parametrize("column", [range(2**40), Long(2**40)], ids=["range", "own"])
@pytest.mark.parametrize("field", [IntField(), FloatField(), NDArrayField(np.dtype("f4"), (3,))], ids=repr)
def test_columns(tmp_path, field, column):
    with pytest.raises(MemoryError, match="field 'a': copies of so many entries"):
        DatasetWriter(tmp_path / "a.beton", {"a": field}, num_workers=1).from_arrays(column)


def test_columns_of_ranges(tmp_path):
    writer = DatasetWriter(tmp_path / "a.beton", {"a": IntField(), "b": JSONField()}, num_workers=1)
    assert writer.from_arrays(range(5), range(5)).num_samples == 5


@pytest.mark.parametrize("value", [range(2**40), Long(2**40)], ids=["range", "own"])
def test_a_value(tmp_path, value):
    field = NDArrayField(np.dtype("i8"), (3,))
    with pytest.raises(ValueError, match=r"an array of shape \(3,\) was expected, not "):
        DatasetWriter(tmp_path / "a.beton", {"a": field}, num_workers=1).from_iterable([(value,)])
    assert field.convert(range(3)).tolist() == [0, 1, 2]


ENDLESS = {
    "shape": lambda many: NDArrayField(np.dtype("f4"), many),
    "mean": lambda many: tf.NormalizeImage(many, 1, np.float32),
    "fill": lambda many: tf.Cutout(8, many),
    "clamp": lambda many: tf.Poison(MASK, ALPHA, [1], many),
    "mask": lambda many: tf.Poison(many, ALPHA, [1], (0, 255)),
    "sample numbers": lambda many: tf.ReplaceLabel(many, 3),
    "numbers to poison": lambda many: tf.Poison(MASK, ALPHA, many, (0, 255)),
    "widths": lambda many: describe.airbench(widths=many),
    "four widths": lambda many: describe.resnet18(widths=many),
    "deep": lambda many: describe.airbench(deep_blocks=many),
    "of a recipe": lambda many: RECIPES["airbench94"].replace(widths=many),
    "shape of a layer": lambda many: AllreducePlan(comm.world(), [("a", many)]),
    "bits to choose from": lambda many: AdaptiveBits(AllreducePlan(comm.world(), [("a", (5000,))]), widths=many),
    "arguments": lambda many: launch(print, 2, many),
    "shards": lambda many: DatasetWriter("never", {"a": IntField()}).from_webdataset(many, list),
}
WORDS = "must (be|have)|expected a list|there may be|do not fit in this machine's memory|does its iteration ever end"


@pytest.mark.parametrize("many", [range(2**40), itertools.repeat("1")], ids=["range", "endless"])
@pytest.mark.parametrize("call", ENDLESS.values(), ids=ENDLESS)
def test_lists_of_a_few(monkeypatch, call, many):
    monkeypatch.setattr(tf.operations, "MAX_SAMPLES", 1000)
    with pytest.raises((ValueError, TypeError, MemoryError, RecipeError), match=WORDS):
        call(many)


def test_layers_of_a_plan(monkeypatch):
    with pytest.raises(ValueError, match="a plan has at most 16,777,216 layers, not range"):
        AllreducePlan(comm.world(), range(2**40))
    monkeypatch.setattr("cgxffcv.allreduce.MAX_LAYERS", 1000)
    with pytest.raises(ValueError, match="a plan has at most 1,000 layers, not repeat"):
        AllreducePlan(comm.world(), itertools.repeat(5))


@pytest.mark.parametrize("ranks", [0, 1025, 10**9, 10**5000], ids=["none", "one more", "many", "very many"])
def test_ranks_of_a_launch(ranks):
    with pytest.raises(ValueError, match="launch: (ranks must be 1 or more|at most 1024 ranks can share)"):
        launch(print, ranks)


@pytest.mark.parametrize(
    "pattern",
    ["{0..999999}{0..999999}", "{0..1}" * 3000, "{0..999999999}", "{3..1}", "{0.." + "9" * 5000 + "}"],
    ids=["product", "repeated", "range", "downwards", "digits"],
)
def test_patterns_of_shards(pattern):
    with pytest.raises(ValueError, match="at most 1,048,576 names|more than 1,048,576 names together"):
        expand(pattern)


def test_patterns_expand_in_order():
    assert expand("a-{08..11}.{0..1}") == [f"a-{n:02d}.{m}" for n in range(8, 12) for m in range(2)]
    assert expand("{0..0}" * 2000) == ["0" * 2000]


@pytest.mark.parametrize("values", [[1] * 9, (1,) * 9, np.zeros(9), b"123456789", memoryview(b"123456789"), 9, Long])
def test_what_is_in_memory_is_not_asked(values):
    assert not lengths.longer(values, 3)


def test_an_order_without_a_length(path):
    class Sampler:
        def __len__(self):
            raise NotImplementedError

        def __iter__(self):
            return iter([2, 0])

    assert [labels[:, 0].tolist() for _, labels in load(path, order=Sampler(), arrays="numpy")] == [[2, 0]]


def test_how_long_others_say_they_are():
    assert [lengths.longer(range(count), 3) for count in (3, 4, 2**40, 2**70)] == [False, True, True, True]


@pytest.mark.parametrize(
    "arguments", [["beton", "--images"], ["beton", "--samples"], ["beton", "--photographs"], ["loader", "--images"]]
)
def test_numbers_of_benchmarks(arguments):
    with pytest.raises(UsageError, match=f"{arguments[1]}: expected a whole number from 1 to [0-9]+, not '{10**18}'"):
        importlib.import_module(f"cgxffcv.bench.{arguments[0]}").main([*arguments[1:], str(10**18)])


@pytest.mark.parametrize("name", ["--rounds", "--threads", "--bucket-size"])
@pytest.mark.parametrize("bench", ["quantize", "allreduce"])
def test_counts_of_benchmarks(bench, name):
    with pytest.raises(UsageError, match=f"{name}: expected a whole number from 1 to [0-9]+, not '{10**18}'"):
        importlib.import_module(f"cgxffcv.bench.{bench}").parse([name, str(10**18)])


@pytest.mark.parametrize("options", [["-n", str(2**31)], ["-w", str(2**31)], ["-b", "1", "-e", "1G", "-i", "1"]])
def test_runs_and_sizes_of_bench_allreduce(options):
    with pytest.raises(UsageError, match="expected a whole number from 0 to 1000000|gives more than 10,000 sizes"):
        allreduce.parse(options)
    assert len(allreduce.counts_of(allreduce.parse(["-b", "4", "-e", "40000", "-i", "4"]))) == 10_000
