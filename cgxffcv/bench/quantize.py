"""`bench quantize`: the quantiser's speed as a share of memcpy's in the same run.

Quantising counts the bytes of the input that it reads, dequantising those of the output that it writes, memcpy those
that it copies, each over the time; `add` is dequantising with addition into float32. The buffers are larger than the
caches. memcpy is the C library's, with as many threads, each on its part. With `--device gpu` it gives the microseconds
of a launch on the first GPU, and the bytes that it reads and writes over that time.
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
from typing import TextIO

import _cgxffcv
import numpy as np

from cgxffcv import files
from cgxffcv.allreduce import CODEC_BITS, CODECS, QUANTIZED_DTYPES, ROUNDINGS, QuantSpec, dequantize, quantize
from cgxffcv.app.usage import Parser, add_json, summary, whole
from cgxffcv.bench.allreduce import LARGEST_BUCKET, MOST_REPEATS, MOST_THREADS, parse_size
from cgxffcv.bench.allreduce_bounds import typed
from cgxffcv.errors import UserError
from cgxffcv.wording import counted

LAUNCHES = 20  # per measurement on a GPU
LIBC = ctypes.CDLL(None)
LIBC.memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
LIBC.memcpy.restype = ctypes.c_void_p


def parse(argv: list[str] | None) -> argparse.Namespace:
    p = Parser(prog="cgxffcv bench quantize", description=summary(__doc__))
    p.add_argument("--size", type=parse_size, default="256M", help="bytes of the tensor")
    p.add_argument("--bits", type=whole(1, 8), nargs="+", default=[1, 2, 3, 4, 5, 6, 7, 8])
    p.add_argument("--bucket-size", type=whole(1, LARGEST_BUCKET), default=1024)
    p.add_argument("--dtype", choices=QUANTIZED_DTYPES, default="float32")
    p.add_argument("--codec", choices=CODECS, default="maxmin")
    p.add_argument("--rounding", choices=ROUNDINGS, default="nearest")
    p.add_argument("--threads", type=whole(1, MOST_THREADS), default=1)
    p.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    p.add_argument("--kernels", choices=("scalar", "avx2", "avx512"))
    p.add_argument("--rounds", type=whole(1, MOST_REPEATS), default=7, help="rounds of each, in turns; the best counts")
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
    """The fewest seconds of each, measured in turns after one round to warm up."""
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


def measure_on_gpu(options: argparse.Namespace, bits: int, x: np.ndarray) -> dict:
    spec = QuantSpec(bits, options.bucket_size, options.dtype, options.codec, options.rounding)
    wire, out = np.empty(spec.wire_bytes(x.size), np.uint8), np.empty_like(x)
    random = {"seed": 0, "call": 0, "rank": 0, "quad": 0}
    moved, seconds = x.nbytes + wire.nbytes, (float("inf"), float("inf"))
    for _ in range(options.rounds):
        times = _cgxffcv.quantize_on_device(x, spec._core, random, [x.size], wire, out, 0, LAUNCHES)
        seconds = tuple(map(min, seconds, times))
    ways = dict(zip(("quantise", "dequantise"), seconds, strict=True))
    rates = {f"{way}_gbps": moved / time / 1e9 for way, time in ways.items()}
    return {"bits": bits, "bytes": moved, **{f"{way}_us": 1e6 * time for way, time in ways.items()}, **rates}


def show_on_gpu(row: dict, table: TextIO) -> None:
    cells = [f"{row[f'{way}_us']:9.1f} {row[f'{way}_gbps']:6.0f} " for way in ("quantise", "dequantise")]
    print(f"{row['bits']:4d} {row['bytes'] / 1e6:8.1f} {' '.join(cells)}", file=table, flush=True)


def show(row: dict, table: TextIO) -> None:
    names = ("quantise", "dequantise", "add")
    cells = [f"{row[f'{n}_gbps']:8.2f} {row[f'{n}_share']:6.0%} " if f"{n}_gbps" in row else " " * 16 for n in names]
    print(f"{row['bits']:4d} {row['memcpy_gbps']:8.2f} {' '.join(cells)}", file=table, flush=True)


def head(options: argparse.Namespace, elems: int) -> str:
    what = f"{elems} {options.dtype}, buckets of {options.bucket_size}, {options.codec}, {options.rounding}"
    if options.device == "gpu":
        name = _cgxffcv.devices()[0]["name"]
        columns = f"{'bits':>4} {'MB moved':>8} {'quantise':>17} {'dequantise':>17}"
        return f"# cgxffcv bench quantize: {what}, {name}; microseconds and GB/s\n{columns}"
    how = f"kernels {_cgxffcv.quantize_kernels()}, {counted(options.threads, 'thread')}"
    columns = f"{'bits':>4} {'memcpy':>8} {'quantise':>16} {'dequantise':>16} {'add':>16}"
    return f"# cgxffcv bench quantize: {what}, {how}; GB/s and share of memcpy\n{columns}"


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    if options.device == "gpu" and not _cgxffcv.devices():
        raise UserError(f"bench quantize: no GPU: {_cgxffcv.why_no_device()}")
    if options.kernels:
        _cgxffcv.quantize_kernels(options.kernels)
    block = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32)
    x = np.resize(typed(block, options.dtype), options.size // (4 if options.dtype == "float32" else 2))
    table = io.StringIO() if options.json == "-" else sys.stdout
    print(head(options, x.size), file=table)
    ways = (measure_on_gpu, show_on_gpu) if options.device == "gpu" else (measure, show)
    results = []
    most = CODEC_BITS[options.codec]
    for bits in [bits for bits in options.bits if bits <= most] or [most]:
        results.append(ways[0](options, bits, x))
        ways[1](results[-1], table)
    text = json.dumps({"kernels": _cgxffcv.quantize_kernels(), "options": vars(options), "rows": results})
    if options.json == "-":
        print(text)
    elif options.json:
        try:
            files.write(options.json, text + "\n")
        except OSError as error:
            raise UserError(f"cannot write {options.json}: {error.strerror}") from error
    return 0
