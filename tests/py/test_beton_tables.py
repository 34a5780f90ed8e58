"""Allocation tables as several processes write them, which are read without sorting: against the format's rules."""

import beton_law
import beton_model as model
import numpy as np
import pytest

from cgxffcv import BetonError, Reader


def by_two_writers(count):
    """A file of small pages, and the table of two writing processes: of the even pages, then of the odd ones."""
    data = bytearray(model.write(model.FIELDS, model.samples(count), 256))
    table = np.frombuffer(bytes(data[model.table_of(data) :]), "<u8").reshape(count, 4, 3)
    page = table[:, 0, 1] // 256
    assert len(np.unique(page)) > 6
    return data, table[np.argsort(page % 2, kind="stable")].reshape(-1, 3).copy()


def with_table(data, table):
    return data[: model.table_of(data)] + table.tobytes()


def test_a_table_of_several_writers(tmp_path):
    data, table = by_two_writers(40)
    path, content = tmp_path / "x.beton", bytes(with_table(data, table))
    path.write_bytes(content)
    assert beton_law.reason_to_refuse(content) is None
    with Reader(path) as reader:
        assert [sample["n"] for sample in reader] == list(range(40))
        for s, (image, _, text, _, _) in enumerate(model.samples(40)):
            assert reader[s]["img"].tobytes() == image[3] and reader[s]["b"] == text
        assert (reader.fields["b"].min_bytes, reader.fields["b"].max_bytes) == (1, 5)


def test_what_spoils_a_table_of_several_writers(tmp_path):
    """Whatever is changed in it, it is refused if the rules refuse it, and read otherwise."""
    rng, path, verdicts = np.random.default_rng(2), tmp_path / "spoilt.beton", []
    data, table = by_two_writers(40)
    for _ in range(400):
        spoilt = table.copy()
        row, other, column = rng.integers(len(table)), rng.integers(len(table)), rng.integers(3)
        match rng.integers(5):
            case 0:
                spoilt[row : row + 1, column] += rng.integers(-2, 3).astype(np.uint64)
            case 1:
                spoilt[row] = spoilt[other]
            case 2:
                spoilt[[row, other], column] = spoilt[[other, row], column]
            case 3:
                spoilt[[row, other]] = spoilt[[other, row]]
            case _:
                spoilt[row, 2] = 0
        content = bytes(with_table(data, spoilt))
        path.write_bytes(content)
        verdicts.append(beton_law.reason_to_refuse(content) is None)
        if verdicts[-1]:
            with Reader(path) as reader:
                assert [sample["n"] for sample in reader] == list(range(40))
        else:
            with pytest.raises(BetonError, match="write it again"):
                Reader(path)
    assert 60 < sum(verdicts) < 340


def test_a_sample_that_the_table_has_twice(tmp_path):
    """An empty sample, whose entries may occur any number of times, in the place of another's."""
    data = bytearray(model.write([("bytes", "b", None)], [(b"",), (b"text",), (b"more",)], 4096))
    table = np.frombuffer(bytes(data[model.table_of(data) :]), "<u8").reshape(3, 3).copy()
    table[0, 2] = table[1, 2] = table[1, 0] = 0
    path, content = tmp_path / "x.beton", bytes(with_table(data, table))
    path.write_bytes(content)
    assert beton_law.reason_to_refuse(content)
    with pytest.raises(BetonError, match="which is not in the allocation table") as caught:
        Reader(path)
    assert caught.value.sample == 1
