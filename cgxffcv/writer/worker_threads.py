"""Limits a forked worker to one thread: a fork does not copy the threads of the parent's libraries, and code that waits
for one (torch, GNU's OpenMP) waits for ever; and with one worker per core no more are needed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys

VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
RUNTIMES = re.compile(r"/lib(gomp|omp|iomp5)[-.][^/]*$")


def _loaded_runtimes() -> set[str]:
    """The OpenMP libraries that this process has loaded."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
            paths = {line.split(maxsplit=5)[-1].strip() for line in file}
    except OSError:
        return set()
    return {path for path in paths if RUNTIMES.search(path)}


def use_one_thread() -> None:
    """Limits libraries that are loaded, or will be, to the calling thread."""
    os.environ.update(dict.fromkeys(VARIABLES, "1"))
    for path in _loaded_runtimes():
        with contextlib.suppress(OSError, AttributeError):  # some other library of such a name
            ctypes.CDLL(path).omp_set_num_threads(1)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
