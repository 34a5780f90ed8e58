"""`bench allreduce`: the compressed allreduce over sizes, in the form of nccl-tests, beside MPI_Allreduce.

    mpirun -np 2 python -m cgxffcv bench allreduce -b 256K -e 64M -f 4 --bits 4

algbw is the bytes of the tensor over the time, busbw is algbw * 2(N-1)/N (what each rank would send uncompressed), as
in nccl-tests. `#wrong` counts elements outside the bound that the arithmetic gives; it is -1 where the ranks differ.
`error` is ||result - exact||^2 / ||exact||^2. The rival is MPI_Allreduce of as many float32 in the same run, in turns
with ours.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import _cgxffcv
import numpy as np

from cgxffcv import comm, files
from cgxffcv.allreduce import ALGORITHMS, CODECS, ROUNDINGS, AllreducePlan, check_replicas
from cgxffcv.errors import UserError
from cgxffcv.usage import Parser

BLOCK = 1 << 18  # elements of random data, repeated: a multiple of all usual buckets
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
HEADER = (f"{'size':>12} {'count':>12} {'type':>9} {'redop':>8} {'time':>10} {'algbw':>8} {'busbw':>8} {'#wrong':>7} "
          f"{'wire':>12} {'error':>10} {'algorithm':>10} {'rival':>10} {'ratio':>6}")  # fmt: skip
SUBTITLE = (f"{'(B)':>12} {'(elements)':>12} {'':>9} {'':>8} {'(us)':>10} {'(GB/s)':>8} {'(GB/s)':>8} {'':>7} "
            f"{'(B sent)':>12} {'(energy)':>10} {'':>10} {'(us)':>10} {'':>6}")  # fmt: skip


def parse_size(text: str) -> int:
    """Bytes: a number with K, M or G."""
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    try:
        return int(float(number) * UNITS[unit])
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"a size is a number with K, M or G, not {text!r}") from None


def parse(argv: list[str] | None) -> argparse.Namespace:
    p = Parser(prog="cgxffcv bench allreduce", description=__doc__.split("\n\n")[0])
    p.add_argument("-b", "--minbytes", type=parse_size, default="256K")
    p.add_argument("-e", "--maxbytes", type=parse_size, default="64M")
    p.add_argument("-f", "--stepfactor", type=float, default=4)
    p.add_argument("-n", "--iters", type=int, default=0, help="runs in a round; 0: as many as take about 0.2 s")
    p.add_argument("-w", "--warmup_iters", type=int, default=2)
    p.add_argument("--rounds", type=int, default=5, help="rounds of each side, in turns; the best counts")
    p.add_argument("--bits", type=int, default=4)
    p.add_argument("--bucket-size", type=int, default=1024)
    p.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    p.add_argument("--op", choices=("average", "sum"), default="average")
    p.add_argument("--algorithm", choices=ALGORITHMS, default="auto")
    p.add_argument("--codec", choices=CODECS, default="maxmin")
    p.add_argument("--rounding", choices=ROUNDINGS, default="nearest")
    p.add_argument("--half-metadata", action="store_true")
    p.add_argument("--threads", type=int, default=1, help="that quantise, on each rank")
    p.add_argument("--nodes", type=int, help="pretend that the ranks lie on this many nodes")
    p.add_argument("--no-rival", action="store_true")
    p.add_argument("--json", metavar="FILE", nargs="?", const="-",
                   help="the results, into FILE beside the table, or alone to standard output")  # fmt: skip
    options = p.parse_args(argv)
    if options.stepfactor <= 1 or options.minbytes < 4 or options.maxbytes < options.minbytes:
        p.error("-b must be at least 4, -e at least -b, -f above 1")
    return options


def block_of(rank: int) -> np.ndarray:
    """This rank's random elements, Gaussian, float32."""
    return np.random.default_rng(1000 + rank).standard_normal(BLOCK).astype(np.float32)


