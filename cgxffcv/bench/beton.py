"""Files: writing 50,000 CIFAR images, opening 1.28 million samples, JPEG encoding and pass-through, verifying.

Next to each figure is the limit in the same run: what writing (and syncing) the same number of bytes with plain write()
takes, what reading the opened bytes once takes, what libjpeg-turbo alone takes on the same threads.
"""

from __future__ import annotations

import os
import statistics
import struct
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import _cgxffcv
import numpy as np

from cgxffcv import DatasetWriter, Reader, __version__, beton
from cgxffcv.app.usage import Parser, add_json, fitting, whole
from cgxffcv.bench.loader import IMAGE_BYTES, give, machine, obtain
from cgxffcv.errors import UserError
from cgxffcv.fields import IntField, RGBImageField

SEED = 1
PHOTO = (375, 500)  # the usual size of an ImageNet picture
OPENED_SAMPLES, SAMPLE_BYTES = 1_280_000, 256  # and what one takes while the file is made
WRITERS, CHUNK = 12, 100  # processes of a writer, and the samples that each takes per turn


def timed(runs: int, work: Callable[[], Any], before: Callable[[], Any] = lambda: None) -> dict[str, Any]:
    seconds, busy = [], []
    for _ in range(runs):
        before()
        begin, cpu = time.perf_counter(), time.process_time()
        work()
        seconds.append(time.perf_counter() - begin)
        busy.append(time.process_time() - cpu)
    median, cpu = (round(statistics.median(values), 5) for values in (seconds, busy))
    return {"median": median, "best": round(min(seconds), 5), "cpu": cpu, "runs": [round(s, 5) for s in seconds]}


def plain_write(path: Path, data: np.ndarray, sync: bool) -> None:
    """The limit: the same bytes with write() in pieces of 8 MiB, and fsync."""
    view = memoryview(data).cast("B")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for begin in range(0, len(view), 8 << 20):
        os.write(descriptor, view[begin : begin + (8 << 20)])
    if sync:
        os.fsync(descriptor)
    os.close(descriptor)


