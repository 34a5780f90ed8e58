"""A run's curves and configuration as a TensorBoard event file; the package tensorboard is needed only for this."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cgxffcv import files
from cgxffcv.errors import UserError

PATTERN = "events.out.tfevents.*"
# Which values of a record become points of a curve: the value's name, and the curve's.
CURVES = {
    "step": {"loss": "step/loss", "rate": "step/lr", "wire_bytes": "step/wire_bytes", "seconds": "step/seconds"},
    "epoch": {
        "train_loss": "loss/train",
        "test_loss": "loss/test",
        "train_accuracy": "accuracy/train",
        "test_accuracy": "accuracy/test",
        "images_per_second": "images_per_second",
        "wire_bytes": "wire_bytes",
    },
}
FLUSH_SECONDS = 10


def check_installed(key: str) -> None:
    """UserError that names the package, for the setting `key`."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(f"{key} needs the package tensorboard: pip install tensorboard")


class EventFile:
    """Takes the records that go to run.jsonl. The x axis is the number of steps done. `done`: the steps that the run
    has done; later points, left by a process that was killed, become void. Raises OSError."""

    def __init__(self, folder: Path, done: int):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._session = event_pb2.Event, event_pb2.SessionLog
        self._summary, self._folder = summary_pb2.Summary, folder
        self._writer = EventFileWriter(str(folder), flush_secs=FLUSH_SECONDS)
        begun = self._session(status=self._session.START)
        self._writer.add_event(self._event(wall_time=time.time(), step=done + 1, session_log=begun))

    def event(self, name: str, values: Mapping[str, Any]) -> None:
        """Adds a record of run.jsonl; records with nothing to show are skipped."""
        if name == "start":
            self._add(values["step"], [self._text("config", values["config"])])
        elif name in CURVES:
            found = {curve: values.get(key) for key, curve in CURVES[name].items()}
            points = [self._summary.Value(tag=tag, simple_value=n) for tag, n in found.items() if n is not None]
            self._add(values["steps"] if name == "epoch" else values["step"] + 1, points)

    def _text(self, tag: str, value: Any) -> Any:
        """Shown by TensorBoard's page "Text" as a block of code."""
        lines = json.dumps(value, indent=2, default=str).splitlines()
        found = self._summary.Value(tag=tag)
        found.metadata.plugin_data.plugin_name = "text"
        found.tensor.dtype = 7  # DT_STRING
        found.tensor.tensor_shape.dim.add().size = 1
        found.tensor.string_val.append("\n".join("    " + line for line in lines).encode())
        return found

    def _add(self, step: int, points: list[Any]) -> None:
        with files.naming(self._folder):
            self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=points)))

    def close(self) -> None:
        with files.naming(self._folder):
            self._writer.close()
