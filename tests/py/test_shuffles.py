"""The order that a seed draws, number by number, against Fisher-Yates in Python, with each instruction set."""

import augment_reference as reference
import instruction_sets
import numpy as np
import pytest
from _cgxffcv import loader_shuffled

# Around the sizes of the blocks in which the core draws, and with seeds above 32 bits.
COUNTS = [*range(20), 63, 64, 65, 127, 128, 129, 141, 142, 143, 144, 145, 285, 286, 400]


@pytest.mark.parametrize("seed, epoch", [(0, 0), (0x1234567890, 7), (2**64 - 1, 2**32 - 1)])
def test_against_python(seed, epoch):
    for count in COUNTS:
        want = reference.shuffled(range(count), seed, epoch)
        np.testing.assert_array_equal(loader_shuffled(np.arange(count), seed, epoch), want)


def test_every_instruction_set():
    instruction_sets.pass_on(["scalar", "avx2"], "against_python", __file__)
