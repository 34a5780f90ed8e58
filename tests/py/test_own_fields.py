"""Subclasses of the package's fields: what they override is honoured, or refused; nothing is ignored."""

import os

import beton_files as files
import numpy as np
import pytest

from cgxffcv import BetonError, DatasetWriter, Reader, beton
from cgxffcv.fields import (
    BytesField,
    Field,
    FloatField,
    IntField,
    JSONField,
    NDArrayField,
    RGBImageField,
    TorchTensorField,
)
from cgxffcv.loader import Loader

IMAGE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
KINDS = {
    IntField: ((), 1, 2),
    FloatField: ((), 1.5, 2.5),
    BytesField: ((), b"one", b"two"),
    JSONField: ((), [1], [2]),
    NDArrayField: (("float32", (2,)), np.ones(2, np.float32), np.full(2, 2, np.float32)),
    TorchTensorField: (("float32", (2,)), np.ones(2, np.float32), np.full(2, 2, np.float32)),
    RGBImageField: ((), IMAGE, IMAGE[::-1]),
}
HOOKS = {
    "to_binary": lambda self: b"mine",
    "from_binary": classmethod(lambda cls, arguments: cls()),
    "metadata_type": np.dtype("<u8"),
    "get_decoder_class": lambda self: object,
    "decode": lambda self, record, data: None,
    "layout": lambda self: (8, 8, -1, -1),
    "pointer_field": "data",
    "size_field": "length",
}


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("how", ["class", "class of a class", "mixin", "instance"])
def test_hooks_that_would_be_ignored_are_refused(tmp_path, kind, hook, how):
    own = {hook: HOOKS[hook]}
    arguments = KINDS[kind][0]
    if how == "instance":
        field = kind(*arguments)
        setattr(field, hook, own[hook])
    elif how == "mixin":
        field = type("Mine", (type("Mixin", (), own), kind), {})(*arguments)
    else:
        field = type("Mine", (kind,), own)(*arguments)
        if how == "class of a class":
            field = type("Mine", (type(field),), {})(*arguments)
    with pytest.raises(TypeError, match=f"overrides {hook}, which is never called for a {kind.__name__}.*convert"):
        DatasetWriter(tmp_path / "x", {"f": field})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("instance", [False, True])
@pytest.mark.parametrize("way", ["from_indexed_dataset", "from_iterable", "from_arrays", "workers"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_own_convert_is_called_for_every_value(tmp_path, kind, way, instance):
    """Also if whole columns are written."""
    arguments, given, stored = KINDS[kind]
    if instance:
        field = kind(*arguments)
        inner = field.convert
        field.convert = lambda value: inner(stored)
    else:
        field = type("Mine", (kind,), {"convert": lambda self, value: kind.convert(self, stored)})(*arguments)
    writer = DatasetWriter(tmp_path / "x", {"f": field, "n": IntField()}, num_workers=2 if way == "workers" else 1)
    samples = [(given, i) for i in range(6)]
    if way == "workers":
        writer.from_indexed_dataset(samples, chunksize=2)
    elif way == "from_arrays":
        column = [given] * 6 if kind in (BytesField, JSONField) else np.array([given] * 6)
        writer.from_arrays(column, np.arange(6))
    else:
        getattr(writer, way)(samples)
    with Reader(tmp_path / "x") as reader:
        for i in range(6):
            np.testing.assert_array_equal(reader[i]["f"], stored)


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        (NDArrayField("float32", (2,)), "float32 was expected, not of int32"),
        (IntField(), "whole number"),
        (FloatField(), "a number"),
        (BytesField(), "array of objects"),
        (RGBImageField(), "uint8"),
        (JSONField(), "bytes-like"),
    ],
)
def test_what_an_own_convert_gives_is_checked(tmp_path, field, reason):
    """An array of another dtype with as many bytes would be taken for what it is not."""
    wrong = np.zeros(2, np.int32) if isinstance(field, NDArrayField) else np.array([[]], object)
    field.convert = lambda value: None if isinstance(field, JSONField) else wrong
    with pytest.raises(BetonError, match=reason):
        DatasetWriter(tmp_path / "x", {"f": field}, num_workers=1).from_indexed_dataset([(1,)])


