"""How far something is: one bar, or plain lines without a terminal."""

from __future__ import annotations

import math
import os
import sys
import time
from typing import TextIO

from cgxffcv.wording import duration

BAR_INTERVAL = 0.1
FALLBACK_COLUMNS = 80


def terminal_columns(stream: TextIO) -> int | None:
    """The width of the terminal that `stream` ends in; None if it ends elsewhere.

    mpirun puts itself between a rank and the terminal: there its own stderr is looked at.
    """
    try:
        if "OMPI_COMM_WORLD_SIZE" in os.environ:
            target = os.readlink(f"/proc/{os.getppid()}/fd/2")
            if not target.startswith(("/dev/pts/", "/dev/tty")):
                return None
            terminal = os.open(target, os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
            try:
                return os.get_terminal_size(terminal).columns or FALLBACK_COLUMNS
            finally:
                os.close(terminal)
        if not stream.isatty():
            return None
        return os.get_terminal_size(stream.fileno()).columns or FALLBACK_COLUMNS
    except (OSError, ValueError):
        return FALLBACK_COLUMNS if stream.isatty() and "OMPI_COMM_WORLD_SIZE" not in os.environ else None


class Progress:
    """A line that says how far something is: redrawn in a terminal, else a new line every `interval` seconds.

    mode: "auto" (a bar if `stream` is a terminal, else lines), "bar", "lines" or "off".
    """

    def __init__(
        self, label: str, total: float, mode: str = "auto", interval: float = 10.0, stream: TextIO | None = None
    ):
        self.label, self.total, self.interval = label, total, interval
        self.stream = sys.stderr if stream is None else stream
        self.mode = ("bar" if terminal_columns(self.stream) else "lines") if mode == "auto" else mode
        self.started = time.monotonic()
        self._begun, self._shown, self._width = 0.0, self.started, 0

    def begin_at(self, done: float) -> None:
        """Says that `done` was there at the start, so that rates and ETA leave it out."""
        self._begun = done

    def eta(self, done: float) -> float:
        """Seconds left at the mean rate so far; infinite before there is one."""
        made, elapsed = done - self._begun, time.monotonic() - self.started
        return elapsed / made * (self.total - done) if made > 0 else math.inf

    def update(self, done: float, text: str = "") -> None:
        """Shows that `done` of the total is done, if it is time to show something. `text` follows the percentage."""
        wait = BAR_INTERVAL if self.mode == "bar" else self.interval
        now = time.monotonic()
        if self.mode == "off" or now - self._shown < wait:
            return
        self._shown = now
        self._draw(done, text, final=False)

    def finish(self, text: str = "") -> None:
        """The last state of the line, which then stays."""
        if self.mode != "off":
            self._draw(self.total, text, final=True)

    def note(self, text: str) -> None:
        """A line of its own, which stays; the bar goes on below it."""
        if self.mode == "off":
            return
        if self.mode == "bar":
            self.stream.write("\r" + " " * self._width + "\r")
            self._width = 0
        self.stream.write(text + "\n")
        self.stream.flush()

    def _draw(self, done: float, text: str, final: bool) -> None:
        share = min(done / self.total, 1.0) if self.total else 1.0
        left = "" if final or not math.isfinite(self.eta(done)) else f"  ETA {duration(self.eta(done))}"
        line = f"{self.label} {share:4.0%}  {text}{left}".rstrip()
        if self.mode == "lines":
            self.stream.write(line + "\n")
        else:
            columns = (terminal_columns(self.stream) or FALLBACK_COLUMNS) - 1
            room = columns - len(line) - 3
            if room >= 10:
                room = min(room, 30)
                full = round(share * room)
                line = f"{self.label} [{'#' * full}{'.' * (room - full)}] {share:4.0%}  {text}{left}".rstrip()
            line = line[:columns]
            self.stream.write("\r" + line.ljust(self._width) + ("\n" if final else ""))
            self._width = 0 if final else len(line)
        self.stream.flush()
