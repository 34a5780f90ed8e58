"""Users' own decoders: for fields of their own type, once per batch in Python; C functions, in the workers."""

import ctypes
import shutil
import subprocess
import types

import numpy as np
import pytest

from cgxffcv import BetonError, DatasetWriter, Loader, OrderOption, Reader
from cgxffcv import transforms as tf
from cgxffcv.fields import BytesField, Field, FloatField, IntField, NDArrayField, RGBImageField
from cgxffcv.fields.decoders import BytesDecoder, FieldDecoder, FunctionDecoder, IntDecoder
from cgxffcv.pipeline import PipelineSpec

COUNT = 23
RECORD = np.dtype([("ptr", "<u8"), ("size", "<u8"), ("scale", "<f4"), ("number", "<u4")], align=True)
ROW = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64
)


class Scaled(Field):
    """Some bytes and a factor."""

    metadata_type = RECORD

    def __init__(self, bias=0):
        self.bias = bias

    def to_binary(self):
        return bytes([self.bias])

    @classmethod
    def from_binary(cls, arguments):
        return cls(int(arguments[0]))

    def encode(self, destination, value, malloc):
        number, data = value
        destination["number"], destination["scale"], destination["size"] = number, number / 2, len(data)
        destination["ptr"], memory = malloc(len(data))
        memory[:] = np.frombuffer(data, np.uint8)

    def decode(self, record, data):
        return self.bias + int(record["number"]), data


class Plain(Field):
    """A record and nothing else."""

    metadata_type = np.dtype([("x", "<i4"), ("y", "<i4")])

    def encode(self, destination, value, malloc):
        destination["x"], destination["y"] = value


def data_of(i):
    return bytes(range(i % 7))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("own") / "own.beton")
    fields = {
        "scaled": Scaled(5),
        "plain": Plain(),
        "label": IntField(),
        "weight": FloatField(),
        "text": BytesField(),
        "array": NDArrayField("int16", (2, 3)),
    }
    samples = [((i, data_of(i)), (i, -i), 3 * i, i / 4, data_of(i), np.full((2, 3), i, np.int16)) for i in range(COUNT)]
    DatasetWriter(path, fields, progress=False).from_indexed_dataset(samples)
    return path


OWN = {"scaled": Scaled, "plain": Plain}


def test_a_field_decodes_itself(path):
    with Loader(path, 5, 2, custom_fields=OWN, drop_last=False, order=np.arange(COUNT)[::-1], ids=True) as loader:
        seen = [(values, pairs, ids) for values, pairs, *_, ids in loader]
        values, pairs, *_ = loader.get_batch([3])
        assert values == [(8, data_of(3))] and pairs[0][0].tolist() == (3, -3) and pairs[0][1] is None
        assert loader.reader[3]["scaled"] == (8, data_of(3))
        loader.batch_size = 7
        assert [len(batch[0]) for batch in loader] == [7, 7, 7, 2]
    for values, pairs, ids in seen:
        assert values == [(5 + i, data_of(i)) for i in ids.tolist()]
        assert [record.tolist() for record, data in pairs] == [(i, -i) for i in ids.tolist()]
    assert sum(len(values) for values, *_ in seen) == COUNT


def test_a_decoder_of_the_users_own_runs_once_a_batch(path):
    calls = []

    class Numbers(FieldDecoder):
        def decode_batch(self, field, records, data, ids):
            calls.append(ids.tolist())
            assert isinstance(field, Scaled) and field.bias == 5
            assert records.dtype == RECORD and [row.tobytes() for row in data] == [data_of(i) for i in ids.tolist()]
            return records["scale"] * 2

    class Own(Scaled):
        def get_decoder_class(self):
            return Numbers

    pipelines = dict.fromkeys(("plain", "label", "weight", "text", "array"))
    with Loader(path, 6, 2, custom_fields={"scaled": Own, "plain": Plain}, pipelines=pipelines, ids=True) as loader:
        for numbers, ids in loader:
            np.testing.assert_array_equal(numbers, ids)
    assert calls == [list(range(i, i + 6)) for i in (0, 6, 12)]
    with Loader(path, 6, 2, custom_fields=OWN, pipelines={**pipelines, "scaled": [Numbers()]}) as loader:
        assert next(iter(loader))[0].tolist() == list(range(6))


def test_a_failing_decode_names_field_and_sample(path):
    class Bad(Scaled):
        def decode(self, record, data):
            if record["scale"] == 6.5:
                raise LookupError("no such thing")
            return 0

    with Loader(path, 6, 2, custom_fields={"scaled": Bad, "plain": Plain}) as loader:
        with pytest.raises(BetonError, match="sample 13: field 'scaled': Bad.decode: LookupError: no such") as caught:
            list(loader)
        assert (caught.value.sample, caught.value.field) == (13, "scaled")
        assert isinstance(caught.value.__cause__, LookupError)