@pytest.mark.parametrize("how", ["class", "mixin", "instance"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_own_encode_hands_on_the_value_to_store(tmp_path, kind, how):
    """As FFCV's subclasses do: the value that they get differs from the one that they store."""
    arguments, value, other = KINDS[kind]

    def encode(self, destination, given, malloc):
        assert given == "anything"
        return kind.encode(self, destination, other, malloc)

    field = kind(*arguments)
    if how == "instance":
        field.encode = encode.__get__(field)
    else:
        bases = (kind,) if how == "class" else (type("Mixin", (), {"encode": encode}), kind)
        field = type("Mine", bases, {"encode": encode} if how == "class" else {})(*arguments)
    DatasetWriter(tmp_path / "x", {"f": field}, num_workers=1).from_indexed_dataset([("anything",)] * 3)
    with Reader(tmp_path / "x", custom_fields={"f": type(field)}) as reader:
        assert files.same(reader[2]["f"], other) and not files.same(reader[2]["f"], value)


class Text(NDArrayField):
    """Texts of one length, filled in by hand."""

    def __init__(self, length):
        super().__init__(np.dtype("uint8"), (length,))

    def encode(self, destination, value, malloc):
        destination[0], data = malloc(self.shape[0])
        data[: len(value)] = np.frombuffer(value.encode(), np.uint8)


class Length(IntField):
    def encode(self, destination, value, malloc):
        destination[0] = len(value)


def test_an_own_encode_may_fill_memory_itself(tmp_path):
    fields = {"text": Text(5), "length": Length()}
    DatasetWriter(tmp_path / "x", fields, num_workers=1).from_indexed_dataset([("ab", "ab"), ("cde", "cde")])
    with Loader(tmp_path / "x", 2, custom_fields={"text": Text}, arrays="numpy") as loader:
        text, length = next(iter(loader))
    assert [row.tobytes() for row in text] == [b"ab\0\0\0", b"cde\0\0"] and length[:, 0].tolist() == [2, 3]
    with pytest.raises(BetonError, match="a uint8 .5. was expected|an array of shape|reshape|size"):
        bad = type("Bad", (Text,), {"encode": lambda self, destination, value, malloc: malloc(3)})(5)
        DatasetWriter(tmp_path / "y", {"f": bad}, num_workers=1).from_indexed_dataset([("a",)])
    with pytest.raises(BetonError, match=r"must call super\(\).encode, or malloc once"):
        bad = type("Bad", (Text,), {"encode": lambda self, destination, value, malloc: None})(5)
        DatasetWriter(tmp_path / "y", {"f": bad}, num_workers=1).from_indexed_dataset([("a",)])


class Own(Field):
    """A field of type 255 with all of FFCV's hooks."""

    metadata_type = np.dtype([("ptr", "<u8"), ("size", "<u8")])

    def encode(self, destination, value, malloc):
        destination["ptr"], data = malloc(len(value))
        destination["size"] = len(value)
        data[:] = np.frombuffer(value, np.uint8)

    def get_decoder_class(self):
        return object


def test_own_fields_may_have_ffcvs_hooks(tmp_path):
    DatasetWriter(tmp_path / "x", {"f": Own()}, num_workers=1).from_indexed_dataset([(b"abc",)])
    with Reader(tmp_path / "x", custom_fields={"f": Own}) as reader:
        assert reader[0]["f"][1] == b"abc"


def test_custom_fields_that_would_be_ignored_are_refused(tmp_path):
    DatasetWriter(tmp_path / "x", {"n": IntField(), "f": Own()}, num_workers=1).from_indexed_dataset([(1, b"abc")])
    with pytest.raises(ValueError, match="'n', whose kind int"):
        Reader(tmp_path / "x", custom_fields={"n": Own, "f": Own})
    with pytest.raises(KeyError, match="no field 'm'; it has n, f"):
        beton.info(tmp_path / "x", custom_fields={"m": Own, "f": Own})


def test_readers_do_not_wait_for_a_fifo(tmp_path):
    os.mkfifo(tmp_path / "x")
    with pytest.raises(OSError, match="not a regular file"):
        Reader(tmp_path / "x", custom_fields={"f": Own})
    with pytest.raises(BetonError, match="not a regular file"):
        DatasetWriter(tmp_path / "y", {"f": RGBImageField()}, num_workers=1).from_iterable([tmp_path / "x"])
