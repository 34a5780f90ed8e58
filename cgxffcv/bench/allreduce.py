"""`bench allreduce`: the compressed allreduce over sizes, in the form of nccl-tests, next to its rivals.

    mpirun -np 2 python -m cgxffcv bench allreduce -b 256K -e 1G -f 4 --bits 4

algbw is the bytes of the tensor over the time, busbw is algbw * 2(N-1)/N (what each rank would send uncompressed), as
in nccl-tests, whose -b -e -i -f -n -w -o -d mean the same. `#wrong` counts elements outside the bound that the
arithmetic gives (allreduce_bounds.py); it is -1 where the ranks differ.
`error` is ||result - exact||^2 / ||exact||^2. The rivals run in turns with ours, in the same processes: on GPUs NCCL's
sums of as many float32 and bfloat16 elements, else MPI_Allreduce of as many float32. Times are medians of the rounds;
on GPUs they are taken between two events, around runs that are recorded in graphs where possible. Each run starts from
what the one before has left in the same buffer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass
from typing import Any

import _cgxffcv
import numpy as np

from cgxffcv import comm, costs, device
from cgxffcv.allreduce import (
    ALGORITHMS,
    CODEC_BITS,
    CODECS,
    DTYPES,
    OPS,
    QUANTIZED_DTYPES,
    ROUNDINGS,
    UNCOMPRESSED,
    check_replicas,
)
from cgxffcv.app import process
from cgxffcv.app.report import plain
from cgxffcv.app.usage import Parser, add_json, number, summary, whole
from cgxffcv.bench import charts, links, machine
from cgxffcv.bench.allreduce_bounds import BLOCK, FLOATS, Reduction, block_of, count_wrong
from cgxffcv.errors import UsageError, UserError
from cgxffcv.wording import counted

LARGEST = 1 << 36  # bytes
LARGEST_BUCKET = 1 << 48
MOST_SIZES, MOST_REPEATS, MOST_THREADS = 10_000, 1_000_000, 256
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
ROUND_SECONDS = {"host": 0.2, "device": 0.04}
MOST_RUNS = 1000  # in a round
COLUMNS = (
    ("size", "(B)", 12),
    ("count", "(elements)", 12),
    ("type", "", 9),
    ("redop", "", 8),
    ("time", "(us)", 10),
    ("algbw", "(GB/s)", 8),
    ("busbw", "(GB/s)", 8),
    ("#wrong", "", 7),
    ("wire", "(B sent)", 12),
    ("error", "(energy)", 10),
    ("algorithm", "", 10),
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


def parse_sizes(text: str) -> list[int]:
    """Sizes in ascending order."""
    return sorted(map(parse_size, text.split(",")))


def parse(argv: list[str] | None) -> argparse.Namespace:
    p = Parser(prog="cgxffcv bench allreduce", description=summary(__doc__))
    p.add_argument("-b", "--minbytes", type=parse_size, default="256K", help="the smallest size; default 256K")
    p.add_argument(
        "-e", "--maxbytes", type=parse_size, default=None, help="the largest; default 64M, or -b if that is more"
    )
    p.add_argument("-i", "--stepbytes", type=parse_size, help="what to add to a size for the next one")
    p.add_argument(
        "-f", "--stepfactor", type=number(1.001, 1e6), help="what to multiply a size by for the next one; default 4"
    )
    p.add_argument("--sizes", type=parse_sizes, metavar="SIZE,...", help="just these, instead of -b to -e")
    p.add_argument(
        "-n", "--iters", type=whole(0, MOST_REPEATS), default=0, help="runs per round; 0: as many as take a moment"
    )
    p.add_argument("-w", "--warmup_iters", type=whole(0, MOST_REPEATS), default=2)
    p.add_argument(
        "--rounds", type=whole(1, MOST_REPEATS), default=5, help="rounds of each side, in turns; the median counts"
    )
    p.add_argument("--bits", type=whole(1, 32), help="1 to 8, or 32 for none; default 4, and 1 with the codec sign")
    p.add_argument("--bucket-size", type=whole(1, LARGEST_BUCKET), default=1024)
    p.add_argument("-d", "--dtype", choices=DTYPES, default="float32")
    p.add_argument("-o", "--op", choices=(*OPS, "avg"), help="default average, for integers sum")
    p.add_argument("--algorithm", choices=ALGORITHMS, default="auto")
    p.add_argument("--codec", choices=CODECS, default="maxmin")
    p.add_argument("--rounding", choices=ROUNDINGS, default="nearest")
    p.add_argument("--half-metadata", action="store_true")
    p.add_argument("--threads", type=whole(1, MOST_THREADS), default=1, help="how many quantise, per rank")
    p.add_argument("--nodes", type=whole(1), help="pretend that the ranks are on this many nodes")
    p.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto", help="where the tensor is")
    p.add_argument("--link", choices=links.LINKS, default="any", help="links that ours and the rivals may use")
    p.add_argument("--no-graph", action="store_true", help="on GPUs, launch every run instead of recording them")
    p.add_argument("--no-rival", action="store_true")
    charts.add_chart(p, "times over sizes")
    add_json(p, "write the results to FILE, next to the table, or to standard output instead of it")
    options = p.parse_args(argv)
    if options.maxbytes is None:
        options.maxbytes = max(parse_size("64M"), options.minbytes)
    if options.maxbytes < options.minbytes:
        p.error(f"-e ({options.maxbytes} bytes) must be at least -b ({options.minbytes})")
    if options.stepbytes and options.stepfactor:
        p.error("-i and -f: give one of them")
    if options.stepbytes and (options.maxbytes - options.minbytes) // options.stepbytes >= MOST_SIZES:
        p.error(
            f"-i ({options.stepbytes} bytes) gives more than {MOST_SIZES:,} sizes from -b to -e: give a larger step"
        )
    options.stepfactor = options.stepfactor or 4
    if options.bits is None:
        options.bits = min(4, CODEC_BITS[options.codec])
    if options.op == "avg":  # nccl-tests' word
        options.op = "average"
    if options.op is None:
        options.op = "average" if options.dtype in FLOATS else "sum"
    options.gpu = None
    return options


def counts_of(options: argparse.Namespace) -> list[int]:
    """Elements of each call, without repetitions: a size below one element counts as one."""
    size, sizes = float(options.minbytes), list(options.sizes or ())
    while not options.sizes and size <= options.maxbytes:
        sizes.append(int(size))
        size = size + options.stepbytes if options.stepbytes else size * options.stepfactor
    return list(dict.fromkeys(max(1, size // item_bytes(options.dtype)) for size in sizes))


def item_bytes(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def trial_of(world: comm.Comm, site: str, options: argparse.Namespace, count: int, **own: Any) -> Any:
    """The buffer and the allreduce that sums it. UsageError if the options do not go together."""
    same = ("bits", "bucket_size", "dtype", "op", "algorithm", "codec", "rounding", "half_metadata", "threads")
    chosen = {name: getattr(options, name) for name in same} | own
    chosen |= {"layer_min_size": 0, "spikes": 0, "scale": "auto"}
    chosen |= {"error_feedback": False, "seed": 0, "timeout": 0.0, "costs": None}
    if site in ROUND_SECONDS and options.algorithm == "auto" and compresses(options) and world.size > 1:
        chosen["costs"] = costs.of(world, options.gpu)
    try:
        return _cgxffcv.AllreduceTrial(world, site, count, **chosen)
    except ValueError as error:
        raise UsageError(f"bench allreduce: {str(error).removeprefix('layer 0: ')}") from error


def compresses(options: argparse.Namespace) -> bool:
    quantized = options.dtype in QUANTIZED_DTYPES and options.op in ("sum", "average")
    return quantized and options.bits <= 8 and options.algorithm != "exact"


def how(options: argparse.Namespace) -> str:
    """What is done to the elements, in words."""
    if not compresses(options):
        return "uncompressed"
    return f"{counted(options.bits, 'bit')}, buckets of {options.bucket_size}, {options.codec}, {options.rounding}"


def reduction_of(world: comm.Comm, options: argparse.Namespace, algorithm: str) -> Reduction:
    """What a run does, for the bound of its error."""
    quantized = compresses(options) and algorithm != "exact" and world.size > 1
    made = options.bits, options.bucket_size, options.codec, options.rounding == "stochastic", options.half_metadata
    return Reduction(options.dtype, options.op, world.size, algorithm, quantized, *made)


def check(out: np.ndarray, reduction: Reduction, world: comm.Comm) -> tuple[int, float]:
    """(elements out of bounds, or -1 where the ranks differ; relative error energy) of one run's result."""
    wrong, error = count_wrong(out, reduction)
    try:
        check_replicas(world, out)
    except _cgxffcv.CommError:
        wrong = -1
    return wrong, error


