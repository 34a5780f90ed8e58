"""`bench ddp`: a training step of PyTorch's DistributedDataParallel, with its own allreduce, with its hooks, and with
ours.

    python -m cgxffcv bench ddp --model gpt2 --links any,no-peer,sockets

It starts its own ranks, one per GPU, as torchrun would; on the CPU they communicate through gloo. Data are random. The
floor is DDP's noop hook, which sums nothing. Rows are medians of the step times, each that of the slowest rank.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cgxffcv import files
from cgxffcv.allreduce import ALGORITHMS, CODECS, FEEDBACKS
from cgxffcv.app import process
from cgxffcv.app.usage import Parser, add_json, number, summary, whole
from cgxffcv.bench import charts, links, machine, processes
from cgxffcv.bench.ddp_names import MODELS, WAYS
from cgxffcv.bench.table import Records
from cgxffcv.errors import UsageError, UserError
from cgxffcv.wording import counted

POLL_SECONDS = 0.05
JOB = ("steps", "warmup", "bucket_mb", "codec", "algorithm", "error_feedback")
LOG_LINES = 6
ERRORS = ("Error", "error:")


def _parser() -> Parser:
    p = Parser(prog="cgxffcv bench ddp", description=summary(__doc__))
    p.add_argument("--model", default="resnet50", help=f"some of {','.join(MODELS)}; default resnet50")
    p.add_argument(
        "--gpus", type=whole(2), metavar="N", help="ranks, one per GPU (default: all GPUs); on the CPU just ranks"
    )
    p.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    p.add_argument("--links", default="any", help=f"some of {','.join(links.LINKS)}; default any")
    p.add_argument("--ways", default=",".join(WAYS), help=f"some of {','.join(WAYS)}; default all")
    p.add_argument("--batch-size", type=whole(1), help="per rank; default 64, 32 and 4 for the three")
    p.add_argument("--steps", type=whole(1), default=30, help="steps that are timed; default 30")
    p.add_argument("--warmup", type=whole(3), default=10, help="steps before them; default 10")
    p.add_argument("--bucket-mb", type=number(0.001), default=25, help="DDP's bucket_cap_mb; default 25")
    p.add_argument("--codec", choices=CODECS, default="maxmin", help="ours")
    p.add_argument("--algorithm", choices=ALGORITHMS, default="auto", help="ours; auto may send uncompressed")
    p.add_argument("--error-feedback", nargs="?", const="float32", default="none", choices=FEEDBACKS, help="ours")
    p.add_argument("--timeout", type=number(1), default=300, metavar="SECONDS", help="limit for each way; default 300")
    p.add_argument(
        "--budget", type=number(1), metavar="SECONDS", help="limit for all: ways still left then are skipped"
    )
    add_json(p)
    charts.add_chart(p, "steps by way and link")
    return p


def _some(options: argparse.Namespace, name: str, known: Sequence[str]) -> list[str]:
    """A list of words, all of which are known."""
    words = [word.strip() for word in str(getattr(options, name)).split(",") if word.strip()]
    for word in words:
        if word not in known:
            raise UsageError(f"bench ddp: --{name} {word}: expected some of {', '.join(known)}")
    return words


def parse(argv: Sequence[str]) -> argparse.Namespace:
    options = _parser().parse_args(argv)
    for name, known in (("model", MODELS), ("links", links.LINKS), ("ways", WAYS)):
        setattr(options, name, _some(options, name, list(known)))
    if process.ranks() > 1:
        raise UsageError("bench ddp starts its ranks by itself: run it without mpirun, with --gpus N")
    if importlib.util.find_spec("torch") is None:
        raise UserError("bench ddp needs PyTorch: pip install torch torchvision")
    charts.check("ddp", options.chart)
    return options


def where(options: argparse.Namespace) -> tuple[str, int]:
    """(cpu or gpu, ranks). UserError where there are fewer GPUs than ranks."""
    if options.device == "cpu":
        return "cpu", options.gpus or 2
    code = "import torch; print(torch.cuda.device_count())"  # in another process, as it takes memory of a GPU
    done = subprocess.run(processes.interpreter("-c", code), capture_output=True, text=True, check=False)
    gpus = int(done.stdout.split()[-1]) if done.returncode == 0 else 0
    if gpus == 0 and options.device == "auto":
        return "cpu", options.gpus or 2
    ranks = options.gpus or max(gpus, 2)
    if ranks > gpus:
        raise UserError(f"bench ddp: {counted(ranks, 'rank')} need as many GPUs, and PyTorch sees {gpus}")
    return "gpu", ranks


# ---- ranks ----


def environment(device: str, link: str, rank: int, ranks: int, port: int, threads: int) -> dict[str, str]:
    """The environment of a rank, as torchrun sets it. On the CPU no GPU is visible: PyTorch's PowerSGD hook would
    synchronise one."""
    place = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": ranks}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": threads}
    inherited = {k: v for k, v in processes.environment().items() if not k.startswith(("OMPI_", "PMIX_"))}
    if device == "cpu":
        inherited["CUDA_VISIBLE_DEVICES"] = ""
    return inherited | links.variables(link, ranks) | {name: str(value) for name, value in place.items()}


@contextlib.contextmanager
def ranks_of(job: dict[str, Any], link: str, ranks: int, folder: Path) -> Iterator[list[processes.Program]]:
    """The ranks of a job, which are ended on exit; output and errors of rank R go to out.R and log.R."""
    port = processes.free_port()
    threads = max(1, processes.cores() // ranks)
    command = processes.interpreter("-m", "cgxffcv.bench.ddp_rank", json.dumps(job))
    with contextlib.ExitStack() as stack:
        programs = []
        for rank in range(ranks):
            streams = {
                "stdout": stack.enter_context(files.open_plain(folder / f"out.{rank}", "wb")),
                "stderr": stack.enter_context(files.open_plain(folder / f"log.{rank}", "wb")),
            }
            environ = environment(job["device"], link, rank, ranks, port, threads)
            programs.append(stack.enter_context(processes.Program(command, environ, **streams)))
        yield programs


def last_words(folder: Path, ranks: int) -> str:
    """What the ranks said about a failure, at most one line each."""
    messages = []
    for rank in range(ranks):
        lines = [line for line in (folder / f"log.{rank}").read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if any(word in line for word in ERRORS)]
        messages += [f"rank {rank}: {line.strip()}" for line in (errors or lines)[-1:]]
    return "; ".join(messages[:LOG_LINES]) or "the ranks ended without a message"


def run(job: dict[str, Any], link: str, ranks: int, timeout: float) -> list[dict[str, Any]]:
    """The results of a job's ways, up to the first that failed, which has an "error"."""
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="cgxffcv-ddp-") as name:
        folder = Path(name)
        with ranks_of(job, link, ranks, folder) as programs:
            records, since, error = Records(folder / "out.0"), time.monotonic(), ""
            ended = False
            while not ended and not error:
                time.sleep(POLL_SECONDS)
                codes = [program.process.poll() for program in programs]
                ended = all(code == 0 for code in codes)
                for record in records.new():
                    found.append(record)
                    since = time.monotonic()
                if any(code not in (None, 0) for code in codes):
                    time.sleep(1)  # for the messages of other ranks
                    error = last_words(folder, ranks)
                elif time.monotonic() - since > timeout:
                    error = f"no result within {timeout:g} s (--timeout); {last_words(folder, ranks)}"
        if len(found) < len(job["ways"]):
            found.append({"way": job["ways"][len(found)], "error": error or last_words(folder, ranks)})
    return found


