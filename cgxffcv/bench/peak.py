"""The rate of the vendor's matrix product on this machine: what training speed is measured against.

oneDNN's on the CPU, cuBLAS's on a GPU, for matrices of the type that the training uses; sums are float32.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cgxffcv.bench import processes
from cgxffcv.bench.allreduce_bounds import typed
from cgxffcv.errors import UserError

SIZE = 2048
GPU_SIZE = 8192
LIMIT_SECONDS = 120.0
CPU_TYPES = {"float32": 3, "bfloat16": 2}  # from oneDNN's dnnl_common_types.h
# from dnnl_types.h
CPU_ENGINE, IN_ORDER, ANY_LAYOUT, QUERY_WEIGHTS, SOURCE, WEIGHTS, DESTINATION = 1, 1, 1, 131, 1, 33, 17
# from library_types.h and cublas_api.h
GPU_TYPES = {"float32": 0, "float16": 2, "bfloat16": 14}
COMPUTE_32F, NOT_TRANSPOSED, TRANSPOSED, DEFAULT_ALGORITHM = 68, 0, 1, -1
TO_DEVICE = 1


class _Argument(ctypes.Structure):
    """dnnl_exec_arg_t."""

    _fields_ = [("number", ctypes.c_int), ("memory", ctypes.c_void_p)]


class _OneDnn:
    """oneDNN through its C API, as it is loaded into this process with our extension module; every call is checked."""

    def __init__(self) -> None:
        import _cgxffcv  # noqa: F401

        with open("/proc/self/maps") as maps:
            paths = sorted({line.split()[-1] for line in maps if "libdnnl" in line})
        if not paths:
            raise UserError("this build has no oneDNN; see cgxffcv doctor")
        self.library = ctypes.CDLL(paths[0])
        self.engine = self.make("engine_create", ctypes.c_int(CPU_ENGINE), ctypes.c_size_t(0))
        self.stream = self.make("stream_create", self.engine, ctypes.c_uint(IN_ORDER))

    def __call__(self, function: str, *arguments: Any) -> None:
        status = getattr(self.library, f"dnnl_{function}")(*arguments)
        if status != 0:
            raise UserError(f"oneDNN's matrix product cannot be measured: {function} failed with status {status}")

    def make(self, function: str, *arguments: Any) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        self(function, ctypes.byref(made), *arguments)
        return made

    def product(self, precision: str) -> tuple[Callable[[], None], list[np.ndarray]]:
        """(one product of squares of 2^-10, operands and result, to be kept). The layout is the library's choice, as
        for a network's weights; all elements are one number, so that none needs to be rearranged."""
        dims = (ctypes.c_int64 * 2)(SIZE, SIZE)
        any_layout = self.make("memory_desc_create_with_tag", 2, dims, CPU_TYPES[precision], ANY_LAYOUT)
        plan = self.make("matmul_primitive_desc_create", self.engine, any_layout, any_layout, None, any_layout, None)
        product = self.make("primitive_create", plan)
        arrays = [typed(np.full((SIZE, SIZE), 2.0**-10, np.float32), precision) for _ in range(3)]
        self.library.dnnl_primitive_desc_query_md.restype = ctypes.c_void_p
        arguments = (_Argument * 3)()
        for i, (number, array) in enumerate(zip((SOURCE, WEIGHTS, DESTINATION), arrays, strict=True)):
            query = QUERY_WEIGHTS + {SOURCE: -2, WEIGHTS: 0, DESTINATION: 2}[number]
            layout = ctypes.c_void_p(self.library.dnnl_primitive_desc_query_md(plan, query, 0))
            memory = self.make("memory_create", layout, self.engine, ctypes.c_void_p(array.ctypes.data))
            arguments[i] = _Argument(number, memory)

        def run() -> None:
            self("primitive_execute", product, self.stream, 3, arguments)
            self("stream_wait", self.stream)

        return run, arrays


def matrix_gflops(precision: str = "float32", seconds: float = 2.0) -> float:
    """The best rate of 2048 x 2048 x 2048 products of float32 or bfloat16 matrices within `seconds`, in GFLOP/s, on all
    threads that OpenMP uses (OMP_NUM_THREADS, or the cores of this process)."""
    run, (*_operands, result) = _OneDnn().product(precision)
    best, deadline = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        begin = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - begin)
    sums = result if precision == "float32" else (result.astype(np.uint32) << 16).view(np.float32)
    if not (sums == SIZE * 2.0**-20).all():
        raise UserError("oneDNN's matrix product gave a wrong result")
    return 2.0 * SIZE**3 / best / 1e9


