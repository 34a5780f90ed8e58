"""`cgxffcv bench cifar`: trains a recipe several times and reports the results.

The seeds are 0, 1, ... (from --first-seed on); no run is left out. A trainer that can start afresh (on a GPU) trains
one seed after the other in one process, otherwise each run has a separate process. The clocks: *field* is the
whitening, all steps and the final test; *call* adds opening the files and making the network and the loaders; *again*
is what a further training in the same process takes; *cold* runs from the start of a process to its first accuracy.
Nothing is chosen by the test set: it is read once, at the end; hyper-parameters are chosen on held-out folds of the
training set (--folds).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cgxffcv import recipes
from cgxffcv.allreduce import CODECS, FEEDBACKS
from cgxffcv.app import process
from cgxffcv.app.usage import Parser, add_json, number, summary, whole
from cgxffcv.bench import machine, peak, processes
from cgxffcv.device import devices
from cgxffcv.errors import UsageError, UserError
from cgxffcv.wording import counted

MARK = "cgxffcv-run "
FOLD_IMAGES = 5000
ON_GPU, ON_CPU = "airbench94", "airbench90"
CLOCKS = {
    "field": "whitening, steps and test",
    "call": "the same and files, network, loaders",
    "again": "a further training in the same process",
    "cold": "from the start of the process",
}


def _parser() -> Parser:
    parser = Parser(prog="cgxffcv bench cifar", description=summary(__doc__))
    parser.add_argument("--recipe", help=f"name of a recipe (default: {ON_GPU} on a GPU, {ON_CPU} on a CPU)")
    parser.add_argument("--runs", type=whole(1), default=3, help="trainings, with the seeds 0, 1, ... (default 3)")
    parser.add_argument("--target", type=number(0, 1), help="accuracy to reach, 0..1 (default: the recipe's)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "gpu"))
    parser.add_argument("--threads", type=whole(0), default=0, help="threads of the network; 0: all cores")
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--deterministic", action="store_true", help="the same bytes every time, also on a GPU")
    text = "feed a GPU batch by batch, as if the data sets did not fit its memory"
    parser.add_argument("--no-resident", action="store_true", help=text)
    parser.add_argument("--ranks", type=whole(1), default=1, help="processes per training, through mpirun")
    parser.add_argument("--bits", type=bits, default=32, help="bits per gradient value between ranks; 32: uncompressed")
    parser.add_argument("--bucket-size", type=whole(1), default=1024, help="gradient values that share one scale")
    parser.add_argument("--codec", default="maxmin", choices=CODECS)
    parser.add_argument(
        "--error-feedback",
        nargs="?",
        const="float32",
        default="none",
        choices=FEEDBACKS,
        help="add what quantisation lost at the next step, kept in float32 or int8",
    )
    parser.add_argument("--train", default="data/cifar_train.beton", metavar="FILE")
    parser.add_argument("--test", default="data/cifar_test.beton", metavar="FILE")
    text = "for tuning: run i leaves out the (i mod K)-th fold of the training images and is tested on it"
    parser.add_argument("--folds", type=whole(0), default=0, metavar="K", help=text)
    text = f"images per fold ({FOLD_IMAGES} with --folds); without --folds there are as many folds as fit"
    parser.add_argument("--holdout", type=whole(0), default=0, metavar="N", help=text)
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="change a field of the recipe"
    )
    parser.add_argument("--first-seed", type=whole(0), default=0)
    parser.add_argument("--fresh", action="store_true", help="a separate process for each run, also on a GPU")
    text = "start each process with an empty cache of plans: the coldest clock"
    parser.add_argument("--empty-cache", action="store_true", help=text)
    add_json(parser, "write all figures to FILE after each run, or to standard output")
    parser.add_argument("--seeds", type=_numbers, metavar="SEEDS", help=argparse.SUPPRESS)
    return parser


def bits(text: str) -> int:
    """The bits of a gradient value."""
    if text not in (*map(str, range(1, 9)), "32"):
        raise argparse.ArgumentTypeError(f"expected 1 to 8, or 32 (no compression), not {text!r}")
    return int(text)


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {"true": True, "false": False}.get(text.lower(), text)


def usual_recipe(device: str) -> str:
    """The recipe for this machine. This process does not touch the GPUs, so that the first run finds them unused."""
    return ON_GPU if device != "cpu" and machine.usable_gpus()[0] else ON_CPU


def choose_recipe(options: argparse.Namespace) -> recipes.Recipe:
    """The recipe with the changes of --set."""
    changes = {}
    for text in options.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"bench cifar: --set {text}: expected FIELD=VALUE, for example --set epochs=4")
        changes[name.strip()] = _value(value.strip())
    return recipes.get(options.recipe).replace(**changes)


def seconds_since_start() -> float:
    """Seconds since this process was started (with mpirun: this rank)."""
    with open("/proc/self/stat") as file:
        ticks = int(file.read().rsplit(")", 1)[1].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


# ---- held-out folds ----


def samples_of(path: str) -> int:
    from cgxffcv.reader import Reader

    with Reader(path) as file:
        return file.num_samples


def fold_images(options: argparse.Namespace) -> int:
    """The images of a fold; 0 if none are held out."""
    return options.holdout or (FOLD_IMAGES if options.folds else 0)


def folds(options: argparse.Namespace) -> int:
    """The number of folds that runs cycle through; UsageError if the training set has fewer."""
    images, samples = fold_images(options), samples_of(options.train)
    if not 0 < images < samples:
        raise UsageError(f"bench cifar: --holdout {images}: expected 1 to {samples - 1} images")
    there = samples // images
    if not 0 <= options.folds <= there:
        raise UsageError(f"bench cifar: --folds {options.folds}: {samples} images have 1 to {there} folds of {images}")
    return options.folds or there


def hold_out(path: str, count: int, fold: int) -> dict[str, Any]:
    """The samples to train and to test on: the fold-th `count` images are held out."""
    import numpy as np

    numbers = np.arange(samples_of(path))
    held = (numbers >= fold * count) & (numbers < (fold + 1) * count)
    return {"train_indices": numbers[~held], "test_indices": numbers[held]}


# ---- trainings, in this process ----


def open_trainer(options: argparse.Namespace, seed: int, fold: int | None) -> Any:
    """A trainer for the first seed; under mpirun one of all ranks together."""
    from cgxffcv import comm as communication
    from cgxffcv.train import Compression, Trainer

    chosen: dict[str, Any] = {} if fold is None else hold_out(options.train, fold_images(options), fold)
    return Trainer(
        choose_recipe(options),
        options.train,
        options.test if fold is None else options.train,
        seed=seed,
        comm=communication.world() if process.ranks() > 1 else None,
        compression=Compression(
            bits=options.bits,
            bucket_size=options.bucket_size,
            codec=options.codec,
            error_feedback=options.error_feedback,
        ),
        threads=options.threads or process.cores_of_this_rank(),
        precision=options.precision,
        device=options.device,
        deterministic=options.deterministic,
        resident=not options.no_resident,
        **chosen,
    )


def train(trainer: Any, began: float, first: bool) -> dict[str, Any]:
    """One training with a fresh trainer. `began`: perf_counter at the start of the call; `first`: in this process."""
    start, waited, wire, skipped, losses = time.perf_counter(), trainer.load_seconds, 0, 0, []
    while not trainer.finished:
        for _ in trainer.run_epoch():
            pass
        epoch = trainer.end_epoch()
        wire += epoch.wire_bytes
        skipped += epoch.skipped
        losses.append(epoch.loss)
    trained = time.perf_counter()
    test = trainer.evaluate()
    done = time.perf_counter()
    cold = seconds_since_start()
    device_clock = getattr(trainer, "field_seconds", None)  # by a GPU's own clock
    field = trainer.whitening_seconds + (done - start) if device_clock is None else device_clock
    device = "cpu" if trainer.gpu is None else devices()[trainer.gpu]["name"]
    return {
        "accuracy": test.accuracy,
        "test_loss": test.loss,
        "train_losses": losses,
        "steps": trainer.steps,
        "skipped": skipped,
        "device": device,
        "threads": trainer.threads,
        "precision": trainer.precision,
        "field_clock": "host" if device_clock is None else "device",
        "seconds": {
            "field": field,
            "call": done - began if first else None,
            "again": None if first else done - began,
            "cold": cold if first else None,
            "whitening": trainer.whitening_seconds,
            "steps": trained - start,
            "test": done - trained,
            "waiting_for_data": trainer.load_seconds - waited,
        },
        "plans": trainer.algorithms() if first else None,
        "images": trainer.steps * trainer.images_per_step,
        "flops": trainer.total_flops(),
        "wire_bytes": wire,
    }


def train_here(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Trainings with the seeds that begin --seeds, as far as one trainer can take them: all seeds of the first one's
    fold if it can start afresh, else only the first seed."""
    count = folds(options) if fold_images(options) else 0
    fold = options.seeds[0] % count if count else None
    began, first = time.perf_counter(), True
    with open_trainer(options, options.seeds[0], fold) as trainer:
        for seed in options.seeds:
            if not first:
                if options.fresh or trainer.gpu is None or (count and seed % count != fold):
                    return
                began = time.perf_counter()
                trainer.restart(seed)
            yield {"seed": seed, "fold": fold, **train(trainer, began, first)}
            first = False


