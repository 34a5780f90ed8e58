"""Each system call that concerns a file fails once, one after the other: writing leaves the old file or the new one,
whole, and nothing else; reading gives the data or an OSError that names the file. shim.c makes them fail."""

import pytest
from shim import Shim

COMMON = """
import ctypes, errno, itertools, os, sys, warnings
from pathlib import Path
import numpy as np
from cgxffcv import DatasetWriter, Loader, Reader, beton, checkpoint, files
from cgxffcv.app import config, config_file
from cgxffcv.errors import ConfigError
from cgxffcv.fields import BytesField, IntField, RGBImageField

shim = ctypes.CDLL(None)
folder, how = Path(sys.argv[1]), sys.argv[2]
path = folder / "x"
ERRORS = [errno.EIO, errno.ENOSPC, errno.EINTR, errno.ENOMEM]

def fail_each(action):
    '''(error number, call, exception or None, result) for each call of `action` and each error number.'''
    for error in ERRORS:
        for nth in itertools.count(1):
            prepare()
            name, failure, result = ctypes.c_char_p(), None, None
            shim.shim_arm(os.fsencode(folder), nth, error)
            try:
                result = action()
            except Exception as caught:
                failure = caught
            finally:
                count = shim.shim_disarm(ctypes.byref(name))
            if count < nth:  # there are no more calls, so none has failed
                break
            yield error, name.value.decode(), failure, result

def check_error(failure, error, name):
    what = f"{name} with {errno.errorcode[error]}: {failure!r}"
    assert isinstance(failure, OSError), what
    assert failure.errno == error and str(failure.filename) == str(path), what

seen = []
"""

WRITING = """
def rows(count):
    return [(b"abc" * 100, i) for i in range(count)]

def write_beton(count=5, **options):
    options = {"num_workers": 1} | options
    DatasetWriter(path, {"b": BytesField(), "n": IntField()}, **options).from_indexed_dataset(rows(count))

def write_moved():
    '''More samples than were said: the data moves into a second file.'''
    DatasetWriter(path, {"b": BytesField(), "n": IntField()}, num_workers=1, page_size=4096,
                  allow_small_pages=True).from_iterable(iter(rows(100)))

part = folder.parent / "part.beton"
DatasetWriter(part, {"n": IntField()}, num_workers=1).from_arrays(np.arange(4))
WRITERS = {
    "beton": write_beton,
    "threads": lambda: write_beton(num_workers=2, worker_kind="thread", checksums=True),
    "not durable": lambda: write_beton(durable=False),
    "moved": write_moved,
    "merge": lambda: beton.merge(path, [part, part]),
    "checkpoint": lambda: checkpoint.save(path, {"x": np.ones(1000), "y": np.zeros((0, 2)), "step": 1}),
    "config": lambda: config.save(config.load([], environ={}), path),
    "text": lambda: files.write(path, "text", durable=False),
}
write, old = WRITERS[how], b"the old file"
warnings.simplefilter("ignore")  # a folder that could not be synced
write()
new = path.read_bytes()

def prepare():
    path.write_bytes(old)

for error, name, failure, _ in fail_each(write):
    there = path.read_bytes()
    seen.append(name)
    assert [one.name for one in folder.iterdir()] == ["x"], (name, error, list(folder.iterdir()))
    if failure is None:
        assert there == new, (name, error, "no error, and not the new file")
        continue
    assert there == old, (name, error, failure, "an error, and not the old file")
    check_error(failure, error, name)
    retried = name in ("pwrite", "pread", "ftruncate", "fsync file", "fsync folder")
    assert error != errno.EINTR or not retried, (name, "was interrupted and not tried again")
print(*sorted(set(seen)))
"""

READING = """
def images():
    with Loader(path, 2, num_workers=1) as loader:
        return [np.array(array).tolist() for batch in loader for array in batch]

def values():
    with Reader(path) as reader:
        return [(sample["label"], sample["image"].tolist()) for sample in reader]

def one_config():
    problems = []
    values = config_file.read(path, problems)
    return problems or values

def make_beton():
    fields = {"image": RGBImageField(), "label": IntField()}
    images = np.ones((4, 8, 8, 3), np.uint8)
    DatasetWriter(path, fields, num_workers=1, checksums=True).from_arrays(images, np.arange(4))

READERS = {
    "reader": (make_beton, values),
    "loader": (make_beton, images),
    "verify": (make_beton, lambda: str(beton.verify(path, num_workers=1).ok)),
    "info": (make_beton, lambda: len(Reader(path).fields)),
    "checkpoint": (lambda: checkpoint.save(path, {"x": np.ones(9), "step": 1}), lambda: str(checkpoint.load(path))),
    "config": (lambda: path.write_text("training:\\n  lr: 0.5\\n"), one_config),
}
make, read = READERS[how]
make()
wanted = read()

def prepare():
    pass

for error, name, failure, result in fail_each(read):
    seen.append(name)
    if failure is not None:
        check_error(failure, error, name)
    elif how == "config" and result != wanted:
        assert len(result) == 1 and str(path) in result[0] and os.strerror(error) in result[0], (name, result)
    else:
        assert result == wanted, (name, error, result)
print(*sorted(set(seen)))
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    return Shim(tmp_path_factory.mktemp("shim"))


def run(shim, tmp_path, program, how, expected):
    folder = tmp_path / "folder"
    folder.mkdir()
    done, _ = shim.run(COMMON + program, folder, how)
    assert done.returncode == 0, done.stderr
    assert set(expected) <= set(done.stdout.split()), f"only these calls were seen to fail: {done.stdout}"


@pytest.mark.parametrize("how", ["beton", "threads", "not durable", "moved", "merge", "checkpoint", "config", "text"])
def test_writing(shim, tmp_path, how):
    run(shim, tmp_path, WRITING, how, ["open", "openat", "pwrite", "rename", "close"])


@pytest.mark.parametrize("how", ["reader", "loader", "verify", "info", "checkpoint", "config"])
def test_reading(shim, tmp_path, how):
    run(shim, tmp_path, READING, how, ["open"])
