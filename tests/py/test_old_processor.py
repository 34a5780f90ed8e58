"""A processor without AVX2, emulated by qemu: everything loads, and gives the same bytes as on this one."""

import shutil
import sys

import pytest
from checkout import run_command
from loader_data import write_plain

CODE = """
import hashlib, json, sys
import _cgxffcv, numpy as np
from cgxffcv.fields.decoders import SimpleRGBImageDecoder
from cgxffcv.loader import Loader, OrderOption
from cgxffcv.transforms import Convert, Cutout, RandomHorizontalFlip, RandomTranslate, ToTorchImage
moves = [RandomHorizontalFlip(), RandomTranslate(2), Cutout(4)]
steps = [SimpleRGBImageDecoder(), *moves, ToTorchImage(), Convert(np.float16)]
digest = hashlib.sha256()
ways = {"order": OrderOption.RANDOM, "seed": 3, "num_workers": 1, "pipelines": {"image": steps}}
for images, labels in Loader(sys.argv[1], 20, **ways):
    digest.update(images.tobytes() + labels.tobytes())
print(json.dumps([_cgxffcv.build_info()["cpu"]["avx2"], digest.hexdigest()]))
"""


@pytest.mark.medium
def test_the_same_bytes_without_avx2(tmp_path):
    qemu = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
    if qemu is None:
        pytest.skip("needs qemu: apt install qemu-user-static")
    path = str(write_plain(tmp_path))

    def told(*before):
        return run_command(*before, sys.executable, "-c", CODE, path, limit=500).stdout.strip()

    plain, old = told(), told(qemu, "-cpu", "Nehalem")
    assert old.startswith("[false, ") and old.split()[1] == plain.split()[1]
