"""`bench quantize`: the quantiser's speed as a share of memcpy's in the same run.

Quantising counts the bytes of the input that it reads, dequantising those of the output that it writes, memcpy those
that it copies, each over the time; `add` is dequantising with addition into float32. The buffers are larger than the
caches. memcpy is the C library's, with as many threads, each on its part.
"""

from __future__ import annotations

import argparse
import ctypes
import io
import json
import sys
import threading
import time
from collections.abc import Callable

import _cgxffcv
import numpy as np

from cgxffcv import files
from cgxffcv.allreduce import CODECS, QUANTIZED_DTYPES, ROUNDINGS, QuantSpec, dequantize, quantize
from cgxffcv.app.usage import Parser, add_json, whole
from cgxffcv.bench.allreduce import parse_size
from cgxffcv.bench.allreduce_bounds import typed
from cgxffcv.errors import UserError
from cgxffcv.wording import counted

MOST_BITS = {"sign": 1, "rotated": 4}
LIBC = ctypes.CDLL(None)
LIBC.memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
LIBC.memcpy.restype = ctypes.c_void_p


def parse(argv: list[str] | None) -> argparse.Namespace:
    p = Parser(prog="cgxffcv bench quantize", description=__doc__.split("\n\n")[0])
    p.add_argument("--size", type=parse_size, default="256M", help="bytes of the tensor")
    p.add_argument("--bits", type=whole(1, 8), nargs="+", default=[1, 2, 3, 4, 5, 6, 7, 8])
    p.add_argument("--bucket-size", type=whole(1), default=1024)
    p.add_argument("--dtype", choices=QUANTIZED_DTYPES, default="float32")
    p.add_argument("--codec", choices=CODECS, default="maxmin")
    p.add_argument("--rounding", choices=ROUNDINGS, default="nearest")
    p.add_argument("--threads", type=whole(1), default=1)
    p.add_argument("--kernels", choices=("scalar", "avx2", "avx512"))
    p.add_argument("--rounds", type=whole(1), default=7, help="of each, in turns; the best counts")
    add_json(p)
    return p.parse_args(argv)


def copy_with_threads(to: np.ndarray, x: np.ndarray, threads: int) -> None:
    step = -(-x.nbytes // threads)

    def part(i: int) -> None:
        at = i * step
        LIBC.memcpy(to.ctypes.data + at, x.ctypes.data + at, min(step, x.nbytes - at))

    others = [threading.Thread(target=part, args=(i,)) for i in range(1, threads)]
    for thread in others:
        thread.start()
    part(0)
    for thread in others:
        thread.join()


def best_of(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The least seconds of each, measured in turns after one round to warm up."""
    best = dict.fromkeys(runs, float("inf"))
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number > 0:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def measure(options: argparse.Namespace, bits: int, x: np.ndarray) -> dict:
    spec = QuantSpec(bits, options.bucket_size, options.dtype, options.codec, options.rounding)
    wire, out = np.empty(spec.wire_bytes(x.size), np.uint8), np.empty_like(x)
    total = np.zeros(x.size if options.dtype == "float32" else 1, np.float32)
    runs: dict[str, Callable[[], object]] = {
        "memcpy": lambda: copy_with_threads(out, x, options.threads),
        "quantise": lambda: quantize(x, spec, out=wire, threads=options.threads),
        "dequantise": lambda: dequantize(wire, x.size, spec, out=out, threads=options.threads),
    }
    if options.dtype == "float32" and options.codec != "rotated":
        runs["add"] = lambda: dequantize(wire, x.size, spec, out=total, accumulate=total, threads=options.threads)
    rates = {name: x.nbytes / seconds / 1e9 for name, seconds in best_of(runs, options.rounds).items()}
    shares = {f"{name}_share": rate / rates["memcpy"] for name, rate in rates.items() if name != "memcpy"}
    return {"bits": bits, **{f"{name}_gbps": rate for name, rate in rates.items()}, **shares}


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    if options.kernels:
        _cgxffcv.quantize_kernels(options.kernels)
    block = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32)
    x = np.resize(typed(block, options.dtype), options.size // (4 if options.dtype == "float32" else 2))
    kernels = _cgxffcv.quantize_kernels()
    table = io.StringIO() if options.json == "-" else sys.stdout
    print(
        f"# cgxffcv bench quantize: {x.size} {options.dtype}, buckets of {options.bucket_size}, {options.codec}, "
        f"{options.rounding}, kernels {kernels}, {counted(options.threads, 'thread')}; GB/s and share of memcpy",
        file=table,
    )
    print(f"{'bits':>4} {'memcpy':>8} {'quantise':>16} {'dequantise':>16} {'add':>16}", file=table)
    results = []
    most = MOST_BITS.get(options.codec, 8)
    for bits in [bits for bits in options.bits if bits <= most] or [most]:
        results.append(measure(options, bits, x))
        r = results[-1]
        names = ("quantise", "dequantise", "add")
        cells = [f"{r[f'{n}_gbps']:8.2f} {r[f'{n}_share']:6.0%} " if f"{n}_gbps" in r else " " * 16 for n in names]
        print(f"{bits:4d} {r['memcpy_gbps']:8.2f} {' '.join(cells)}", file=table, flush=True)
    text = json.dumps({"kernels": kernels, "options": vars(options), "rows": results})
    if options.json == "-":
        print(text)
    elif options.json:
        try:
            files.write(options.json, text + "\n")
        except OSError as error:
            raise UserError(f"cannot write {options.json}: {error.strerror}") from error
    return 0
