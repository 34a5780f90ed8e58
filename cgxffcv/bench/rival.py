"""Measures FFCV next to this package: the same files, cells and threads, in the same run, in a separate interpreter.

FFCV is not part of this package and not needed by it. `--rival-python` names a Python that has FFCV 1.0.2 and what it
needs (numba, OpenCV, libturbojpeg, PyTorch); what is missing there is reported before anything is measured.
"""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cgxffcv.bench import processes
from cgxffcv.errors import UserError

SCRIPT = Path(__file__).with_name("rival_ffcv.py")
NEEDS = "it needs FFCV 1.0.2, which is built with a C++ compiler, pkg-config, OpenCV and libturbojpeg, and run with "
NEEDS += "numba and PyTorch; see docs/BENCHMARKS.md"


class Rival(NamedTuple):
    python: str
    version: str

    def measure(self, cell: Mapping[str, Any], path: Path, threads: int, epochs: int, batch: int) -> dict[str, Any]:
        """FFCV's figures for a cell; UserError with what it said, if it fails."""
        command = [self.python, str(SCRIPT), json.dumps(dict(cell)), *map(str, (path, threads, epochs, batch))]
        with processes.Program(command, stdout=-1, stderr=-1, text=True) as program:
            output, complaint = program.process.communicate()
        if program.process.returncode != 0:
            raise UserError(f"bench loader: FFCV failed in the cell {cell['cell']}: {last_line(complaint)}")
        got = json.loads(output.splitlines()[-1])
        images, seconds = got["images"], got["seconds"]
        return {
            "cell": cell["cell"],
            "threads": threads,
            "images_per_second": round(images / statistics.median(seconds)),
            "images_per_second_best": round(images / min(seconds)),
            "cpu_microseconds_per_image": round(got["cpu"] / len(seconds) / images * 1e6, 1),
            "first_epoch_seconds": round(got["first"], 2),
        }


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def find(python: str) -> Rival:
    """Finds FFCV in that Python; UserError says what is missing."""
    code = "import ffcv.loader, importlib.metadata as m; print(m.version('ffcv'))"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"--rival-python {python}: {error}") from None
    if done.returncode != 0:
        raise UserError(f"--rival ffcv: {python} has no working FFCV: {last_line(done.stderr)}; {NEEDS}")
    return Rival(python, done.stdout.split()[-1])


def compared(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Their rows, with our images per second for the same cell and threads, and the ratio of the two."""
    known = {(row["cell"], row["threads"]): row["images_per_second"] for row in ours}
    rows = []
    for row in theirs:
        own = known[row["cell"], row["threads"]]
        rows.append({**row, "our_images_per_second": own, "ratio": round(own / row["images_per_second"], 2)})
    return rows


def show(rows: Sequence[Mapping[str, Any]], version: str, titles: Mapping[str, str]) -> None:
    heads = ("ours/s", "FFCV/s", "ratio", "FFCV CPU us", "its first epoch")
    print(f"\n{'next to FFCV ' + version:<42}{'threads':>8}" + "".join(f"{head:>16}" for head in heads))
    for row in rows:
        print(
            f"{titles[row['cell']]:<42}{row['threads']:>8}{row['our_images_per_second']:>16,}"
            f"{row['images_per_second']:>16,}{row['ratio']:>16.1f}{row['cpu_microseconds_per_image']:>16,}"
            f"{row['first_epoch_seconds']:>14.1f} s"
        )
