"""Everything a reader must refuse, one by one, with the reason and the place; and what it must tolerate."""

import struct

import _cgxffcv
import beton_law
import beton_model as model
import numpy as np
import pytest
from beton_model import FIELDS, samples, table_of

from cgxffcv import BetonError, DatasetWriter, Loader, Reader, beton
from cgxffcv.decoders import JSONDecoder
from cgxffcv.fields import BytesField

PAGE = 4096
METADATA = 24 + 5 * 1041
# image 0, n 16, b 24, doc 40, arr 56
OFFSETS, RECORD = model.layout([field[0] for field in FIELDS])


def good(count=3):
    return bytearray(model.write(FIELDS, samples(count), PAGE))


def descriptor(field):
    return 24 + field * 1041


def record(sample, field):
    return METADATA + sample * RECORD + OFFSETS[field]


def entry(data, index):
    return table_of(data) + index * 24


def put(data, at, form, *values):
    struct.pack_into(form, data, at, *values)
    return data


def get(data, at, form="<Q"):
    return struct.unpack_from(form, data, at)[0]


def refused(tmp_path, data, reason, **attributes):
    path = tmp_path / "bad.beton"
    path.write_bytes(data)
    assert beton_law.reason_to_refuse(bytes(data))
    with pytest.raises(BetonError) as caught:
        Reader(path)
    error = caught.value
    assert reason in error.reason and reason in str(error) and str(path) in str(error), str(error)
    assert error.path == str(path)
    assert ("write it again" in error.reason) != ("custom_fields" in error.reason), error.reason
    for name, value in attributes.items():
        assert getattr(error, name) == value, (name, getattr(error, name), str(error))
    report = beton.verify(path)
    assert not report.ok and report.problems[0].reason == error.reason


def opens(tmp_path, data):
    path = tmp_path / "good.beton"
    path.write_bytes(data)
    assert beton_law.reason_to_refuse(bytes(data)) is None
    return Reader(path)


def test_the_good_file_is_good(tmp_path):
    with opens(tmp_path, good()) as reader:
        assert [sample["n"] for sample in reader] == [0, 1, 2]
        assert reader[2]["b"] == b"byt" and reader[1]["doc"] == {"s": 1}


@pytest.mark.parametrize("size", [1, 5, 23])
def test_shorter_than_a_header(tmp_path, size):
    refused(tmp_path, good()[:size], f"{size} bytes")


def test_empty_file(tmp_path):
    refused(tmp_path, b"", "the file is empty")


def test_shorter_than_its_descriptors(tmp_path):
    refused(tmp_path, good()[: METADATA - 1], "field descriptors")


def test_shorter_than_its_records(tmp_path):
    data = good()[: METADATA + 3 * RECORD - 1]
    refused(tmp_path, data, "is beyond the end of the file", offset=16)
    refused(tmp_path, put(data, 16, "<Q", len(data)), "is before the end of the records", offset=16)


