"""A warp's matrix products and asynchronous copies: exact results, in the emulator and on a GPU."""

import numpy as np
import programs
import pytest

pytestmark = pytest.mark.medium

PROGRAM = programs.EMULATOR / "mma_selftest.cu"


def numbers(done):
    assert done.returncode == 0, done.stdout + done.stderr
    return np.array([float(line) for line in done.stdout.split()])


@pytest.mark.parametrize("layout", ["", "_transposed"])
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_product(built, precision, layout):
    """Products of small whole numbers: nothing is rounded."""
    row, column = np.mgrid[:16, :24]
    left, right = ((u * row + v * column + row * column) % 7 - 3 for u, v in ((3, 5), (2, 3)))
    done = programs.run(built(PROGRAM), precision + layout)
    np.testing.assert_array_equal(numbers(done).reshape(16, 16), left @ right.T)


def test_copies_and_cleared_ones(built):
    want = np.arange(1, 129).reshape(32, 4)
    want[1::3] = 0
    np.testing.assert_array_equal(numbers(programs.run(built(PROGRAM), "cleared")).reshape(32, 4), want)


def test_a_copy_that_nobody_waited_for_is_not_there(built):
    if not built.emulated:
        pytest.skip("on a GPU it may be")
    done = programs.run(built(PROGRAM), "too_early")
    assert done.returncode != 0 and "read" in done.stdout + done.stderr
