"""`bench allreduce`: the compressed allreduce over sizes, in the form of nccl-tests, beside MPI_Allreduce.

    mpirun -np 2 python -m cgxffcv bench allreduce -b 256K -e 64M -f 4 --bits 4

algbw is the bytes of the tensor over the time, busbw is algbw * 2(N-1)/N (what each rank would send uncompressed), as
in nccl-tests, whose -b -e -i -f -n -w -o -d mean the same. `#wrong` counts elements outside the bound that the
arithmetic gives (allreduce_bounds.py); it is -1 where the ranks differ.
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
from cgxffcv.allreduce import (
    ALGORITHMS,
    CODECS,
    DTYPES,
    OPS,
    QUANTIZED_DTYPES,
    ROUNDINGS,
    AllreducePlan,
    check_replicas,
)
from cgxffcv.app.usage import Parser, add_json, number, whole
from cgxffcv.bench.allreduce_bounds import BLOCK, FLOATS, Way, block_of, count_wrong
from cgxffcv.errors import UsageError, UserError
from cgxffcv.wording import counted

LARGEST = 1 << 36  # bytes
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
HEADER = (
    f"{'size':>12} {'count':>12} {'type':>9} {'redop':>8} {'time':>10} {'algbw':>8} {'busbw':>8} {'#wrong':>7} "
    f"{'wire':>12} {'error':>10} {'algorithm':>10} {'rival':>10} {'ratio':>6}"
)
SUBTITLE = (
    f"{'(B)':>12} {'(elements)':>12} {'':>9} {'':>8} {'(us)':>10} {'(GB/s)':>8} {'(GB/s)':>8} {'':>7} "
    f"{'(B sent)':>12} {'(energy)':>10} {'':>10} {'(us)':>10} {'':>6}"
)


def parse_size(text: str) -> int:
    """Bytes: a number with K, M or G."""
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    try:
        size = int(float(number) * UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        raise argparse.ArgumentTypeError(f"a size is a number with K, M or G, not {text!r}") from None
    if not 1 <= size <= LARGEST:
        raise argparse.ArgumentTypeError(f"expected 1 to {LARGEST >> 30}G, not {text!r}")
    return size


def parse(argv: list[str] | None) -> argparse.Namespace:
    p = Parser(prog="cgxffcv bench allreduce", description=__doc__.split("\n\n")[0])
    p.add_argument("-b", "--minbytes", type=parse_size, default="256K", help="the smallest size; default 256K")
    p.add_argument(
        "-e", "--maxbytes", type=parse_size, default=None, help="the largest; default 64M, or -b if that is more"
    )
    p.add_argument("-i", "--stepbytes", type=parse_size, help="each size is so much larger than the one before")
    p.add_argument("-f", "--stepfactor", type=number(1.001, 1e6), help="so many times as large; default 4")
    p.add_argument("-n", "--iters", type=whole(0), default=0, help="runs in a round; 0: as many as take about 0.2 s")
    p.add_argument("-w", "--warmup_iters", type=whole(0), default=2)
    p.add_argument("--rounds", type=whole(1), default=5, help="rounds of each side, in turns; the best counts")
    p.add_argument("--bits", type=whole(1, 32), help="1 to 8, or 32 for none; default 4, and 1 with the codec sign")
    p.add_argument("--bucket-size", type=whole(1), default=1024)
    p.add_argument("-d", "--dtype", choices=DTYPES, default="float32")
    p.add_argument("-o", "--op", choices=(*OPS, "avg"), help="default average, of whole numbers sum")
    p.add_argument("--algorithm", choices=ALGORITHMS, default="auto")
    p.add_argument("--codec", choices=CODECS, default="maxmin")
    p.add_argument("--rounding", choices=ROUNDINGS, default="nearest")
    p.add_argument("--half-metadata", action="store_true")
    p.add_argument("--threads", type=whole(1, 256), default=1, help="that quantise, on each rank")
    p.add_argument("--nodes", type=whole(1), help="pretend that the ranks lie on this many nodes")
    p.add_argument("--no-rival", action="store_true")
    add_json(p, "the results, into FILE beside the table, or alone to standard output")
    options = p.parse_args(argv)
    if options.maxbytes is None:
        options.maxbytes = max(parse_size("64M"), options.minbytes)
    if options.maxbytes < options.minbytes:
        p.error(f"-e ({options.maxbytes} bytes) must be at least -b ({options.minbytes})")
    if options.stepbytes and options.stepfactor:
        p.error("-i and -f: give one of them")
    options.stepfactor = options.stepfactor or 4
    if options.bits is None:
        options.bits = 1 if options.codec == "sign" else 4
    if options.op == "avg":  # nccl-tests' word
        options.op = "average"
    if options.op is None:
        options.op = "average" if options.dtype in FLOATS else "sum"
    return options


def counts_of(options: argparse.Namespace) -> list[int]:
    """Elements of each call, without repetitions: a size below one element is one."""
    counts: list[int] = []
    size, item = float(options.minbytes), item_bytes(options.dtype)
    while size <= options.maxbytes:
        count = max(1, int(size) // item)
        if not counts or counts[-1] != count:
            counts.append(count)
        size = size + options.stepbytes if options.stepbytes else size * options.stepfactor
    return counts


def item_bytes(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def plan_of(world: comm.Comm, options: argparse.Namespace, count: int) -> AllreducePlan:
    """UsageError if the options do not go together."""
    try:
        same = ("bucket_size", "dtype", "op", "algorithm", "codec", "rounding", "half_metadata", "threads")
        chosen = {name: getattr(options, name) for name in same}
        return AllreducePlan(world, [("all", count)], bits={"all": options.bits}, **chosen)
    except ValueError as error:
        raise UsageError(f"bench allreduce: {str(error).removeprefix('layer 0 (all): ')}") from error


def compresses(options: argparse.Namespace) -> bool:
    quantised = options.dtype in QUANTIZED_DTYPES and options.op in ("sum", "average")
    return quantised and options.bits <= 8 and options.algorithm != "exact"


def how(options: argparse.Namespace) -> str:
    """What is done to the elements, in words."""
    if not compresses(options):
        return "uncompressed"
    return f"{counted(options.bits, 'bit')}, buckets of {options.bucket_size}, {options.codec}, {options.rounding}"


def way_of(world: comm.Comm, options: argparse.Namespace, plan: AllreducePlan) -> Way:
    """What the plan does, for the bound of its error."""
    quantised = compresses(options) and plan.algorithm != "exact" and world.size > 1
    made = options.bits, options.bucket_size, options.codec, options.rounding == "stochastic", options.half_metadata
    return Way(options.dtype, options.op, world.size, plan.algorithm, quantised, *made)


def fill(buffer: np.ndarray, block: np.ndarray) -> None:
    for at in range(0, buffer.size, BLOCK):
        part = buffer[at : at + BLOCK]
        part[:] = block[: part.size]


def check(out: np.ndarray, way: Way, world: comm.Comm) -> tuple[int, float]:
    """(elements out of bounds, or -1 where the ranks differ; relative error energy) of one run's result."""
    wrong, error = count_wrong(out, way)
    try:
        check_replicas(world, out)
    except _cgxffcv.CommError:
        wrong = -1
    return wrong, error