# ---- trainings, in processes ----


def start_runs(
    options: argparse.Namespace, arguments: Sequence[str], seeds: Sequence[int], keep: Callable[[dict[str, Any]], None]
) -> int:
    """Runs trainings in a separate process (or under mpirun), which begins with seeds[0] and takes as many further
    seeds as it can; passes each one's figures to `keep` as they come. Returns the number of trainings."""
    words = ["-m", "cgxffcv", "bench", "cifar", *arguments, "--seeds", ",".join(map(str, seeds))]
    command = processes.interpreter(*words)
    if options.ranks > 1:
        from cgxffcv.app import launch

        command = launch.command(options.ranks, command, process.cores_of_this_rank(), os.geteuid() == 0, os.environ)
    count = 0
    with (
        tempfile.TemporaryDirectory(prefix="cgxffcv-cache-") as empty,
        processes.Program(
            command, processes.environment(empty if options.empty_cache else None), stdout=subprocess.PIPE, text=True
        ) as program,
    ):
        for line in program.process.stdout:
            if line.startswith(MARK):
                keep(json.loads(line.removeprefix(MARK)))
                count += 1
            else:
                print(line, end="", file=sys.stderr, flush=True)
        code = program.process.wait()
    if code != 0 or count == 0:
        failed = seeds[min(count, len(seeds) - 1)]
        raise UserError(f"the run with seed {failed} failed with exit code {code}; its message is above")
    return count


