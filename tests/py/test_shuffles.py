"""The order that a seed draws, number by number, against Fisher and Yates in Python, on each instruction set."""

import os
import subprocess
import sys

import augment_reference as reference
import numpy as np
import pytest
from _cgxffcv import loader_shuffled

# About the blocks in which the core draws, and above 32 bits of the seed.
COUNTS = [*range(20), 63, 64, 65, 127, 128, 129, 141, 142, 143, 144, 145, 285, 286, 400]


@pytest.mark.parametrize("seed, epoch", [(0, 0), (0x1234567890, 7), (2**64 - 1, 2**32 - 1)])
def test_against_python(seed, epoch):
    for count in COUNTS:
        want = reference.shuffled(range(count), seed, epoch)
        np.testing.assert_array_equal(loader_shuffled(np.arange(count), seed, epoch), want)


def test_every_instruction_set():
    if os.environ.get("CGXFFCV_CPU"):
        pytest.skip("this is one of the processes that the test starts")
    for level in ("scalar", "avx2"):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "against_python", __file__],
            env={**os.environ, "CGXFFCV_CPU": level},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, (level, done.stdout)
