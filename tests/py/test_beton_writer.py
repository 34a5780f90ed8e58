"""DatasetWriter's sources, policies and refusals; folders, merging."""

import contextlib
import os
import signal
import threading
import time
import warnings

import _cgxffcv
import beton_files as files
import beton_model as model
import numpy as np
import pytest
from package_writer import FIELDS, Samples, write

from cgxffcv import BetonError, DatasetWriter, Loader, Reader, beton
from cgxffcv.decoders import IntDecoder
from cgxffcv.fields import (
    BytesField,
    FloatField,
    IntField,
    JSONField,
    NDArrayField,
    RGBImageField,
    TorchTensorField,
)
from cgxffcv.pipeline import PipelineSpec

INT = {"n": IntField()}
MASKED = np.ma.masked_array([1, 2], [True, False], np.float32)


def clean(folder):
    """Only the named files: no temporary ones."""
    return sorted(path.name for path in folder.iterdir())


KINDS = [("thread", 1), ("thread", 2), ("process", 1), ("process", 2), ("process", 5)]


@pytest.mark.parametrize(("kind", "workers"), KINDS)
@pytest.mark.parametrize("chunksize", [1, 7, 1000])
def test_workers_and_chunks_do_not_change_the_bytes(tmp_path, kind, workers, chunksize):
    dataset = Samples(50)
    wanted = model.write(FIELDS, files.random_samples(np.random.default_rng(0), FIELDS, 50), 4096)
    report = write(tmp_path / "x.beton", dataset, num_workers=workers, worker_kind=kind, chunksize=chunksize)
    assert (tmp_path / "x.beton").read_bytes() == wanted
    assert report.num_samples == 50 and report.skipped == () and "50 samples" in str(report)
    assert clean(tmp_path) == ["x.beton"]


@pytest.mark.parametrize(("kind", "workers"), [("thread", 1), ("process", 3)])
def test_indices_choose_and_order(tmp_path, kind, workers):
    samples = files.random_samples(np.random.default_rng(0), FIELDS, 50)
    for indices in ([3, 1, 4, 1, 5], np.arange(49, -1, -1), np.array([], np.int64), [49] * 20):
        write(tmp_path / "x.beton", Samples(50), num_workers=workers, worker_kind=kind, indices=indices, chunksize=2)
        assert (tmp_path / "x.beton").read_bytes() == model.write(FIELDS, [samples[int(i)] for i in indices], 4096)


def test_shuffling_is_a_permutation_drawn_from_the_seed(tmp_path):
    def column(seed):
        writer = DatasetWriter(tmp_path / "x.beton", INT, num_workers=1, seed=seed)
        writer.from_indexed_dataset(range(500), shuffle_indices=True)
        with Reader(tmp_path / "x.beton") as reader:
            return reader.column("n").tolist()

    first = column(1)
    assert sorted(first) == list(range(500)) and first != list(range(500))
    assert column(1) == first and column(2) != first


def test_samples_may_be_dicts_or_bare_values(tmp_path):
    fields = {"n": IntField(), "x": FloatField()}
    DatasetWriter(tmp_path / "x.beton", fields, num_workers=1).from_indexed_dataset([{"x": 1.5, "n": 3}, [4, 2.5]])
    with Reader(tmp_path / "x.beton") as reader:
        assert list(reader) == [{"n": 3, "x": 1.5}, {"n": 4, "x": 2.5}]
    DatasetWriter(tmp_path / "x.beton", {"d": JSONField()}, num_workers=1).from_indexed_dataset(
        [[1, 2], {"d": 1}, (5,)]
    )
    with Reader(tmp_path / "x.beton") as reader:
        assert [sample["d"] for sample in reader] == [[1, 2], {"d": 1}, 5]


# ---- bad samples


def explode(sample):
    raise KeyError("gone")


def too_short(sample):
    return sample[:-1]


def wrong_type(sample):
    return (*sample[:1], "three", *sample[2:])


