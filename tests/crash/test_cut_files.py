"""Files that another process cuts while they are read: BetonError, never the end of the process."""

import os
import subprocess
import sys
from pathlib import Path

import _cgxffcv
import numpy as np
import pytest

from cgxffcv import DatasetWriter, Loader
from cgxffcv.fields import IntField

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 15

# Each round reads a fresh file for as long as that goes; a thread cuts it meanwhile, in the middle of a memory page.
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
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", READER, str(tmp_path), how, str(ROUNDS)], capture_output=True,
                          text=True, timeout=120, check=False, env=environ)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "done\n"), (done.returncode, done.stderr[-2000:])


def test_a_batch_of_a_file_that_lost_its_last_byte_is_refused(tmp_path):
    """No memory page is missing, so no signal comes: the length alone tells."""
    path = str(tmp_path / "x.beton")
    writer = DatasetWriter(path, {"value": IntField()}, num_workers=1)
    writer.from_arrays(np.arange(64))
    with Loader(path, 16, num_workers=1) as loader:
        assert [batch[0].reshape(-1).tolist() for batch in loader][0] == list(range(16))
        os.truncate(path, os.path.getsize(path) - 1)
        with pytest.raises(_cgxffcv.BetonError, match="x.beton.*shorter since it was opened"):
            list(loader)