def bench_writing(folder: Path, root: str, count: int, runs: int) -> dict[str, Any]:
    images, labels, what = obtain(root, count)
    path = folder / "cifar.beton"
    result: dict[str, Any] = {"images": count, "data": what, "bytes": int(images.nbytes)}
    fields = {"image": RGBImageField(), "label": IntField()}
    for name, options in (("synced", {}), ("unsynced", {"durable": False}), ("synced_checksums", {"checksums": True})):
        result[name] = timed(
            runs,
            lambda o=options: DatasetWriter(path, fields, progress=False, **o).from_arrays(images, labels),
            lambda: path.unlink(missing_ok=True),
        )
    for name, sync in (("limit_synced", True), ("limit_unsynced", False)):
        result[name] = timed(runs, lambda s=sync: plain_write(path, images, s), lambda: path.unlink(missing_ok=True))
    samples = list(zip(images, labels.tolist(), strict=True))
    for kind in ("thread", "process"):
        result[f"row_by_row_{kind}"] = timed(
            1, lambda k=kind: DatasetWriter(path, fields, worker_kind=k, progress=False).from_indexed_dataset(samples)
        )
    with Reader(path) as reader:
        if not all(np.array_equal(reader[i]["image"], images[i]) for i in range(0, count, max(count // 50, 1))):
            raise UserError("bench beton: the file does not hold what was written")
    path.unlink()
    return result


def dealt(count: int) -> np.ndarray:
    """Sample numbers in the order that WRITERS processes, which take CHUNK samples in turn, leave: one process after
    another."""
    samples = np.arange(count)
    return samples[np.argsort(samples // CHUNK % WRITERS, kind="stable")]


ORDERS = {
    "in_order": np.arange,
    "several_writers": dealt,
    "shuffled": lambda count: np.random.default_rng(SEED).permutation(count),
}


def synthetic(path: Path, count: int, order: str) -> None:
    """A file of `count` JPEG images of one byte (never decoded) and labels: all the metadata, hardly any data."""
    page, record = 8 << 20, 24
    metadata = 24 + 2 * 1041
    data = -(-(metadata + count * record) // page) * page
    table = data + -(-count // page) * page
    samples = ORDERS[order](count)
    pointers = np.empty(count, np.uint64)
    pointers[samples if order == "several_writers" else np.arange(count)] = data + np.arange(count, dtype=np.uint64)
    image = [("mode", "u1"), ("w", "<u2"), ("h", "<u2"), ("ptr", "<u8"), ("pad", "V3")]
    rows = np.zeros(count, np.dtype([*image, ("label", "<i8")]))
    rows["w"], rows["h"], rows["ptr"], rows["label"] = 500, 375, pointers, np.arange(count) % 1000
    entries = np.stack([np.arange(count, dtype=np.uint64), pointers, np.ones(count, np.uint64)], 1)
    entries = entries[samples]
    with open(path, "wb") as file:
        file.write(struct.pack("<HHIQQ", 2, 2, page, count, table))
        file.write(struct.pack("<B16s1024s", 2, b"image", b"") + struct.pack("<B16s1024s", 1, b"label", b""))
        file.write(rows.tobytes())
        file.seek(table)
        file.write(entries.tobytes())


def bench_opening(folder: Path, count: int, runs: int) -> dict[str, Any]:
    result: dict[str, Any] = {"samples": count}
    for name in ORDERS:
        path = folder / "open.beton"
        synthetic(path, count, name)
        result[name] = timed(runs, lambda p=path: Reader(p).close())
        with Reader(path) as reader:
            if len(reader) != count or reader.fields["image"].num_jpeg != count:
                raise UserError("bench beton: the file was not read as it was made")
    touched = np.zeros(count * 48, np.uint8)
    result["limit_reading_the_bytes_once"] = timed(runs, lambda: int(touched.view(np.uint64).sum()))
    return result


def bench_jpeg(folder: Path, count: int, runs: int) -> dict[str, Any]:
    rng = np.random.default_rng(SEED)
    y, x = np.mgrid[0 : PHOTO[0], 0 : PHOTO[1]]
    photos = [
        np.clip(
            128
            + 70 * np.sin(x[..., None] / (9 + k) + rng.random(3)) * np.cos(y[..., None] / 11)
            + rng.normal(0, 8, (*PHOTO, 3)),
            0,
            255,
        ).astype(np.uint8)
        for k in range(16)
    ]
    images = [photos[i % 16] for i in range(count)]
    streams = [_cgxffcv.jpeg_encode(photo) for photo in photos]
    passed = [streams[i % 16] for i in range(count)]
    path, field = folder / "photos.beton", {"image": RGBImageField("jpg")}
    threads = _cgxffcv.build_info()["cpus"]

    def write(samples: list[Any], **options: Any) -> None:
        DatasetWriter(path, field, progress=False, **options).from_indexed_dataset(samples)

    def alone() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(_cgxffcv.jpeg_encode, images))

    result = {
        "photographs": count,
        "pixels": list(PHOTO),
        "threads": threads,
        "bytes": sum(map(len, passed)),
        "encode_threads": timed(runs, lambda: write(images, worker_kind="thread")),
        "encode_limit_libjpeg_alone": timed(runs, alone),
        "pass_through_thread": timed(runs, lambda: write(passed, worker_kind="thread")),
        "pass_through_processes": timed(runs, lambda: write(passed, worker_kind="process")),
    }
    result["verify"] = timed(runs, lambda: beton.verify(path))
    return result


def show(report: dict[str, Any]) -> None:
    about = report["machine"]
    print(f"{about['processor']}, {about['cpus']} cores in use, load average {about['load_before']} before the start")
    for name in ("writing", "opening", "jpeg"):
        part = report[name]
        known = ", ".join(f"{key} {value}" for key, value in part.items() if not isinstance(value, dict))
        print(f"{name}: {known}")
        for key, value in part.items():
            if isinstance(value, dict):
                print(
                    f"  {key.replace('_', ' '):<32} {value['median']:>9.4f} s median  {value['best']:>9.4f} s best  "
                    f"{value['cpu']:>9.4f} s CPU"
                )


def main(arguments: Sequence[str]) -> int:
    """`python -m cgxffcv bench beton [--json FILE]`."""
    top = Parser(prog="cgxffcv bench beton", description=__doc__)
    add_json(top)
    top.add_argument(
        "--data-root", default="data", metavar="DIR", help="folder with CIFAR-10, if there is one (default: data)"
    )
    top.add_argument("--images", type=fitting(IMAGE_BYTES), default=50_000, metavar="N")
    top.add_argument(
        "--samples", type=fitting(SAMPLE_BYTES), default=OPENED_SAMPLES, metavar="N", help="in the file that is opened"
    )
    top.add_argument("--photographs", type=whole(1, 1_000_000), default=400, metavar="N")
    top.add_argument("--runs", type=whole(1), default=5, metavar="N")
    top.add_argument("--dir", metavar="DIR", help="where the files are written (default: a temporary directory)")
    options = top.parse_args(list(arguments))
    about = machine()
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="cgxffcv-bench-") as name:
        folder = Path(name)
        report = {"benchmark": "beton", "version": __version__, "machine": about}
        report["writing"] = bench_writing(folder, options.data_root, options.images, options.runs)
        report["opening"] = bench_opening(folder, options.samples, options.runs)
        report["jpeg"] = bench_jpeg(folder, options.photographs, options.runs)
    give(report, show, options.json)
    return 0
