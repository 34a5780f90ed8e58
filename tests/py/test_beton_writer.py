"""DatasetWriter's ways in, its policies and its refusals; shards, folders, merging."""

import io
import os
import signal
import tarfile
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
from cgxffcv.writer.webshards import Shards, expand

INT = {"n": IntField()}


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
    """As FFCV does, but never silently; pipelines may go by the long name."""
    fields = {"n": IntField(), "seventeen letters": IntField()}
    with pytest.warns(UserWarning, match="field 'seventeen letters' is 'seventeen letter' in the file"):
        writer = DatasetWriter(tmp_path / "x.beton", fields, num_workers=1)
    writer.from_indexed_dataset([{"seventeen letters": 9, "n": i} for i in range(4)])
    with Reader(tmp_path / "x.beton") as reader:
        assert reader[2] == {"n": 2, "seventeen letter": 9}
    for name in ("seventeen letters", "seventeen letter"):
        with Loader(tmp_path / "x.beton", 4, pipelines={name: [IntDecoder()], "n": None}) as loader:
            assert [rows.tolist() for rows in next(iter(loader))] == [[[9]] * 4]
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
        (lambda: RGBImageField(max_resolution=(256, 128)), ValueError, "one number, of the longer side"),
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
    ]:
        with pytest.raises(error):
            DatasetWriter(tmp_path / "x.beton", fields, num_workers=1).from_arrays(*columns)
    DatasetWriter(tmp_path / "x.beton", fields, num_workers=1).from_arrays(img=img, a=a, x=x, n=n[:, None])
    with Reader(tmp_path / "x.beton") as reader:
        assert len(reader) == 3


def test_a_sample_over_one_gibibyte(tmp_path):
    """Twice the same half and a byte: nothing of that size is copied before it is refused."""
    half = np.zeros(1 << 29, np.uint8)
    fields = {"a": BytesField(), "b": BytesField(), "c": BytesField()}
    with pytest.raises(BetonError, match="1 GiB") as caught:
        DatasetWriter(tmp_path / "x.beton", fields, num_workers=1).from_indexed_dataset([(half, half, b"x")])
    assert caught.value.sample == 0 and clean(tmp_path) == []


def test_rows_of_an_array_are_samples(tmp_path):
    table = np.random.default_rng(1).normal(size=(10, 2))
    fields = {"a": FloatField(), "b": FloatField()}
    DatasetWriter(tmp_path / "x.beton", fields, num_workers=1).from_indexed_dataset(table)
    with Reader(tmp_path / "x.beton") as reader:
        np.testing.assert_array_equal(np.stack([reader.column("a"), reader.column("b")], 1), table)


# ---- shards, folders, whole files


def test_tar_shards(tmp_path):
    fields = {"blob": BytesField(), "label": IntField(), "meta": JSONField()}
    for shard in range(3):
        with tarfile.open(tmp_path / f"part-{shard:02d}.tar", "w") as tar:
            for i in range(4):
                key = f"dir/{shard}{i}"
                for extension, data in (("bin", bytes([shard, i])), ("cls", b"%d" % i), ("json", b'{"s": %d}' % shard)):
                    member = tarfile.TarInfo(f"{key}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    DatasetWriter(tmp_path / "x.beton", fields, num_workers=1).from_webdataset(
        str(tmp_path / "part-{00..02}.tar"), lambda shards: shards.decode().to_tuple("bin;dat", "cls", "json")
    )
    with Reader(tmp_path / "x.beton") as reader:
        assert [tuple(sample.values()) for sample in reader] == [
            (bytes([shard, i]), i, {"s": shard}) for shard in range(3) for i in range(4)
        ]
    array = io.BytesIO()
    np.save(array, np.arange(3))
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        for name, data in (("a.idx.cls", b"4"), ("a.npy", array.getvalue())):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    steps = Shards(tmp_path / "other.tar").decode().rename(label="cls;idx.cls").to_tuple("npy label")
    ((got, label),) = steps.map_tuple(lambda values: values + 1)
    assert got.tolist() == [1, 2, 3] and label == 4
    with pytest.raises(ValueError, match="has no txt, only bin, cls, json"):
        DatasetWriter(tmp_path / "y.beton", fields, num_workers=1).from_webdataset(
            [tmp_path / "part-00.tar"], lambda shards: shards.to_tuple("bin", "cls", "txt")
        )
    assert not (tmp_path / "y.beton").exists()


