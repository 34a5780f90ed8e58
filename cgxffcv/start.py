"""Where commands begin: signal handlers first, then what takes time to import."""

from __future__ import annotations

import sys

import cgxffcv.interrupts as interrupts


def script(prog: str, command: str) -> None:
    """Runs main(prog, arguments) of the module cgxffcv.app.commands.`command`, and ends the process."""
    interrupts.begin(prog)
    import importlib

    from cgxffcv.app import process

    process.run(prog, lambda: importlib.import_module(f"cgxffcv.app.commands.{command}").main(prog, sys.argv[1:]))


def main() -> None:
    """The command `cgxffcv`."""
    interrupts.begin("cgxffcv")
    from cgxffcv.app import cli, process

    own = [word for word in sys.argv[1:2] if word in cli.COMMANDS]
    process.run(" ".join(["cgxffcv", *own]), cli.run)
