"""The usual loaders of photographs: the cells of `bench loader --photos DIR`, each in a new process, in random order.

Every cell reads the same pictures, those under DIR, repeated to `--photo-count`, and in an epoch each of them once for
every thread, so that an epoch does not become shorter with more threads. Its limit is libjpeg-turbo decoding the rows
and columns of the crops and nothing else, in as many threads, measured within the loader in its best epoch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cgxffcv import DatasetWriter, Loader
from cgxffcv import transforms as tf
from cgxffcv.bench import processes
from cgxffcv.bench.rival import Rival
from cgxffcv.errors import UserError
from cgxffcv.fields import IntField, RGBImageField
from cgxffcv.fields.decoders import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder

SEED, OUT, BATCH = 1, (224, 224), 64
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class Cell(NamedTuple):
    what: str
    stored: dict[str, Any]  # of the field
    central: bool = False
    interpolation: str = "area"
    normalised: bool = True


SMALL = {"write_mode": "jpg", "max_resolution": 400, "jpeg_quality": 90}
CELLS = {
    "crop400": Cell("400 px q90, random crop, flip, float16", SMALL),
    "crop400-bilinear": Cell("the same, antialiased bilinear", SMALL, interpolation="bilinear_antialias"),
    "original": Cell("as they are, random crop, flip, float16", {"write_mode": "given"}),
    "center400": Cell("400 px q90, central crop, float16", SMALL, central=True),
    "raw256": Cell("raw 256 px, random crop, flip, uint8", {"max_resolution": 256}, normalised=False),
}


CENTRAL = 224 / 256
FOR_RIVALS = [name for name in CELLS if CELLS[name].interpolation == "area"]  # the only one that FFCV has


def steps(cell: Cell) -> list[Any]:
    if cell.central:
        chain: list[Any] = [CenterCropRGBImageDecoder(OUT, CENTRAL, cell.interpolation)]
    else:
        decoder = RandomResizedCropRGBImageDecoder(OUT, interpolation=cell.interpolation)
        chain = [decoder, tf.RandomHorizontalFlip()]
    return [*chain, tf.NormalizeImage(MEAN, STD, np.float16)] if cell.normalised else chain


def described(name: str) -> dict[str, Any]:
    """The cell, for FFCV (rival_ffcv.py)."""
    cell = CELLS[name]
    scaling = {"mean": MEAN, "std": STD} if cell.normalised else {"mean": None, "std": None}
    crop = {"decoder": "center" if cell.central else "random", "size": OUT, "ratio": CENTRAL, "flip": not cell.central}
    return {"cell": name, **crop, **scaling, "shift": 0, "planar": False, "shuffled": False, "drop_last": False}


def write(folder: Path, photos: str, count: int) -> dict[str, Path]:
    """One file for each way in which pictures are stored."""
    pictures = sorted(p for p in Path(photos).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    if not pictures:
        raise UserError(f"--photos {photos}: no .jpg or .jpeg files in it")
    paths: dict[str, Path] = {}
    made: dict[str, Path] = {}
    for name, cell in CELLS.items():
        key = json.dumps(cell.stored)
        if key not in made:
            made[key] = folder / f"{name}.beton"
            fields = {"image": RGBImageField(**cell.stored), "label": IntField()}
            rows = [(pictures[i % len(pictures)], i) for i in range(count)]
            DatasetWriter(made[key], fields, progress=False).from_indexed_dataset(rows)
        paths[name] = made[key]
    return paths


def say(values: Mapping[str, Any]) -> None:
    print(json.dumps(values), flush=True)


def epoch(loader: Loader) -> dict[str, float]:
    """What one epoch takes, in seconds: by the clock, of the processor, of all workers, of their JPEG decoders."""
    begin, cpu, before = time.perf_counter(), time.process_time(), loader.stats()
    for _batch in loader:
        pass
    seconds, cpu, after = time.perf_counter() - begin, time.process_time() - cpu, loader.stats()
    spent = {name: after[f"{name}_seconds"] - before[f"{name}_seconds"] for name in ("work", "jpeg")}
    return {"seconds": seconds, "cpu": cpu, **spent, "memory_peak_bytes": after["memory_peak_bytes"]}


def serve(name: str, path: str, threads: int) -> None:
    """Measures one cell, in this process: says what an epoch is as soon as it is warm, then, for each line of the
    standard input, what one took."""
    seen, count = hashlib.sha256(), 0
    options = {"pipelines": {"image": steps(CELLS[name])}, "seed": SEED, "drop_last": False}
    with Loader(path, BATCH, threads, **options) as loader:
        for images, _labels in loader:
            seen.update(images)
            count += len(images)
    with Loader(path, BATCH, threads, indices=np.tile(np.arange(count), threads), **options) as loader:
        epoch(loader)
        say({"images": count * threads, "checksum": seen.hexdigest()[:16]})
        for _line in sys.stdin:
            say(epoch(loader))


class Server(processes.Program):
    """A process that measures one cell, epoch by epoch."""

    def __init__(self, name: str, path: Path, threads: int):
        command = processes.interpreter("-m", "cgxffcv.bench.photos", name, str(path), str(threads))
        super().__init__(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.what = f"the cell {name} with {threads} threads"

    def begin(self) -> None:
        """Starts an epoch, unless the process has ended, which `answer` says."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write("\n")
            self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """What it says next; UserError if it has ended."""
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f"bench loader: {self.what} failed")
        return json.loads(line)


