"""Files that another process truncates while they are read: BetonError, never the end of the process."""

import os

import _cgxffcv
import numpy as np
import pytest
from checkout import run_python

from cgxffcv import DatasetWriter, Loader
from cgxffcv.fields import IntField

ROUNDS = 15

# Each round reads a new file for as long as possible; meanwhile a thread truncates it, in the middle of a memory page.
READER = """
import random, sys, threading, time
import numpy as np, _cgxffcv
from cgxffcv import DatasetWriter, Loader, Reader, beton
from cgxffcv.fields import IntField, NDArrayField, RGBImageField

folder, how, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
images = np.ones((400, 96, 96, 3), np.uint8)
rng, path = random.Random(5), folder + "/x.beton"

def read_on():
    if how == "loader":
        with Loader(path, 16, num_workers=2) as loader:
            while True:
                for image, label in loader:
                    assert image.min() == 1, "zeros were handed out"
    elif how == "reader":
        with Reader(path) as file:
            while True:
                for i in range(400):
                    assert file[i]["image"].min() == 1, "zeros were handed out"
    elif how == "open":
        while True:
            Reader(path).close()
    else:
        while not beton.verify(path, num_workers=2).problems:
            pass

for _ in range(rounds):
    fields = {"image": RGBImageField(), "label": IntField()}
    DatasetWriter(path, fields, num_workers=1, durable=False).from_arrays(images, np.arange(400))
    def cut():
        time.sleep(rng.uniform(0.001, 0.03))
        with open(path, "r+b") as file:
            file.truncate(rng.randrange(1, 11_000_000))
    thread = threading.Thread(target=cut)
    thread.start()
    try:
        read_on()
    except _cgxffcv.BetonError as error:
        assert "x.beton" in str(error), error
    thread.join()
print("done")
"""


@pytest.mark.parametrize("how", ["loader", "reader", "open", "verify"])
def test_a_file_cut_while_it_is_read(tmp_path, how):
    assert run_python("-c", READER, tmp_path, how, ROUNDS).stdout == "done\n"


def test_a_batch_of_a_file_that_lost_its_last_byte_is_refused(tmp_path):
    """No memory page is missing, so no signal comes: only the length shows it."""
    path = str(tmp_path / "x.beton")
    writer = DatasetWriter(path, {"value": IntField()}, num_workers=1)
    writer.from_arrays(np.arange(64))
    with Loader(path, 16, num_workers=1) as loader:
        assert [batch[0].reshape(-1).tolist() for batch in loader][0] == list(range(16))
        os.truncate(path, os.path.getsize(path) - 1)
        with pytest.raises(_cgxffcv.BetonError, match="x.beton.*shorter since it was opened"):
            list(loader)


# A file with all kinds of fields is opened and then truncated; each way of reading is tried in a separate process, so
# that a signal is noticed. Facts about the whole file may still be returned, but no byte of its data.
ACCESSORS = """
import os, sys
import numpy as np, _cgxffcv
from cgxffcv import DatasetWriter
from cgxffcv.fields import (BytesField, Field, FloatField, IntField, JSONField, NDArrayField, RGBImageField,
                            TorchTensorField)
from cgxffcv.reader import Reader

class Half(Field):
    metadata_type = np.dtype([("ptr", "<u8"), ("size", "<u8")])
    def encode(self, destination, value, malloc):
        destination["ptr"], data = malloc(len(value))
        destination["size"], data[:] = len(value), value

folder, cut = sys.argv[1], int(sys.argv[2])
path = folder + "/x.beton"
fields = {"n": IntField(), "x": FloatField(), "raw": RGBImageField(), "jpg": RGBImageField("jpg"), "b": BytesField(),
          "j": JSONField(), "a": NDArrayField("int32", (300,)), "t": TorchTensorField("float32", (9,)), "own": Half()}
image = np.full((40, 30, 3), 7, np.uint8)
jpeg = bool(_cgxffcv.build_info()["jpeg"])
sample = (1, 2.0, image, image, b"abc" * 900, {"k": [1, 2]}, np.ones(300, np.int32), np.ones(9, np.float32),
          np.ones(50, np.uint8))
if not jpeg:
    fields.pop("jpg")
    sample = sample[:3] + sample[4:]
names = list(fields)

TOLD = {"num_samples", "page_size", "data_span", "has_checksums", "fields"}
calls = {f"file.{name}": lambda reader, name=name: getattr(reader._file, name) for name in sorted(TOLD)}
told = set(calls)
for i, name in enumerate(names):
    for view in (False, True):
        calls[f"file.value {name} {view}"] = lambda reader, i=i, view=view: reader._file.value(i, 2, view=view)
    calls[f"value {name}"] = lambda reader, name=name: reader.value(2, name)
for name in ("raw", "jpg")[: 1 + jpeg]:
    calls[f"stored {name}"] = lambda reader, name=name: reader.stored_image(2, name)
calls["column n"] = lambda reader: reader.column("n")
calls["column x"] = lambda reader: reader.column("x")
calls["sample_span"] = lambda reader: reader.sample_span(2)
calls["[]"] = lambda reader: reader[2]
calls["iter"] = lambda reader: list(reader)
calls["verify"] = lambda reader: reader._file.verify(0, 3, threads=2, decode_jpeg=True, max_problems=9)
public = {name for name in dir(_cgxffcv.BetonFile) if not name.startswith("_")}
assert public == TOLD | {"value", "stored_image", "column", "sample_span", "verify"}, public

def child(name):
    reader = Reader(path, {"own": Half})
    os.truncate(path, cut)
    try:
        calls[name](reader)
    except _cgxffcv.BetonError as error:
        assert "shorter" in str(error) and path in str(error), error
    else:
        assert name in told, "bytes of a file that has lost them"

for name in calls:
    DatasetWriter(path, fields, num_workers=1, durable=False, progress=False).from_iterable([sample] * 3)
    process = os.fork()
    if process == 0:
        try:
            child(name)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code == 0, (name, code)
print("done")
"""


@pytest.mark.parametrize("cut", [0, 100, 4096, 3 * 4096 + 1])
def test_a_file_cut_between_opening_and_asking(tmp_path, cut):
    assert run_python("-c", ACCESSORS, tmp_path, cut).stdout == "done\n"
