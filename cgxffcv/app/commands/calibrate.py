"""`cgxffcv calibrate`: measures what allreduces cost between these ranks and saves it, for "auto" to choose by."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from cgxffcv import comm, costs, device
from cgxffcv.app import process
from cgxffcv.app.usage import Parser, number, whole
from cgxffcv.errors import UsageError, UserError
from cgxffcv.wording import counted

DESCRIPTION = """\
Run it under mpirun (or cgxffcv launch -np N calibrate), with the ranks, GPUs and environment of the jobs that are to
benefit, while nothing else is running. "auto" then chooses by what was measured, and sends data uncompressed where that
takes less time. All is measured again, until two measurements in succession agree; if none do, nothing is saved."""
SHOWN = (1 << 10, 1 << 14, 1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 26)  # elements of float32
MOST_REPEATS, MOST_ELEMENTS = 10000, 1 << 32


def _parser(prog: str) -> Parser:
    p = Parser(prog=prog, description=DESCRIPTION)
    p.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto", help="where the buffers are")
    p.add_argument("--bits", type=whole(1, 8), default=4, help="bits of the times shown; default 4")
    p.add_argument("--nodes", type=whole(1), help="pretend that the ranks are on this many nodes")
    sizes, repeats = whole(1, MOST_ELEMENTS), whole(1, MOST_REPEATS)
    p.add_argument("--sizes", type=sizes, nargs="+", default=[], metavar="ELEMENTS", help="sizes to measure")
    p.add_argument("--repeats", type=repeats, default=costs.THOROUGH, help="runs of each measurement; the best counts")
    text = f"the factor by which repeated measurements may differ; default {costs.SPREAD:g}"
    p.add_argument("--spread", type=number(1), default=costs.SPREAD, metavar="FACTOR", help=text)
    p.add_argument("--json", action="store_true", help="print JSON, for programs")
    return p


def text(lines: costs.Lines, bits: int) -> str:
    """Predicted microseconds over sizes, and what "auto" would choose."""
    names = list(lines)
    out = [f"microseconds at {counted(bits, 'bit')} (exact: uncompressed), as predicted"]
    out.append(f"{'MiB':>10} " + " ".join(f"{name:>10}" for name in names) + "  auto")
    for elems in SHOWN:
        times = costs.predicted(lines, bits, elems)
        cells = " ".join(f"{1e6 * times[name]:10.1f}" for name in names)
        out.append(f"{elems / (1 << 18):10.3f} {cells}  {min(times, key=lambda name: times[name])}")
    for name in names:
        latency, element, byte = lines[name]
        out.append(f"{name}: {1e6 * latency:.1f} us, {1e9 * element:.5f} ns an element, {1e9 * byte:.5f} ns a byte")
    return "\n".join(out)


def run(options: argparse.Namespace, world: comm.Comm, index: int | None) -> None:
    if world.size == 1:
        raise UsageError(
            "calibrate: there is only one rank, which sends nothing: run it under mpirun or cgxffcv launch"
        )
    sizes = tuple(sorted(set(options.sizes)))
    if len(sizes) == 1 or len(sizes) > 8:
        raise UsageError("calibrate: --sizes: expected 2 to 8 different ones, as a line is fitted through them")
    try:
        lines, path = costs.calibrate(world, index, sizes, options.repeats, options.spread)
    except OSError as error:
        raise UserError(f"the measurements cannot be saved: {error.filename}: {error.strerror}") from error
    if options.json:
        process.say(json.dumps({"lines": lines, "path": str(path)}))
    else:
        process.say(text(lines, options.bits))
        process.say(f"saved in {path}")


def main(prog: str, argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    options = _parser(prog).parse_args(argv)
    index = device.choose(options.device, local_rank=process.local_rank())
    try:
        world = comm.world(nodes=options.nodes)
    except ValueError as error:
        raise UsageError(f"calibrate: {error}") from error
    with world:
        run(options, world, index)
    return 0