def rows_of(
    options: argparse.Namespace, model: str, link: str, device: str, ranks: int, end: float
) -> list[dict[str, Any]]:
    """All ways of one model on one link, until `end` by the clock; after a way that fails the others are started
    again."""
    job = {name: getattr(options, name) for name in JOB}
    job |= {"model": model, "batch": options.batch_size or MODELS[model].batch, "device": device}
    rows: list[dict[str, Any]] = []
    while len(rows) < len(options.ways):
        left = end - time.monotonic()
        if left <= 0:
            why = f"left out: --budget {options.budget:g}"
            rows += [{"way": way, "error": why} for way in options.ways[len(rows) :]]
            break
        rows += run(job | {"ways": options.ways[len(rows) :]}, link, ranks, min(options.timeout, left))
    for row in rows:
        row |= {"model": model, "link": link, "batch": job["batch"]}
        if row["way"] != "floor" and not row.get("error") and not row["replicas_equal"]:
            row["error"] = "the ranks' parameters differ after it"
    return rows


# ---- what is shown ----


def heading(model: str, link: str, options: argparse.Namespace) -> str:
    batch = options.batch_size or MODELS[model].batch
    unit = f"{MODELS[model].unit}/s"
    return (
        f"\n{model}, batch {batch} per rank, {links.WORDS[link]}\n"
        f"{'':<22} {'ms a step':>10} {'over floor':>11} {'least':>9} {'most':>9} {unit:>12} {'MB sent':>9}"
    )


