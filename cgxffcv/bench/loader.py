"""The CIFAR pipeline's images per second, next to copying the same bytes; and writing the file. With --photos also the
usual loaders of photographs; with --rival ffcv all of them next to FFCV's.

The pipeline: flip, translate by 2, cutout 4, normalise to float16, channels first; random order. The limit, measured in
the same run with the same number of threads: each image's 3,072 bytes copied twice into a batch buffer, in file order.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import _cgxffcv
import numpy as np

from cgxffcv import DatasetWriter, Loader, OrderOption, __version__, cifar, files
from cgxffcv import transforms as tf
from cgxffcv.app.usage import Parser, add_json, fitting, whole
from cgxffcv.bench import photos, rival, scaling
from cgxffcv.errors import DataError, UserError
from cgxffcv.fields import IntField, RGBImageField

MEAN, STD, FILL = (125.307, 122.961, 113.8575), (51.5865, 50.847, 51.255), (125, 122, 113)
SIDE = 32
IN_BYTES, OUT_BYTES = SIDE * SIDE * 3, SIDE * SIDE * 3 * 2
IMAGE_BYTES = 2 * IN_BYTES  # that an image takes here, also while it is chosen
SEED = 1


def steps() -> list[tf.Transform]:
    return [
        tf.RandomHorizontalFlip(),
        tf.RandomTranslate(2, FILL),
        tf.Cutout(4, FILL),
        tf.NormalizeImage(MEAN, STD, np.float16),
        tf.ToTorchImage(channels_last=False),
    ]


def obtain(root: str, count: int) -> tuple[np.ndarray, np.ndarray, str]:
    """(images, labels, what they are): CIFAR-10 under `root`, repeated as needed, else random pixels."""
    try:
        data = cifar.obtain(root, "local", say=lambda text: None)
    except DataError:
        rng = np.random.default_rng(SEED)
        images = rng.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
        return images, rng.integers(0, 10, count), "random pixels"
    chosen = np.arange(count) % len(data.train_images)
    return np.ascontiguousarray(data.train_images[chosen]), data.train_labels[chosen], f"CIFAR-10 from {root}"


def write(path: Path, images: np.ndarray, labels: np.ndarray, runs: int) -> list[float]:
    """Seconds of each run of writing the file; the last run's file stays."""
    seconds = []
    for _ in range(runs):
        begin = time.perf_counter()
        DatasetWriter(path, {"image": RGBImageField(), "label": IntField()}, progress=False).from_arrays(images, labels)
        seconds.append(time.perf_counter() - begin)
    return seconds


