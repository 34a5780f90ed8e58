"""The rate of oneDNN's float32 matrix product on this machine: what training speed is measured against."""

from __future__ import annotations

import ctypes
import os
import time

import numpy as np

from cgxffcv.errors import UserError

SIZE = 2048


def _library() -> ctypes.CDLL:
    """oneDNN as it is loaded into this process with our extension module."""
    import _cgxffcv  # noqa: F401

    with open("/proc/self/maps") as maps:
        paths = sorted({line.split()[-1] for line in maps if "libdnnl" in line})
    if not paths:
        raise UserError("this build has no oneDNN; see cgxffcv doctor")
    return ctypes.CDLL(paths[0])


def matrix_gflops(seconds: float = 2.0) -> float:
    """The best rate of 2048 x 2048 x 2048 single precision products within `seconds`, in GFLOP/s, on all threads that
    OpenMP takes (OMP_NUM_THREADS, or the cores of this process)."""
    gemm = _library().dnnl_sgemm
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    gemm.argtypes = [ctypes.c_char, ctypes.c_char, size, size, size, ctypes.c_float, pointer, size, pointer, size,
                     ctypes.c_float, pointer, size]  # fmt: skip
    a, b, c = (np.full((SIZE, SIZE), 1e-3, np.float32) for _ in range(3))
    best, deadline = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        begin = time.perf_counter()
        status = gemm(b"N", b"N", SIZE, SIZE, SIZE, 1.0, a.ctypes.data, SIZE, b.ctypes.data, SIZE, 0.0, c.ctypes.data,
                      SIZE)  # fmt: skip
        best = min(best, time.perf_counter() - begin)
        if status != 0:
            raise UserError(f"oneDNN's matrix product failed with status {status}")
    if not np.isclose(c[0, 0], SIZE * 1e-6, rtol=1e-4):
        raise UserError("oneDNN's matrix product gave a wrong result")
    return 2.0 * SIZE**3 / best / 1e9


def threads() -> int:
    """The threads that OpenMP takes by default."""
    return int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0))))
