"""The command line: cgxffcv write | convert | train | predict | export | report | calibrate | launch | info | verify |
doctor | bench."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from cgxffcv import __version__, interrupts
from cgxffcv.app.usage import Parser, whole
from cgxffcv.errors import UserError

BENCHES = {
    "loader": "the CIFAR pipeline's images per second, next to copying the same bytes",
    "beton": "writing, opening and verifying .beton files, and JPEG, next to their limits",
    "quantize": "the quantiser's GB/s, next to memcpy",
    "allreduce": "the compressed allreduce over sizes, next to MPI_Allreduce (under mpirun)",
    "ddp": "a step of DistributedDataParallel: with its own allreduce, its hooks, ours",
    "cifar": "runs of a recipe with several seeds: accuracy, seconds, share of the machine's peak",
    "table": "the demo's training: usual PyTorch code, ours, ours compressed",
}
# Those that have their own module in app/commands.
COMMANDS = ("write", "convert", "train", "predict", "export", "report", "calibrate")


def _info(options: argparse.Namespace) -> int:
    from cgxffcv import beton

    found = beton.info(options.file)
    print(beton.to_json(found) if options.json else found)
    if options.thumbnails is not None:
        _write_thumbnails(options.file, options.thumbnails)
    return 0


def _write_thumbnails(path: str, out: str) -> None:
    from cgxffcv import BetonError, files
    from cgxffcv.reader import Reader
    from cgxffcv.sheet import contact_sheet, png

    with Reader(path) as reader:
        try:
            sheet = contact_sheet(reader)
        except BetonError:
            raise
        except ValueError as error:
            raise UserError(str(error)) from error
    files.write(out, [png(sheet)])


def _verify(options: argparse.Namespace) -> int:
    from cgxffcv import beton
    from cgxffcv.progress import Progress

    progress = Progress("verifying", 1, "off" if options.json else "auto")

    def show(done: int, total: int) -> None:
        progress.total = total
        progress.update(done, f"{done:,} of {total:,} samples")

    report = beton.verify(options.file, progress=show)
    print(beton.to_json(report) if options.json else report)
    return 0 if report.ok else 1


def _doctor(options: argparse.Namespace) -> int:
    from cgxffcv.app import doctor

    return doctor.main(json=options.json)


def _bench(options: argparse.Namespace) -> int:
    try:
        module = importlib.import_module(f"cgxffcv.bench.{options.name}")
    except ModuleNotFoundError as error:
        raise UserError(f"bench {options.name}: {error}") from error
    interrupts.careful()
    return module.main(options.arguments) or 0


def _launch(options: argparse.Namespace) -> int:
    from cgxffcv.app import launch

    words = options.command if options.module is None else ["-m", *options.module]
    return launch.main(options.np, words, dry=options.print)


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="cgxffcv", description="Data sets, training, diagnosis and benchmarks of cgxffcv.")
    top.add_argument("--version", action="version", version=f"cgxffcv {__version__}")
    commands = top.add_subparsers(dest="command_name", required=True, metavar="COMMAND", parser_class=Parser)
    for name, text in (
        ("write", "write CIFAR-10 as .beton files"),
        ("convert", "write a .beton file from a folder of images, tar files, or other .beton files"),
        ("train", "train on them: alone, or on several ranks through cgxffcv launch"),
        ("predict", "classify images with a trained network"),
        ("export", "write a trained network for PyTorch or ONNX"),
        ("report", "write a page about one or more runs: curves, mistakes, times, bytes"),
        ("calibrate", "measure what allreduces cost between these ranks (under mpirun), to choose algorithms by"),
    ):
        commands.add_parser(name, help=text)  # only for the list: `run` passes its options to the command
    _add_launch(commands)
    for name, function, text, about in (
        ("info", _info, "what is in a .beton file", "Shows what is in a .beton file: samples, fields, sizes."),
        ("verify", _verify, "read all of a .beton file and check it", "Reads all of a .beton file and checks it."),
    ):
        command = commands.add_parser(name, help=text, description=about)
        command.add_argument("file", metavar="FILE.beton")
        command.add_argument("--json", action="store_true", help="print JSON, for programs")
        command.set_defaults(function=function)
        if name == "info":
            command.add_argument("--thumbnails", metavar="OUT.png", help="write a contact sheet of its images")
    doctor = commands.add_parser(
        "doctor",
        help="what this machine has, what is missing, and how to fix it",
        description="Shows what this machine has, what of it cgxffcv can use, and how to install what is missing.",
    )
    doctor.add_argument("--json", action="store_true", help="print JSON, for programs")
    doctor.set_defaults(function=_doctor)
    bench = commands.add_parser(
        "bench",
        help="benchmarks: " + ", ".join(BENCHES),
        usage="%(prog)s [-h] NAME ...",
        description="Benchmarks; each has its own options: cgxffcv bench NAME --help.",
        epilog="\n".join(["NAME is one of", *(f"  {name:<10} {text}" for name, text in BENCHES.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bench.add_argument("name", choices=BENCHES, metavar="NAME", help="the benchmark")
    rest = bench.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="its options")
    rest.required = False  # so that a usage error asks for NAME only
    bench.set_defaults(function=_bench)
    return top


def _add_launch(commands: argparse._SubParsersAction[Parser]) -> None:
    about = "Runs COMMAND as NP ranks on this machine with Open MPI: each rank gets its share of the cores; works as "
    about += "root, in containers and with more ranks than cores."
    launch = commands.add_parser("launch", help="mpirun with the right options for one machine", description=about)
    launch.add_argument("-np", "-n", "--np", type=whole(1), required=True, metavar="NP", help="number of ranks")
    launch.add_argument("--print", action="store_true", help="show the mpirun command, do not run it")
    launch.add_argument("-m", dest="module", nargs=argparse.REMAINDER, metavar="MODULE ...", help="a Python module")
    text = "train or bench (of cgxffcv) with its options, a script.py, or a program"
    launch.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND ...", help=text)
    launch.set_defaults(function=_launch)


def run(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments and arguments[0] in COMMANDS:
        module = importlib.import_module(f"cgxffcv.app.commands.{arguments[0]}")
        return module.main(f"cgxffcv {arguments[0]}", arguments[1:])
    options = parser().parse_args(arguments)
    return options.function(options)