def line_of(row: dict[str, Any], floor: float | None) -> str:
    title = f"{WAYS[row['way']] + ' (plain)' * bool(row.get('went_plain')):<22}"
    if row.get("error"):
        return f"{title} {row['error']}"
    middle, sent = 1e3 * row["step_seconds"], row["wire_bytes"]
    over = "-" if floor is None else f"{middle - 1e3 * floor:.2f}"
    least, most = 1e3 * min(row["steps_seconds"]), 1e3 * max(row["steps_seconds"])
    megabytes = "-" if sent is None else f"{sent / 1e6:.1f}" if sent >= 1e7 else f"{sent / 1e6:.4f}"
    return f"{title} {middle:10.2f} {over:>11} {least:9.2f} {most:9.2f} {row['items_per_second']:12.0f} {megabytes:>9}"


def text(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """The table of one model on one link."""
    floor = next((row["step_seconds"] for row in rows if row["way"] == "floor" and not row.get("error")), None)
    lines = [heading(rows[0]["model"], rows[0]["link"], options), *(line_of(row, floor) for row in rows)]
    return "\n".join(lines)


def draw(path: str, rows: list[dict[str, Any]], options: argparse.Namespace, title: str) -> None:
    """Milliseconds per step, a group of bars for each model and link."""
    groups = [(model, link) for model in options.model for link in options.links]
    width = 0.8 / len(options.ways)
    with charts.axes(path, title) as axes:
        for index, (way, colour) in enumerate(zip(options.ways, charts.COLOURS, strict=False)):
            chosen = {(row["model"], row["link"]): row for row in rows if row["way"] == way and not row.get("error")}
            places = [place for place, group in enumerate(groups) if group in chosen]
            heights = [1e3 * chosen[groups[place]]["step_seconds"] for place in places]
            axes.bar([place + index * width for place in places], heights, width, color=colour, label=WAYS[way])
        axes.set_xticks([place + 0.4 - width / 2 for place in range(len(groups))])
        axes.set_xticklabels([f"{model}\n{links.WORDS[link]}" for model, link in groups], fontsize=7)
        axes.set_ylabel("milliseconds per step")
        axes.legend(fontsize=7)


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark; 0 if no way of ours failed."""
    options = parse(argv)
    device, ranks = where(options)
    loud = options.json != "-"
    title = f"{counted(ranks, 'GPU' if device == 'gpu' else 'CPU rank')}, bfloat16 autocast, float32 gradients"
    if loud:
        print(f"# cgxffcv bench ddp: {title}, buckets of {options.bucket_mb:g} MB, {options.steps} steps", flush=True)
    head = {"command": shlex.join(["python", "-m", "cgxffcv", "bench", "ddp", *argv]), "machine": machine.describe()}
    head |= {"options": vars(options), "device": device, "ranks": ranks}
    rows: list[dict[str, Any]] = []
    end = time.monotonic() + (options.budget or float("inf"))
    for model in options.model:
        for link in options.links:
            rows += rows_of(options, model, link, device, ranks, end)
            if options.json and loud:
                machine.write_json(options.json, {**head, "rows": rows})
            if loud:
                print(text(rows[-len(options.ways) :], options), flush=True)
    if not loud:
        sys.stdout.write(json.dumps({**head, "rows": rows}) + "\n")
    if options.chart:
        draw(options.chart, rows, options, title)
    return int(any(row.get("error") for row in rows if row["way"].startswith("ours")))