def test_a_step_may_ask_for_sample_numbers(path):
    def add(values, ids):
        return values[:, 0] + ids

    add.with_indices = True
    pipelines = dict.fromkeys(("scaled", "plain", "weight", "text", "array"))
    with Loader(path, 4, 1, custom_fields=OWN, pipelines={**pipelines, "label": [add, lambda batch: -batch]}) as loader:
        assert loader.get_batch([2, 9])[0].tolist() == [-8, -36]


def test_refusals(path):
    with pytest.raises((BetonError, ValueError), match="scaled|own"):
        Loader(path, 4)
    for opener in (Reader, lambda *a, **k: Loader(a[0], 4, **k)):
        with pytest.raises(ValueError, match="'label', whose kind int the core reads itself"):
            opener(path, custom_fields={**OWN, "label": Plain})
        with pytest.raises(KeyError, match="has no field 'nothing'"):
            opener(path, custom_fields={**OWN, "nothing": Plain})
        with pytest.raises(TypeError, match="'scaled'. must be a Field"):
            opener(path, custom_fields={**OWN, "scaled": 3})
    with pytest.raises(TypeError, match="reads fields of custom, not int"):
        Loader(path, 4, custom_fields=OWN, pipelines={"label": [FieldDecoder()]})
    with pytest.raises(TypeError, match="reads fields of bytes or json, not custom"):
        Loader(path, 4, custom_fields=OWN, pipelines={"scaled": [BytesDecoder()]})
    for wrong in ("sin", None, 1.5):
        with pytest.raises(TypeError, match="not a C function"):
            FunctionDecoder(wrong)
    with pytest.raises(ValueError, match="null pointer"):
        FunctionDecoder(0)
    with pytest.raises(TypeError, match="no type"):
        FunctionDecoder(ROW(lambda *a: 0), (), "no type")


def loader_of(path, name, decoder, **options):
    known = ("scaled", "plain", "label", "weight", "text", "array")
    pipelines = {**dict.fromkeys(known), name: [decoder]}
    return Loader(path, 5, 2, custom_fields=OWN, pipelines=pipelines, drop_last=False, ids=True, **options)


def test_a_function_makes_rows_in_the_workers(path):
    """For each kind of field: its record, its data or none."""
    sizes = {"scaled": RECORD.itemsize, "plain": 8, "label": 8, "weight": 8, "text": 16, "array": 8}
    for name, record_bytes in sizes.items():

        def fill(row, record, data, size, sample):
            assert ctypes.string_at(row, 64) == bytes(64)  # noqa: B023
            ctypes.memmove(row, record, record_bytes)  # noqa: B023
            ctypes.memmove(row + 40, data, size)
            ctypes.memmove(row + 56, ctypes.byref(ctypes.c_uint64(sample + size)), 8)
            return 0

        row = ROW(fill)
        with loader_of(path, name, FunctionDecoder(row, 64)) as loader, Reader(path, OWN) as reader:
            for rows, ids in loader:
                assert rows.shape == (len(ids), 64) and rows.dtype == np.uint8
                sums = rows[:, 56:].copy().view("<u8")[:, 0]
                for got, sample, total in zip(rows, ids.tolist(), sums.tolist(), strict=True):
                    data = data_of(sample) if name in ("scaled", "text") else b""
                    if name == "array":
                        data = np.full(6, sample, np.int16).tobytes()
                    assert total == sample + len(data) and got[40 : 40 + len(data)].tobytes() == data
                    if name == "label":
                        assert got[:8].view("<i8")[0] == reader[sample]["label"]
                    if name == "plain":
                        assert got[:8].view("<i4").tolist() == [sample, -sample]


def test_shapes_and_types(path):
    fill = ROW(lambda row, record, data, size, sample: ctypes.memmove(row, record, 8) and 0)
    for shape, want in (((), (2,)), (1, (2, 1)), ((2, 0), (2, 2, 0))):
        dtype = "float64" if 0 not in np.atleast_1d(shape) else "int32"
        function = fill if dtype == "float64" else ROW(lambda *a: 0)
        with loader_of(path, "weight", FunctionDecoder(function, shape, dtype)) as loader:
            rows, _ = loader.get_batch([4, 8])
            assert rows.shape == want and rows.dtype == np.dtype(dtype)
            assert rows.size == 0 or rows.reshape(-1).tolist() == [1.0, 2.0]
    for shape in ((1 << 40, 1 << 40), (0, 1 << 62, 1 << 62)):
        with pytest.raises(MemoryError, match="shape"):
            loader_of(path, "weight", FunctionDecoder(fill, shape))
    for dtype in (None, ">i4"):
        with pytest.raises(ValueError, match="byte order"):
            FunctionDecoder(fill, (), dtype)