@dataclass
class Contender:
    """What is timed: ours, or a rival that sums as many elements of its type."""

    key: str
    title: str
    dtype: str
    trial: Any

    def runs_of(self, options: argparse.Namespace, count: int, seconds: float) -> int:
        """Runs per round; equal on all ranks, as times are."""
        if options.warmup_iters:
            self.trial.time(count, options.warmup_iters, False)
        if options.iters:
            return options.iters
        return max(2, min(MOST_RUNS, int(seconds / max(1e-6, self.trial.time(count, 1, False)))))


def error_of(world: comm.Comm, rival: Contender, count: int) -> float:
    """The error of a rival's averages in the first block, which shows that it did the work that was timed."""
    out = np.empty(min(count, BLOCK), block_of(world.rank, rival.dtype).dtype)
    rival.trial.read(out)
    return count_wrong(out, Reduction(rival.dtype, "average", world.size, "exact", False))[1]


def rivals_of(world: comm.Comm, site: str, options: argparse.Namespace, count: int) -> tuple[list[Contender], str]:
    """(the rivals that this machine has, why not more); each has one buffer for all sizes."""
    if options.no_rival or world.size == 1:
        return [], ""
    name = {"host": "mpi", "device": "nccl"}[site]
    op = "average" if options.op == "average" and site == "device" else "sum"
    found: list[Contender] = []
    for dtype in ("float32",) if site == "host" else ("float32", "bfloat16"):
        own = {"dtype": dtype, "op": op, "bits": UNCOMPRESSED, "codec": "maxmin", "half_metadata": False}
        try:
            trial = trial_of(world, name, options, count, **own)
        except _cgxffcv.NotBuiltError as error:
            return found, str(error)
        found.append(Contender(f"{name}_{dtype}", f"{name.upper()} {dtype}", dtype, trial))
    return found, ""