BAD = [
    (explode, None, "KeyError: 'gone'", KeyError),
    (too_short, None, "3 values for 4 fields", ValueError),
    (wrong_type, "n", "'three'", TypeError),
    (lambda s: 7, None, "tuple", TypeError),
    (lambda s: (*s[:3], {1, 2}), "d", "not JSON serializable", TypeError),
]


@pytest.mark.parametrize(("kind", "workers"), [("thread", 1), ("thread", 2), ("process", 2)])
@pytest.mark.parametrize(("act", "field", "reason", "cause"), BAD)
def test_a_bad_sample_stops_with_index_field_and_cause(tmp_path, kind, workers, act, field, reason, cause):
    old = b"what was there before"
    (tmp_path / "x.beton").write_bytes(old)
    indices = [i for i in range(50) if i != 3] + [33]
    with pytest.raises(BetonError) as caught:
        write(tmp_path / "x.beton", Samples(50, 33, act), num_workers=workers, worker_kind=kind, indices=indices)
    error = caught.value
    assert (error.sample, error.field) == (33, field) and reason in error.reason, str(error)
    assert isinstance(error.__cause__, cause)
    assert (tmp_path / "x.beton").read_bytes() == old and clean(tmp_path) == ["x.beton"]


@pytest.mark.parametrize(("kind", "workers"), [("thread", 2), ("process", 2)])
def test_bad_samples_can_be_left_out(tmp_path, kind, workers):
    report = write(
        tmp_path / "x.beton", Samples(50, 33, wrong_type), num_workers=workers, worker_kind=kind, on_error="skip"
    )
    samples = files.random_samples(np.random.default_rng(0), FIELDS, 50)
    assert (tmp_path / "x.beton").read_bytes() == model.write(FIELDS, samples[:33] + samples[34:], 4096)
    assert [(skip.index, skip.field) for skip in report.skipped] == [(33, "n")] and "three" in report.skipped[0].reason
    assert report.num_samples == 49 and "1 sample left out" in str(report)


def test_the_first_of_several_bad_samples_is_told(tmp_path):
    class Several(Samples):
        def __getitem__(self, index):
            return explode(None) if index in (10, 11, 40, 44) else super().__getitem__(index)

    for kind, workers in KINDS:
        with pytest.raises(BetonError) as caught:
            write(tmp_path / "x.beton", Several(50), num_workers=workers, worker_kind=kind)
        assert caught.value.sample == 10


@pytest.mark.parametrize("error", [MemoryError, SystemExit, KeyboardInterrupt])
def test_what_is_no_samples_fault_is_not_a_bad_sample(tmp_path, error):
    def act(sample):
        raise error("stop")

    for kind, workers in (("thread", 1), ("process", 2)):
        with pytest.raises(error):
            write(tmp_path / "x.beton", Samples(50, 20, act), num_workers=workers, worker_kind=kind, on_error="skip")
        assert clean(tmp_path) == []


class Unpicklable(Exception):
    def __init__(self, text, more):
        super().__init__(text)


def test_an_exception_that_cannot_travel_still_tells_its_story(tmp_path):
    def act(sample):
        raise Unpicklable("a strange thing", 1)

    with pytest.raises(BetonError, match="a strange thing") as caught:
        write(tmp_path / "x.beton", Samples(50, 20, act), num_workers=2, worker_kind="process")
    assert "in act" in str(caught.value.__cause__)


def test_a_worker_that_dies_is_told(tmp_path):
    def act(sample):
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(10)

    started = time.monotonic()
    with pytest.raises(RuntimeError, match="killed by signal 9 before it had sent"):
        write(tmp_path / "x.beton", Samples(50, 20, act), num_workers=2, worker_kind="process")
    assert time.monotonic() - started < 8 and clean(tmp_path) == []