def test_a_functions_failure_names_the_sample(path):
    fail = ROW(lambda row, record, data, size, sample: -7 if sample == 12 else 0)
    with loader_of(path, "text", FunctionDecoder(fail)) as loader:
        seen = []
        with pytest.raises(BetonError, match="sample 12: field 'text': the function returned -7") as caught:
            seen += [ids.tolist() for _, ids in loader]
        assert caught.value.sample == 12 and caught.value.field == "text"
        assert len(list(loader_of(path, "label", FunctionDecoder(ROW(lambda *a: 0))))) == 5


def test_how_functions_come(path):
    """A number, and objects with an address like numba.cfunc's results."""

    def number(row, record, data, size, sample):
        ctypes.memmove(row, ctypes.byref(ctypes.c_uint64(sample)), 8)
        return 0

    fill = ROW(number)
    address = ctypes.cast(fill, ctypes.c_void_p).value
    for function in (address, types.SimpleNamespace(address=address)):
        with loader_of(path, "label", FunctionDecoder(function, (), np.uint64)) as loader:
            assert loader.get_batch([7, 1])[0].tolist() == [7, 1]


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_machine_code(path, tmp_path):
    (tmp_path / "f.c").write_text(
        "#include <stdint.h>\n"
        "int32_t sum(void *row, const void *record, const void *data, uint64_t size, uint64_t sample) {\n"
        "    int64_t total = 0;\n"
        "    for (uint64_t i = 0; i < size; i++) total += ((const unsigned char *)data)[i];\n"
        "    *(int64_t *)row = total;\n"
        "    return record == 0 || sample > 22;\n"
        "}\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "f.so", tmp_path / "f.c"], check=True)
    library = ctypes.CDLL(str(tmp_path / "f.so"))
    functions = [library.sum]
    try:
        import cffi
    except ImportError:
        pass
    else:
        ffi = cffi.FFI()
        ffi.cdef("int32_t sum(void *, const void *, const void *, uint64_t, uint64_t);")
        functions.append(ffi.dlopen(str(tmp_path / "f.so")).sum)
    for function in functions:
        with loader_of(path, "scaled", FunctionDecoder(function, (), np.int64)) as loader:
            for sums, ids in loader:
                assert sums.tolist() == [sum(data_of(i)) for i in ids.tolist()]


# ---- C functions after a decoder ----

MAP = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64)
SIDE = 6


def row_function(work, count, given, made=None):
    """A C function of `count` elements of type `given`: what `work(row, sample)` gives, in elements of type `made`."""

    def call(to, source, sample):
        row = np.ctypeslib.as_array((ctypes.c_uint8 * (count * np.dtype(given).itemsize)).from_address(source))
        result = np.ascontiguousarray(work(row.view(given), sample), made or given)
        zeros = ctypes.string_at(to, result.nbytes)
        assert zeros == bytes(result.nbytes)
        ctypes.memmove(to, result.ctypes.data, result.nbytes)
        return 0

    return MAP(call)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "x.beton"
    pixels = np.random.default_rng(3).integers(0, 256, (COUNT, SIDE, SIDE, 3), np.uint8)
    fields = {"image": RGBImageField(), "label": IntField(), "array": NDArrayField("float32", (2,))}
    DatasetWriter(path, fields, progress=False).from_arrays(pixels, np.arange(COUNT), np.zeros((COUNT, 2), np.float32))
    return path


def first_epoch(path, pipelines, **options):
    pipelines = {**dict.fromkeys(("image", "label", "array")), **pipelines}
    with Loader(path, 5, 2, pipelines=pipelines, drop_last=False, seed=4, arrays="numpy", **options) as loader:
        return [np.concatenate(parts) for parts in zip(*loader, strict=True)]


