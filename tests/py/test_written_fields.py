"""Fields of a user's own type: what they write, and the errors of those that do not do what they declare."""

import numpy as np
import pytest
from package_writer import write

from cgxffcv import BetonError, DatasetWriter, Reader, beton
from cgxffcv.fields import Field, IntField


class Box(Field):
    """Two corners in the record, the text of a label as data, a scale in the file's header."""

    metadata_type = np.dtype([("x", "<u2"), ("y", "<u2"), ("ptr", "<u8"), ("size", "<u8")], align=True)

    def __init__(self, scale=1):
        self.scale = scale

    def to_binary(self):
        return np.array([self.scale], "<i4").view(np.uint8)

    @classmethod
    def from_binary(cls, arguments):
        return cls(int(arguments[:4].view("<i4")[0]))

    def encode(self, destination, value, malloc):
        x, y, text = value
        destination["x"], destination["y"] = x * self.scale, y * self.scale
        destination["ptr"], data = malloc(len(text))
        data[:] = np.frombuffer(text, np.uint8)

    def decode(self, record, data):
        return int(record["x"]) // self.scale, int(record["y"]) // self.scale, data


class Flags(Field):
    """No data, five bytes, no alignment."""

    metadata_type = np.dtype([("a", "u1"), ("b", "<u4")])

    def encode(self, destination, value, malloc):
        destination["a"], destination["b"] = value


class Fixed(Field):
    """A pointer but no size: only the allocation table has it."""

    metadata_type = np.dtype([("kind", "u1"), ("ptr", "<u8")])

    def encode(self, destination, value, malloc):
        destination["kind"] = len(value) % 256
        destination["ptr"], data = malloc(len(value))
        data[:] = np.frombuffer(value, np.uint8)


@pytest.mark.parametrize("workers", [1, 3])
def test_custom_fields(tmp_path, workers):
    fields = {"flags": Flags(), "box": Box(3), "n": IntField(), "fixed": Fixed()}
    samples = [((i, i * i), (i, 2 * i, b"text" * (i % 3)), i, bytes(1 + i)) for i in range(40)]
    write(tmp_path / "x.beton", samples, fields, num_workers=workers, worker_kind="process", checksums=True)
    classes = {"flags": Flags, "box": Box, "fixed": Fixed}
    with Reader(tmp_path / "x.beton", custom_fields=classes) as reader:
        assert [entry["record_offset"] for entry in reader._file.fields] == [0, 8, 32, 40]
        for i, (flags, box, n, fixed) in enumerate(samples):
            got = reader[i]
            assert (tuple(got["flags"][0]), got["flags"][1]) == (flags, None)
            assert got["box"] == box and got["n"] == n
            assert got["fixed"][1] == fixed and got["fixed"][0]["kind"] == (1 + i) % 256
    assert beton.verify(tmp_path / "x.beton", classes, num_workers=1).ok
    beton.merge(
        tmp_path / "y.beton",
        [tmp_path / "x.beton"],
        custom_fields=classes,
        page_size=4096,
        allow_small_pages=True,
        checksums=True,
    )
    assert (tmp_path / "y.beton").read_bytes() == (tmp_path / "x.beton").read_bytes()
    with pytest.raises(BetonError, match="custom_fields"):
        Reader(tmp_path / "x.beton")


def test_custom_fields_that_do_not_keep_their_word(tmp_path):
    class Twice(Fixed):
        def encode(self, destination, value, malloc):
            malloc(1), malloc(1)

    class Never(Fixed):
        def encode(self, destination, value, malloc):
            pass

    class Always(Flags):
        def encode(self, destination, value, malloc):
            malloc(1)

    for field, reason in [
        (Twice(), "twice"),
        (Never(), "must call malloc"),
        (Always(), "must not call malloc"),
        (Fixed(), "empty value"),
    ]:
        with pytest.raises(BetonError, match=reason):
            DatasetWriter(tmp_path / "x.beton", {"f": field}, num_workers=1).from_indexed_dataset([(b"",)])
    with pytest.raises(TypeError, match="metadata_type"):
        DatasetWriter(tmp_path / "x.beton", {"f": Field()})

    class Wide(Flags):
        def to_binary(self):
            return bytes(1025)

    with pytest.raises(ValueError, match="1025"):
        DatasetWriter(tmp_path / "x.beton", {"f": Wide()})