def in_order(options: argparse.Namespace) -> list[int]:
    """All seeds, one fold after the other, so that a trainer can take all of a fold."""
    seeds = range(options.first_seed, options.first_seed + options.runs)
    if not fold_images(options):
        return list(seeds)
    count = folds(options)
    return sorted(seeds, key=lambda seed: (seed % count, seed))


# ---- figures ----


def _spread(values: Sequence[float]) -> dict[str, float]:
    middle = {"mean": statistics.fmean(values), "median": statistics.median(values)}
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"runs": len(values), **middle, "min": min(values), "max": max(values), "deviation": deviation}


def summarise(runs: Sequence[dict[str, Any]], target: float, peak_gflops: float | None) -> dict[str, Any]:
    """Mean, deviation and standard error of the accuracy, share of runs at the target; seconds; rates."""
    accuracies = [run["accuracy"] for run in runs]
    deviation = statistics.stdev(accuracies) if len(runs) > 1 else None
    clocks: dict[str, list[float]] = {}
    for run in runs:
        for clock, seconds in run["seconds"].items():
            if seconds is not None:
                clocks.setdefault(clock, []).append(seconds)
    rate = statistics.fmean(run["flops"]["train"] / run["seconds"]["steps"] for run in runs) / 1e9
    whole = statistics.fmean(sum(run["flops"].values()) / run["seconds"]["field"] for run in runs) / 1e9
    return {
        "runs": len(runs),
        "accuracy": {
            "mean": statistics.fmean(accuracies),
            "deviation": deviation,
            "standard_error": None if deviation is None else deviation / len(runs) ** 0.5,
            "min": min(accuracies),
            "max": max(accuracies),
            "target": target,
            "share_at_target": sum(a >= target for a in accuracies) / len(runs),
        },
        "seconds": {clock: _spread(values) for clock, values in clocks.items()},
        "images_per_second": statistics.fmean(run["images"] / run["seconds"]["steps"] for run in runs),
        "flops": runs[0]["flops"],
        "flops_per_image": runs[0]["flops"]["train"] / runs[0]["images"],
        "gflops": rate,
        "field_gflops": whole,
        "peak_gflops": peak_gflops,
        "share_of_peak": None if peak_gflops is None else rate / peak_gflops,
        "field_share_of_peak": None if peak_gflops is None else whole / peak_gflops,
    }


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.2f} %"


