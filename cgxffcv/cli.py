"""The command line: cgxffcv info | verify | doctor | bench | launch."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from cgxffcv import __version__, app
from cgxffcv.errors import UserError

BENCHES = ("loader", "beton", "allreduce", "quantize", "cifar", "table")


def _info(options: argparse.Namespace) -> int:
    from cgxffcv import beton

    found = beton.info(options.file)
    print(beton.to_json(found) if options.json else found)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from cgxffcv import beton
    from cgxffcv.report import Progress

    progress = Progress("verifying", 1, "off" if options.json else "auto")

    def show(done: int, total: int) -> None:
        progress.total = total
        progress.update(done, f"{done:,} of {total:,} samples")

    report = beton.verify(options.file, progress=show)
    print(beton.to_json(report) if options.json else report)
    return 0 if report.ok else 1


def _doctor(options: argparse.Namespace) -> int:
    from cgxffcv import doctor

    return doctor.main(json=options.json)


def _bench(options: argparse.Namespace) -> int:
    try:
        module = importlib.import_module(f"cgxffcv.bench.{options.name}")
    except ModuleNotFoundError as error:
        raise UserError(f"bench {options.name}: {error}") from error
    return module.main(options.arguments) or 0


def _launch(options: argparse.Namespace) -> int:
    from cgxffcv import launch

    return launch.main(options.np, options.command, dry=options.print)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="cgxffcv", description="Data sets, diagnosis and benchmarks of cgxffcv.")
    top.add_argument("--version", action="version", version=f"cgxffcv {__version__}")
    commands = top.add_subparsers(dest="command_name", required=True, metavar="COMMAND")
    for name, function, text in (
        ("info", _info, "what is in a .beton file"),
        ("verify", _verify, "read all of a .beton file and check it"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("file", metavar="FILE.beton")
        command.add_argument("--json", action="store_true", help="for programs")
        command.set_defaults(function=function)
    doctor = commands.add_parser("doctor", help="what this machine has, what is missing, and how to mend it")
    doctor.add_argument("--json", action="store_true", help="for programs")
    doctor.set_defaults(function=_doctor)
    bench = commands.add_parser("bench", help="benchmarks; each has its own --help", add_help=False)
    bench.add_argument("name", choices=BENCHES, metavar="|".join(BENCHES))
    bench.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...")
    bench.set_defaults(function=_bench)
    launch = commands.add_parser(
        "launch", help="mpirun with the right options for one machine",
        description="Runs COMMAND as NP ranks on this machine with Open MPI: each rank gets its share of the cores; "
        "works as root, in containers and with more ranks than cores.",
    )  # fmt: skip
    launch.add_argument("-np", type=int, required=True, metavar="NP", help="number of ranks")
    launch.add_argument("--print", action="store_true", help="show the mpirun command, do not run it")
    launch.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND ...", help="a script.py or a program")
    launch.set_defaults(function=_launch)
    return top


def run(argv: Sequence[str] | None = None) -> int:
    """Runs one command; gives its exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["bench"] and arguments[1:2] in (["-h"], ["--help"]):
        arguments = ["--help"]
    options = parser().parse_args(arguments)
    return options.function(options)


def main() -> None:
    app.run("cgxffcv", run)