NO_DTYPES = "|O <V4 <U1 |S4 <m8 <M8 >f4 |f4 <f3 <f16 =f4 f4 <b1 <u1 <i1 |u2".split()
NO_DTYPE_TEXTS = [
    *(f'[["", "{text}"]]'.encode() for text in (*NO_DTYPES, "", '<f4", [2]')),
    b'[["a", "<f4"]]',
    b'[["", "<f4"], ["", "<f4"]]',
    b'["", "<f4"]',
    b'[["", "<f4"]',
    b'[["", "<f4"]] ',
    b"\xff" * 13,
]
TABLE, SHAPE = table_of(good()), descriptor(4) + 17
ARR, IMG = {"offset": descriptor(4), "field": "arr"}, {"sample": 0, "field": "img"}
B = {"offset": descriptor(2), "field": "b"}
CHANGES = [  # (where, as what, to which values, the reason, what the error says besides)
    *((0, "<H", [version], f"version {version}", {"offset": 0}) for version in (0, 1, 3, 258)),
    (2, "<H", [0], "no fields", {"offset": 2}),
    *((4, "<I", [size], f"page size {size} ", {"offset": 4}) for size in (0, 3, 4095, 6144, 0xFFFFFFFF)),
    *((8, "<Q", [count], "overflow", {"offset": 8}) for count in ((1 << 64) - 1, 1 << 63)),
    *((8, "<Q", [(1 << 64) // RECORD + more], "overflow", {"offset": 8}) for more in (0, 1)),
    (8, "<Q", [2], "need 8", {"offset": TABLE}),
    (8, "<Q", [4], "need 16", {"offset": TABLE}),
    (16, "<Q", [0], "unfinished", {"offset": 16}),
    *((16, "<Q", [at], "before the end of the records", {"offset": 16}) for at in (1, 24, METADATA)),
    (16, "<Q", [METADATA + 3 * RECORD - 1], "before the end of the records", {"offset": 16}),
    *((16, "<Q", [at], "beyond the end of the file", {"offset": 16}) for at in (1 << 40, (1 << 64) - 1)),
    (TABLE + 5 * 24, "<Q", [2], "gives to sample 2", {"sample": 1, "field": "b"}),
    (TABLE + 5 * 24, "<Q", [3], "names sample 3", {"offset": TABLE + 5 * 24}),
    (TABLE + 16, "<Q", [17], "18 bytes according to its record, but 17", IMG),
    (record(2, 2) + 8, "<Q", [0], "no record points at", {"offset": TABLE + 9 * 24, "sample": 2}),
    (record(2, 2) + 8, "<Q", [2], "2 bytes according to its record, but 3", {"sample": 2, "field": "b"}),
    *((record(1, 0), "B", [mode], f"mode {mode}", IMG | {"offset": record(1, 0), "sample": 1}) for mode in (2, 3, 255)),
    *((record(0, 0) + at, "<H", [0], "no pixels", IMG) for at in (1, 3)),
    (record(1, 0) + 1, "<HH", [65535, 65535], f"{65535 * 65535 * 3} bytes", IMG | {"sample": 1}),
    (SHAPE, "<Q", [1], "8 bytes according to its shape, but 16", {"sample": 0, "field": "arr"}),
    (SHAPE, "<4Q", [1 << 32, 1 << 31, 2, 1], "overflows", {"field": "arr"}),
    *((SHAPE + 256, "<Q", [size], "760", ARR) for size in (761, 1 << 20, (1 << 32) + 13, (1 << 64) - 1)),
    *((SHAPE + 256, f"<Q{len(text)}s", [len(text), text], "dtype", ARR) for text in NO_DTYPE_TEXTS),
    (descriptor(1) + 1, "16s", [b""], "no name", {"offset": descriptor(1)}),
    (descriptor(1) + 1, "16s", [b"a\x1f"], "0x1f", {"offset": descriptor(1)}),
    (descriptor(1) + 1, "16s", [b"a\x7f"], "0x7f", {"offset": descriptor(1)}),
    (descriptor(1) + 1, "16s", [b"\x80bc"], "0x80", {"offset": descriptor(1)}),
    (descriptor(1) + 1, "16s", [b"a\0b"], "after its end", {"offset": descriptor(1)}),
    (descriptor(1) + 1, "16s", [b"a" + b"\0" * 14 + b"z"], "after its end", {"offset": descriptor(1)}),
    (descriptor(3) + 1, "16s", [b"b"], "two fields have this name", {"field": "b"}),
    *((descriptor(2), "B", [kind], f"unknown field type {kind}", B) for kind in (7, 8, 100, 254)),
    (descriptor(2), "B", [255], "custom_fields", B),
]


@pytest.mark.parametrize("at, form, values, reason, attributes", CHANGES, ids=[change[3] for change in CHANGES])
def test_one_wrong_value(tmp_path, at, form, values, reason, attributes):
    refused(tmp_path, put(good(), at, form, *values), reason, **attributes)


@pytest.mark.parametrize("missing", [1, 24, 25, 12 * 24])
def test_cut_or_lengthened_tables(tmp_path, missing):
    refused(tmp_path, good()[:-missing], "need 12", offset=table_of(good()))


def test_longer_table(tmp_path):
    refused(tmp_path, good() + bytes(24), "13 entries")


def test_without_data_the_table_is_at_the_records_end(tmp_path):
    data = bytearray(model.write([("int", "a", None)], [(5,)]))
    refused(tmp_path, put(data + bytes(8), 16, "<Q", len(data) + 8), "must be at")


def test_pointer_before_the_pages(tmp_path):
    data = good()
    pointer = get(data, entry(data, 0) + 8)
    for at in (entry(data, 0) + 8, record(0, 0) + 5):
        put(data, at, "<Q", pointer - 1)
    refused(tmp_path, data, "begins before the data pages", offset=entry(data, 0), sample=0)


@pytest.mark.parametrize("pointer", ["end", "far"])
def test_pointer_beyond_the_pages(tmp_path, pointer):
    data = good()
    value = table_of(data) - 17 if pointer == "end" else (1 << 64) - 10
    for at in (entry(data, 0) + 8, record(0, 0) + 5):
        put(data, at, "<Q", value)
    refused(tmp_path, data, "ends beyond the data pages", offset=entry(data, 0), sample=0)


@pytest.mark.parametrize(
    "size, moved, by, reason",
    [(3000, 0, 2000, "crosses the end of its page"), (30, 1, -1, "overlap"), (30, 1, None, "overlap")],
    ids=["across pages", "overlapping", "equal pointers"],
)
def test_regions_in_wrong_places(tmp_path, size, moved, by, reason):
    data = bytearray(model.write([("bytes", "b", None)], [(b"x" * size,), (b"y" * size,)], PAGE))
    at = 24 + 1041 + 16 * moved
    pointer = get(data, 24 + 1041) if by is None else get(data, at) + by
    put(data, at, "<Q", pointer)
    put(data, entry(data, moved) + 8, "<Q", pointer)
    told = {} if by is None else {"offset": entry(data, moved), "sample": moved}
    refused(tmp_path, data, reason, **told)


def test_overlap_in_an_unsorted_table(tmp_path):
    """Pointers that differ only in their lowest bit are also put in order."""
    data = bytearray(model.write([("bytes", "b", None)], [(b"xx",), (b"y",)], PAGE))
    pointer = get(data, 24 + 1041) + 1
    assert pointer % 2 == 1
    put(data, 24 + 1041 + 16, "<Q", pointer)
    put(data, entry(data, 1) + 8, "<Q", pointer)
    first, second = bytes(data[entry(data, 0) :][:24]), bytes(data[entry(data, 1) :][:24])
    data[entry(data, 0) : entry(data, 0) + 48] = second + first
    refused(tmp_path, data, "overlap")


def test_pointer_that_the_table_does_not_know(tmp_path):
    data = good()
    at = record(1, 4)
    put(data, at, "<Q", get(data, at) + 1)
    refused(tmp_path, data, "not in the allocation table", offset=at, sample=1, field="arr")


def test_pointer_of_another_sample(tmp_path):
    data = good()
    first, second = record(0, 4), record(1, 4)
    a, b = get(data, first), get(data, second)
    put(put(data, first, "<Q", b), second, "<Q", a)
    refused(tmp_path, data, "gives to sample 1", offset=first, sample=0, field="arr")


def test_two_records_at_one_region(tmp_path):
    fields = [("array", "a", ("|u1", (4,))), ("array", "b", ("|u1", (4,)))]
    data = bytearray(model.write(fields, [(b"aaaa", b"bbbb")], PAGE))
    at = 24 + 2 * 1041
    put(data, at + 8, "<Q", get(data, at))
    refused(tmp_path, data, "two records point at", sample=0, field="b")


# ---- what is refused when a value is read


def read_error(tmp_path, data, sample, field, reason):
    with opens(tmp_path, data) as reader:
        with pytest.raises(BetonError) as caught:
            reader.value(sample, field)
        error = caught.value
        assert reason in error.reason, error.reason
        assert (error.sample, error.field, error.path) == (sample, field, reader.path)
        report = beton.verify(reader.path)
        assert [(p.sample, p.field) for p in report.problems] == [(sample, field)] and report.num_problems == 1
        others = [s for s in range(len(reader)) if s != sample]
        assert all(reader[s] for s in others)


@pytest.mark.parametrize(
    ("text", "reason"), [(b'{"s": 1}x', "NUL"), (b'{"s": 1]\0', "parse"), (b"\xff" * 8 + b"\0", "parse")]
)
def test_json_that_is_damaged(tmp_path, text, reason):
    data = good()
    pointer = get(data, record(1, 3))
    data[pointer : pointer + 9] = text
    read_error(tmp_path, data, 1, "doc", reason)


def test_json_of_any_depth_is_refused_not_followed(tmp_path):
    deep = b"[" * 200_000
    (tmp_path / "deep.beton").write_bytes(model.write([("json", "doc", None)], [(b"1",), (deep,)], 1 << 20))
    with Reader(tmp_path / "deep.beton") as reader:
        assert reader.value(0, "doc") == 1
        with pytest.raises(BetonError, match="parse") as caught:
            reader.value(1, "doc")
    assert (caught.value.sample, caught.value.field) == (1, "doc")
    assert [problem.sample for problem in beton.verify(tmp_path / "deep.beton").problems] == [1]
    loader = Loader(tmp_path / "deep.beton", 2, num_workers=1, pipelines={"doc": [JSONDecoder()]})
    with loader, pytest.raises(BetonError, match="parse") as caught:
        list(loader)
    assert (caught.value.sample, caught.value.field) == (1, "doc")


def jpeg_file(streams, sides=(24, 16)):
    return bytearray(model.write([("image", "img", None)], [(("jpg", *sides, stream),) for stream in streams], 65536))


@pytest.fixture(scope="module")
def stream():
    import _cgxffcv

    rng = np.random.default_rng(0)
    return _cgxffcv.jpeg_encode(rng.integers(0, 256, (16, 24, 3), np.uint8), 90)


def test_empty_value_with_a_byte_that_is_not_zero(tmp_path):
    data = good()
    put(data, record(0, 2) + 8, "<Q", 0)
    read_error(tmp_path, data, 0, "b", "reserved for it")


def test_jpeg_of_another_size(tmp_path, stream):
    data = jpeg_file([stream, stream])
    put(data, 24 + 1041 + 13 + 1, "<H", 25)
    read_error(tmp_path, data, 1, "img", "24 x 16")


def test_jpeg_that_is_cut_or_corrupt(tmp_path, stream):
    broken = bytearray(stream)
    at = stream.index(b"\xff\xda") + 20
    broken[at : at + 40] = b"\xff\xd3" * 20
    for bad in (stream[:-2], stream[: len(stream) // 2], stream[:30], bytes(broken), b"nonsense" * 9):
        read_error(tmp_path, jpeg_file([bad, stream]), 0, "img", "JPEG")


def test_jpeg_with_bytes_after_its_end(tmp_path, stream):
    with opens(tmp_path, jpeg_file([stream + b"tail"])) as reader:
        assert reader[0]["img"].shape == (16, 24, 3)


# ---- what is tolerated


def test_unsorted_tables_and_gaps(tmp_path):
    rng = np.random.default_rng(1)
    for _ in range(20):
        data = good(7)
        table = np.frombuffer(bytes(data[table_of(data) :]), "<u8").reshape(-1, 3)
        data[table_of(data) :] = rng.permutation(table).tobytes()
        with opens(tmp_path, data) as reader:
            assert [sample["n"] for sample in reader] == list(range(7))
            assert [sample["arr"].sum() for sample in reader] == [0.0] * 7
            assert all(reader[s]["img"].tobytes() == samples(7)[s][0][3] for s in range(7))


@pytest.mark.parametrize("extra", [1, 7, 23])
def test_trailing_bytes(tmp_path, extra):
    with opens(tmp_path, good() + b"\xaa" * extra) as reader:
        assert len(reader) == 3


def test_dead_bytes_and_unpadded_last_page(tmp_path):
    """A table at an odd place right after the data, bytes in the gap and between the regions."""
    data = good()
    table = table_of(data)
    last = max(get(data, entry(data, i) + 8) + get(data, entry(data, i) + 16) for i in range(12))
    moved = data[: last + 3] + data[table:]
    put(moved, 16, "<Q", last + 3)
    moved[METADATA + 3 * RECORD : METADATA + 3 * RECORD + 50] = b"\x55" * 50
    moved[last : last + 3] = b"\x55" * 3
    with opens(tmp_path, moved) as reader:
        assert [sample["doc"] for sample in reader] == [{"s": 0}, {"s": 1}, {"s": 2}]


def test_padding_and_unused_arguments_are_not_read(tmp_path):
    data = good()
    data[record(0, 0) + 13 : record(0, 1)] = b"\x77" * 3
    data[descriptor(0) + 17 : descriptor(1)] = b"\x77" * 1024
    data[descriptor(4) + 17 + 264 + 13 : descriptor(4) + 1041] = b"\x77" * (1024 - 264 - 13)
    with opens(tmp_path, data) as reader:
        assert len(reader) == 3


@pytest.mark.parametrize("page", [1, 32, 64, 1 << 20, 1 << 31])
def test_any_power_of_two_is_a_page_size(tmp_path, page):
    data = bytearray(model.write([("bytes", "b", None)], [(b"x",), (b"y",)], min(page, 1 << 20)))
    put(data, 4, "<I", page)
    if page == 1 << 31:
        data = bytearray(model.write([("int", "b", None)], [(1,), (2,)]))
        put(data, 4, "<I", page)
    with opens(tmp_path, data) as reader:
        assert (len(reader), reader.page_size) == (2, page)


def test_region_of_a_whole_page(tmp_path):
    with opens(tmp_path, model.write([("bytes", "b", None)], [(b"x" * 256,), (b"y" * 256,), (b"z",)], 256)) as reader:
        assert [len(sample["b"]) for sample in reader] == [256, 256, 1]


def test_no_samples(tmp_path):
    with opens(tmp_path, good(0)) as reader:
        assert len(reader) == 0 and list(reader) == [] and reader.column("n").shape == (0,)
        with pytest.raises(IndexError):
            reader[0]


def test_all_values_empty_as_ffcv_writes_them(tmp_path):
    """No page, the table at the records' end, entries of size 0, pointers 0."""
    data = bytearray(24 + 1041 + 2 * 16)
    struct.pack_into("<HHIQQ", data, 0, 2, 1, 2 << 20, 2, len(data))
    data[24:] = model.descriptor("bytes", "b", None) + bytes(32) + struct.pack("<6Q", 0, 0, 0, 1, 0, 0)
    with opens(tmp_path, data) as reader:
        assert [sample["b"] for sample in reader] == [b"", b""]


def test_empty_value_before_a_value_of_one_byte(tmp_path):
    """FFCV's empty first value has the second's pointer: the one-byte region is the second's, no reserved byte."""
    data = bytearray(model.write([("bytes", "a", None), ("bytes", "b", None)], [(b"", b"q")], 64))
    base = 24 + 2 * 1041
    put(data, base, "<Q", get(data, base + 16))
    put(data, entry(data, 0) + 8, "<QQ", get(data, base + 16), 0)
    with opens(tmp_path, data) as reader:
        assert reader[0] == {"a": b"", "b": b"q"}


def test_arrays_with_a_zero_dimension(tmp_path):
    """Zeros before the last non-zero side are dimensions; all values are then empty."""
    data = bytearray(24 + 1041 + 8)
    struct.pack_into("<HHIQQ", data, 0, 2, 1, 2 << 20, 1, len(data))
    data[24:] = model.descriptor("array", "a", ("<f4", (2, 0, 3))) + bytes(8) + bytes(24)
    with opens(tmp_path, data) as reader:
        assert reader[0]["a"].shape == (2, 0, 3)


def test_names_of_sixteen_bytes(tmp_path):
    with opens(tmp_path, model.write([("int", "sixteen letters!", None)], [(1,)])) as reader:
        assert list(reader.fields) == ["sixteen letters!"]


# ---- what is not a file at all


def test_missing_files_folders_and_pipes(tmp_path):
    import os

    with pytest.raises(FileNotFoundError):
        Reader(tmp_path / "absent.beton")
    with pytest.raises(IsADirectoryError):
        Reader(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BetonError, match="not a regular file"):
        Reader(tmp_path / "pipe")
    if os.getuid() != 0:
        (tmp_path / "closed.beton").write_bytes(good())
        (tmp_path / "closed.beton").chmod(0)
        with pytest.raises(PermissionError):
            Reader(tmp_path / "closed.beton")


def remedy_of(ask):
    with pytest.raises(BetonError) as caught:
        ask()
    return str(caught.value)


def test_damaged_values_name_the_remedy(tmp_path):
    text = bytearray(good())
    at = text.index(b'{"s": 1}')
    path = tmp_path / "x.beton"
    path.write_bytes(text[:at] + b"?" + text[at + 1 :])
    only = {"doc": [JSONDecoder()], **dict.fromkeys(["img", "n", "b", "arr"])}
    with Reader(path) as reader, Loader(path, 3, pipelines=only) as loader:
        assert "write it again" in remedy_of(lambda: reader[1]) and "write it again" in remedy_of(lambda: list(loader))
    assert "write it again" in str(beton.verify(path))
    path.write_bytes(text[: at + 8] + b"!" + text[at + 9 :])  # the NUL at the text's end
    with Reader(path) as reader, Loader(path, 3, pipelines=only) as loader:
        assert "write it again" in remedy_of(lambda: reader[1]) and "write it again" in remedy_of(lambda: list(loader))


def test_a_damaged_image_names_the_remedy(tmp_path):
    if not _cgxffcv.build_info()["jpeg"]:
        pytest.skip("this build has no libjpeg-turbo")
    stream = _cgxffcv.jpeg_encode(np.zeros((16, 16, 3), np.uint8))
    path = tmp_path / "x.beton"
    path.write_bytes(model.write([("image", "img", None)], [(("jpg", 16, 16, stream[:-20]),)], PAGE))
    with Reader(path) as reader, Loader(path, 1) as loader:
        for ask in (lambda: reader[0], lambda: list(loader), lambda: loader.get_batch([0])):
            assert "write it again from a sound one" in remedy_of(ask)
    assert "write it again" in str(beton.verify(path))


def test_a_wrong_checksum_names_the_remedy(tmp_path):
    path = tmp_path / "x.beton"
    DatasetWriter(path, {"b": BytesField()}, num_workers=1, checksums=True).from_iterable([(b"some bytes",)])
    data = path.read_bytes()
    path.write_bytes(data.replace(b"some bytes", b"same bytes"))
    report = beton.verify(path)
    assert "write it again" in report.problems[0].reason and report.num_problems == 1