def run_cell(name: str, path: Path, threads: int, epochs: int) -> dict[str, Any]:
    """Measures one cell, in a separate process."""
    rows = []
    with Server(name, path, threads) as server:
        about = server.answer()
        for _ in range(epochs):
            server.begin()
            rows.append(server.answer())
    count = about["images"]
    seconds, busy, decoding = ([row[key] for row in rows] for key in ("seconds", "cpu", "jpeg"))
    return {
        "cell": name,
        "threads": threads,
        "images_per_second": round(count / statistics.median(seconds)),
        "images_per_second_best": round(count / min(seconds)),
        "cpu_microseconds_per_image": round(statistics.median(busy) / count * 1e6, 1),
        "cpu_microseconds_per_image_best": round(min(busy) / count * 1e6, 1),
        "decoder_microseconds_per_image": round(min(decoding) / count * 1e6, 1),
        "limit_images_per_second": round(count * threads / min(decoding)) if min(decoding) else None,
        "memory_peak_bytes": rows[-1]["memory_peak_bytes"],
        "checksum": about["checksum"],
    }


def sort(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (list(CELLS).index(row["cell"]), row["threads"]))


def run(
    paths: Mapping[str, Path], threads: Sequence[int], epochs: int, rival: Rival | None = None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All cells, and the rival's; UserError if the numbers of threads do not give the same pixels."""
    cells = [(None, name, number) for name in CELLS for number in threads]
    if rival is not None:
        cells += [(rival, name, number) for name in FOR_RIVALS for number in threads]
    ours, theirs = [], []
    for who, name, number in random.Random(SEED).sample(cells, len(cells)):
        if who is None:
            ours.append(run_cell(name, paths[name], number, epochs))
        else:
            theirs.append(who.measure(described(name), paths[name], number, epochs, BATCH))
    for name in CELLS:
        if len({row["checksum"] for row in ours if row["cell"] == name}) > 1:
            raise UserError(f"bench loader: {name} has different pixels with another number of threads")
    return sort(ours), sort(theirs)


def show(results: list[dict[str, Any]]) -> None:
    heads = ("images/s", "best", "CPU us", "best", "decoder us", "limit/s")
    print(f"\n{'photographs':<42}{'threads':>8}" + "".join(f"{head:>11}" for head in heads) + "  checksum")
    for row in results:
        values = [row["images_per_second"], row["images_per_second_best"], row["cpu_microseconds_per_image"]]
        values += [row["cpu_microseconds_per_image_best"], row["decoder_microseconds_per_image"]]
        values.append(row["limit_images_per_second"])
        text = "".join(f"{'-' if value is None else f'{value:,}':>11}" for value in values)
        print(f"{CELLS[row['cell']].what:<42}{row['threads']:>8}{text}  {row['checksum']}")


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
