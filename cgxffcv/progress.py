"""Shows progress: a bar in a terminal, tqdm's in a notebook, or plain lines without either."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
import time
import warnings
from typing import Any, TextIO

from cgxffcv.wording import duration

BAR_INTERVAL = 0.1
FALLBACK_COLUMNS = 80


def is_terminal(stream: TextIO | None) -> bool:
    """False, too, if there is no stream (a program without a console), or it is closed or an object without isatty."""
    try:
        return stream is not None and stream.isatty()
    except (AttributeError, ValueError):
        return False


def terminal_columns(stream: TextIO | None) -> int | None:
    """The width of the terminal that `stream` writes to; None if it goes elsewhere.

    mpirun is between a rank and the terminal: then mpirun's own stderr is looked at.
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
        if stream is None or not is_terminal(stream):
            return None
        return os.get_terminal_size(stream.fileno()).columns or FALLBACK_COLUMNS
    except (AttributeError, OSError, ValueError):
        return FALLBACK_COLUMNS if is_terminal(stream) and "OMPI_COMM_WORLD_SIZE" not in os.environ else None


def in_notebook() -> bool:
    """True if this process is a notebook's kernel."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


def is_watched(stream: TextIO | None) -> bool:
    """True if somebody sees `stream` as it is written: in a terminal or a notebook."""
    return is_terminal(stream) or in_notebook()


def _notebook_bar(label: str, total: float, begun: float) -> Any:
    """tqdm's bar: a widget if ipywidgets is installed, else text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a widget would be prettier
        from tqdm.auto import tqdm
    shown = "{desc} {percentage:3.0f}% |{bar}| {unit} [{elapsed}<{remaining}]"
    return tqdm(desc=label, total=total, initial=begun, bar_format=shown)


class Progress:
    """A progress line: redrawn in a terminal, else a new line every `interval` seconds.

    mode: "auto" (a bar if `stream` is a terminal; in a notebook tqdm's, if it is installed; else lines), "bar",
    "notebook", "lines" or "off". It is off, too, where there is no stream, and from when it cannot be written to: what
    is shown ends no work.
    """

    def __init__(
        self, label: str, total: float, mode: str = "auto", interval: float = 10.0, stream: TextIO | None = None
    ):
        self.label, self.total, self.interval = label, total, interval
        self.stream = sys.stderr if stream is None else stream
        self.mode = "off" if self.stream is None else self._chosen() if mode == "auto" else mode
        self._tqdm: Any = None
        self.started = time.monotonic()
        self._begun, self._shown, self._width = 0.0, self.started, 0

    def _chosen(self) -> str:
        if terminal_columns(self.stream):
            return "bar"
        return "notebook" if in_notebook() and importlib.util.find_spec("tqdm") is not None else "lines"

    def begin_at(self, done: float) -> None:
        """Sets what was already done at the start, so that rates and ETA leave it out."""
        self._begun = done

    def eta(self, done: float) -> float:
        """Seconds left at the mean rate so far; infinite before there is one."""
        made, elapsed = done - self._begun, time.monotonic() - self.started
        return elapsed / made * (self.total - done) if made > 0 else math.inf

    def update(self, done: float, text: str = "") -> None:
        """Shows that `done` of the total is done, if it is time to show something. `text` follows the percentage."""
        wait = self.interval if self.mode == "lines" else BAR_INTERVAL
        now = time.monotonic()
        if self.mode == "off" or now - self._shown < wait:
            return
        self._shown = now
        self._draw(done, text, final=False)

    def finish(self, text: str = "") -> None:
        """Shows the last state of the line, which then stays."""
        if self.mode != "off":
            self._draw(self.total, text, final=True)

    def note(self, text: str) -> None:
        """Prints a separate line, which stays; the bar continues below it."""
        if self.mode == "off":
            return
        cleared = "\r" + " " * self._width + "\r" if self.mode == "bar" else ""
        self._width = 0
        self._write(cleared + text + "\n")

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
            getattr(self.stream, "flush", lambda: None)()  # print() asks a stream for no more than write, either
        except (OSError, ValueError):  # its terminal is gone, it was closed
            self.mode = "off"

    def _draw_tqdm(self, done: float, text: str, final: bool) -> None:
        if self._tqdm is None:
            self._tqdm = _notebook_bar(self.label, self.total, self._begun)
        self._tqdm.total, self._tqdm.n = self.total, done
        self._tqdm.set_description_str(self.label, refresh=False)
        self._tqdm.unit = text
        self._tqdm.refresh()
        if final:
            self._tqdm.close()
            self._tqdm = None

    def _draw(self, done: float, text: str, final: bool) -> None:
        if self.mode == "notebook" and not (final and self._tqdm is None):  # a single line shows what was done at once
            self._draw_tqdm(done, text, final)
            return
        share = min(done / self.total, 1.0) if self.total else 1.0
        left = "" if final or not math.isfinite(self.eta(done)) else f"  ETA {duration(self.eta(done))}"
        line = f"{self.label} {share:4.0%}  {text}{left}".rstrip()
        if self.mode != "bar":
            self._write(line + "\n")
        else:
            columns = (terminal_columns(self.stream) or FALLBACK_COLUMNS) - 1
            room = columns - len(line) - 3
            if room >= 10:
                room = min(room, 30)
                full = round(share * room)
                line = f"{self.label} [{'#' * full}{'.' * (room - full)}] {share:4.0%}  {text}{left}".rstrip()
            line = line[:columns]
            self._write("\r" + line.ljust(self._width) + ("\n" if final else ""))
            self._width = 0 if final else len(line)