def measure_size(world: comm.Comm, site: str, options: argparse.Namespace, count: int, rivals: list[Contender]) -> dict:
    mine = block_of(world.rank, options.dtype)
    ours = Contender("ours", "ours", options.dtype, trial_of(world, site, options, count))
    plan = ours.trial.plan()
    ours.trial.fill(mine)
    ours.trial.time(count, 1, False)
    out = np.empty(count, mine.dtype)
    ours.trial.read(out)
    wrong, error = check(out, reduction_of(world, options, plan["algorithm"]), world)
    del out
    contenders = [ours, *rivals]
    runs = [contender.runs_of(options, count, ROUND_SECONDS[site]) for contender in contenders]
    times: list[list[float]] = [[] for _ in contenders]
    for _ in range(options.rounds):
        for contender, repeated, seconds in zip(contenders, runs, times, strict=True):
            contender.trial.fill(block_of(world.rank, contender.dtype))
            seconds.append(1e6 * contender.trial.time(count, repeated, not options.no_graph))
    best, size = statistics.median(times[0]), count * item_bytes(options.dtype)
    rate = size / best / 1e3
    row = {"size": size, "count": count, "type": options.dtype, "redop": options.op, "time_us": best}
    row |= {"algbw_gbps": rate, "busbw_gbps": rate * 2 * (world.size - 1) / world.size, "wrong": wrong}
    row |= {"relative_error": error, **plan, "runs": runs[0], "times_us": times[0], "rivals": {}}
    for contender, repeated, seconds in zip(rivals, runs[1:], times[1:], strict=True):
        middle = statistics.median(seconds)
        row["rivals"][contender.key] = {
            "time_us": middle,
            "ratio": middle / best,
            "runs": repeated,
            "times_us": seconds,
        }
        if site == "device" and options.op == "average":
            row["rivals"][contender.key]["relative_error"] = error_of(world, contender, count)
    return row


def heading(rivals: list[Contender]) -> str:
    """Two lines of titles, as nccl-tests has them."""
    lines = [[f"{column[i]:>{column[2]}}" for column in COLUMNS] for i in (0, 1)]
    for contender in rivals:
        lines[0].append(f"{contender.title:>14} {'ratio':>6}")
        lines[1].append(f"{'(us)':>14} {'':>6}")
    return "\n".join(" ".join(line) for line in lines)