def test_no_worker_is_left_behind(tmp_path):
    import multiprocessing

    write(tmp_path / "x.beton", Samples(50), num_workers=3, worker_kind="process")
    with pytest.raises(BetonError):
        write(tmp_path / "x.beton", Samples(50, 5, explode), num_workers=3, worker_kind="process")
    assert multiprocessing.active_children() == []


def reap(number, frame):
    """As programs do that wait for whatever child ends."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


@pytest.mark.parametrize("handler", [signal.SIG_IGN, reap])
def test_a_program_that_does_not_learn_how_its_children_ended(tmp_path, handler):
    started, before = time.monotonic(), signal.signal(signal.SIGCHLD, handler)
    try:
        write(tmp_path / "x.beton", Samples(50), num_workers=3, worker_kind="process")
        with pytest.raises(RuntimeError, match="a worker process ended.* before it had sent"):
            write(
                tmp_path / "y.beton", Samples(50, 20, lambda sample: os._exit(3)), num_workers=2, worker_kind="process"
            )
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert time.monotonic() - started < 8 and clean(tmp_path) == ["x.beton"]
    write(tmp_path / "z.beton", Samples(50), num_workers=1)
    assert (tmp_path / "x.beton").read_bytes() == (tmp_path / "z.beton").read_bytes()


# ---- values


@pytest.mark.parametrize(
    ("field", "value", "want"),
    [
        (IntField(), True, 1),
        (IntField(), np.int8(-5), -5),
        (IntField(), np.array([7]), 7),
        (IntField(), np.float64(3), 3),
        (IntField(), np.float64(-(2.0**63)), -(1 << 63)),
        (IntField(), np.array(7, np.uint16), 7),
        (IntField(), -(1 << 63), -(1 << 63)),
        (FloatField(), 3, 3.0),
        (FloatField(), np.float32(0.5), 0.5),
        (FloatField(), np.array([[2.5]]), 2.5),
        (BytesField(), bytearray(b"ab"), b"ab"),
        (BytesField(), np.array([1, 2], "<u2"), b"\1\0\2\0"),
        (BytesField(), np.arange(6, dtype=np.uint8)[::2], b"\0\2\4"),
        (BytesField(), memoryview(b"abcd")[::2], b"ac"),
        (BytesField(), np.array([], np.uint8), b""),
        (NDArrayField(">f4".replace(">", "<"), (2,)), np.array([1, 2], np.float32), np.array([1, 2], np.float32)),
        (NDArrayField(bool, 2), np.array([True, False]), np.array([True, False])),
        (
            NDArrayField("int16", (2, 2)),
            np.arange(8, dtype=np.int16).reshape(2, 4)[:, ::2],
            np.array([[0, 2], [4, 6]], np.int16),
        ),
        (NDArrayField("f4", (1,)), np.float32(1.5), np.array([1.5], np.float32)),
        (NDArrayField("f4", (2,)), np.array([[1], [2]], np.float32), np.array([1, 2], np.float32)),
        (NDArrayField("i2", (2, 2)), np.arange(4, dtype=np.int16), np.array([[0, 1], [2, 3]], np.int16)),
        (NDArrayField("i2", 4), np.array([[0, 1], [2, 3]], np.int16), np.arange(4, dtype=np.int16)),
        (JSONField(), None, None),
        (NDArrayField("f4", np.array([2])), MASKED[1:].repeat(2), np.array([2, 2], np.float32)),
        (IntField(), np.ma.masked_array([7]), 7),
    ],
)
def test_values_that_are_taken(tmp_path, field, value, want):
    DatasetWriter(tmp_path / "x.beton", {"f": field}, num_workers=1).from_indexed_dataset([(value,)])
    with Reader(tmp_path / "x.beton") as reader:
        assert files.same(reader[0]["f"], want)


def test_a_list_of_one_number_is_a_sample(tmp_path):
    DatasetWriter(tmp_path / "x.beton", {"n": IntField()}, num_workers=1).from_indexed_dataset([[1], [2]])
    with Reader(tmp_path / "x.beton") as reader:
        assert [reader[i]["n"] for i in range(2)] == [1, 2]


def test_long_names_are_cut(tmp_path):
    """As FFCV does, but never silently; pipelines may use the long name."""
    fields = {"n": IntField(), "seventeen letters": IntField()}
    with pytest.warns(UserWarning, match="field 'seventeen letters' is 'seventeen letter' in the file"):
        writer = DatasetWriter(tmp_path / "x.beton", fields, num_workers=1)
    writer.from_indexed_dataset([{"seventeen letters": 9, "n": i} for i in range(4)])
    with Reader(tmp_path / "x.beton") as reader:
        assert reader[2] == {"n": 2, "seventeen letter": 9}
    for name in ("seventeen letters", "seventeen letter"):
        with Loader(tmp_path / "x.beton", 4, pipelines={name: [IntDecoder()], "n": None}) as loader:
            assert [rows.tolist() for rows in next(iter(loader))] == [[[9]] * 4]
    views = {
        "seventeen letters": PipelineSpec("seventeen letters"),
        "seventeen letter 1": PipelineSpec("seventeen letter", transforms=[lambda rows: 2 * rows]),
        "seventeen letter 2": PipelineSpec("seventeen letters", transforms=[lambda rows: 3 * rows]),
    }
    with Loader(tmp_path / "x.beton", 1, pipelines={**views, "n": None}, arrays="numpy") as loader:
        assert [output.name for output in loader.outputs] == ["seventeen letter", *list(views)[1:]]
        assert [rows.item() for rows in next(iter(loader))] == [9, 18, 27]
    with pytest.raises(ValueError, match="'seventeen letters' and 'seventeen letter' are of one field"):
        Loader(tmp_path / "x.beton", 4, pipelines={"seventeen letter": None, "seventeen letters": []})
    for other in ("seventeen letter", "seventeen letter!"):
        with pytest.raises(ValueError, match="begin with the same 16 bytes"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            DatasetWriter("x", {other: IntField(), "seventeen letters": IntField()})
    with pytest.raises(ValueError, match="no field is named 'seventeen lettres'"):
        Loader(tmp_path / "x.beton", 4, pipelines={"seventeen lettres": []})


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        (IntField(), 1.5, "whole number"),
        (IntField(), 3.0, "whole number"),
        (IntField(), np.float32(3), "whole number"),
        (IntField(), np.float64(3.5), "whole number"),
        (IntField(), np.array([5], np.float32), "whole number"),
        (IntField(), np.float32(3.7), "whole number"),
        (IntField(), "7", "whole number"),
        (IntField(), float("nan"), "whole number"),
        (IntField(), np.float64(2.0**63), "too large|too big|int"),
        (IntField(), [7], "whole number"),
        (IntField(), float("inf"), "whole number"),
        (IntField(), [1, 2], "whole number"),
        (IntField(), 1 << 63, "too large|too big|int"),
        (IntField(), np.array([1, 2]), "shape"),
        (IntField(), None, "NoneType"),
        (FloatField(), "x", "could not convert"),
        (FloatField(), None, "NoneType"),
        (BytesField(), "text", "encode"),
        (BytesField(), 5, "int"),
        (NDArrayField("f4", (2,)), np.zeros(2), "float64"),
        (NDArrayField("f4", (2, 3)), np.zeros((3, 2), np.float32), "shape"),
        (NDArrayField("f4", (2, 3)), np.zeros(5, np.float32), "shape"),
        (NDArrayField("f4", (2, 3)), np.zeros((1, 3, 2), np.float32), "shape"),
        (NDArrayField("f4", (2,)), np.zeros(2, ">f4"), ">f4"),
        (JSONField(), {1j}, "not JSON"),
        (IntField(), MASKED[0], "masked"),
        (FloatField(), MASKED[0], "masked"),
        (FloatField(), np.ma.masked_array(1.5, True), "masked"),
        (BytesField(), MASKED, "masked"),
        (NDArrayField("f4", (2,)), MASKED, "masked"),
        (RGBImageField(), np.ma.masked_equal(np.zeros((2, 2, 3), np.uint8), 0), "masked"),
    ],
)
def test_values_that_are_refused(tmp_path, field, value, reason):
    with pytest.raises(BetonError, match=reason) as caught:
        DatasetWriter(tmp_path / "x.beton", {"f": field}, num_workers=1).from_indexed_dataset([(value,)])
    assert (caught.value.sample, caught.value.field) == (0, "f")


def test_torch_dtypes_by_name(tmp_path):
    field = TorchTensorField("torch.float16", (2, 2))
    value = np.arange(4, dtype=np.float16).reshape(2, 2)
    DatasetWriter(tmp_path / "x.beton", {"t": field}, num_workers=1).from_indexed_dataset([(value,)])
    with Reader(tmp_path / "x.beton") as reader:
        assert reader.fields["t"].kind == "tensor" and np.array_equal(np.asarray(reader[0]["t"]), value)


@pytest.mark.parametrize(
    ("make", "error", "reason"),
    [
        (lambda: NDArrayField("O", (2,)), TypeError, "cannot be stored"),
        (lambda: NDArrayField(None, (2,)), TypeError, "dtype None is not known"),
        (lambda: NDArrayField("f4", None), TypeError, "a side of shape must be an integer, not None"),
        (lambda: NDArrayField("f4", {4, 3}), TypeError, "a side of shape must be an integer, not {"),
        (lambda: NDArrayField(">f4", (2,)), TypeError, "little-endian"),
        (lambda: NDArrayField("U5", (2,)), TypeError, "cannot be stored"),
        (lambda: NDArrayField("nonsense", (2,)), TypeError, "not known"),
        (lambda: TorchTensorField("torch.bfloat16", (2,)), TypeError, "bfloat16"),
        (lambda: NDArrayField("f4", ()), ValueError, "dimensions"),
        (lambda: NDArrayField("f4", (2, 0)), ValueError, "at least 1"),
        (lambda: NDArrayField("f4", (2, -1)), ValueError, "at least 1"),
        (lambda: NDArrayField("f4", (2.5,)), TypeError, "integer"),
        (lambda: NDArrayField("f4", (1,) * 33), ValueError, "33"),
        (lambda: NDArrayField("f8", (1 << 20, 1 << 20)), ValueError, "1 GiB"),
        (lambda: RGBImageField("png"), ValueError, "write_mode"),
        (lambda: RGBImageField(max_resolution=0), ValueError, "max_resolution"),
        (lambda: RGBImageField(jpeg_quality=101), ValueError, "jpeg_quality"),
        (lambda: RGBImageField(jpeg_quality=90.5), TypeError, "jpeg_quality"),
        (lambda: RGBImageField(compress_probability=1.5), ValueError, "compress_probability"),
        (lambda: RGBImageField(compress_probability=float("nan")), ValueError, "compress_probability"),
        (lambda: RGBImageField(smart_threshold=-1), ValueError, "smart_threshold"),
        (lambda: DatasetWriter("x", {}), ValueError, "at least one"),
        (lambda: DatasetWriter("x", {"": IntField()}), ValueError, "1 to 16 bytes"),
        (lambda: RGBImageField(max_resolution=(256, 128)), ValueError, "one number, for the longer side"),
        (lambda: RGBImageField(max_resolution=(0, 0)), ValueError, "max_resolution"),
        (lambda: DatasetWriter("x", {"é": IntField()}), ValueError, "ASCII"),
        (lambda: DatasetWriter("x", {"a\n": IntField()}), ValueError, "0x0a"),
        (lambda: DatasetWriter("x", {"n": int}), TypeError, "type"),
        (lambda: DatasetWriter("x", INT, page_size=3 << 20), ValueError, "power of two"),
        (lambda: DatasetWriter("x", INT, page_size=1 << 20), ValueError, "2 MiB"),
        (lambda: DatasetWriter("x", INT, page_size=1 << 31), ValueError, "1 GiB"),
        (lambda: DatasetWriter("x", INT, page_size=0), ValueError, "2 MiB"),
        (lambda: DatasetWriter("x", INT, on_error="ignore"), ValueError, "on_error"),
        (lambda: DatasetWriter("x", INT, worker_kind="fiber"), ValueError, "worker_kind"),
        (lambda: DatasetWriter("x", INT, seed=-1), ValueError, "seed"),
        (lambda: DatasetWriter("x", INT, seed=None), TypeError, "seed must be a whole number, not None"),
        (lambda: DatasetWriter("x", INT, seed=True), TypeError, "seed must be a whole number, not True"),
        (lambda: DatasetWriter("x", INT, num_workers="2"), TypeError, "num_workers must be a whole number, not '2'"),
    ],
)
def test_wrong_arguments(make, error, reason):
    with pytest.raises(error, match=reason):
        make()


def test_wrong_calls(tmp_path):
    path = tmp_path / "x.beton"
    for call, error in [
        (lambda w: w.from_indexed_dataset([1], chunksize=0), ValueError),
        (lambda w: w.from_indexed_dataset([1], indices=[0.5]), ValueError),
        (lambda w: w.from_indexed_dataset([1], indices=[[0]]), ValueError),
        (lambda w: w.from_indexed_dataset([1], indices=[3]), BetonError),
        (lambda w: w.from_arrays(), ValueError),
        (lambda w: w.from_arrays([1], [2]), ValueError),
        (lambda w: w.from_arrays([1], n=[2]), TypeError),
        (lambda w: w.from_arrays(m=[2]), ValueError),
        (lambda w: w.from_arrays([1.5]), TypeError),
        (lambda w: w.from_arrays([[1, 2]]), TypeError),
        (lambda w: w.from_arrays(np.array([1 << 63], np.uint64)), ValueError),
        (lambda w: w.from_image_folder(tmp_path), ValueError),
    ]:
        with pytest.raises(error):
            call(DatasetWriter(path, INT, num_workers=1))
    writer = DatasetWriter(path, INT, num_workers=1)
    writer.from_arrays([1, 2])
    with pytest.raises(ValueError, match="has written its file"):
        writer.from_arrays([1, 2])
    with pytest.raises(FileNotFoundError):
        DatasetWriter(tmp_path / "no/such/folder/x.beton", INT, num_workers=1).from_arrays([1])
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="folder"):
        DatasetWriter(tmp_path / "folder", INT, num_workers=1).from_iterable(map(pytest.fail, ["too late"]))
    assert clean(tmp_path) == ["folder", "x.beton"]


def test_columns_of_unequal_length_and_wrong_types(tmp_path):
    fields = {"img": RGBImageField(), "n": IntField(), "x": FloatField(), "a": NDArrayField("f4", (2,))}
    img, n = np.zeros((3, 4, 5, 3), np.uint8), np.zeros(3, int)
    x, a = np.zeros(3), np.zeros((3, 2), np.float32)
    for columns, error in [
        ((img, n[:2], x, a), ValueError),
        ((img.astype(float), n, x, a), TypeError),
        ((img[..., :2], n, x, a), TypeError),
        ((img, n, x.astype(complex), a), TypeError),
        ((img, n, x, a.astype(float)), TypeError),
        ((img, n, x, a[:, :1]), TypeError),
        ((np.ma.masked_equal(img, 0), n, x, a), ValueError),
        ((img, np.ma.masked_equal(n, 0), x, a), ValueError),
        ((img, n, np.ma.masked_equal(x, 0), a), ValueError),
        ((img, n, x, np.ma.masked_equal(a, 0)), ValueError),
        ((img, n, x, list(np.ma.masked_equal(a, 0))), ValueError),
    ]:
        with pytest.raises(error):
            DatasetWriter(tmp_path / "x.beton", fields, num_workers=1).from_arrays(*columns)
    DatasetWriter(tmp_path / "x.beton", fields, num_workers=1).from_arrays(img=img, a=a, x=x, n=n[:, None])
    with Reader(tmp_path / "x.beton") as reader:
        assert len(reader) == 3


def test_a_column_may_be_called_self(tmp_path):
    DatasetWriter(tmp_path / "x.beton", {"self": IntField()}, num_workers=1).from_arrays(self=[1, 2])
    with Reader(tmp_path / "x.beton") as reader:
        assert reader.column("self").tolist() == [1, 2]


def test_a_sample_over_one_gibibyte(tmp_path):
    """The same half twice and a byte: nothing of that size is copied before it is refused."""
    half = np.zeros(1 << 29, np.uint8)
    fields = {"a": BytesField(), "b": BytesField(), "c": BytesField()}
    with pytest.raises(BetonError, match="1 GiB") as caught:
        DatasetWriter(tmp_path / "x.beton", fields, num_workers=1).from_indexed_dataset([(half, half, b"x")])
    assert caught.value.sample == 0 and clean(tmp_path) == []


def test_rows_of_a_structured_array_are_samples(tmp_path):
    table = np.zeros(4, [("n", "<i4"), ("x", "<f4"), ("a", "<u2", (3,))])
    table["n"], table["x"], table["a"] = range(4), np.arange(4) / 2, np.arange(12).reshape(4, 3)
    fields = {"n": IntField(), "x": FloatField(), "a": NDArrayField("u2", (3,))}
    for rows in (table, table.view(np.recarray)):
        DatasetWriter(tmp_path / "x.beton", fields, num_workers=1).from_indexed_dataset(rows)
        with Reader(tmp_path / "x.beton") as reader:
            for name in fields:
                np.testing.assert_array_equal([sample[name] for sample in reader], table[name])


def test_rows_of_an_array_are_samples(tmp_path):
    table = np.random.default_rng(1).normal(size=(10, 2))
    fields = {"a": FloatField(), "b": FloatField()}
    DatasetWriter(tmp_path / "x.beton", fields, num_workers=1).from_indexed_dataset(table)
    with Reader(tmp_path / "x.beton") as reader:
        np.testing.assert_array_equal(np.stack([reader.column("a"), reader.column("b")], 1), table)


# ---- folders, whole files


def test_image_folders(tmp_path):
    image = pytest.importorskip("PIL.Image")
    root = tmp_path / "images"
    want = []
    for label, name in enumerate(["ant", "bee", "cat"]):
        (root / name / "more").mkdir(parents=True)
        for i in range(3):
            pixels = np.full((4 + i, 5, 3), 40 * label + i, np.uint8)
            image.fromarray(pixels).save(root / name / ("more" if i == 2 else "") / f"{i}.png")
            want.append((label, pixels))
        (root / name / "readme.txt").write_text("no image")
        (root / name / "._0.png").write_text("what other systems leave")
        (root / name / ".cache").mkdir()
        (root / name / ".cache" / "0.png").write_text("no image")
    (root / ".ipynb_checkpoints").mkdir()
    for fields in ({"label": IntField(), "image": RGBImageField()}, {"image": RGBImageField()}):
        DatasetWriter(tmp_path / "x.beton", fields, num_workers=2).from_image_folder(root, chunksize=2)
        with Reader(tmp_path / "x.beton") as reader:
            got = list(reader)
        assert all(np.array_equal(g["image"], w[1]) for g, w in zip(got, want, strict=True))
        assert "label" not in fields or [g["label"] for g in got] == [w[0] for w in want]
    for folder in (root / "ant" / "more", root / "ant"):
        with pytest.raises(ValueError, match="no folders|no files"):
            DatasetWriter(tmp_path / "x.beton", {"image": RGBImageField()}, num_workers=1).from_image_folder(
                folder, suffixes=(".gif",)
            )


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path, monkeypatch):
    (tmp_path / "images/ant/closed").mkdir(parents=True)
    (tmp_path / "images/ant/1.png").write_bytes(b"")
    scandir = os.scandir

    def refused(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(PermissionError, match="closed"):
        DatasetWriter(tmp_path / "x.beton", {"image": RGBImageField()}).from_image_folder(tmp_path / "images")
    assert clean(tmp_path) == ["images"]


def test_merge_append_and_cut(tmp_path):
    samples = files.random_samples(np.random.default_rng(0), FIELDS, 60)
    package = files.package_samples(FIELDS, samples)
    parts = [(0, 10), (10, 10), (10, 45), (45, 60)]
    for i, (begin, end) in enumerate(parts):
        write(tmp_path / f"{i}.beton", package[begin:end], num_workers=1, checksums=i == 2)
    options = {"page_size": 4096, "allow_small_pages": True}
    paths = [tmp_path / f"{i}.beton" for i in range(4)]
    beton.merge(tmp_path / "all.beton", paths, **options)
    assert (tmp_path / "all.beton").read_bytes() == model.write(FIELDS, samples, 4096)
    beton.append(paths[0], paths[1:3], **options)
    beton.append(paths[0], str(paths[3]), **options)  # one file, not its letters
    assert paths[0].read_bytes() == model.write(FIELDS, samples, 4096)
    beton.merge(tmp_path / "one.beton", paths[0], **options)
    assert (tmp_path / "one.beton").read_bytes() == paths[0].read_bytes()
    beton.merge(tmp_path / "cut.beton", [paths[0]], indices=[5, 3, 59], **options)
    assert (tmp_path / "cut.beton").read_bytes() == model.write(FIELDS, [samples[i] for i in (5, 3, 59)], 4096)
    DatasetWriter(tmp_path / "other.beton", INT, num_workers=1).from_arrays([1])
    with pytest.raises(BetonError, match="its fields"):
        beton.merge(tmp_path / "x.beton", [paths[0], tmp_path / "other.beton"])
    with pytest.raises(ValueError, match="at least one"):
        beton.merge(tmp_path / "x.beton", [])


# ---- threads


def test_a_writer_in_use_refuses_another_thread(tmp_path):
    fields = [field.describe(name) for name, field in {"img": RGBImageField("jpg")}.items()]
    if not _cgxffcv.build_info()["jpeg"]:
        pytest.skip("this build has no libjpeg-turbo")
    core = _cgxffcv.Writer(
        str(tmp_path / "x.beton"),
        fields,
        page_size=8 << 20,
        small_pages=False,
        checksums=False,
        durable=False,
        expected_samples=0,
        threads=1,
        seed=0,
        skip_bad=False,
    )
    rows = [(np.zeros((2000, 2000, 3), np.uint8),)] * 20
    thread = threading.Thread(target=core.append, args=(0, rows))
    thread.start()
    refused = 0
    while thread.is_alive():
        try:
            core.append(0, [])
        except RuntimeError as error:
            refused += 1
            assert "another thread" in str(error)
        time.sleep(0.001)
    thread.join()
    assert refused > 0
    core.abort()
    with pytest.raises(ValueError, match="finished or abandoned"):
        core.append(0, [])
    assert clean(tmp_path) == []


@pytest.mark.parametrize("samples", [iter([1, 2]), (i for i in range(3)), {1, 2}])
def test_data_sets_without_numbers_are_told_of_from_iterable(tmp_path, samples):
    writer = DatasetWriter(tmp_path / "x.beton", {"x": IntField()}, progress=False)
    with pytest.raises(TypeError, match=r"a data set with len\(\) and \[\], which \w+ lacks; from_iterable writes"):
        writer.from_indexed_dataset(samples)
    assert not (tmp_path / "x.beton").exists()
