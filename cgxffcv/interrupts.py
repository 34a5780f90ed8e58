"""How Ctrl-C and SIGTERM end a command.

While a command starts there is nothing to clean up, and an exception raised in the middle of an import may surface as
anything, so the signal handler ends the process at once, with one line. From `careful` on it raises instead, so that
temporary files are removed, child processes ended and checkpoints written. A command imports this module first, so it
imports only what the interpreter has already loaded (`signal` itself would import `enum`).
"""

from __future__ import annotations

import _signal as signal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn


class Terminated(KeyboardInterrupt):
    """mpirun, or somebody else, asked this process to end (SIGTERM)."""


WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_prog, _careful, _received = "", False, 0


def begin(prog: str) -> None:
    """From here on the signals end this process at once. One that is ignored (nohup) stays so."""
    global _prog
    _prog = prog
    at_once()
    for number in WORDS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on_signal)


def at_once() -> None:
    """From here on there is nothing to clean up."""
    global _careful
    _careful = False


def careful() -> None:
    """From here on there is something to clean up: the signals raise KeyboardInterrupt or Terminated."""
    global _careful
    _careful = True


def received() -> int:
    """The last of the two signals received; 0 if there was none."""
    return _received


def quiet() -> None:
    """This process is about to end, and says why by itself: from here on SIGTERM ends it without a message."""
    at_once()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def words(prog: str, number: int) -> str:
    """What a command says about the signal that ended it; with several ranks mpirun speaks for all."""
    alone = os.environ.get("OMPI_COMM_WORLD_SIZE", "1") == "1"
    return f"{prog}: {WORDS[number]}\n" if alone else ""


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _received
    _received = number
    if _careful:
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated
    _leave(number)


def _leave(number: int) -> NoReturn:
    """Ends the process here and now. Not through the streams: the signal may have come in the middle of a write."""
    try:
        os.write(2, words(_prog, number).encode())
        sys.stdout.flush()
    except (AttributeError, OSError, RuntimeError, ValueError):
        pass  # a stream is closed, or gone, or just being written to
    finally:
        os._exit(128 + number)