def _rates(summary: dict[str, Any], peak_name: str) -> list[str]:
    operations, peak_gflops = summary["flops"], summary["peak_gflops"]
    lines = [
        f"operations  {summary['flops_per_image'] / 1e9:.4f} GFLOP/image, training {operations['train'] / 1e12:.2f} "
        f"TFLOP, optimizer {operations['optimizer'] / 1e12:.3f}, test {operations['test'] / 1e12:.2f}",
        f"rate        {summary['images_per_second']:,.0f} images/s in training, {summary['gflops']:,.0f} GFLOP/s; all "
        f"operations within the field's clock: {summary['field_gflops']:,.0f}",
    ]
    if peak_gflops is None:
        lines.append(f"peak        not measured: {peak_name}")
    else:
        lines.append(
            f"peak        {peak_gflops:,.0f} GFLOP/s of {peak_name}: {100 * summary['share_of_peak']:.1f} % of it in "
            f"training, {100 * summary['field_share_of_peak']:.1f} % within the field's clock"
        )
    return lines


def show(recipe: recipes.Recipe, summary: dict[str, Any], runs: Sequence[dict[str, Any]], peak_name: str) -> str:
    """The summary for people."""
    accuracy, run = summary["accuracy"], runs[0]
    tested = "" if run["fold"] is None else ", each tested on a held-out fold of the training images"
    where = counted(run["threads"], "thread") if run["device"] == "cpu" else str(run["device"])
    lines = [
        f"recipe {recipe.name}: {recipe.summary}",
        f"{counted(summary['runs'], 'run')}, {counted(run['steps'], 'step')} each, {where}, {run['precision']}{tested}",
        f"accuracy    mean {_percent(accuracy['mean'])}, standard deviation {_percent(accuracy['deviation'])}, "
        f"standard error {_percent(accuracy['standard_error'])}, {_percent(accuracy['min'])} to "
        f"{_percent(accuracy['max'])}",
        f"target      {_percent(accuracy['target'])}, reached by {100 * accuracy['share_at_target']:.0f} % of the runs",
    ]
    for clock, text in CLOCKS.items():
        if clock in summary["seconds"]:
            s = summary["seconds"][clock]
            few = f"; {s['runs']} of the runs" if s["runs"] < summary["runs"] else ""
            clock_of = ", the GPU's own clock" if clock == "field" and run["field_clock"] == "device" else ""
            lines.append(
                f"{clock:<11} {s['mean']:.3f} s mean, {s['median']:.3f} median, {s['min']:.3f} to {s['max']:.3f}  "
                f"({text}{clock_of}{few})"
            )
    means = {part: summary["seconds"][part]["mean"] for part in ("whitening", "steps", "test", "waiting_for_data")}
    parts = ", ".join(f"{part.replace('_', ' ')} {seconds:.3f} s" for part, seconds in means.items())
    lines += [f"parts       {parts}", *_rates(summary, peak_name)]
    if run["wire_bytes"]:
        lines.append(f"wire        {run['wire_bytes'] / 1e6:.1f} MB of gradients per run")
    return "\n".join(lines)


