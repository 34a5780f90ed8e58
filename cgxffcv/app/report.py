"""What a run shows and keeps: one progress bar (plain lines without a terminal), run.jsonl and log.csv."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, TextIO

from cgxffcv import files

BAR_INTERVAL = 0.1
FALLBACK_COLUMNS = 80


def duration(seconds: float) -> str:
    """12.3 s, 4 min 05 s, 1 h 27 min."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float) -> str:
    """17 B, 1.2 MB, 170 MB: decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


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


def plain(value: Any) -> Any:
    """`value` with null for what JSON has no number for: NaN and the infinities."""
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def was_interrupted(folder: Path) -> bool:
    """Whether the last record of run.jsonl there is that the run was interrupted: its rank 0 has told so."""
    with contextlib.suppress(OSError), open(folder / "run.jsonl", "rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - 4096, 0))
        return file.read().rstrip().rpartition(b"\n")[2].startswith(b'{"event": "interrupted"')
    return False


class RunLog:
    """run.jsonl (one JSON object a line: what happened, when) and log.csv (one line an epoch) in a folder.

    Every record is on its way to the disk when `event` returns; a killed run leaves whole lines but perhaps the last.
    """

    COLUMNS = (
        "epoch", "steps", "seconds", "images_per_second", "lr", "train_loss", "train_accuracy",
        "test_loss", "test_accuracy", "wire_bytes", "time",
    )  # fmt: skip

    def __init__(self, folder: Path, resume: bool = False):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        mode = "a" if resume else "w"
        self._json = files.open_plain(folder / "run.jsonl", mode, encoding="utf-8", buffering=1)
        self._csv = files.open_plain(folder / "log.csv", mode, encoding="utf-8", newline="", buffering=1)
        self._rows = csv.DictWriter(self._csv, self.COLUMNS, extrasaction="ignore", restval="")
        if self._csv.tell() == 0:
            self._rows.writeheader()

    def event(self, name: str, values: Mapping[str, Any] | None = None) -> None:
        """Appends {"event": name, "time": Unix seconds, ...} to run.jsonl; an "epoch" goes to log.csv too."""
        record = {"event": name, "time": round(time.time(), 3), **(values or {})}
        with files.naming(self._json.name):
            self._json.write(json.dumps(plain(record), default=str, allow_nan=False) + "\n")
        if name == "epoch":
            with files.naming(self._csv.name):
                self._rows.writerow(record)

    def close(self) -> None:
        try:
            self._finish(self._json)
        finally:
            self._finish(self._csv)

    @staticmethod
    def _finish(file: IO[str]) -> None:
        if not file.closed:
            with files.naming(file.name), file:
                file.flush()
                os.fsync(file.fileno())

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


RUN_FILES = ("run.jsonl", "log.csv", "config.yaml", "last.safetensors", "best.safetensors")


def set_aside(folder: Path) -> Path | None:
    """Moves what an earlier run left in `folder` into a folder of its own below it; gives that, or None."""
    left = [folder / name for name in RUN_FILES if (folder / name).exists()]
    if not left:
        return None
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(max(path.stat().st_mtime for path in left)))
    target, number = folder / f"run-{stamp}", 1
    while target.exists():
        number += 1
        target = folder / f"run-{stamp}-{number}"
    target.mkdir()
    for path in left:
        path.rename(target / path.name)
    return target
