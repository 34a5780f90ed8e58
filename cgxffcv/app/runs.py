"""A run's log folder, read back: what was configured, what each epoch brought, where the time went."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from cgxffcv import files
from cgxffcv.errors import UserError
from cgxffcv.wording import as_table, counted, duration, size

__all__ = ["BEST", "LAST", "LOG", "RunRecord", "checkpoint_of", "read", "read_all"]

LOG, LAST, BEST = "run.jsonl", "last.safetensors", "best.safetensors"
NEEDED = {"start": ("time",), "step": ("epoch", "step"), "epoch": ("epoch",), "end": ("seconds",)}
SECONDS = ("time", "seconds", "load_seconds", "test_seconds")
WHOLE = ("ranks", "epoch", "step", "steps", "wire_bytes")
MOST = 1 << 53  # limit of a number in a record


def checkpoint_of(path: str) -> str:
    """The checkpoint that `path` names: in a run's log folder the best."""
    return os.path.join(path, BEST) if os.path.isdir(path) else path


@dataclass
class RunRecord:
    """One run according to run.jsonl. `steps` and `epochs`: the records of these events in order, each number once (for
    a resumed run, the later one); `state`: finished, failed, interrupted or unfinished; `earlier`: seconds of the
    processes before the last one, which began at `began`."""

    folder: Path
    name: str
    start: dict[str, Any]
    steps: list[dict[str, Any]] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    end: dict[str, Any] | None = None
    state: str = "unfinished"
    error: str | None = None
    last_time: float = 0.0
    began: float = 0.0
    earlier: float = 0.0

    def setting(self, key: str) -> Any:
        """The value of "section.name"; None if the run had none."""
        section, _, name = key.partition(".")
        return self.start.get("config", {}).get(section, {}).get(name)

    def settings(self) -> dict[str, Any]:
        """All values, "section.name" to value."""
        config = self.start.get("config", {})
        return {f"{section}.{name}": value for section, values in config.items() for name, value in values.items()}

    def curve(self, key: str) -> list[tuple[float, float]]:
        """(epoch, value) of the epochs that have one."""
        return [(e["epoch"], e[key]) for e in self.epochs if isinstance(e.get(key), int | float)]

    @property
    def accuracy(self) -> float | None:
        """The accuracy in the last test."""
        tests = self.curve("test_accuracy")
        return tests[-1][1] if tests else None

    @property
    def best(self) -> float | None:
        tests = self.curve("test_accuracy")
        return max(value for _, value in tests) if tests else None

    @property
    def seconds(self) -> float:
        """From start to end, summed over the processes of a resumed run; without an end, up to the last record."""
        return self.earlier + (self.end["seconds"] if self.end else max(self.last_time - self.began, 0.0))

    @property
    def wire_bytes(self) -> int:
        """Bytes that all ranks sent for gradients, in the epochs that were completed."""
        return sum(epoch.get("wire_bytes") or 0 for epoch in self.epochs)

    @property
    def wire_bytes_a_step(self) -> float:
        """Bytes that rank 0 sent for gradients per step, the mean of all steps."""
        return sum(step.get("wire_bytes") or 0 for step in self.steps) / max(len(self.steps), 1)

    @property
    def ranks(self) -> int:
        return self.start.get("ranks") or 1

    def shares(self) -> dict[str, float]:
        """Seconds, by what they were spent on."""
        waited = sum(step.get("load_seconds") or 0.0 for step in self.steps)
        trained = sum(step.get("seconds") or 0.0 for step in self.steps) - waited
        tested = sum(epoch.get("test_seconds") or 0.0 for epoch in self.epochs)
        rest = max(self.seconds - trained - waited - tested, 0.0)
        return {
            "training steps": max(trained, 0.0),
            "waiting for data": waited,
            "tests": tested,
            "everything else": rest,
        }

    def summary(self) -> list[tuple[str, str]]:
        """(what, value), for people."""
        best = f" (best {self.best:.2%})" if self.best is not None and self.best != self.accuracy else ""
        epochs = f"{len(self.epochs)}, {counted(self.epochs[-1].get('steps') or 0, 'step')}" if self.epochs else "0"
        rows = [("test accuracy", "-" if self.accuracy is None else f"{self.accuracy:.2%}{best}")]
        rows += [("recipe", str(self.setting("training.recipe"))), ("epochs", epochs)]
        rows += [("time", duration(self.seconds)), ("processes", str(self.ranks))]
        if self.wire_bytes:
            bits = self.setting("compression.bits")
            how = f", in {bits} bits per value" if bits not in (None, 32) else ""
            rows.append(("sent for gradients", size(self.wire_bytes) + how))
        rows.append(("state", self.state + (f": {self.error}" if self.error else "")))
        return rows

    def _repr_html_(self) -> str:
        return as_table(self.name, self.summary())


def _check(record: dict[str, Any]) -> None:
    """Raises ValueError or TypeError unless a record has the values that are calculated with, as valid numbers; null
    counts as missing."""
    for name in NEEDED.get(record["event"], ()):
        if record.get(name) is None:
            raise ValueError(f"no {name}")
    for names, kinds in ((SECONDS, (int, float)), (WHOLE, (int,))):
        for name in names:
            value = record.get(name)
            if value is not None and (type(value) not in kinds or not 0 <= value < MOST):
                raise ValueError(f"{name} = {value!r}; expected a {'whole ' * (kinds == (int,))}number from 0 on")
    config = record.get("config", {})
    if not isinstance(config, dict) or not all(isinstance(values, dict) for values in config.values()):
        raise ValueError("config: expected sections with values")


def _take(run: RunRecord, record: dict[str, Any]) -> None:
    _check(record)
    kind, now = record["event"], record.get("time")
    if kind == "start":
        if run.start:
            run.earlier = run.seconds
        run.start, run.began = record | {"time": run.start.get("time", now)}, float(now)
        run.end, run.state, run.error = None, "unfinished", None
    run.last_time = float(now or run.last_time)
    if kind == "step":
        while run.steps and run.steps[-1]["step"] >= record["step"]:
            run.steps.pop()
        run.steps.append(record)
    elif kind == "epoch":
        while run.epochs and run.epochs[-1]["epoch"] >= record["epoch"]:
            run.epochs.pop()
        run.epochs.append(record)
    elif kind == "end":
        run.end, run.state = record, "finished"
    elif kind in ("failed", "interrupted"):
        run.state, run.error = kind, record.get("error")


def read(path: str | PathLike[str]) -> RunRecord:
    """The run of a log folder, or of its run.jsonl; a last line that was cut off is ignored. UserError if there is no
    log, or if it is not one."""
    folder = Path(path)
    log = folder if folder.name == LOG else folder / LOG
    try:
        with files.open_plain(log, "r", encoding="utf-8") as file:
            lines = file.readlines()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{os.fspath(path)}: no {LOG} there; name a run's log folder (log.dir)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{log}: cannot be read: {error}") from None
    run = RunRecord(log.parent, os.path.basename(os.path.abspath(log.parent)) or str(log.parent), {})
    for number, line in enumerate(lines, 1):
        try:
            _take(run, json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise UserError(f"{log}, line {number}: not a record of a run ({error})") from None
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{log}, line {number}: not a record of a run ({error})") from None
    if not run.start:
        raise UserError(f"{log}: no run has started in it")
    return run


def read_all(paths: Sequence[str]) -> list[RunRecord]:
    """The runs; those that would have the same name are called by their paths."""
    found = [read(path) for path in paths]
    times = Counter(run.name for run in found)
    for run in found:
        if times[run.name] > 1:
            run.name = str(run.folder)
    return found
