"""`cgxffcv bench table`: the demo's training with the usual PyTorch code, with ours, and with ours compressed.

Each row is one training of the demo's recipe on the same images in new processes: under mpirun with several ranks,
without it with one. All clocks start when its command is started and use what the run itself has recorded (run.jsonl,
or the baseline's lines of JSON); nothing is taken from progress text. A row that fails says why and does not stop the
others.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cgxffcv import cifar, files, recipes
from cgxffcv.app import doctor, launch, process
from cgxffcv.app.config import ENV_PREFIX
from cgxffcv.app.usage import Parser, number, summary, whole
from cgxffcv.bench import charts, machine, processes
from cgxffcv.device import DRIVER
from cgxffcv.errors import UsageError, UserError
from cgxffcv.wording import counted, duration

POLL_SECONDS = 0.1
INSTEAD = "--source download to download it, or --source sample to do without it"
LOG_LINES = 12  # shown of a failed row
COLUMNS = ("", "start-up", "an epoch", "to the end", "to {target}", "accuracy", "cost", "times as fast")


def _parser() -> Parser:
    parser = Parser(prog="cgxffcv bench table", description=summary(__doc__))
    text = "ranks, one per GPU (default: all GPUs); on the CPU just ranks (default 1)"
    parser.add_argument("--gpus", type=whole(1), metavar="N", help=text)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "gpu"), help="where all rows run")
    parser.add_argument("--epochs", type=whole(1), default=20)
    parser.add_argument("--batch-size", type=whole(1), help="per rank (default: the demo's 256)")
    parser.add_argument("--bits", type=whole(1, 8), default=4, help="bits per gradient value in the compressed row (4)")
    parser.add_argument(
        "--target", type=number(0, 1), default=0.9, help="accuracy, the time to which is shown (default 0.9)"
    )
    parser.add_argument("--price-per-hour", type=number(0), metavar="P", help="price of the machine with all GPUs used")
    parser.add_argument("--data-root", default="data", metavar="DIR", help="folder with the official CIFAR-10 files")
    parser.add_argument(
        "--source", default="local", choices=("local", "download", "sample"), help="where the images are from"
    )
    parser.add_argument(
        "--limit", type=whole(0), default=0, metavar="N", help="use only the first N images of each set"
    )
    parser.add_argument(
        "--workers", type=whole(0), default=8, help="workers of each rank's DataLoader in the baseline (8)"
    )
    parser.add_argument("--rows", default=",".join(ROWS), help=f"which rows, of {','.join(ROWS)} (default: all)")
    parser.add_argument("--empty-cache", action="store_true", help="start each row with an empty cache of plans")
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument(
        "--timeout", type=number(1), default=6 * 3600, metavar="SECONDS", help="limit for each row (default 6 h)"
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures to FILE, again after each row")
    charts.add_chart(parser, "accuracy over time")
    parser.add_argument("--keep", metavar="DIR", help="keep data, logs and run folders in DIR")
    return parser


ROWS = ("baseline", "plain", "compressed")


@dataclass
class Row:
    """A row: what is run, and its results. Seconds count from the start of the command."""

    key: str
    title: str
    command: list[str]
    records: Path  # lines of JSON with "event" and "time"
    log: Path
    error: str | None = None
    startup_seconds: float | None = None  # to the first step
    seconds: float | None = None  # to the end of the last epoch and its test
    target_seconds: float | None = None  # to the first test at or above the target; None if there was none
    accuracy: float | None = None  # in the last test
    cost: float | None = None
    ratio: float | None = None  # of the baseline's seconds to these
    points: list[dict[str, float]] = field(default_factory=list)  # epoch, seconds, accuracy
    plans: list[dict[str, Any]] = field(
        default_factory=list
    )  # ours: the run's records of how convolutions were computed

    def as_dict(self) -> dict[str, Any]:
        values = {name: value for name, value in vars(self).items() if name not in ("records", "log")}
        return values | {"command": shlex.join(self.command)}

    def take(self, event: dict[str, Any], began: float, target: float) -> None:
        """Takes an event that the run has recorded."""
        seconds = round(event["time"] - began, 3)
        if event["event"] == "start":
            self.startup_seconds = seconds
        if event["event"] == "plans":
            self.plans.append({name: value for name, value in event.items() if name not in ("event", "time")})
        if event["event"] == "epoch" and event.get("test_accuracy") is not None:
            accuracy = event["test_accuracy"]
            self.points.append({"epoch": event["epoch"], "seconds": seconds, "accuracy": accuracy})
            if self.target_seconds is None and accuracy >= target:
                self.target_seconds = seconds

    def finish(self, epochs: int, price: float | None) -> None:
        if not self.points or self.points[-1]["epoch"] != epochs:
            done = int(self.points[-1]["epoch"]) if self.points else 0
            self.error = self.error or f"ended after {done} of {counted(epochs, 'epoch')}"
            return
        self.seconds, self.accuracy = self.points[-1]["seconds"], self.points[-1]["accuracy"]
        self.cost = None if price is None else price * self.seconds / 3600


class Records:
    """The complete lines of a file of JSON lines, as it grows."""

    def __init__(self, path: Path):
        self.path, self.read = path, 0

    def new(self) -> list[dict[str, Any]]:
        with contextlib.suppress(FileNotFoundError), open(self.path, "rb") as file:
            file.seek(self.read)
            data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self.read += len(whole)
            return [json.loads(line) for line in whole.splitlines()]
        return []


# ---- what is run ----


@dataclass
class Setup:
    """Where the rows run, and on what data."""

    device: str  # cpu, gpu
    ranks: int
    checkout: Path
    work: Path
    train: Path
    test: Path
    images: int
    on: str
    note: str


def _checkout() -> Path:
    folder = doctor.checkout()
    if folder is None or not (folder / "examples" / "vanilla_pytorch.py").exists():
        raise UserError(
            "bench table runs train_cifar_ffcv_cgx.py and examples/vanilla_pytorch.py, which are not installed with "
            "the package: start it in a checkout"
        )
    return folder


def choose_device(options: argparse.Namespace) -> tuple[str, int, str, str]:
    """(cpu or gpu, ranks, the device in words, a note)."""
    names, reason = ([], "") if options.device == "cpu" else machine.usable_gpus()
    if options.device == "gpu" and not names:
        raise UserError(f"--device gpu: {reason}")
    if not names:
        seen = os.path.exists(DRIVER)
        return "cpu", options.gpus or 1, "CPU (--gpus counts ranks here)", reason if seen else ""
    ranks = options.gpus or len(names)
    shared = f"{ranks} ranks share {counted(len(names), 'GPU')}" if ranks > len(names) else ""
    return "gpu", ranks, names[0], shared


def write_data(options: argparse.Namespace, work: Path) -> tuple[Path, Path, int]:
    """The .beton files of the same images that the baseline reads; (training file, test file, training images)."""
    from cgxffcv.fields import IntField, RGBImageField
    from cgxffcv.writer import DatasetWriter

    data = cifar.obtain(options.data_root, options.source, say=lambda text: None, remedy=INSTEAD)
    some = slice(options.limit or None)
    files = work / "train.beton", work / "test.beton"
    sets = (data.train_images[some], data.train_labels[some]), (data.test_images[some], data.test_labels[some])
    for path, (images, labels) in zip(files, sets, strict=True):
        writer = DatasetWriter(str(path), {"image": RGBImageField(), "label": IntField()}, progress=False)
        writer.from_arrays(image=images, label=labels)
    return *files, len(sets[0][0])


def _under_mpirun(setup: Setup, program: list[str]) -> list[str]:
    if setup.ranks == 1:
        return program
    cores = len(os.sched_getaffinity(0))
    return launch.command(setup.ranks, program, cores, os.geteuid() == 0, os.environ)


def _baseline(options: argparse.Namespace, setup: Setup) -> list[str]:
    device = "cuda" if setup.device == "gpu" else "cpu"
    words = [
        str(setup.checkout / "examples" / "vanilla_pytorch.py"),
        "--data-root",
        str(Path(options.data_root).resolve()),
        "--source",
        options.source,
        "--epochs",
        str(options.epochs),
        "--workers",
        str(options.workers),
        "--device",
        device,
        "--seed",
        str(options.seed),
        "--json",
        str(setup.work / "baseline.jsonl"),
    ]
    if options.batch_size:
        words += ["--batch-size", str(options.batch_size)]
    if options.limit:
        words += ["--limit", str(options.limit)]
    return processes.interpreter(*words)


def _ours(options: argparse.Namespace, setup: Setup, key: str) -> list[str]:
    words = [
        str(setup.checkout / "train_cifar_ffcv_cgx.py"),
        "--training.recipe=demo",
        f"--training.epochs={options.epochs}",
        f"--training.seed={options.seed}",
        f"--training.device={setup.device}",
        f"--data.train_dataset={setup.train}",
        f"--data.val_dataset={setup.test}",
        f"--log.dir={setup.work / key}",
        "--log.progress=off",
    ]
    if options.batch_size:
        words.append(f"--training.batch_size={options.batch_size}")
    if key == "compressed":
        words += ["--dist-backend", "cgx", "--quantization-bits", str(options.bits)]
    return processes.interpreter(*words)


def make_rows(options: argparse.Namespace, setup: Setup) -> list[Row]:
    wanted = [key.strip() for key in options.rows.split(",")]
    unknown = [key for key in wanted if key not in ROWS]
    if unknown:
        raise UsageError(f"bench table: --rows {unknown[0]}: expected some of {', '.join(ROWS)}")
    titles = {"baseline": "usual PyTorch code", "plain": "cgxffcv", "compressed": f"cgxffcv, {options.bits} bits"}
    rows = []
    for key in ROWS:
        if key in wanted:
            program = _baseline(options, setup) if key == "baseline" else _ours(options, setup, key)
            records = setup.work / ("baseline.jsonl" if key == "baseline" else f"{key}/run.jsonl")
            rows.append(Row(key, titles[key], _under_mpirun(setup, program), records, setup.work / f"{key}.log"))
    return rows


# ---- running ----


def _last_words(path: Path) -> str:
    lines = [line.rstrip() for line in path.read_text(errors="replace").splitlines() if line.strip("- \n")]
    errors = [line for line in lines if "error" in line.lower() or "vanilla_pytorch.py:" in line]
    return "\n".join((errors or lines)[-LOG_LINES:])


def run(row: Row, options: argparse.Namespace) -> None:
    """Runs a row to its end, its failure or its time limit; Ctrl-C ends its processes and is passed on."""
    print(f"+ {shlex.join(row.command)}", file=sys.stderr, flush=True)
    cache = None
    if options.empty_cache:
        cache = row.log.with_suffix(".cache")
        cache.mkdir(exist_ok=True)
    environ = processes.environment(cache)
    environ = {name: value for name, value in environ.items() if not name.startswith(ENV_PREFIX)}
    environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(processes.free_port())}
    records = Records(row.records)
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(files.open_plain(row.log, "wb"))
        program = stack.enter_context(processes.Program(row.command, environ, stdout=log, stderr=subprocess.STDOUT))
        ended = False
        while not ended:
            time.sleep(POLL_SECONDS)
            ended = program.process.poll() is not None
            for event in records.new():
                row.take(event, program.began, options.target)
                if event["event"] == "epoch" and row.points:
                    point = row.points[-1]
                    print(
                        f"  {row.title}: epoch {point['epoch']}/{options.epochs}, {point['accuracy']:.2%} after "
                        f"{duration(point['seconds'])}",
                        file=sys.stderr,
                        flush=True,
                    )
            if not ended and time.time() - program.began > options.timeout:
                row.error = f"did not end within {duration(options.timeout)} (--timeout)"
                return
        code = program.process.returncode
    if code != 0:
        row.error = _last_words(row.log) or f"exit code {code}"
    else:
        row.finish(options.epochs, options.price_per_hour)


def compare(rows: Sequence[Row]) -> None:
    """Each row's speed as a multiple of the baseline's."""
    baseline = next((row.seconds for row in rows if row.key == "baseline"), None)
    for row in rows:
        row.ratio = baseline / row.seconds if baseline and row.seconds else None


# ---- what is shown ----


def _seconds(value: float | None) -> str:
    return "-" if value is None else duration(value)


def text(rows: Sequence[Row], options: argparse.Namespace, setup: Setup) -> str:
    """The table for people."""
    where = counted(setup.ranks, "rank")
    batch = options.batch_size or recipes.get("demo").batch_size
    out = [
        f"demo recipe, {counted(options.epochs, 'epoch')} of {setup.images:,} images, batch {batch} per rank, {where} "
        f"on {setup.on}",
        *([f"note: {setup.note}"] if setup.note else []),
        "Times count from the start of the command; an epoch includes its test.",
        "",
    ]
    lines = [[name.format(target=f"{options.target:.0%}") for name in COLUMNS]]
    for row in rows:
        each = None if row.seconds is None else (row.seconds - (row.startup_seconds or 0)) / options.epochs
        lines.append(
            [
                row.title,
                _seconds(row.startup_seconds),
                _seconds(each),
                _seconds(row.seconds),
                _seconds(row.target_seconds),
                "-" if row.accuracy is None else f"{row.accuracy:.2%}",
                "-" if row.cost is None else f"{row.cost:.4f}",
                "-" if row.ratio is None else f"{row.ratio:.2f}",
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    for line in lines:
        cells = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        out.append("  ".join(cells).rstrip())
    for row in rows:
        if row.error:
            out += ["", f"{row.title}: " + row.error.replace("\n", "\n  ")]
    if options.price_per_hour is not None:
        out += ["", f"cost: of the time to the end at {options.price_per_hour:g} per hour"]
    return "\n".join(out)


def draw(path: str, rows: Sequence[Row], options: argparse.Namespace, setup: Setup) -> None:
    """Accuracy over time as a picture."""
    unit = "GPU" if setup.device == "gpu" else "CPU rank"
    title = f"CIFAR-10, demo recipe, {counted(options.epochs, 'epoch')}, {counted(setup.ranks, unit)}"
    with charts.axes(path, title) as axes:
        draw_rows(axes, rows, options)


def draw_rows(axes: Any, rows: Sequence[Row], options: argparse.Namespace) -> None:
    colours = {"baseline": "#7f7f7f", "plain": "#1f77b4", "compressed": "#d95f02"}
    marks = {"baseline": "s", "plain": "o", "compressed": "^"}
    for row in rows:
        if row.points:
            seconds, accuracy = zip(*((p["seconds"], 100 * p["accuracy"]) for p in row.points), strict=True)
            axes.plot(seconds, accuracy, color=colours[row.key], marker=marks[row.key], markersize=4, label=row.title)
    axes.axhline(100 * options.target, color="black", linewidth=0.8, linestyle=":", label=f"{options.target:.0%}")
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds from the start of the command")
    axes.set_ylabel("test accuracy in %")
    axes.grid(alpha=0.3)
    axes.legend()


# ---- the command ----


def prepare(options: argparse.Namespace, work: Path) -> Setup:
    device, ranks, on, note = choose_device(options)
    if ranks > 1 and launch.mpirun() is None:
        raise UserError(launch.NO_MPIRUN)
    return Setup(device, ranks, _checkout(), work, *write_data(options, work), on, note)


def benchmark(options: argparse.Namespace, argv: Sequence[str], work: Path) -> int:
    """Runs all rows; returns the exit code: 0 if none of ours failed."""
    setup = prepare(options, work)
    rows = make_rows(options, setup)
    on = machine.describe()
    head = {"command": shlex.join(["python", "-m", "cgxffcv", "bench", "table", *argv]), "machine": on}
    head |= {"options": vars(options), "device": setup.device, "ranks": setup.ranks, "images": setup.images}
    head |= {"note": setup.note}
    done: list[Row] = []

    def keep() -> None:
        if options.json:
            machine.write_json(options.json, {**head, "rows": [row.as_dict() for row in done]})

    try:
        for row in rows:
            done.append(row)
            if row.key == "baseline" and importlib.util.find_spec("torch") is None:
                row.error = "not run: PyTorch is not installed (pip install torch torchvision Pillow)"
            else:
                run_row(row, options)
            compare(done)
            keep()
    finally:
        keep()
        print(text(done, options, setup), flush=True)
    if options.chart:
        draw(options.chart, done, options, setup)
        print(f"\nchart: {options.chart}", flush=True)
    return 1 if any(row.error for row in done if row.key != "baseline") else 0


def run_row(row: Row, options: argparse.Namespace) -> None:
    """Runs a row; anything that goes wrong becomes its error."""
    try:
        run(row, options)
    except (OSError, ValueError) as error:
        row.error = f"{type(error).__name__}: {error}"
    except KeyboardInterrupt:
        row.error = "was interrupted"
        raise


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    options = _parser().parse_args(argv)
    charts.check("table", options.chart, options.json)
    if process.ranks() > 1:
        raise UsageError("bench table starts mpirun by itself: run it without mpirun, with --gpus N")
    if options.keep:
        work = Path(options.keep).resolve()
        work.mkdir(parents=True, exist_ok=True)
        if any(work.iterdir()):
            raise UsageError(f"bench table: --keep {options.keep}: the folder is not empty; name another")
        return benchmark(options, argv, work)
    with tempfile.TemporaryDirectory(prefix="cgxffcv-table-") as folder:
        return benchmark(options, argv, Path(folder))
