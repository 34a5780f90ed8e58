"""The rate of the vendor's matrix product on this machine: what training speed is measured against.

On the CPU oneDNN's, in float32; on a GPU cuBLAS's, of float16 matrices with float32 sums.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import time
from typing import Any

import numpy as np

from cgxffcv.bench import processes
from cgxffcv.errors import UserError

SIZE = 2048
GPU_SIZE = 8192
LIMIT_SECONDS = 120.0
NAMES = {"cpu": "oneDNN's matrix product in float32", "gpu": "cuBLAS's matrix product in float16"}
# of library_types.h and cublas_api.h
REAL_16F, COMPUTE_32F, NOT_TRANSPOSED, TRANSPOSED, DEFAULT_ALGORITHM = 2, 68, 0, 1, -1
TO_DEVICE = 1


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


class _Cuda:
    """The CUDA runtime and cuBLAS through their C APIs; every call is checked."""

    def __init__(self):
        import _cgxffcv  # noqa: F401  # brings its own libraries, wherever they lie

        self.runtime, self.blas = self._open("libcudart"), self._open("libcublas")

    @staticmethod
    def _open(name: str) -> ctypes.CDLL:
        """The library that is loaded already, or the first that is found."""
        with open("/proc/self/maps") as maps:
            loaded = sorted({line.split()[-1] for line in maps if f"/{name}.so" in line})
        for path in (*loaded, f"{name}.so.13", f"{name}.so.12", f"/usr/local/cuda/lib64/{name}.so"):
            try:
                return ctypes.CDLL(path)
            except OSError:
                continue
        raise UserError(f"{name} is not installed, so the GPU's matrix rate cannot be measured")

    def __call__(self, function: str, *arguments: Any) -> None:
        library = self.blas if function.startswith("cublas") else self.runtime
        status = getattr(library, function)(*arguments)
        if status != 0:
            raise UserError(f"the GPU's matrix rate cannot be measured: {function} failed with status {status}")

    def buffer(self, count: int) -> ctypes.c_void_p:
        pointer = ctypes.c_void_p()
        self("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(count))
        return pointer

    def matrix(self, seed: int) -> ctypes.c_void_p:
        """A square of float16 in device memory, normally distributed: the power that numbers take sets the clock."""
        values = np.random.default_rng(seed).standard_normal(GPU_SIZE * GPU_SIZE // 64).astype(np.float16)
        pointer = self.buffer(GPU_SIZE * GPU_SIZE * 2)
        for part in range(64):
            at = ctypes.c_void_p(pointer.value + part * values.nbytes)
            rolled = np.roll(values, part)
            self("cudaMemcpy", at, ctypes.c_void_p(rolled.ctypes.data), ctypes.c_size_t(rolled.nbytes), TO_DEVICE)
        return pointer

    def product(self, handle: ctypes.c_void_p, a: Any, b: Any, c: Any) -> None:
        one, zero = ctypes.c_float(1 / GPU_SIZE), ctypes.c_float(0)
        n, half = GPU_SIZE, REAL_16F
        self("cublasGemmEx", handle, TRANSPOSED, NOT_TRANSPOSED, n, n, n, ctypes.byref(one), a, half, n, b, half, n,
             ctypes.byref(zero), c, half, n, COMPUTE_32F, DEFAULT_ALGORITHM)  # fmt: skip


def gpu_matrix_gflops(seconds: float = 1.0) -> float:
    """The best rate of 8192 x 8192 x 8192 half precision products within `seconds`, in GFLOP/s, on the first GPU that
    CUDA_VISIBLE_DEVICES leaves; UserError without one or without cuBLAS."""
    cuda = _Cuda()
    handle, events = ctypes.c_void_p(), (ctypes.c_void_p(), ctypes.c_void_p())
    for event in events:
        cuda("cudaEventCreate", ctypes.byref(event))
    cuda("cublasCreate_v2", ctypes.byref(handle))
    a, b, c = cuda.matrix(1), cuda.matrix(2), cuda.buffer(GPU_SIZE * GPU_SIZE * 2)
    for _ in range(3):
        cuda.product(handle, a, b, c)
    best, deadline, elapsed = float("inf"), time.perf_counter() + seconds, ctypes.c_float()
    while time.perf_counter() < deadline:
        cuda("cudaEventRecord", events[0], None)
        for _ in range(5):
            cuda.product(handle, a, b, c)
        cuda("cudaEventRecord", events[1], None)
        cuda("cudaEventSynchronize", events[1])
        cuda("cudaEventElapsedTime", ctypes.byref(elapsed), *events)
        best = min(best, elapsed.value / 1e3 / 5)
    return 2.0 * GPU_SIZE**3 / best / 1e9


def measure(device: str) -> tuple[float | None, str]:
    """(GFLOP/s, what it is the rate of) in a process of its own; (None, why not) where it cannot be measured."""
    command = processes.interpreter("-m", "cgxffcv.bench.peak", device)
    with processes.Program(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as program:
        try:
            text, _ = program.process.communicate(timeout=LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            return None, f"no result within {LIMIT_SECONDS:.0f} s"
    last = (text.splitlines() or [f"exit code {program.process.returncode}"])[-1]
    try:
        return float(json.loads(last)["gflops"]), NAMES[device]
    except (KeyError, TypeError, ValueError):
        return None, last


if __name__ == "__main__":
    try:
        print(json.dumps({"gflops": gpu_matrix_gflops() if sys.argv[1:] == ["gpu"] else matrix_gflops()}))
    except UserError as error:
        sys.exit(str(error))
