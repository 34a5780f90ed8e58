"""Where commands begin: the signals first, then what takes time to import."""

from __future__ import annotations

import sys

import cgxffcv.interrupts as interrupts


def script(prog: str, command: str) -> None:
    """Runs main(prog, arguments) of the module cgxffcv.commands.`command`, and ends the process."""
    interrupts.begin(prog)
    import importlib

    from cgxffcv import app

    app.run(prog, lambda: importlib.import_module(f"cgxffcv.commands.{command}").main(prog, sys.argv[1:]))


def main() -> None:
    """The command `cgxffcv`."""
    interrupts.begin("cgxffcv")
    from cgxffcv import app, cli

    own = [word for word in sys.argv[1:2] if word in cli.COMMANDS]
    app.run(" ".join(["cgxffcv", *own]), cli.run)
