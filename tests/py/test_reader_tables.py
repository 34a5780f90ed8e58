"""The tables of a file under FFCV's names, against the format's test vector and a user's own field."""

import lzma

import _cgxffcv
import numpy as np
import pytest
from checkout import ROOT

from cgxffcv import DatasetWriter, Reader
from cgxffcv.fields import BytesField, Field, IntField, NDArrayField, TorchTensorField


@pytest.fixture(scope="module")
def vector(tmp_path_factory):
    path = tmp_path_factory.mktemp("vector") / "vector.beton"
    path.write_bytes(lzma.decompress((ROOT / "tests/golden/vector.beton.xz").read_bytes()))
    return str(path)


def test_the_test_vector(vector):
    with Reader(vector, {}) as reader:
        assert reader.file_name == vector and reader.num_fields == 6
        assert reader.field_names == ["image", "label", "vec", "txt", "meta", "w"]
        assert reader.header.tolist() == (2, 6, 2 << 20, 2, 4194304)
        assert reader.field_descriptors["type_id"].tolist() == [2, 1, 4, 3, 5, 0]
        assert reader.metadata_type.itemsize == 72
        assert [reader.metadata_type.fields[name][1] for name in reader.metadata_type.names] == [0, 16, 24, 32, 48, 64]
        metadata, base = reader.metadata, 2 << 20
        assert len(metadata) == 2 and metadata["f0"].tolist() == [(1, 2, 1, base), (1, 2, 1, base + 25)]
        assert metadata["f1"].tolist() == [7, 8] and metadata["f5"].tolist() == [-0.5, -1.5]
        assert metadata["f3"].tolist() == [(base + 14, 2), (base + 39, 3)]
        sizes = [6, 8, 2, 9, 6, 8, 3, 9]
        begins = base + np.cumsum([0, *sizes[:-1]])
        assert reader.alloc_table.tolist() == [(i // 4, begins[i], size) for i, size in enumerate(sizes)]
        kinds = [type(field).__name__ for field in reader.handlers.values()]
        assert kinds == ["RGBImageField", "IntField", "NDArrayField", "BytesField", "JSONField", "FloatField"]
        assert reader.handlers["vec"].shape == (2,) and reader.handlers["vec"].dtype == np.float32
        with pytest.raises(AttributeError, match="no attribute 'metadatas'"):
            reader.metadatas  # noqa: B018


class Pair(Field):
    metadata_type = np.dtype([("a", "<u2"), ("ptr", "<u8")])
    size_field = "none"

    def encode(self, destination, value, malloc):
        destination["a"], (destination["ptr"], data) = value, malloc(4)
        data[:] = value


def test_an_own_field_and_a_file_that_is_cut(tmp_path):
    path = tmp_path / "own.beton"
    fields = {"text": BytesField(), "own": Pair(), "tensor": TorchTensorField("float64", (3, 1)), "n": IntField()}
    samples = [(b"x" * i, i, np.ones((3, 1)), -i) for i in range(1, 6)]
    DatasetWriter(str(path), fields, progress=False).from_indexed_dataset(samples)
    with Reader(path, custom_handlers={"own": Pair}) as reader:
        assert isinstance(reader.handlers["own"], Pair) and type(reader.handlers["tensor"]) is TorchTensorField
        assert reader.metadata["f1"]["a"].tolist() == [1, 2, 3, 4, 5]
        assert reader.metadata["f3"].tolist() == [-1, -2, -3, -4, -5]
        assert len(reader.alloc_table) == 15 and not isinstance(reader.handlers["n"], NDArrayField)


TABLES = ["header", "field_descriptors", "metadata", "alloc_table"]


@pytest.fixture
def numbers(tmp_path):
    path = tmp_path / "x.beton"
    DatasetWriter(path, {"n": IntField(), "text": BytesField()}, progress=False).from_iterable(
        [(i, b"x") for i in range(9)]
    )
    return path


@pytest.mark.parametrize("table", TABLES)
def test_tables_of_a_file_that_is_cut_or_replaced(numbers, table):
    """Fewer entries, or those of another file, are never returned."""
    whole = numbers.read_bytes()
    with Reader(numbers) as reader:
        with numbers.open("r+b") as file:
            file.truncate(20 if table == "header" else 24 + 2 * 1041 - (table == "field_descriptors"))
        with pytest.raises(_cgxffcv.BetonError, match=r"x\.beton: the file has become shorter since it was opened"):
            getattr(reader, table)
    numbers.write_bytes(whole)
    with Reader(numbers) as reader:
        DatasetWriter(numbers, {"n": IntField(), "text": BytesField()}, progress=False).from_iterable([(8, b"y")] * 9)
        with pytest.raises(_cgxffcv.BetonError, match=r"x\.beton: another file has taken its place") as caught:
            getattr(reader, table)
        assert caught.value.path == str(numbers)
        assert reader[3]["n"] == 3  # the file itself is still open


def test_an_allocation_table_that_lost_one_entry_is_refused(numbers):
    with Reader(numbers) as reader:
        with numbers.open("r+b") as file:
            file.truncate(numbers.stat().st_size - 24)
        with pytest.raises(_cgxffcv.BetonError, match="shorter"):
            reader.alloc_table  # noqa: B018


def test_a_header_that_says_another_count_meanwhile_costs_no_memory(numbers):
    with Reader(numbers) as reader:
        with numbers.open("r+b") as file:
            file.seek(8)
            file.write(b"\xff" * 6)
        with pytest.raises(_cgxffcv.BetonError, match="shorter"):
            reader.metadata  # noqa: B018


def test_tables_are_found_from_another_folder(numbers, monkeypatch, tmp_path):
    monkeypatch.chdir(numbers.parent)
    with Reader(numbers.name) as reader:
        (tmp_path / "outputs").mkdir()
        monkeypatch.chdir(tmp_path / "outputs")
        assert reader.header["num_samples"] == 9 and reader.metadata["f0"].tolist() == list(range(9))