def line_of(r: dict) -> str:
    rivals = "".join(f" {rival['time_us']:14.1f} {rival['ratio']:6.2f}" for rival in r["rivals"].values())
    return (
        f"{r['size']:12d} {r['count']:12d} {r['type']:>9} {r['redop']:>8} {r['time_us']:10.1f} "
        f"{r['algbw_gbps']:8.2f} {r['busbw_gbps']:8.2f} {r['wrong']:7d} {r['wire_bytes']:12d} "
        f"{r['relative_error']:10.2e} {r['algorithm']:>10}{rivals}"
    )


def draw(path: str, title: str, rows: list[dict], rivals: list[Contender]) -> None:
    """Times over sizes, on logarithmic axes."""
    sizes = [r["size"] for r in rows]
    series = {"cgxffcv": [r["time_us"] for r in rows]}
    series |= {contender.title: [r["rivals"][contender.key]["time_us"] for r in rows] for contender in rivals}
    with charts.axes(path, title) as axes:
        for (name, times), colour, mark in zip(series.items(), charts.COLOURS, charts.MARKS, strict=False):
            axes.loglog(sizes, times, color=colour, marker=mark, markersize=4, label=name)
        axes.set_xlabel("bytes of the tensor")
        axes.set_ylabel("microseconds")
        axes.grid(alpha=0.3)
        axes.legend()


def begin(options: argparse.Namespace) -> tuple[comm.Comm, str]:
    """The communicator, and where the buffers are."""
    links.take(options.link, process.ranks())
    options.gpu = device.choose(options.device, local_rank=process.local_rank())
    try:
        return comm.world(nodes=options.nodes), "host" if options.gpu is None else "device"
    except ValueError as error:
        raise UsageError(f"bench allreduce: {error}") from error


def title_of(world: comm.Comm, site: str, options: argparse.Namespace) -> str:
    where = f"{counted(world.size, 'rank')} on {counted(world.nodes, 'node')}, {links.WORDS[options.link]}"
    return f"{where}, {'GPU' if site == 'device' else 'host'} memory, {how(options)}"


def benchmark(world: comm.Comm, site: str, options: argparse.Namespace) -> list[dict]:
    """All sizes; the table on rank 0."""
    rows: list[dict] = []
    counts = counts_of(options)
    trial_of(world, site, options, counts[-1])  # refused before anything is printed
    rivals, why = rivals_of(world, site, options, counts[-1])
    loud = world.rank == 0 and options.json != "-"
    if loud:
        threads = f", kernels {_cgxffcv.quantize_kernels()}, {counted(options.threads, 'thread')} per rank"
        print(f"# cgxffcv bench allreduce: {title_of(world, site, options)}{threads if site == 'host' else ''}")
        print(f"# rivals: {', '.join(contender.title for contender in rivals) or 'none'}{f' ({why})' if why else ''}")
        print(heading(rivals), flush=True)
    for count in counts:
        rows.append(measure_size(world, site, options, count, rivals))
        if loud:
            print(line_of(rows[-1]), flush=True)
    if loud:
        print(f"# {counts[-1]} elements: {rows[-1]['explain'].strip()}".replace("\n", "\n#   "))
    if world.rank == 0 and options.chart:
        draw(options.chart, title_of(world, site, options), rows, rivals)
    return rows


def keep(world: comm.Comm, site: str, options: argparse.Namespace, rows: list[dict]) -> None:
    """The JSON, to standard output or into a file."""
    what = {"ranks": world.size, "nodes": world.nodes, "site": site, "options": vars(options), "rows": rows}
    what |= {"command": " ".join(sys.argv), "machine": machine.describe()}
    if options.json == "-":
        print(json.dumps(plain(what)))
        return
    try:
        machine.write_json(options.json, what)
    except OSError as error:
        raise UserError(f"cannot write {options.json}: {error.strerror}") from error


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; 0, or 1 if any element was wrong."""
    options = parse(argv)
    charts.check("allreduce", options.chart)
    world, site = begin(options)
    with world:
        rows = benchmark(world, site, options)
        if world.rank == 0 and options.json:
            keep(world, site, options, rows)
    return int(any(row["wrong"] != 0 for row in rows))
