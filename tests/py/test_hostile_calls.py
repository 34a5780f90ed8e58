"""Every callable of the C core, found by inspecting the module, under hostile calls: wrong types, huge and negative
numbers, containers that change while they are read, objects that are closed or called again meanwhile, or used by
several threads at once. Each call ends in a plain exception: never in a crash, a hang, or SystemError."""

import _cgxffcv
import hostile_calls
import pytest
from checkout import run_python


@pytest.mark.parametrize("group", hostile_calls.GROUPS)
def test_hostile_calls_end_in_plain_exceptions(tmp_path, group):
    options = {"status": None, "limit": 500, "cwd": tmp_path, "OMP_NUM_THREADS": 1}
    done = run_python(hostile_calls.__file__, group, **options)
    last = (tmp_path / "call").read_text(errors="replace") if (tmp_path / "call").exists() else ""
    assert done.returncode == 0, f"rc {done.returncode} in {last}\n{done.stdout[-4000:]}\n{done.stderr[-6000:]}"


# Arrays of operations that lose every other reference: they turn pixels of 0 into 9, whatever is read afterwards. They
# are large, so that freed memory is unmapped.
BORROWED = """
import array, gc, sys
import numpy as np, _cgxffcv
from hostile_templates import IMAGE, PREPARE
from cgxffcv import DatasetWriter
from cgxffcv.fields import RGBImageField
from cgxffcv.pipeline.compile import core_column

how, side, rows = sys.argv[1], 300, array.array("q", range(4))
DatasetWriter("big.beton", {"image": RGBImageField()}, num_workers=1, durable=False, progress=False).from_arrays(
    np.zeros((4, side, side, 3), np.uint8))

def poison():
    mask, alpha = np.full((side, side, 3), 9, np.float32), np.ones((side, side), np.float32)
    return {"operation": "Poison", "values": (mask, alpha, rows, (0.0, 255.0)), "normalized": False, "draws": 0}

class Evil:
    def __bool__(self):
        forget()
        return False

def forget():
    for holder in holders:
        holder.clear()
    gc.collect()
    return [np.full((side, side, 3), 77, np.float32) for _ in range(8)]

def loader():
    image = {**IMAGE, "operations": [poison()], "normalize": None, "type": "uint8", "layout": "hwc"}
    outputs = [core_column("image", "image", image=image)]
    holders[:] = [image["operations"], image, *outputs, outputs]
    if how == "while they are parsed":
        outputs.append(core_column("image", "image", image={**image, "operations": []}) | {"fast_jpeg": Evil()})
    made = _cgxffcv.Loader("big.beton")
    made.prepare(outputs, np.arange(4), **{**PREPARE, "batch_size": 4})
    if how == "afterwards":
        junk = forget()
    if how == "by growing":
        try:
            rows.extend(range(10**6))
        except BufferError:
            pass
    made.begin(0, 0, False, False, None)
    return made.next()[0][0]

def batch():
    operations = [poison()]
    holders[:] = [operations[0], operations]
    operations.append({"operation": "RandomHorizontalFlip", "values": (0.5,), "normalized": Evil(), "draws": 0})
    pixels = np.zeros((4, side, side, 3), np.uint8)
    return _cgxffcv.augment_images(pixels, np.arange(4), operations, 0, 0, 0, True)

holders = []
pixels = batch() if how == "of a batch" else loader()
assert pixels.shape == (4, side, side, 3) and (pixels == 9).all(), (pixels.min(), pixels.max())
"""


@pytest.mark.parametrize("how", ["while they are parsed", "afterwards", "by growing", "of a batch"])
def test_operations_hold_the_arrays_that_they_read(tmp_path, how):
    run_python("-c", BORROWED, how, cwd=tmp_path)


# A thread writes wrong numbers into the array while it is read: everything that is used has been checked. Pixels of
# resident images are found by the number alone.
WRITTEN_MEANWHILE = """
import sys, threading
import numpy as np, _cgxffcv
from hostile_templates import IMAGE, PREPARE
from cgxffcv import DatasetWriter
from cgxffcv.fields import RGBImageField
from cgxffcv.pipeline.compile import core_column

images = np.zeros((6, 16, 16, 3), np.uint8)
DatasetWriter("jpg.beton", {"image": RGBImageField("jpg")}, num_workers=1, durable=False).from_arrays(images)
ids, refused = np.zeros(20_000 if sys.argv[1] == "indices" else 200_000, np.int64), 0
last = len(ids) // PREPARE["batch_size"] - 1

def write():
    while True:
        ids[-1] = 2**40
        ids[-1] = 0

def take():
    loader = _cgxffcv.Loader("jpg.beton")
    indices = ids if sys.argv[1] == "indices" else np.arange(6)
    outputs = [core_column("image", "image", image={**IMAGE, "operations": []})]
    loader.prepare(outputs, indices, **{**PREPARE, "resident": True, "order": "sequential"})
    if sys.argv[1] == "gather":
        loader.gather(ids[-5000:], 0, True)
    else:
        loader.begin(0, last, False, True, ids if sys.argv[1] == "order" else None)
        loader.next()

threading.Thread(target=write, daemon=True).start()
for _ in range(12 if sys.argv[1] == "indices" else 60):
    try:
        take()
    except IndexError as error:
        assert "but the file has" in str(error), error
        refused += 1
print(refused)
"""


@pytest.mark.skipif(not _cgxffcv.build_info()["jpeg"], reason="this build has no libjpeg-turbo")
@pytest.mark.parametrize("what", ["order", "indices", "gather"])
def test_sample_numbers_that_change_while_they_are_taken(tmp_path, what):
    run_python("-c", WRITTEN_MEANWHILE, what, limit=200, cwd=tmp_path)
