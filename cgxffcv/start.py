"""Where commands begin: signal handlers first, then what takes time to import."""

from __future__ import annotations

import os
import sys

import cgxffcv.interrupts as interrupts


def _open_streams() -> None:
    """Opens standard streams that this process was started without, for itself and for what it starts: the next file or
    pipe would take their numbers, and mpirun's ranks would get it as their output."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def script(prog: str, command: str) -> None:
    """Runs main(prog, arguments) of the module cgxffcv.app.commands.`command`, and ends the process."""
    interrupts.begin(prog)
    _open_streams()
    import importlib

    from cgxffcv.app import process

    process.run(prog, lambda: importlib.import_module(f"cgxffcv.app.commands.{command}").main(prog, sys.argv[1:]))


def main() -> None:
    """The command `cgxffcv`."""
    interrupts.begin("cgxffcv")
    _open_streams()
    from cgxffcv.app import cli, process

    own = [word for word in sys.argv[1:2] if word in cli.COMMANDS]
    process.run(" ".join(["cgxffcv", *own]), cli.run)