def add_members(path, samples):
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for extension, data in members.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def photos(tmp_path):
    """A tar file of ten JPEG images and classes."""
    streams = [_cgxffcv.jpeg_encode(np.full((8, 8 + i, 3), 20 * i, np.uint8), 90) for i in range(10)]
    add_members(tmp_path / "x.tar", {f"s{i}": {"jpg": jpg, "cls": b"%d" % i} for i, jpg in enumerate(streams)})
    return tmp_path / "x.tar", streams


def test_what_functions_see_of_shards(photos, tmp_path):
    """Images are decoded where a function looks at them, and pass through unchanged elsewhere."""
    pytest.importorskip("PIL")
    shards, streams = Shards(photos[0]), photos[1]
    assert [tuple(sample) for sample in shards.decode("rgb8").to_tuple("jpg:png;jpeg cls")] == [
        (jpg, i) for i, jpg in enumerate(streams)
    ]
    for image, label in shards.decode("rgb8").rename(image="jpg").map(lambda s: (s["image"][:4], s["cls"])):
        assert image.dtype == np.uint8 and image.shape == (4, 8 + label, 3)
    ((grey, _),) = shards.decode("l").select(lambda s: s["jpg"].shape[1] == 10).to_tuple("jpg", "cls")
    assert grey.dtype == np.float32 and grey.shape == (8, 10) and abs(grey - 40 / 255).max() < 0.02
    *_, (image, label) = shards.decode("pil").to_tuple("jpg cls").map_tuple(lambda image: image.size)
    assert (image, label) == ((17, 8), 9)
    own = shards.decode(lambda extension, data: len(data) if extension == ".jpg" else None).to_tuple("jpg", "cls")
    assert list(own) == [(len(jpg), i) for i, jpg in enumerate(streams)]
    fields = {"image": RGBImageField("jpg"), "label": IntField()}
    for name, chain in {"kept": lambda s: s, "seen": lambda s: s.select(lambda sample: sample["cls"] % 2)}.items():
        writer = DatasetWriter(tmp_path / name, fields, num_workers=1)
        writer.from_webdataset([photos[0]], lambda s, chain=chain: chain(s.decode("rgb8")).to_tuple("jpg;png", "cls"))
    with Reader(tmp_path / "kept") as kept, Reader(tmp_path / "seen") as seen:
        assert [kept.stored_image(i, "image")[3] for i in range(10)] == streams
        assert seen.column("label").tolist() == [1, 3, 5, 7, 9]
    for kind in ("rgb9", "pil8", "", "8"):
        with pytest.raises(ValueError, match="images become arrays by 'rgb8'"):
            shards.decode(kind)


def test_shards_are_shuffled_within_a_window(photos):
    labels = Shards(photos[0]).decode().map(lambda sample: sample["cls"])
    order = list(labels.shuffle(4))
    assert sorted(order) == list(range(10)) != order and order == list(labels.shuffle(4, initial=2))
    assert all(label <= place + 3 for place, label in enumerate(order))
    assert order != list(labels.shuffle(4, seed=1)) and list(labels.shuffle(0)) == list(range(10))


def test_a_function_that_fails_names_the_sample_of_the_shard(photos):
    with pytest.raises(ZeroDivisionError) as caught:
        list(Shards(photos[0]).decode().to_tuple("cls").map(lambda sample: 1 // (sample[0] - 4)))
    assert caught.value.__notes__ == [f"the last that was read: sample 's4' of {photos[0]}"]


def test_shard_patterns():
    assert expand("a-{8..10}.tar") == ["a-8.tar", "a-9.tar", "a-10.tar"]
    assert expand("{00..01}/{1..2}") == ["00/1", "00/2", "01/1", "01/2"]
    assert expand("plain.tar") == ["plain.tar"]
    for pattern in ("a-{5..1}.tar", "a-{0..99999999999}.tar"):
        with pytest.raises(ValueError, match=r"a-.*a range counts upwards"):
            expand(pattern)


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
    beton.append(paths[0], paths[1:], **options)
    assert paths[0].read_bytes() == model.write(FIELDS, samples, 4096)
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
    with pytest.raises(ValueError, match="finished or given up"):
        core.append(0, [])
    assert clean(tmp_path) == []
