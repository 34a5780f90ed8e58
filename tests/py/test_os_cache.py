"""os_cache=False: samples read into the workers' memory give the same batches, from a file that is larger than the
memory that the process may use."""

import os
import shutil

import _cgxffcv
import numpy as np
import pytest
from checkout import run_python

from cgxffcv import BetonError, DatasetWriter, Loader, OrderOption
from cgxffcv import transforms as tf
from cgxffcv.fields import BytesField, FloatField, IntField, JSONField, NDArrayField, RGBImageField
from cgxffcv.fields.decoders import CenterCropRGBImageDecoder, SimpleRGBImageDecoder
from cgxffcv.loader import PipelineSpec

COUNT, SIDES = 150, (40, 56)


def sample(i):
    rng = np.random.default_rng(i)
    image = rng.integers(0, 256, (*SIDES, 3), np.uint8)
    text = rng.integers(0, 256, rng.integers(0, 9000) * (i % 7 > 0), np.uint8)
    return image, image, i, i / 7, text, {"i": i, "text": "x" * int(rng.integers(0, 50))}, rng.normal(size=(3, 5))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("os_cache") / "all.beton")
    jpeg = "jpg" if _cgxffcv.build_info()["jpeg"] else "raw"
    fields = {
        "raw": RGBImageField(),
        "jpg": RGBImageField(jpeg),
        "n": IntField(),
        "x": FloatField(),
        "bytes": BytesField(),
        "json": JSONField(),
        "array": NDArrayField(np.float64, (3, 5)),
    }
    DatasetWriter(path, fields, page_size=2 << 20, progress=False).from_indexed_dataset(
        [sample(i) for i in range(COUNT)]
    )
    return path


def loader_of(path, order, os_cache, **options):
    views = {
        "crop": PipelineSpec("jpg", CenterCropRGBImageDecoder((20, 20), 0.9)),
        "mixed": PipelineSpec("raw", SimpleRGBImageDecoder(), [tf.ImageMixup(0.5, False)], 5),
    }
    return Loader(path, 16, 3, os_cache, order, pipelines=views, seed=2, drop_last=False, **options)


@pytest.mark.parametrize("order", list(OrderOption))
@pytest.mark.parametrize("options", [{}, {"rank": 1, "world_size": 3}, {"indices": np.arange(COUNT)[::-3]}])
def test_the_same_batches(path, order, options):
    with loader_of(path, order, True, **options) as mapped, loader_of(path, order, False, **options) as read:
        for _epoch in range(2):
            count = 0
            for one, other in zip(mapped, read, strict=True):
                for a, b in zip(one, other, strict=True):
                    assert a == b if isinstance(a, list) else np.array_equal(a, b)
                count += len(one[0])
            assert count > 20
        assert read.stats()["memory_bytes"] < 8 << 20


def test_a_file_that_is_cut_while_it_is_read(path, tmp_path):
    copy = tmp_path / "cut.beton"
    shutil.copyfile(path, copy)
    with loader_of(copy, OrderOption.SEQUENTIAL, False) as loader:
        os.truncate(copy, os.path.getsize(copy) // 2)
        with pytest.raises(BetonError, match="become shorter"):
            list(loader)


DEFAULTS = """
import sys
from cgxffcv import Loader
print(Loader(sys.argv[1], 8).os_cache, Loader(sys.argv[1], 8, os_cache=True).os_cache)
"""


@pytest.mark.parametrize("said, os_cache", [(None, True), ("0", True), ("", True), ("1", False)])
def test_ffcvs_variable_is_the_default(path, monkeypatch, said, os_cache):
    monkeypatch.delenv("FFCV_DEFAULT_CACHE_PROCESS", raising=False)
    variables = {} if said is None else {"FFCV_DEFAULT_CACHE_PROCESS": said}
    assert run_python("-c", DEFAULTS, path, **variables).stdout.split() == [str(os_cache), "True"]


LIMITED = """
import resource, sys
import numpy as np
from cgxffcv import Loader, OrderOption

def now(name):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(name))

path, order, os_cache = sys.argv[1], OrderOption[sys.argv[2]], sys.argv[3] == "True"
with Loader(path, 8, 2, os_cache, order, seed=1, pipelines={"label": None}) as loader:
    room = now("VmSize:") + (96 << 20)  # of it 8 MiB are each thread's stack
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    before, total, most = now("VmRSS:"), 0, 0
    for image, in loader:
        total += int(image[:, 0, 0, 0].astype(int).sum())
        most = max(most, now("VmRSS:") - before)
print(most >> 20, total)
"""


def test_a_file_larger_than_the_process_may_hold(tmp_path):
    """144 MB, while 96 MiB of address space are left, and at most 24 MiB more become resident."""
    path, count = str(tmp_path / "large.beton"), 480
    pixels = np.random.default_rng(0).integers(0, 256, (250, 400, 3), np.uint8)
    fields = {"image": RGBImageField(), "label": IntField()}
    DatasetWriter(path, fields, progress=False).from_indexed_dataset([(pixels, i) for i in range(count)])
    assert os.path.getsize(path) > 140e6

    def run(order, os_cache):
        done = run_python("-c", LIMITED, path, order, os_cache, limit=300, MALLOC_ARENA_MAX=1)
        most, total = map(int, done.stdout.split())
        assert total == count * int(pixels[0, 0, 0])
        return most

    for order in OrderOption:
        assert run(order.name, False) < 24
    assert run("SEQUENTIAL", True) > 100  # mapped, all of it becomes resident while there is room
