"""How much of large batches a loader holds while its consumer is slow: by default one batch ahead, in addition to the
one in use and the next one, and the threads' scratch memory, however large one image of the file is."""

import json
import sys

import pytest
from checkout import ROOT, run_python

BATCH_BYTES = 256 * 224 * 224 * 3 * 2
SCRATCH = 24 << 20  # of two threads, one of which decodes 2000 x 1500 pixels

PROGRAM = """
import json, sys, time
import numpy as np
from cgxffcv import DatasetWriter, transforms as tf
from cgxffcv.fields import RGBImageField
from cgxffcv.fields.decoders import RandomResizedCropRGBImageDecoder
from cgxffcv.loader import Loader

def resident(name):
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(name))

noise = np.random.default_rng(0).integers(0, 256, (64, 48, 48, 3), dtype=np.uint8)
images = [(image,) for image in noise] + [(np.full((1500, 2000, 3), 77, np.uint8),)]
path = sys.argv[1] + "/large.beton"
DatasetWriter(path, {"image": RGBImageField("jpg")}, num_workers=1, progress=False).from_indexed_dataset(images)
del images, noise
steps = [RandomResizedCropRGBImageDecoder((224, 224)), tf.RandomHorizontalFlip()]
steps += [tf.NormalizeImage(120, 60, np.float16)]
indices = np.tile(np.arange(65), 24)
options = json.loads(sys.argv[2])
before, most = resident("RssAnon"), 0
with Loader(path, 256, num_workers=2, indices=indices, pipelines={"image": steps}, arrays="numpy", **options) as loader:
    for (batch,) in loader:
        for _ in range(200):  # until the workers have no room, or nothing left to do
            made = loader.stats()["work_seconds"]
            time.sleep(0.05)
            most = max(most, resident("RssAnon"))
            if loader.stats()["work_seconds"] == made:
                break
    stats = loader.stats()
print(json.dumps({"grown": most - before, "peak": resident("VmHWM"), "stats": stats}))
"""


def measure(folder, **options):
    done = run_python("-c", PROGRAM, folder, json.dumps(options), limit=300, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("options, ahead", [({}, 1), ({"batches_ahead": 2}, 2)])
def test_a_slow_consumer_of_large_batches(tmp_path, options, ahead):
    found = measure(tmp_path, **options)
    stats = found["stats"]
    assert stats["batches"] == 6 and stats["batches_ahead"] == ahead
    assert BATCH_BYTES <= stats["slot_bytes"] < BATCH_BYTES + 65536
    assert found["grown"] < (ahead + 2) * BATCH_BYTES + SCRATCH, found