def check(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Checks that the benchmark measures a correct result: without its random choices the pipeline equals NumPy's."""
    ids = np.random.default_rng(SEED).permutation(len(images))[:512]
    options = {"order": OrderOption.RANDOM, "seed": SEED, "drop_last": False, "ids": True}
    with Loader(path, 512, pipelines={"image": steps()}, **options) as loader:
        got, numbers, _ = loader.get_batch(ids, evaluate=True)
        seen = np.sort(np.concatenate([batch[2] for batch in loader]))
    want = ((images[ids].astype(np.float64) - MEAN) / STD).astype(np.float16).transpose(0, 3, 1, 2)
    if not (np.array_equal(got, want) and np.array_equal(numbers[:, 0], labels[ids])):
        raise UserError("bench loader: the loader's values differ from NumPy's")
    if not np.array_equal(seen, np.arange(len(images))):
        raise UserError("bench loader: an epoch did not give every sample once")


class CopyLimit:
    """Copies the same bytes in and out with threads, batch by batch, into as many buffers as the loader uses."""

    def __init__(self, images: np.ndarray, batch_size: int, threads: int, buffers: int):
        self.rows = images.reshape(len(images), IN_BYTES)
        self.batch_size, self.threads = batch_size, threads
        self.buffers = [np.zeros((batch_size, OUT_BYTES), np.uint8) for _ in range(max(buffers, threads))]

    def copy(self, thread: int) -> None:
        batches = range(thread, len(self.rows) // self.batch_size, self.threads)
        for batch in batches:
            source = self.rows[batch * self.batch_size : (batch + 1) * self.batch_size]
            buffer = self.buffers[batch % len(self.buffers)]
            np.copyto(buffer[:, :IN_BYTES], source)
            np.copyto(buffer[:, IN_BYTES:], source)

    def epoch(self) -> float:
        """Images per second."""
        begin = time.perf_counter()
        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(self.copy, range(self.threads)))
        return len(self.rows) // self.batch_size * self.batch_size / (time.perf_counter() - begin)


def epoch(loader: Loader) -> float:
    """Images per second over one epoch, whose batches are looked at and dropped."""
    begin, count = time.perf_counter(), 0
    for image, _label in loader:
        count += len(image)
    return count / (time.perf_counter() - begin)


def measure(path: Path, images: np.ndarray, threads: int, options: argparse.Namespace) -> dict:
    """Measures loader and limit in turns, so that what disturbs one disturbs the other."""
    begin = time.perf_counter()
    loader = Loader(
        path, options.batch_size, threads, pipelines={"image": steps()}, order=OrderOption.RANDOM, seed=SEED
    )
    with loader:
        iterator = iter(loader)
        next(iterator)
        started = time.perf_counter() - begin
        del iterator
        first = epoch(loader)
        limit = CopyLimit(images, options.batch_size, threads, loader.batches_ahead + 2)
        limit.epoch()
        rates, limits, cpu = [], [], 0.0
        for _ in range(options.epochs):
            limits.append(limit.epoch())
            cpu -= time.process_time()
            rates.append(epoch(loader))
            cpu += time.process_time()
        stats = loader.stats()
    done = options.epochs * (len(images) // options.batch_size) * options.batch_size
    median, best = statistics.median(rates), max(rates)
    return {
        "threads": threads,
        "images_per_second": round(median),
        "images_per_second_best": round(best),
        "images_per_second_all": [round(rate) for rate in rates],
        "first_epoch_images_per_second": round(first),
        "copy_images_per_second": round(statistics.median(limits)),
        "copy_images_per_second_best": round(max(limits)),
        "share_of_copy": round(median / statistics.median(limits), 3),
        "cpu_microseconds_per_image": round(cpu / done * 1e6, 3),
        "seconds_to_first_batch": round(started, 4),
        "memory_peak_bytes": stats["memory_peak_bytes"],
    }


def described() -> dict[str, Any]:
    """The CIFAR pipeline, for FFCV (rival_ffcv.py)."""
    chain = {"decoder": "simple", "flip": True, "shift": 2, "hole": 4, "fill": FILL, "mean": MEAN, "std": STD}
    return {"cell": "cifar", **chain, "planar": True, "shuffled": True, "drop_last": True}


def machine() -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    info = _cgxffcv.build_info()
    load = Path("/proc/loadavg").read_text().split()[0]
    name = names[0] if names else "unknown"
    return {"processor": name, "cpus": info["cpus"], "features": info["cpu"], "load_before": float(load)}


def show(report: dict) -> None:
    about, written = report["machine"], report["writing"]
    print(f"{about['processor']}, {about['cpus']} cores in use, load average {about['load_before']} before the start")
    what = f"{report['images']:,} images ({report['data']}), batch {report['batch_size']}"
    print(f"{what}: flip, translate 2, cutout 4, float16, NCHW; random order")
    median = f"{written['seconds_median']:.3f} s (median of {len(written['seconds'])})"
    print(f"writing the file: {median}, best {min(written['seconds']):.3f} s")
    print(
        f"{'threads':>7} {'images/s':>12} {'best':>12} {'first epoch':>12} {'copy limit':>12} {'share':>6} "
        f"{'CPU us/image':>12} {'first batch':>11}"
    )
    for row in report["results"]:
        print(
            f"{row['threads']:>7} {row['images_per_second']:>12,} {row['images_per_second_best']:>12,} "
            f"{row['first_epoch_images_per_second']:>12,} {row['copy_images_per_second']:>12,} "
            f"{row['share_of_copy']:>6.0%} {row['cpu_microseconds_per_image']:>12.3f} "
            f"{row['seconds_to_first_batch'] * 1e3:>8.1f} ms"
        )
    if report["photographs"]:
        photos.show(report["photographs"])
    if report["scaling"]:
        scaling.show(report["scaling"])
    if report["rival"]:
        titles = {"cifar": "CIFAR", **{name: cell.what for name, cell in photos.CELLS.items()}}
        rival.show(report["rival"]["results"], report["rival"]["version"], titles)


def thread_counts(text: str = "") -> list[int]:
    if not text:
        cpus = _cgxffcv.build_info()["cpus"]
        return sorted({1, 2, *(2**i for i in range(2, cpus.bit_length())), cpus} & set(range(1, cpus + 1)))
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"expected numbers above 0 such as 1,2,4, not {text!r}")
    return counts


def give(report: dict[str, Any], show: Callable[[dict[str, Any]], None], path: str | None) -> None:
    """Prints the report as JSON ("-"), or for people and, with a path, writes it there as JSON; UserError if it cannot
    be written."""
    text = json.dumps(report, indent=2)
    if path == "-":
        print(text)
        return
    show(report)
    if path:
        try:
            files.write(path, text + "\n")
        except OSError as error:
            raise UserError(f"bench {report['benchmark']}: {error}") from error


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    top = Parser(prog="cgxffcv bench loader", description=__doc__)
    add_json(top)
    top.add_argument(
        "--data-root", default="data", metavar="DIR", help="folder with CIFAR-10, if there is one (default: data)"
    )
    top.add_argument("--images", type=fitting(IMAGE_BYTES), default=50_000, metavar="N")
    top.add_argument("--batch-size", type=whole(1), default=512, metavar="N")
    top.add_argument(
        "--epochs", type=whole(1), default=20, metavar="N", help="measured after a first one (default: 20)"
    )
    top.add_argument(
        "--threads",
        type=thread_counts,
        default=thread_counts(),
        metavar="N,N...",
        help="default: 1, 2, 4... up to the cores of this process",
    )
    top.add_argument("--writes", type=whole(1), default=5, metavar="N", help="times to write the file (default: 5)")
    top.add_argument(
        "--photos", metavar="DIR", help="also the usual loaders of photographs, with the .jpg and .jpeg files under DIR"
    )
    top.add_argument(
        "--photo-count", type=whole(1), default=800, metavar="N", help="photographs in each file (default: 800)"
    )
    top.add_argument(
        "--processes",
        action="store_true",
        help="with --photos: also threads, as many processes of one thread, and one of these alone, in turns",
    )
    top.add_argument("--dir", metavar="DIR", help="where the file is written (default: a temporary directory)")
    top.add_argument("--rival", choices=["ffcv"], help="also measure FFCV's loader, on the same files in the same run")
    top.add_argument(
        "--rival-python", default=sys.executable, metavar="PATH", help="the Python that has it (default: this one)"
    )
    options = top.parse_args(list(arguments))
    if options.batch_size > options.images:
        top.error(f"--batch-size {options.batch_size}: expected at most --images, which is {options.images}")
    return options


def main(arguments: Sequence[str]) -> int:
    """`python -m cgxffcv bench loader [--json FILE]`."""
    options = parse(arguments)
    other = rival.find(options.rival_python) if options.rival else None
    about = machine()
    images, labels, what = obtain(options.data_root, options.images)
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="cgxffcv-bench-") as folder:
        path = Path(folder) / "cifar.beton"
        seconds = write(path, images, labels, options.writes)
        check(path, images, labels)
        results, theirs = [], []
        for threads in options.threads:
            results.append(measure(path, images, threads, options))
            if other is not None:
                theirs.append(other.measure(described(), path, threads, options.epochs, options.batch_size))
        photographs, scales = [], []
        if options.photos:
            paths = photos.write(Path(folder), options.photos, options.photo_count)
            photographs, more = photos.run(paths, options.threads, options.epochs, other)
            theirs += more
            if options.processes:
                scales = scaling.run(paths, options.threads, options.epochs)
    writing = {"seconds": [round(s, 4) for s in seconds], "seconds_median": round(statistics.median(seconds), 4)}
    report = {"benchmark": "loader", "version": __version__, "machine": about, "data": what, "images": options.images}
    report |= {"batch_size": options.batch_size, "epochs": options.epochs, "writing": writing, "results": results}
    ours = [{"cell": "cifar", **row} for row in results] + photographs
    beside = other and {"name": "ffcv", "version": other.version, "results": rival.compared(ours, theirs)}
    report |= {"photographs": photographs, "scaling": scales, "rival": beside}
    give(report, show, options.json)
    return 0
