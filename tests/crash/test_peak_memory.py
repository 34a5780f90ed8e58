"""What small hostile files may cost: each is read in a process of its own, whose peak of resident memory is looked at.

The bounds are those of SECURITY.md: 12 bytes for each pixel that the limit of pixels allows (3 of the image, and what
libjpeg-turbo keeps of a progressive one), and 64 MiB besides.
"""

import os
import subprocess
import sys
from pathlib import Path

import _cgxffcv
import pytest

ROOT = Path(__file__).resolve().parents[2]
PIXELS = 16_000_000  # the limit of pixels here
MIB = 1 << 20

PROGRAM = """
import struct, sys
from pathlib import Path
import numpy as np, _cgxffcv
sys.path.insert(0, "tests/py")
import tiny_beton
from cgxffcv import DatasetWriter, Loader, Reader, beton, checkpoint, cifar, config, errors
from cgxffcv.fields import RGBImageField

path, how, side, progressive = sys.argv[1] + "/x", sys.argv[2], int(sys.argv[3]), sys.argv[4] == "True"

def segment(marker, body):
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body

def stream():
    '''Says side x side pixels of three components, and holds next to none of them.'''
    code = bytes([1] + [0] * 15) + b"\\0"
    data = b"\\xff\\xd8" + segment(0xDB, b"\\0" + bytes([1] * 64))
    components = b"".join(bytes([i, 0x11, 0]) for i in (1, 2, 3))
    data += segment(0xC2 if progressive else 0xC0, struct.pack(">BHHB", 8, side, side, 3) + components)
    data += segment(0xC4, b"\\0" + code) + segment(0xC4, b"\\x10" + code)
    last = 0 if progressive else 63
    return data + segment(0xDA, b"\\x03\\x01\\0\\x02\\0\\x03\\0\\0" + bytes([last, 0])) + b"\\x3f\\xff\\xd9"

def beton_file():
    tiny_beton.write(path, {"image": ("image", [stream()])}, sides=(side, side))

def load():
    with Loader(path, 1, num_workers=1) as loader:
        list(loader)

def header(text, body=b""):
    return struct.pack("<Q", len(text)) + text + body

def deep_pickle():
    return b"\\x80\\x04" + b"]" * 100_000 + b"."

def write():
    DatasetWriter(path + ".out", {"image": RGBImageField(max_resolution=64)}, num_workers=1).from_iterable([(stream(),)])

CASES = {
    "decode": lambda: _cgxffcv.jpeg_decode(stream()),
    "reader": lambda: Reader(path)[0],
    "loader": load,
    "verify": lambda: beton.verify(path, num_workers=1),
    "writer": write,
    "samples": lambda: Reader(path),
    "checkpoint": lambda: checkpoint.load(path),
    "read_header": lambda: checkpoint.read_header(path),
    "yaml": lambda: config.load(["--config-file", path], environ={}),
    "pickle": lambda: cifar.from_python(deep_pickle(), "data_batch_1", "x", lambda text: None),
}
if how in ("reader", "loader", "verify"):
    beton_file()
elif how == "samples":  # a header that says 2**40 samples of 65535 fields
    Path(path).write_bytes(struct.pack("<HHIQQ", 2, 65535, 4096, 1 << 40, 1 << 50) + bytes(70_000))
elif how in ("checkpoint", "read_header"):
    Path(path).write_bytes(header(b'{"w":{"dtype":"F64","shape":[1099511627776],"data_offsets":[0,8796093022208]}}'))
elif how == "yaml":
    Path(path).write_text("a: &a [x, x]\\n" + "".join(f"b{i}: &b{i} [*{'a' if i == 0 else f'b{i-1}'}, "
                          f"*{'a' if i == 0 else f'b{i-1}'}]\\n" for i in range(40)))

def resident():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024

before = resident()
try:
    CASES[how]()
    print("given")
except (ValueError, MemoryError, errors.UserError):
    print("refused")
print(resident() - before)
"""


def cost(tmp_path, how, side=64, progressive=False):
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
               "CGXFFCV_MAX_IMAGE_PIXELS": str(PIXELS)}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path), how, str(side), str(progressive)], cwd=ROOT,
                          capture_output=True, text=True, timeout=120, check=False, env=environ)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[1])


needs_jpeg = pytest.mark.skipif(not _cgxffcv.build_info()["jpeg"], reason="this build has no libjpeg-turbo")
no_sanitizer = pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer keeps memory")
DECODERS = ["decode", "reader", "loader", "verify", "writer"]


@needs_jpeg
@no_sanitizer
@pytest.mark.parametrize("how", DECODERS)
def test_a_stream_beyond_the_limit_costs_nothing(tmp_path, how):
    assert cost(tmp_path, how, side=40_000) < 64 * MIB


@needs_jpeg
@no_sanitizer
@pytest.mark.parametrize("how", DECODERS)
@pytest.mark.parametrize("progressive", [False, True])
def test_a_stream_at_the_limit(tmp_path, how, progressive):
    assert cost(tmp_path, how, 4000, progressive) < 12 * PIXELS + 64 * MIB


@no_sanitizer
@pytest.mark.parametrize("how", ["samples", "checkpoint", "read_header", "yaml", "pickle"])
def test_sizes_that_are_only_said(tmp_path, how):
    assert cost(tmp_path, how) < 64 * MIB