@pytest.mark.parametrize("options", [{}, {"resident": True}, {"os_cache": False}, {"order": OrderOption.RANDOM}])
def test_functions_follow_decoder_and_operations(images, options):
    """Functions that keep the shape and that change it, after operations and before others on whole batches."""
    count, flip = SIDE * SIDE * 3, tf.RandomHorizontalFlip()
    negative = row_function(lambda row, sample: 255 - row, count, "u1")
    sums = row_function(lambda row, sample: [row.sum(), sample], count, "u1", "i8")
    last = row_function(lambda row, sample: row / 2, 2, "i8", "f4")
    mean = tf.NormalizeImage(3, 2, np.float32)
    chain = [flip, negative, tf.SampleFunction(sums, 2, np.int64), tf.SampleFunction(last, 2, "float32")]
    views = {"half": [negative, tf.RandomVerticalFlip(), mean, tf.ToTorchImage(False)], "plain": [flip]}
    pipelines = {"image": chain, **{name: PipelineSpec("image", None, steps, draws=0) for name, steps in views.items()}}
    made, ids, half, plain = first_epoch(images, {**pipelines, "label": [IntDecoder()]}, **options)
    ids = ids[:, 0]
    assert made.dtype == np.float32 and sorted(ids) == list(range(COUNT))
    np.testing.assert_array_equal(made, np.stack([(255 - plain.astype(int)).sum((1, 2, 3)), ids], 1) / 2)
    (wanted,) = first_epoch(images, {"image": [tf.RandomVerticalFlip()]}, **options)
    np.testing.assert_array_equal(half, np.moveaxis((252 - wanted.astype(np.float32)) / 2, 3, 1))


def test_functions_work_on_other_fields_and_mixed_images(images):
    number = tf.SampleFunction(row_function(lambda row, sample: row * 10 + sample, 1, "i8"))
    pair = tf.SampleFunction(row_function(lambda row, sample: [sample, 7], 2, "f4"))
    count = SIDE * SIDE * 3
    inverse = row_function(lambda row, sample: 255 - row, count, "u1")
    mix = tf.ImageMixup(1.0, False)
    chains = {"label": [number, lambda batch: batch + 1], "array": [pair], "image": [mix, inverse]}
    image, label, array = first_epoch(images, chains)
    ids = np.arange(COUNT)
    assert label[:, 0].tolist() == (11 * ids + 1).tolist() and array.tolist() == [[i, 7] for i in range(COUNT)]
    (mixed,) = first_epoch(images, {"image": [mix]})
    np.testing.assert_array_equal(image, 255 - mixed)
    with Loader(images, 5, pipelines={"image": [mix, inverse], "label": None, "array": None}) as loader:
        assert "SampleFunction" in loader.explain().split("each sample, in a worker")[1]


def test_a_functions_answer_ends_the_pass_or_leaves_the_sample_out(images):
    fail = MAP(lambda to, source, sample: 3 if sample == 12 else 0)
    alone = {"image": None, "array": None, "label": [tf.SampleFunction(fail)]}
    with Loader(images, 5, 2, pipelines=alone) as loader:
        with pytest.raises(BetonError, match="sample 12: field 'label'.*C function 1 returned 3") as caught:
            list(loader)
        assert caught.value.sample == 12
        loader.on_error = "skip"
        assert [len(batch[0]) for batch in loader] == [5, 5, 4, 5] and loader.stats()["skipped"] == 1


def test_the_core_keeps_functions_alive(images):
    """Its threads may still be calling them when everything else of a loader is gone."""
    step, decoder = tf.SampleFunction(MAP(lambda *a: 0)), FunctionDecoder(ROW(lambda *a: 0))
    with Loader(images, 5, pipelines={"label": [step], "image": [decoder]}) as loader:
        columns = {output.name: output.columns[0] for output in loader.outputs}
        assert columns["label"]["steps"][0]["address"].function is step.function
        assert columns["image"]["function"]["address"].function is decoder.function


def test_functions_that_cannot_work(images):
    plain = MAP(lambda to, source, sample: 0)
    step = tf.SampleFunction(plain)
    for chain in (
        [tf.ToTensor(), step],
        [tf.ToTorchImage(), step],
        [tf.ToDevice("cpu"), step],
        [lambda batch: batch, plain],
    ):
        with pytest.raises(TypeError, match="SampleFunction.* must come before"):
            Loader(images, 5, pipelines={"image": chain})
    with pytest.raises(TypeError, match="SampleFunction.* must come before <function"):
        Loader(images, 5, pipelines={"label": [lambda batch: batch, step]})
    with pytest.raises(TypeError, match="RandomTranslate.* must come before|works on arrays of"):
        next(iter(Loader(images, 5, pipelines={"image": [tf.SampleFunction(plain, 2, "f4"), tf.RandomTranslate(2)]})))
    with pytest.raises((TypeError, ValueError), match="8"):
        Loader(images, 5, pipelines={"label": [step] * 9})
    with pytest.raises(MemoryError, match="shape"):
        Loader(images, 5, pipelines={"label": [tf.SampleFunction(plain, (1 << 40, 1 << 40))]})
    for wrong, error in (((0,), ValueError), (("sin",), TypeError), ((plain, None, "f4"), ValueError)):
        with pytest.raises(error):
            tf.SampleFunction(*wrong)
