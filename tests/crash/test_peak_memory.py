"""What small hostile files may cost: each is read in a separate process, whose peak resident memory is checked.

The bounds are those of SECURITY.md: 12 bytes for each pixel that the limit of pixels allows (3 of the image, and what
libjpeg-turbo keeps of a progressive one), plus 64 MiB.
"""

import os

import _cgxffcv
import pytest
from checkout import ROOT, run_python

PIXELS = 16_000_000  # the limit of pixels here
MIB = 1 << 20

PROGRAM = """
import struct, sys
from pathlib import Path
import numpy as np, _cgxffcv
import tiny_beton
from cgxffcv import DatasetWriter, Loader, Reader, beton, checkpoint, cifar, errors
from cgxffcv.app import config
from cgxffcv.fields import RGBImageField

path, given, how, side = sys.argv[1] + "/x", Path(sys.argv[1] + "/stream"), sys.argv[2], int(sys.argv[3])

def segment(marker, body):
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body

def stream():
    '''The one that the test made; or one that says side x side pixels, and holds next to none of them.'''
    if given.exists():
        return given.read_bytes()
    code = bytes([1] + [0] * 15) + b"\\0"
    data = b"\\xff\\xd8" + segment(0xDB, b"\\0" + bytes([1] * 64))
    components = b"".join(bytes([i, 0x11, 0]) for i in (1, 2, 3))
    data += segment(0xC0, struct.pack(">BHHB", 8, side, side, 3) + components)
    data += segment(0xC4, b"\\0" + code) + segment(0xC4, b"\\x10" + code)
    return data + segment(0xDA, b"\\x03\\x01\\0\\x02\\0\\x03\\0\\0" + b"\\x3f\\0") + b"\\x3f\\xff\\xd9"

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
    fields = {"image": RGBImageField(max_resolution=64)}
    DatasetWriter(path + ".out", fields, num_workers=1).from_iterable([(stream(),)])

CASES = {
    "decode": lambda: _cgxffcv.jpeg_decode(stream()),
    "reader": lambda: Reader(path)[0],
    "loader": load,
    "verify": lambda: beton.verify(path, num_workers=1),
    "writer": write,
    "samples": lambda: Reader(path),
    "checkpoint": lambda: checkpoint.load(path),
    "yaml": lambda: config.load(["--config-file", path], environ={}),
    "pickle": lambda: cifar.from_python(deep_pickle(), "data_batch_1", "x", lambda text: None),
}
if how in ("reader", "loader", "verify"):
    beton_file()
elif how == "samples":  # a header that says 2**40 samples of 65535 fields
    Path(path).write_bytes(struct.pack("<HHIQQ", 2, 65535, 4096, 1 << 40, 1 << 50) + bytes(70_000))
elif how == "checkpoint":
    Path(path).write_bytes(header(b'{"w":{"dtype":"F64","shape":[1099511627776],"data_offsets":[0,8796093022208]}}'))
elif how == "yaml":
    Path(path).write_text("a: &a [x, x]\\n" + "".join(f"b{i}: &b{i} [*{'a' if i == 0 else f'b{i-1}'}, "
                          f"*{'a' if i == 0 else f'b{i-1}'}]\\n" for i in range(40)))

def peaks():
    '''Of resident memory, and of all that was asked for.'''
    text = open("/proc/self/status").read()
    return [int(text.split(f"{name}:")[1].split()[0]) * 1024 for name in ("VmHWM", "VmPeak")]

before = peaks()
try:
    CASES[how]()
    print("given", end=" ")
except (ValueError, MemoryError, errors.UserError):
    print("refused", end=" ")
print(*(after - start for after, start in zip(peaks(), before)))
"""


def cost(tmp_path, how, side=64):
    """("given" or "refused", resident bytes, bytes asked for)."""
    done = run_python("-c", PROGRAM, tmp_path, how, side, cwd=ROOT, CGXFFCV_MAX_IMAGE_PIXELS=PIXELS)
    result, *sizes = done.stdout.split()
    return result, *map(int, sizes)


needs_jpeg = pytest.mark.skipif(not _cgxffcv.build_info()["jpeg"], reason="this build has no libjpeg-turbo")
no_sanitizer = pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer keeps memory")
DECODERS = ["decode", "reader", "loader", "verify", "writer"]


@needs_jpeg
@no_sanitizer
@pytest.mark.parametrize("how", DECODERS)
def test_a_stream_beyond_the_limit_costs_nothing(tmp_path, how):
    """Its pixels alone would take 4.8 GB."""
    result, resident, asked = cost(tmp_path, how, side=40_000)
    assert result == ("given" if how == "verify" else "refused")  # a report
    assert resident < 64 * MIB and asked < 1024 * MIB


@needs_jpeg
@no_sanitizer
@pytest.mark.parametrize("how", DECODERS)
@pytest.mark.parametrize("progressive", [False, True])
def test_a_stream_at_the_limit(tmp_path, how, progressive):
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (4000, 4000)).save(tmp_path / "stream", "JPEG", quality=10, progressive=progressive)
    assert (tmp_path / "stream").stat().st_size < MIB
    result, resident, _ = cost(tmp_path, how, 4000)
    assert result == "given" and 3 * PIXELS / 2 < resident < 12 * PIXELS + 64 * MIB


@no_sanitizer
@pytest.mark.parametrize("how", ["samples", "checkpoint", "yaml", "pickle"])
def test_sizes_that_are_only_said(tmp_path, how):
    _, resident, asked = cost(tmp_path, how)
    assert resident < 64 * MIB and asked < 1024 * MIB