def typed(x: np.ndarray, dtype: str) -> np.ndarray:
    """Rounds float32 to the type (bfloat16 as uint16, by truncation: any value of the type will do)."""
    return (x.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bfloat16" else x.astype(dtype)


def widened(x: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float32)


def fill(buffer: np.ndarray, block: np.ndarray) -> None:
    for at in range(0, buffer.size, BLOCK):
        part = buffer[at : at + BLOCK]
        part[:] = block[: part.size]


def bound_of(blocks: list[np.ndarray], options: argparse.Namespace, algorithm: str, divisor: float) -> np.ndarray:
    """The greatest error of each element of a block: half a unit for each quantisation on its way (a whole one when
    stochastic), the units after the first taken from the widest range that a sum may have."""
    levels = 2**options.bits - 1
    size = min(options.bucket_size, BLOCK)
    ranges = sum(np.ptp(b[: BLOCK // size * size].reshape(-1, size).astype(np.float64), axis=1) for b in blocks)
    ranges = np.repeat(ranges, size)
    ranges = np.concatenate([ranges, np.full(BLOCK - ranges.size, ranges.max())])
    share = 1.0 if options.rounding == "stochastic" else 0.5
    error = share * ranges / levels
    again = {"one_shot": 0, "sra": 1, "two_level": 2, "ring": len(blocks) - 1}[algorithm]
    for _ in range(again):
        error = error + share * (ranges + 2 * error) / levels
    result = {"float32": 2.0**-20, "float16": 2.0**-10, "bfloat16": 2.0**-7}[options.dtype]
    largest = np.abs(np.sum(np.stack(blocks).astype(np.float64), 0)) + error
    return (error * (1 + 1e-4) + result * largest) / divisor


def check(out: np.ndarray, plan: AllreducePlan, options: argparse.Namespace, world: comm.Comm) -> tuple[int, float]:
    """(elements out of bounds, relative error energy) of one run's result."""
    dtype, n = options.dtype, out.size
    blocks = [widened(typed(block_of(r), dtype), dtype) for r in range(world.size)]
    divisor = world.size if options.op == "average" else 1
    exact = np.sum(np.stack(blocks).astype(np.float64), 0) / divisor
    quantised = options.bits <= 8 and plan.algorithm != "exact" and n >= 1 and world.size > 1
    wrong, error, energy = 0, 0.0, 0.0
    if quantised and options.codec == "maxmin":
        bound = bound_of(blocks, options, plan.algorithm, divisor)
    else:
        bound = np.full(BLOCK, np.inf) if quantised else np.abs(exact) * 2.0**-6 + 1e-5
    for at in range(0, n, BLOCK):
        part = widened(out[at : at + BLOCK], dtype).astype(np.float64)
        lost = part - exact[: part.size]
        wrong += int((~(np.abs(lost) <= bound[: part.size])).sum())
        error += float(lost @ lost)
        energy += float(exact[: part.size] @ exact[: part.size])
    try:
        check_replicas(world, out)
    except _cgxffcv.CommError:
        wrong = -1
    return wrong, error / energy


def seconds_of(world: comm.Comm, run: Callable[[], object], iters: int) -> float:
    """The time of one run, the slowest rank's."""
    world.barrier()
    start = time.perf_counter()
    for _ in range(iters):
        run()
    mine = (time.perf_counter() - start) / iters
    return max(float(np.frombuffer(b)[0]) for b in world.allgather(np.float64(mine).tobytes()))


def measure_size(world: comm.Comm, options: argparse.Namespace, nbytes: int) -> dict:
    item = 4 if options.dtype == "float32" else 2
    count = max(1, nbytes // item)
    mine = typed(block_of(world.rank), options.dtype)
    buffer = np.empty(count, mine.dtype)
    plan = AllreducePlan(
        world, [("all", count)], bits={"all": options.bits}, bucket_size=options.bucket_size, dtype=options.dtype,
        op=options.op, algorithm=options.algorithm, codec=options.codec, rounding=options.rounding,
        half_metadata=options.half_metadata, threads=options.threads,
    )  # fmt: skip
    fill(buffer, mine)
    plan.run(buffer)
    wrong, error = check(buffer, plan, options, world)
    rival_buffer = None if options.no_rival else np.zeros(count, np.float32)

    def ours() -> None:
        plan.run(buffer)

    def rival() -> None:
        _cgxffcv.mpi_allreduce(world, rival_buffer)

    if rival_buffer is not None:
        try:
            rival()
        except (_cgxffcv.NotBuiltError, ValueError):
            rival_buffer = None
    for _ in range(options.warmup_iters):
        ours()
    iters = options.iters or max(2, min(2000, int(0.2 / max(1e-6, seconds_of(world, ours, 1)))))
    times, rivals = [], []
    for _ in range(options.rounds):
        fill(buffer, mine)
        times.append(seconds_of(world, ours, iters))
        if rival_buffer is not None:
            rivals.append(seconds_of(world, rival, iters))
    best = min(times)
    return {
        "size": count * item, "count": count, "type": options.dtype, "redop": options.op, "time_us": best * 1e6,
        "algbw_gbps": count * item / best / 1e9,
        "busbw_gbps": count * item / best / 1e9 * 2 * (world.size - 1) / world.size,
        "wrong": wrong, "wire_bytes": plan.wire_bytes, "plain_bytes": plan.plain_bytes, "relative_error": error,
        "algorithm": plan.algorithm, "rival_us": min(rivals) * 1e6 if rivals else None,
        "ratio": min(rivals) / best if rivals else None, "iters": iters, "times_us": [t * 1e6 for t in times],
        "rival_times_us": [t * 1e6 for t in rivals],
    }  # fmt: skip


def row(r: dict) -> str:
    rival = f"{r['rival_us']:10.1f} {r['ratio']:6.2f}" if r["rival_us"] else f"{'-':>10} {'-':>6}"
    return (f"{r['size']:12d} {r['count']:12d} {r['type']:>9} {r['redop']:>8} {r['time_us']:10.1f} "
            f"{r['algbw_gbps']:8.2f} {r['busbw_gbps']:8.2f} {r['wrong']:7d} {r['wire_bytes']:12d} "
            f"{r['relative_error']:10.2e} {r['algorithm']:>10} {rival}")  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; 0, or 1 if any element was wrong."""
    options = parse(argv)
    results = []
    with comm.world(nodes=options.nodes) as world:
        loud = world.rank == 0 and options.json != "-"
        if loud:
            print(f"# cgxffcv bench allreduce: {world.size} ranks on {world.nodes} node(s), {options.bits} bits, "
                  f"buckets of {options.bucket_size}, {options.codec}, {options.rounding}, "
                  f"kernels {_cgxffcv.quantize_kernels()}, {options.threads} thread(s) a rank")  # fmt: skip
            print(f"# rival: MPI_Allreduce of as many float32\n{HEADER}\n{SUBTITLE}", flush=True)
        size = options.minbytes
        while size <= options.maxbytes:
            results.append(measure_size(world, options, int(size)))
            if loud:
                print(row(results[-1]), flush=True)
            size *= options.stepfactor
        if world.rank == 0 and options.json:
            text = json.dumps({"ranks": world.size, "nodes": world.nodes, "options": vars(options), "rows": results})
            if options.json == "-":
                print(text)
            else:
                try:
                    files.write(options.json, text + "\n")
                except OSError as error:
                    raise UserError(f"cannot write {options.json}: {error.strerror}") from error
    return int(any(r["wrong"] != 0 for r in results))