def seconds_of(world: comm.Comm, run: Callable[[], object], iters: int) -> float:
    """The time of one run, the slowest rank's."""
    world.barrier()
    start = time.perf_counter()
    for _ in range(iters):
        run()
    mine = (time.perf_counter() - start) / iters
    return max(float(np.frombuffer(b)[0]) for b in world.allgather(np.float64(mine).tobytes()))


def measure_size(world: comm.Comm, options: argparse.Namespace, count: int) -> dict:
    item = item_bytes(options.dtype)
    mine = block_of(world.rank, options.dtype)
    buffer = np.empty(count, mine.dtype)
    plan = plan_of(world, options, count)
    fill(buffer, mine)
    plan.run(buffer)
    wrong, error = check(buffer, way_of(world, options, plan), world)
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
    rate, other = count * item / best / 1e9, min(rivals, default=None)
    row = {"size": count * item, "count": count, "type": options.dtype, "redop": options.op, "time_us": best * 1e6}
    row |= {"algbw_gbps": rate, "busbw_gbps": rate * 2 * (world.size - 1) / world.size, "wrong": wrong}
    row |= {"wire_bytes": plan.wire_bytes, "plain_bytes": plan.plain_bytes, "relative_error": error}
    row |= {"algorithm": plan.algorithm, "rival_us": other * 1e6 if rivals else None}
    row |= {"ratio": other / best if rivals else None, "iters": iters}
    return row | {"times_us": [t * 1e6 for t in times], "rival_times_us": [t * 1e6 for t in rivals]}


def row(r: dict) -> str:
    rival = f"{r['rival_us']:10.1f} {r['ratio']:6.2f}" if r["rival_us"] else f"{'-':>10} {'-':>6}"
    return (
        f"{r['size']:12d} {r['count']:12d} {r['type']:>9} {r['redop']:>8} {r['time_us']:10.1f} "
        f"{r['algbw_gbps']:8.2f} {r['busbw_gbps']:8.2f} {r['wrong']:7d} {r['wire_bytes']:12d} "
        f"{r['relative_error']:10.2e} {r['algorithm']:>10} {rival}"
    )


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; 0, or 1 if any element was wrong."""
    options = parse(argv)
    results = []
    counts = counts_of(options)
    try:
        world = comm.world(nodes=options.nodes)
    except ValueError as error:
        raise UsageError(f"bench allreduce: {error}") from error
    with world:
        plan_of(world, options, counts[-1])  # refused before anything is printed
        loud = world.rank == 0 and options.json != "-"
        if loud:
            print(
                f"# cgxffcv bench allreduce: {counted(world.size, 'rank')} on {counted(world.nodes, 'node')}, "
                f"{how(options)}, kernels {_cgxffcv.quantize_kernels()}, "
                f"{counted(options.threads, 'thread')} a rank"
            )
            print(f"# rival: MPI_Allreduce of as many float32\n{HEADER}\n{SUBTITLE}", flush=True)
        for count in counts:
            results.append(measure_size(world, options, count))
            if loud:
                print(row(results[-1]), flush=True)
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