class _Cuda:
    """The CUDA runtime and cuBLAS through their C APIs; every call is checked."""

    def __init__(self):
        import _cgxffcv  # noqa: F401  # brings its own libraries, wherever they are

        self.runtime, self.blas = self._open("libcudart"), self._open("libcublas")

    @staticmethod
    def _open(name: str) -> ctypes.CDLL:
        """The library that is already loaded, or the first that is found."""
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

    def matrix(self, seed: int, precision: str) -> ctypes.c_void_p:
        """A square matrix in device memory, normally distributed: the clock rate depends on the power that the numbers
        take."""
        normal = np.random.default_rng(seed).standard_normal(GPU_SIZE * GPU_SIZE // 64).astype(np.float32)
        values = typed(normal, precision)
        pointer = self.buffer(64 * values.nbytes)
        for part in range(64):
            at = ctypes.c_void_p(pointer.value + part * values.nbytes)
            rolled = np.roll(values, part)
            self("cudaMemcpy", at, ctypes.c_void_p(rolled.ctypes.data), ctypes.c_size_t(rolled.nbytes), TO_DEVICE)
        return pointer

    def product(self, handle: ctypes.c_void_p, a: Any, b: Any, c: Any, precision: str) -> None:
        one, zero = ctypes.c_float(1 / GPU_SIZE), ctypes.c_float(0)
        n, kind = GPU_SIZE, GPU_TYPES[precision]
        given, result = (ctypes.byref(one), a, kind, n, b, kind, n), (ctypes.byref(zero), c, kind, n)
        how = COMPUTE_32F, DEFAULT_ALGORITHM
        self("cublasGemmEx", handle, TRANSPOSED, NOT_TRANSPOSED, n, n, n, *given, *result, *how)


def gpu_matrix_gflops(precision: str = "float16", seconds: float = 1.0) -> float:
    """The best rate of 8192 x 8192 x 8192 products of matrices of that type within `seconds`, in GFLOP/s, on the first
    GPU that CUDA_VISIBLE_DEVICES leaves; UserError without one or without cuBLAS."""
    cuda = _Cuda()
    handle, events = ctypes.c_void_p(), (ctypes.c_void_p(), ctypes.c_void_p())
    for event in events:
        cuda("cudaEventCreate", ctypes.byref(event))
    cuda("cublasCreate_v2", ctypes.byref(handle))
    a, b, c = (cuda.matrix(seed, precision) for seed in (1, 2, 3))
    for _ in range(3):
        cuda.product(handle, a, b, c, precision)
    best, deadline, elapsed = float("inf"), time.perf_counter() + seconds, ctypes.c_float()
    while time.perf_counter() < deadline:
        cuda("cudaEventRecord", events[0], None)
        for _ in range(5):
            cuda.product(handle, a, b, c, precision)
        cuda("cudaEventRecord", events[1], None)
        cuda("cudaEventSynchronize", events[1])
        cuda("cudaEventElapsedTime", ctypes.byref(elapsed), *events)
        best = min(best, elapsed.value / 1e3 / 5)
    return 2.0 * GPU_SIZE**3 / best / 1e9


def measure(device: str, precision: str) -> tuple[float | None, str]:
    """(GFLOP/s, what it is the rate of) for a training on "cpu" or "gpu" in that precision, measured in a separate
    process; (None, why not) if it cannot be measured."""
    command = processes.interpreter("-m", "cgxffcv.bench.peak", device, precision)
    with processes.Program(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as program:
        try:
            text, _ = program.process.communicate(timeout=LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            return None, f"no result within {LIMIT_SECONDS:.0f} s"
    last = (text.splitlines() or [f"exit code {program.process.returncode}"])[-1]
    try:
        gflops = float(json.loads(last)["gflops"])
    except (KeyError, TypeError, ValueError):
        return None, last
    return gflops, f"{'cuBLAS' if device == 'gpu' else 'oneDNN'}'s matrix product in {precision}"


if __name__ == "__main__":
    device, precision = sys.argv[1:]
    try:
        print(json.dumps({"gflops": (gpu_matrix_gflops if device == "gpu" else matrix_gflops)(precision)}))
    except UserError as error:
        sys.exit(str(error))
