"""What the loader's decoders and the steps after them give, field by field."""

import lzma
import os
import sys
import types
from pathlib import Path

import _cgxffcv
import augment_reference as reference
import numpy as np
import pytest
import tiny_beton
from loader_data import flat, ids_of, pixels

from cgxffcv import BetonError
from cgxffcv import decoders as dec
from cgxffcv import transforms as tf
from cgxffcv.errors import UserError
from cgxffcv.fields import JSONField
from cgxffcv.loader import Loader, OrderOption, PipelineSpec
from cgxffcv.traversal_order import Random, Sequential, TraversalOrder

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    rng = np.random.default_rng(1)
    photos = [np.kron(rng.integers(0, 256, (3, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8) for _ in range(9)]
    fields = {
        "photo": ("image", [tiny_beton.jpeg(photo) for photo in photos]),
        "mask": ("image", [rng.integers(0, 2, (24, 32, 3), dtype=np.uint8) for _ in range(9)]),
        "number": ("int", [-(2**63), 2**63 - 1, *range(7)]),
        "weight": ("float", [np.nan, np.inf, -0.0, *np.linspace(0, 1, 6).tolist()]),
        "vector": ("array", list(rng.normal(size=(9, 2, 3)).astype(np.float16))),
        "complex": ("tensor", list((rng.normal(size=(9, 4)) + 1j).astype(np.complex128))),
        "text": ("bytes", [b"", b"a", b"bb\0b", *[b"x" * i for i in range(6)]]),
        "info": ("json", [None, 1, "ü", {"a": [1, 2]}, [], {}, "", 1.5, True]),
    }
    name = tmp_path_factory.mktemp("mixed") / "mixed.beton"
    return tiny_beton.write(name, fields, sides=(24, 32)), fields


def test_default_decoders(mixed):
    path, fields = mixed
    with Loader(path, 9, num_workers=2) as loader:
        (batch,) = list(loader)
        names = [output.name for output in loader.outputs]
    got = dict(zip(names, batch, strict=True))
    assert names == list(fields)
    assert got["number"].dtype == np.int64 and got["number"].shape == (9, 1)
    assert got["number"][:, 0].tolist() == fields["number"][1]
    assert got["weight"].tobytes() == np.array(fields["weight"][1]).reshape(9, 1).tobytes()
    for name in ("vector", "complex"):
        assert got[name].tobytes() == np.stack(fields[name][1]).tobytes()
        assert got[name].dtype == fields[name][1][0].dtype and got[name].shape == np.stack(fields[name][1]).shape
    texts = np.zeros((9, 5), np.uint8)
    for row, text in zip(texts, fields["text"][1], strict=True):
        row[: len(text)] = np.frombuffer(text, np.uint8)
    np.testing.assert_array_equal(got["text"], texts)
    np.testing.assert_array_equal(got["mask"], np.stack(fields["mask"][1]))
    assert got["photo"].shape == (9, 24, 32, 3) and got["photo"].dtype == np.uint8


def test_arrays_of_as_many_dimensions_as_the_format_has(tmp_path):
    values = list(np.arange(12, dtype=np.int16).reshape(4, *[1] * 31, 3))
    name = tiny_beton.write(tmp_path / "deep.beton", {"x": ("array", values)})
    with Loader(name, 2, num_workers=1) as loader:
        batches = [batch[0] for batch in loader]
    assert [batch.shape for batch in batches] == [(2, *[1] * 31, 3)] * 2
    assert np.array_equal(np.concatenate(batches), values)


def test_jpeg_pixels_are_libjpegs(mixed):
    """The accurate mode decodes as Pillow does (both are libjpeg-turbo with its defaults)."""
    from io import BytesIO

    from PIL import Image

    path, fields = mixed
    want = np.stack([np.asarray(Image.open(BytesIO(data))) for data in fields["photo"][1]])
    for options in ({}, {"resident": True}):
        with Loader(path, 9, pipelines={"photo": [dec.SimpleRGBImageDecoder()]}, **options) as loader:
            (batch,) = list(loader)
            np.testing.assert_array_equal(batch[0], want)
            stats = loader.stats()
            assert (stats["jpeg_seconds"] > 0) == (not options) and stats["augment_seconds"] > 0
    with Loader(path, 9, pipelines={"photo": [dec.SimpleRGBImageDecoder("fast")]}) as loader:
        (batch,) = list(loader)
        assert np.abs(batch[0].astype(int) - want).max() <= 9


@pytest.mark.parametrize("name", ["rgb_jpg_q90", "rgb_jpg_q50", "rgb_proportion", "rgb_max_resolution"])
def test_ffcvs_files_give_ffcvs_pixels(tmp_path, name):
    """Files that FFCV 1.0.2 wrote, and what it decodes from them, with the fast inverse DCT."""
    path = tmp_path / f"{name}.beton"
    path.write_bytes(lzma.decompress((GOLDEN / f"{name}.beton.xz").read_bytes()))
    expected = np.load(GOLDEN / f"{name}.expected.npz")
    pipelines = {"image": [dec.SimpleRGBImageDecoder("fast")]}
    single = "image" in expected  # images of one size are in one array, others each in their own
    images = expected["image"] if single else [expected[f"image_{i}"] for i in range(len(expected.files))]
    for i, image in enumerate(images):
        with Loader(path, 1, indices=[i], pipelines=pipelines) as loader:
            np.testing.assert_array_equal(next(iter(loader))[0][0], image)


def test_bytes_with_lengths_and_json(mixed):
    path, fields = mixed
    pipelines = {"text": [dec.BytesDecoder(lengths=True)], "info": [dec.JSONDecoder()]}
    only = {name: pipelines.get(name) for name in fields}
    with Loader(path, 9, pipelines=only) as loader:
        ((text, info),) = list(loader)
    values, lengths = text
    assert lengths.dtype == np.int64 and lengths.tolist() == [len(value) for value in fields["text"][1]]
    assert [row[:size].tobytes() for row, size in zip(values, lengths, strict=True)] == fields["text"][1]
    assert info == fields["info"][1]


def test_values_one_behind_the_other(mixed):
    path, fields = mixed
    pipelines = {name: [dec.BytesDecoder(offsets=True)] for name in ("text", "info")}
    with Loader(path, 5, drop_last=False, ids=True, arrays="numpy", pipelines=pipelines) as loader:
        names = [output.name for output in loader.outputs]
        for *batch, ids in loader:
            values, offsets = batch[names.index("text")]
            assert values.ndim == 1 and values.dtype == np.uint8 and offsets.dtype == np.int64 and offsets[0] == 0
            ends = zip(offsets[:-1], offsets[1:], strict=True)
            assert [values[a:b].tobytes() for a, b in ends] == [fields["text"][1][i] for i in ids]
            assert JSONField.unpack(batch[names.index("info")]) == [fields["info"][1][i] for i in ids]
        (values, offsets), *_ = [loader.get_batch([])[names.index("text")]]
        assert values.shape == (0,) and offsets.tolist() == [0]
        assert JSONField.unpack((values, offsets)) == []
    with pytest.raises(ValueError, match="row 1 is not JSON"):
        JSONField.unpack((np.frombuffer(b"12]", np.uint8), np.array([0, 2, 3])))
    with pytest.raises(ValueError, match="not both"):
        dec.BytesDecoder(True, True)


def test_a_filter_of_values_of_any_length(mixed):
    path, fields = mixed
    long = [i for i, text in enumerate(fields["text"][1]) if len(text) > 2]
    for decoder, length in ((dec.BytesDecoder(offsets=True), len), (dec.BytesDecoder(True), lambda pair: pair[1])):
        with Loader(path, 4, pipelines={"text": [decoder]}) as loader:
            chosen = loader.filter("text", lambda value, length=length: length(value) > 2)
            assert chosen.indices.tolist() == long
            assert "values of any length" in loader.explain() or decoder.lengths


def test_long_values_take_no_room_for_others(tmp_path):
    """One of a megabyte among short ones: rows of other batches are not as wide."""
    values = [bytes([i]) * (1 << 20 if i == 50 else i % 5) for i in range(100)]
    path = tiny_beton.write(tmp_path / "a.beton", {"text": ("bytes", values)})
    for os_cache in (True, False):
        pipelines = {"text": [dec.BytesDecoder(offsets=True)]}
        with Loader(path, 25, 2, os_cache, pipelines=pipelines, ids=True) as loader:
            for (text, offsets), ids in loader:
                assert text.tobytes() == b"".join(values[i] for i in ids)
                assert np.diff(offsets).tolist() == [len(values[i]) for i in ids]
            assert loader.stats()["memory_peak_bytes"] < 1 << 18
            assert loader.get_batch([50, 3])[0][1].tolist() == [0, 1 << 20, (1 << 20) + 3]
    with Loader(path, 25, pipelines=pipelines, order=OrderOption.RANDOM) as loader:
        os.truncate(path, os.path.getsize(path) // 2)
        with pytest.raises(BetonError, match="become shorter"):
            list(loader)


def test_values_are_of_fields_of_bytes_and_of_samples_in_the_file(mixed):
    path, _ = mixed
    with Loader(path, 4) as loader:
        for field, ids, error in (("number", [0], ValueError), ("none", [0], ValueError), ("text", [99], IndexError)):
            with pytest.raises(error):
                loader._core.values(field, np.array(ids))


def test_json_that_does_not_parse_names_the_sample(tmp_path):
    good = tiny_beton.write(tmp_path / "good.beton", {"info": ("json", [{"a": 1}, {"a": 2}])})
    data = good.read_bytes().replace(b'{"a": 2}', b'{"a": 2]')
    bad = tmp_path / "bad.beton"
    bad.write_bytes(data)
    pipelines = {"info": [dec.JSONDecoder()]}
    with Loader(bad, 2, pipelines=pipelines) as loader, pytest.raises(_cgxffcv.BetonError, match="sample 1") as caught:
        list(loader)
    assert caught.value.sample == 1 and caught.value.field == "info" and caught.value.path == str(bad)


def test_several_views_and_shared_draws(mixed):
    path, fields = mixed
    steps = [tf.RandomCrop((16, 16)), tf.RandomHorizontalFlip()]
    pipelines = {
        "photo": PipelineSpec(transforms=steps, draws=7),
        "mask": PipelineSpec(transforms=steps, draws=7),
        "other": PipelineSpec("photo", dec.SimpleRGBImageDecoder(), steps),
        "plain": PipelineSpec("photo"),
        **dict.fromkeys(("number", "weight", "vector", "complex", "text", "info")),
    }
    with Loader(path, 9, seed=3, pipelines=pipelines) as loader:
        assert [output.name for output in loader.outputs] == ["photo", "mask", "other", "plain"]
        ((photo, mask, other, plain),) = list(loader)
    for i in range(9):
        image = plain[i]
        np.testing.assert_array_equal(photo[i], reference.pipeline(steps, image, (3, 0, i), number=7))
        np.testing.assert_array_equal(mask[i], reference.pipeline(steps, fields["mask"][1][i], (3, 0, i), number=7))
        np.testing.assert_array_equal(other[i], reference.pipeline(steps, image, (3, 0, i), number=2))


def test_as_many_outputs_as_a_table_has_columns(tmp_path):
    """Tables have many; draws of their own only 64 images."""
    columns = {f"c{k}": ("int", [1000 * k + i for i in range(5)]) for k in range(300)}
    name = tiny_beton.write(tmp_path / "table.beton", columns)
    pipelines = {f"more{k}": PipelineSpec(f"c{k}") for k in range(100)}
    with Loader(name, 5, num_workers=2, pipelines=pipelines) as loader:
        (batch,) = loader
        want = np.array([*range(300), *range(100)])[:, None] * 1000 + np.arange(5)
        np.testing.assert_array_equal(np.concatenate(batch, 1).T, want)
    images = tiny_beton.write(
        tmp_path / "images.beton", {"i": ("image", [np.full((2, 3, 3), i, np.uint8) for i in range(4)])}
    )
    views = {f"v{k}": PipelineSpec("i", transforms=[tf.RandomHorizontalFlip()]) for k in range(63)}
    with Loader(images, 4, pipelines=views) as loader:
        assert len(next(iter(loader))) == 64
        with pytest.raises(ValueError, match=r"'v63': only 64 images have draws of their own: PipelineSpec\(draws=\)"):
            loader.pipelines = {**views, "v63": PipelineSpec("i")}
        loader.pipelines = {**views, "v63": PipelineSpec("i", draws=5)}
        assert len(next(iter(loader))) == 65


def test_steps_on_batches(path):
    seen = []

    def double(batch):
        seen.append(batch.shape)
        return batch * 2

    tensor = [tf.ToTensor(), tf.ToDevice("cpu")]
    pipelines = {
        "image": [*tensor, tf.ToTorchImage(), tf.Convert(np.float32), double, tf.Convert("float64")],
        "label": [dec.IntDecoder(), *tensor, tf.Squeeze(), tf.Convert(np.int32), tf.ModuleWrapper(double)],
    }
    with Loader(path, 5, pipelines=pipelines, indices=range(10)) as loader:
        batches = [tuple(np.asarray(part) for part in batch) for batch in loader]
    assert seen == [(5, 3, 16, 16), (5,)] * 2
    assert batches[0][0].dtype == np.float64 and batches[0][1].dtype == np.int32
    np.testing.assert_array_equal(batches[1][0], 2.0 * pixels()[5:10].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(batches[1][1], 2 * np.arange(5, 10))


def test_squeeze_and_view():
    batch = np.zeros((1, 1, 5, 1), np.int64)
    assert tf.Squeeze()(batch).shape == (1, 5)
    assert tf.Squeeze(1)(batch).shape == (1, 5, 1)
    assert tf.Squeeze(-1, 2)(batch).shape == (1, 1, 5)
    assert tf.View("float64")(batch).dtype == np.float64


def test_channels_last_is_a_view(path):
    with Loader(path, 5, pipelines={"image": [tf.ToTorchImage()]}) as loader:
        image, _ = next(iter(loader))
    assert image.shape == (5, 3, 16, 16) and image.transpose(0, 2, 3, 1).flags.c_contiguous


def test_filter(path):
    with Loader(path, 8, indices=range(20, 60), seed=4, ids=True) as loader:
        even = loader.filter("label", lambda label: label[0] % 2 == 0)
        few = even.filter("image", lambda image: image[0, 0, 0] < 128)
        assert even.indices.tolist() == list(range(20, 60, 2))
        assert few.indices.tolist() == [i for i in range(20, 60, 2) if pixels()[i, 0, 0, 0] < 128]
        assert flat(ids_of(even)) == list(range(20, 52, 2)) and even.seed == 4
        none = even.filter("label", lambda label: False)
        assert len(none) == 0 and list(none) == []
        with pytest.raises(ValueError, match="image, label"):
            loader.filter("labels", bool)
        for made in (even, few, none):
            made.close()


def test_resident_pixels_are_of_the_samples_in_use(mixed):
    path, _ = mixed
    with Loader(path, 2, indices=[0, 1, 2, 4], resident=True) as loader:
        assert loader.stats()["memory_bytes"] > 9 * 24 * 32 * 3
        assert loader.get_batch([4, 0])[0].shape == (2, 24, 32, 3)
        with pytest.raises(IndexError, match="sample 5"):
            loader.get_batch([5])


# ---- FFCV's usage ----


def test_an_order_over_traversal_order(path):
    class Backwards(TraversalOrder):
        def sample_order(self, epoch):
            return self.indices[::-1]

    with Loader(path, 2, order=Backwards, indices=[4, 9, 2, 7], ids=True, seed=8) as loader:
        assert flat(ids_of(loader)) == [7, 2, 9, 4]
    with Loader(path, 2) as loader, pytest.raises(TypeError, match="abstract"):
        loader.order = TraversalOrder


def test_ffcvs_classes_of_orders(path):
    """They give the same as the options, and can be resumed."""

    class Halved(Random):
        def sample_order(self, epoch):
            order = super().sample_order(epoch)
            return order[: len(order) // 2]

    chosen = {"indices": [4, 9, 2, 7, 5, 0], "seed": 8, "drop_last": False, "ids": True}
    for cls, option in ((Random, OrderOption.RANDOM), (Sequential, OrderOption.SEQUENTIAL)):
        with Loader(path, 4, order=cls, **chosen) as loader, Loader(path, 4, order=option, **chosen) as other:
            for _ in range(2):
                assert flat(ids_of(loader)) == flat(ids_of(other))
    with Loader(path, 4, order=Halved, **chosen) as loader, Loader(path, 4, order=Random, **chosen) as other:
        assert flat(ids_of(loader)) == flat(ids_of(other))[:3]


def test_ffcvs_permutation_as_an_order(path):
    """What FFCV 1.0.2 gives for 40 samples and seed 7."""
    order = {"order": lambda epoch: np.random.default_rng(7 + epoch).permutation(40)}
    with Loader(path, 4, ids=True, **order) as loader:
        assert next(iter(loader))[-1].tolist() == [4, 0, 28, 20]


def test_the_time_of_steps_is_told(path):
    ran = []
    with Loader(path, 4, pipelines={"label": [lambda batch: ran.append(sum(range(10**5))) or batch]}) as loader:
        assert loader.stats()["step_seconds"] == 0
        list(loader)
        assert ran and loader.stats()["step_seconds"] > 0


@pytest.mark.parametrize("lengths", [False, True])
def test_json_is_unpacked(mixed, lengths):
    path, fields = mixed
    with Loader(
        path,
        4,
        drop_last=False,
        pipelines={"info": [dec.BytesDecoder(lengths)], **{name: None for name in fields if name != "info"}},
    ) as loader:
        assert [value for (rows,) in loader for value in JSONField.unpack(rows)] == fields["info"][1]
    row = np.frombuffer(b'{"a": [1]}', np.uint8)
    assert JSONField.unpack(row) == {"a": [1]} and JSONField.unpack(row[None]) == [{"a": [1]}]
    assert JSONField.unpack(np.zeros((0, 5), np.uint8)) == []
    for text in (b"nonsense", b"1\0x", b"\0\0", b"[" * 100_000):
        with pytest.raises(ValueError, match="row 0 is not JSON"):
            JSONField.unpack(np.frombuffer(text, np.uint8))
    for wrong in ([{"a": 1}], "text", np.zeros(3), np.zeros((1, 1, 1), np.uint8), None):
        with pytest.raises(TypeError, match="rows of uint8"):
            JSONField.unpack(wrong)


@pytest.mark.parametrize(
    "device, name", [("cpu", "cpu"), (0, "cuda:0"), (np.int64(3), "cuda:3"), ("cuda:1", "cuda:1"), ("cuda", "cuda")]
)
def test_devices_by_name_and_number(monkeypatch, device, name):
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(device=str))
    assert tf.ToDevice(device).device == name


def test_a_gpu_without_a_number_is_the_current_one(monkeypatch):
    cuda = types.SimpleNamespace(is_available=lambda: True, current_device=lambda: 2)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(device=str, cuda=cuda))
    monkeypatch.setattr(tf, "devices", lambda: [{}] * 4)
    assert [tf.ToDevice(device).gpu for device in ("cuda", "cuda:3", "cuda:4", "cpu")] == [2, 3, None, None]


def test_devices_that_there_are_not(monkeypatch):
    def refuse(name):
        raise RuntimeError(f"Invalid device string: {name!r}\nmore")

    for device, error in ((-1, ValueError), (True, TypeError), (None, TypeError), (1.5, TypeError)):
        with pytest.raises(error, match="GPU"):
            tf.ToDevice(device)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(device=refuse))
    with pytest.raises(ValueError, match="torch knows no device '0'"):
        tf.ToDevice("0")
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    with pytest.raises(ValueError, match="without torch a device is 'cpu', 'cuda' or"):
        tf.ToDevice("mps")
    with pytest.raises(UserError):  # the reason why there is no such GPU
        tf.ToDevice(4096)


def test_steps_run_without_gradients(path, monkeypatch):
    """Modules, and functions that call them."""
    inside = []

    class NoGrad:
        def __enter__(self):
            inside.append(True)

        def __exit__(self, *error):
            inside.pop()

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(no_grad=NoGrad))
    seen = []

    def step(batch):
        seen.append(len(inside))
        return batch

    with Loader(path, 50, pipelines={"image": [step, tf.ModuleWrapper(step)], "label": [step]}) as loader:
        list(loader)
    assert seen == [1] * 6 and inside == []


def test_specs_of_pipelines(path):
    assert PipelineSpec("label", None, None).transforms == [] == PipelineSpec(source="label").transforms
    with Loader(path, 5, pipelines={"image": None, "again": PipelineSpec("label", None, None)}) as loader:
        assert type(loader.get_batch([1])[-1]) is type(loader.get_batch([1])[0])  # both by default
    for transforms in (tf.Squeeze(), "text", 5):
        with pytest.raises(TypeError, match="PipelineSpec: transforms must be a list of operations, not"):
            PipelineSpec("label", transforms=transforms)
    with pytest.raises(TypeError, match="draws must be a whole number, not 'a'"):
        PipelineSpec("label", draws="a")
