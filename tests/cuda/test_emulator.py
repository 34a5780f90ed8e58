"""The emulator itself: kernels with known results, also on a GPU; kernels with known faults, each of them reported."""

import numpy as np
import programs
import pytest

pytestmark = pytest.mark.medium

PROGRAM = programs.EMULATOR / "selftest.cu"
THREADS, BLOCKS, WARP = 256, 5, 32
PRECISIONS = {1: "float32", 2: "bfloat16", 3: "float16"}


@pytest.fixture
def selftest(built):
    program = built(PROGRAM)
    return lambda *arguments, **environment: programs.run(program, *arguments, **environment)


@pytest.fixture
def emulated(built, selftest):
    if not built.emulated:
        pytest.skip("faults are for the emulator; on a GPU: compute-sanitizer")
    return selftest


def numbers(done):
    assert done.returncode == 0, done.stdout + done.stderr
    return np.array([float(line) for line in done.stdout.split()])


@pytest.mark.parametrize("precision", PRECISIONS, ids=PRECISIONS.values())
@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_reductions(selftest, precision, seed):
    """The values are whole numbers below 100: every sum is exact."""
    got = numbers(selftest(f"reductions{precision}", CGXFFCV_EMULATED_SEED=seed)).reshape(BLOCKS, 8)
    blocks = (np.arange(THREADS * BLOCKS) % 100).reshape(BLOCKS, THREADS)
    warp = blocks[:, WARP : 2 * WARP]  # thread 33 reports
    want = [
        blocks.sum(1),
        blocks.max(1),
        blocks.sum(1),
        warp.sum(1),
        warp[:, 2],
        (warp % 2).sum(1),
        blocks[:, -1],
        np.array([1, 10, 100, 1000, 1]),
    ]
    np.testing.assert_array_equal(got, np.stack(want, 1))


@pytest.mark.parametrize("precision", PRECISIONS, ids=PRECISIONS.values())
def test_packs(selftest, precision):
    want = 2 * (np.arange(THREADS * BLOCKS) % 100)
    np.testing.assert_array_equal(numbers(selftest(f"twice{precision}")), want)


def test_warp_transpose(selftest):
    want = (np.arange(THREADS) % 100).reshape(-1, WARP)[:, ::-1].ravel()
    np.testing.assert_array_equal(numbers(selftest("warp_transpose")), want)


def test_last_block_sees_all(selftest):
    np.testing.assert_array_equal(numbers(selftest("last_block")), [THREADS * BLOCKS])


FAULTS = {
    "divergent_barrier": "of 256, 128 wait at __syncthreads, 0 for their warp, 128 have ended",
    "divergent_shuffle": "__shfl_xor_sync: lane 0 asks for the value of lane 16, which takes no part",
    "out_of_bounds": "writes 4 bytes of unknown memory",
    "too_early": "the kernels before may still run: grid_begin comes first",
    "misaligned": "the address is not a multiple of the size",
    "unwritten_shared": "reads 4 bytes of dynamic shared memory (byte 0 of 1024): this block has not written them",
    "unwritten_device": "nothing has been written there",
    "missing_barrier": "shared memory",
    "racing_threads": "since the last barrier",
    "racing_blocks": "another block of the same launch wrote it",
    "beyond_shared": "writes 4 bytes of unknown memory",
    "host_pointer": "a host pointer?",
    "freed": "it is in no live allocation",
    "too_many_threads": "invalid configuration argument",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("seed", ["1", "7"])
def test_fault_is_reported(emulated, fault, seed):
    done = emulated(fault, CGXFFCV_EMULATED_SEED=seed)
    assert done.returncode == 1
    assert FAULTS[fault] in done.stdout
    kernel = {"host_pointer": "unwritten_device", "freed": "racing_blocks", "too_many_threads": "unwritten_device"}
    assert f"kernel {kernel.get(fault, fault)}" in done.stdout


def test_host_access_ends_the_process(emulated):
    assert emulated("host_access").returncode < 0


def test_checks_can_be_switched_off(emulated):
    assert emulated("racing_threads", CGXFFCV_EMULATED_CHECK="memory").returncode == 0
    assert emulated("unwritten_device", CGXFFCV_EMULATED_CHECK="memory").returncode == 1
    assert emulated("unwritten_device", CGXFFCV_EMULATED_CHECK="nothing").returncode == 0