class Figures:
    """Collects the runs as they come; the file of --json is complete after each."""

    def __init__(self, options: argparse.Namespace, arguments: Sequence[str], recipe: recipes.Recipe):
        self.recipe, self.wanted = recipe, options.runs
        self.path = options.json if options.json != "-" else None
        self.out = sys.stderr if options.json == "-" else sys.stdout
        self.target = recipe.target if options.target is None else options.target
        self.runs: list[dict[str, Any]] = []
        self.peak: float | None = None
        self.peak_name = "the benchmark did not reach its end"
        command = shlex.join(["python", "-m", "cgxffcv", "bench", "cifar", *arguments])
        self.head = {"command": command, "arguments": list(arguments), "machine": machine.describe()}

    def add(self, run: dict[str, Any]) -> None:
        self.runs.append(run)
        self.runs.sort(key=lambda run: run["seed"])
        s = run["seconds"]
        fold = "" if run["fold"] is None else f", fold {run['fold']}"
        cold = "" if s["cold"] is None else f" ({s['cold']:.2f} s from the start of the process)"
        line = f"seed {run['seed']}{fold}: {_percent(run['accuracy'])} in {s['field']:.3f} s{cold}"
        print(line, file=self.out, flush=True)
        self.write()

    def as_dict(self) -> dict[str, Any]:
        head = {"recipe": self.recipe.as_dict(), **self.head, "complete": len(self.runs) == self.wanted}
        summary = summarise(self.runs, self.target, self.peak) if self.runs else None
        return head | {"peak": self.peak_name, "summary": summary, "runs": self.runs}

    def write(self) -> None:
        if self.path:
            machine.write_json(self.path, self.as_dict())

    def finish(self) -> None:
        """Shows and saves what there is, if there is anything."""
        if self.runs:
            summary = summarise(self.runs, self.target, self.peak)
            print(show(self.recipe, summary, self.runs, self.peak_name), file=self.out, flush=True)
        self.write()
        if self.path is None and self.out is sys.stderr:
            print(json.dumps(self.as_dict()), flush=True)


def _check(options: argparse.Namespace) -> None:
    for path in (options.train,) if fold_images(options) else (options.train, options.test):
        if not Path(path).exists():
            raise UserError(f"{path}: no such file; cgxffcv write makes it, or name others with --train and --test")
    if not fold_images(options) and os.path.samefile(options.train, options.test):
        raise UsageError(f"bench cifar: --test {options.test} is also the training set; name another, or use --folds")
    if options.json and options.json != "-" and not Path(options.json).parent.is_dir():
        raise UsageError(f"bench cifar: --json {options.json}: its folder does not exist")


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    options = _parser().parse_args(argv)
    if options.recipe is None:
        options.recipe = usual_recipe(options.device)
        argv = [*argv, "--recipe", options.recipe]
    recipe = choose_recipe(options)
    if options.seeds is not None:
        for result in train_here(options):
            if process.rank() == 0:
                print(MARK + json.dumps(result), flush=True)
        return 0
    _check(options)
    figures = Figures(options, argv, recipe)
    waiting = in_order(options)
    try:
        while waiting:
            waiting = waiting[start_runs(options, argv, waiting, figures.add) :]
        # After the runs, so that the first of them begins on a GPU and with libraries that nothing has touched.
        figures.peak, figures.peak_name = peak.measure(
            "cpu" if figures.runs[0]["device"] == "cpu" else "gpu", figures.runs[0]["precision"]
        )
    finally:
        figures.finish()
    return 0
