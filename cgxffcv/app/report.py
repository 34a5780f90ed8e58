"""The logs that a run keeps: run.jsonl and log.csv."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from cgxffcv import files
from cgxffcv.app import eventfile, runs


def plain(value: Any) -> Any:
    """`value` with null for what JSON has no number for: NaN and the infinities."""
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def was_interrupted(folder: Path) -> bool:
    """True if the last record of run.jsonl there says that the run was interrupted, as reported by its rank 0."""
    with contextlib.suppress(OSError), files.open_plain(folder / runs.LOG, "rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - 4096, 0))
        return file.read().rstrip().rpartition(b"\n")[2].startswith(b'{"event": "interrupted"')
    return False


def _drop_half_line(path: Path) -> None:
    """Cuts off an incomplete last line that a killed process left, so that the next record starts on a new line."""
    with contextlib.suppress(FileNotFoundError), files.open_plain(path, "r+b") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(end - (1 << 16), 0)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            end = start + found + 1
            if found >= 0:
                break
        file.truncate(end)


class RunLog:
    """run.jsonl (one JSON object per line: what happened, when) and log.csv (one line per epoch) in a folder.

    Every record is on its way to the disk when `event` returns; a killed run leaves whole lines except perhaps the
    last, which is dropped when the run is resumed. `tensorboard`: the step from which records also go to an event file;
    None: no event file.
    """

    COLUMNS = ["epoch", "steps", "seconds", "images_per_second", "lr", "train_loss", "train_accuracy"]
    COLUMNS += ["test_loss", "test_accuracy", "wire_bytes", "time"]

    def __init__(self, folder: Path, resume: bool = False, tensorboard: int | None = None):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        mode = "a" if resume else "w"
        if resume:
            _drop_half_line(folder / runs.LOG)
            _drop_half_line(folder / "log.csv")
        self._json = files.open_plain(folder / runs.LOG, mode, encoding="utf-8", buffering=1)
        self._csv = files.open_plain(folder / "log.csv", mode, encoding="utf-8", newline="", buffering=1)
        self._rows = csv.DictWriter(self._csv, self.COLUMNS, extrasaction="ignore", restval="")
        if self._csv.tell() == 0:
            with files.naming(self._csv.name):
                self._rows.writeheader()
        self._events = None if tensorboard is None else eventfile.EventFile(folder, tensorboard)

    def event(self, name: str, values: Mapping[str, Any] | None = None) -> None:
        """Appends {"event": name, "time": Unix seconds, ...} to run.jsonl; an "epoch" goes to log.csv too."""
        record = {"event": name, "time": round(time.time(), 3), **(values or {})}
        with files.naming(self._json.name):
            self._json.write(json.dumps(plain(record), default=str, allow_nan=False) + "\n")
        if name == "epoch":
            with files.naming(self._csv.name):
                self._rows.writerow(record)
        if self._events is not None:
            self._events.event(name, record)

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            if self._events is not None:
                stack.callback(self._events.close)
            stack.callback(self._finish, self._csv)
            stack.callback(self._finish, self._json)

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


RUN_FILES = (runs.LOG, "log.csv", "config.yaml", runs.LAST, runs.BEST)


def set_aside(folder: Path) -> Path | None:
    """Moves what an earlier run left in `folder` into a new folder inside it; returns that folder, or None."""
    left = [folder / name for name in RUN_FILES if (folder / name).exists()]
    left += sorted(folder.glob(eventfile.PATTERN))
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
