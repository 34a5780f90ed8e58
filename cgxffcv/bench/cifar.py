"""`cgxffcv bench cifar`: trains a recipe several times, each in a process of its own, and says what came out.

Run i has the seed i (from --first-seed on); no run is left out. Three clocks: *training* is the field's, over the
whitening, all steps and the final test; *call* adds opening the files and making network and loaders; *process* runs
from the start of the process to the final accuracy. The test set chooses nothing: it is read once, at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cgxffcv import app, recipes
from cgxffcv.errors import UserError

MARK = "cgxffcv-run "


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cgxffcv bench cifar", description=__doc__.split("\n\n")[0])
    parser.add_argument("--recipe", default="airbench94", help="name of a recipe (default airbench94)")
    parser.add_argument("--runs", type=int, default=3, help="trainings, with the seeds 0, 1, ... (default 3)")
    parser.add_argument("--target", type=float, help="accuracy to reach, 0..1 (default: the recipe's)")
    parser.add_argument("--threads", type=int, default=0, help="of the network; 0: all cores")
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--ranks", type=int, default=1, help="processes for each training, through mpirun")
    parser.add_argument("--bits", type=int, default=32, help="of a gradient value between ranks; 32: uncompressed")
    parser.add_argument("--bucket-size", type=int, default=1024, help="gradient values that share one scale")
    parser.add_argument("--train", default="data/cifar_train.beton", metavar="FILE")
    parser.add_argument("--test", default="data/cifar_test.beton", metavar="FILE")
    parser.add_argument("--holdout", type=int, default=0, metavar="N",
                        help="for tuning: train without the training images N * seed to N * (seed + 1) - 1, and test "
                        "on these")  # fmt: skip
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="change a field of the recipe"
    )
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="write all figures there; - is the standard output")
    parser.add_argument("--single", type=int, metavar="SEED", help=argparse.SUPPRESS)
    return parser


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {"true": True, "false": False}.get(text.lower(), text)


def choose_recipe(options: argparse.Namespace) -> recipes.Recipe:
    """The recipe with the changes of --set."""
    changes = {}
    for text in options.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: expected FIELD=VALUE, for example --set epochs=4")
        changes[name.strip()] = _value(value.strip())
    return recipes.get(options.recipe).replace(**changes)


def seconds_since_start() -> float:
    """Seconds since this process was started (with mpirun: this rank)."""
    with open("/proc/self/stat") as file:
        ticks = int(file.read().rsplit(")", 1)[1].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def hold_out(path: str, count: int, seed: int) -> dict[str, Any]:
    """The samples to train and to test on: the seed-th fold of `count` images is held out, and round again."""
    import numpy as np

    from cgxffcv.loader import Loader

    with Loader(path, 1, rank=0, world_size=1, seed=0) as loader:
        numbers = np.arange(loader.num_samples)
    if not 0 < count < len(numbers):
        raise UserError(f"--holdout {count}: expected 1 to {len(numbers) - 1} images")
    first = seed % (len(numbers) // count) * count
    held = (numbers >= first) & (numbers < first + count)
    return {"train_indices": numbers[~held], "test_indices": numbers[held]}


def single_run(options: argparse.Namespace) -> dict[str, Any]:
    """One training in this process."""
    from cgxffcv import comm as communication
    from cgxffcv.train import Compression, Trainer

    began = time.perf_counter()
    recipe = choose_recipe(options)
    world = communication.world() if app.ranks() > 1 else None
    chosen: dict[str, Any] = {}
    if options.holdout:
        chosen = hold_out(options.train, options.holdout, options.single)
    trainer = Trainer(
        recipe, options.train, options.train if options.holdout else options.test, comm=world, seed=options.single,
        compression=Compression(bits=options.bits, bucket_size=options.bucket_size),
        threads=options.threads or app.cores_of_this_rank(), precision=options.precision, **chosen,
    )  # fmt: skip
    with trainer:
        start, wire, skipped, losses = time.perf_counter(), 0, 0, []
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
        flops = trainer.total_flops()
        return {
            "seed": options.single, "accuracy": test.accuracy, "test_loss": test.loss, "train_losses": losses,
            "steps": trainer.steps, "skipped": skipped, "threads": trainer.threads, "precision": trainer.precision,
            "seconds": {
                "training": trainer.whitening_seconds + (done - start), "call": done - began,
                "process": seconds_since_start(), "whitening": trainer.whitening_seconds, "steps": trained - start,
                "test": done - trained, "waiting_for_data": trainer.load_seconds,
            },
            "images": trainer.steps * trainer.images_per_step, "flops": flops, "wire_bytes": wire,
        }  # fmt: skip


def start_run(options: argparse.Namespace, arguments: Sequence[str], seed: int) -> dict[str, Any]:
    """One training in a process (or under mpirun) of its own; its figures."""
    command = [sys.executable, "-m", "cgxffcv", "bench", "cifar", *arguments, "--single", str(seed)]
    if options.ranks > 1:
        from cgxffcv import launch

        command = launch.command(options.ranks, command, app.cores_of_this_rank(), os.geteuid() == 0, os.environ)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode != 0 or not lines:
        raise UserError(f"the run with seed {seed} failed with exit code {done.returncode}; its message stands above")
    return json.loads(lines[-1].removeprefix(MARK))


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "mean": statistics.fmean(values), "median": statistics.median(values), "min": min(values), "max": max(values),
    }  # fmt: skip


def summarise(runs: Sequence[dict[str, Any]], target: float, peak_gflops: float) -> dict[str, Any]:
    """Section "how a claim is made": mean, deviation, standard error, share at the target; seconds; rates."""
    accuracies = [run["accuracy"] for run in runs]
    deviation = statistics.stdev(accuracies) if len(runs) > 1 else None
    operations = runs[0]["flops"]
    rates = [run["flops"]["train"] / run["seconds"]["steps"] / 1e9 for run in runs]
    return {
        "runs": len(runs),
        "accuracy": {
            "mean": statistics.fmean(accuracies), "deviation": deviation,
            "standard_error": None if deviation is None else deviation / len(runs) ** 0.5,
            "min": min(accuracies), "max": max(accuracies), "target": target,
            "share_at_target": sum(a >= target for a in accuracies) / len(runs),
        },
        "seconds": {clock: _spread([run["seconds"][clock] for run in runs]) for clock in runs[0]["seconds"]},
        "images_per_second": statistics.fmean(run["images"] / run["seconds"]["steps"] for run in runs),
        "flops": operations, "flops_per_image": operations["train"] / runs[0]["images"],
        "gflops": statistics.fmean(rates), "peak_gflops": peak_gflops,
        "share_of_peak": statistics.fmean(rates) / peak_gflops,
    }  # fmt: skip


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.2f} %"


def show(recipe: recipes.Recipe, summary: dict[str, Any], runs: Sequence[dict[str, Any]]) -> str:
    """The summary for people."""
    accuracy, operations = summary["accuracy"], summary["flops"]
    lines = [
        f"recipe {recipe.name}: {recipe.summary}",
        f"{summary['runs']} runs, {runs[0]['steps']} steps each, {runs[0]['threads']} threads, {runs[0]['precision']}",
        f"accuracy    mean {_percent(accuracy['mean'])}, standard deviation {_percent(accuracy['deviation'])}, "
        f"standard error {_percent(accuracy['standard_error'])}, {_percent(accuracy['min'])} to "
        f"{_percent(accuracy['max'])}",
        f"target      {_percent(accuracy['target'])}, reached by {100 * accuracy['share_at_target']:.0f} % of the runs",
    ]
    names = {
        "training": "whitening, steps and test",
        "call": "and files, network, loaders",
        "process": "from its start",
    }
    for clock, text in names.items():
        s = summary["seconds"][clock]
        lines.append(
            f"{clock:<11} {s['mean']:.2f} s mean, {s['median']:.2f} median, {s['min']:.2f} to {s['max']:.2f}  ({text})"
        )
    parts = ", ".join(f"{part.replace('_', ' ')} {summary['seconds'][part]['mean']:.2f} s"
                      for part in ("whitening", "steps", "test", "waiting_for_data"))  # fmt: skip
    lines += [
        f"parts       {parts}",
        f"operations  {summary['flops_per_image'] / 1e9:.4f} GFLOP an image, training {operations['train'] / 1e12:.2f} "
        f"TFLOP, optimizer {operations['optimizer'] / 1e12:.3f}, test {operations['test'] / 1e12:.2f}",
        f"rate        {summary['images_per_second']:.0f} images/s in training, {summary['gflops']:.0f} GFLOP/s: "
        f"{100 * summary['share_of_peak']:.1f} % of oneDNN's matrix product ({summary['peak_gflops']:.0f} GFLOP/s)",
    ]
    if runs[0]["wire_bytes"]:
        lines.append(f"wire        {runs[0]['wire_bytes'] / 1e6:.1f} MB of gradients a run")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark; gives the exit code."""
    options = _parser().parse_args(argv)
    recipe = choose_recipe(options)
    if options.single is not None:
        result = single_run(options)
        if app.rank() == 0:
            print(MARK + json.dumps(result), flush=True)
        return 0
    if options.runs < 1:
        raise UserError(f"--runs {options.runs}: expected at least 1")
    for path in {options.train} if options.holdout else {options.train, options.test}:
        if not Path(path).exists():
            raise UserError(f"{path}: no such file; write_datasets.py makes it, or name others with --train and --test")
    from cgxffcv.bench import peak

    peak_gflops = peak.matrix_gflops()
    target = recipe.target if options.target is None else options.target
    out = sys.stderr if options.json == "-" else sys.stdout
    runs = []
    for seed in range(options.first_seed, options.first_seed + options.runs):
        runs.append(start_run(options, argv, seed))
        seconds = runs[-1]["seconds"]
        print(f"seed {seed}: {_percent(runs[-1]['accuracy'])} in {seconds['training']:.2f} s "
              f"({seconds['process']:.2f} s from the start of the process)", file=out, flush=True)  # fmt: skip
    summary = summarise(runs, target, peak_gflops)
    print(show(recipe, summary, runs), file=out, flush=True)
    if options.json:
        text = json.dumps({"recipe": recipe.as_dict(), "arguments": list(argv), "summary": summary, "runs": runs})
        if options.json == "-":
            print(text)
        else:
            Path(options.json).write_text(text + "\n")
    return 0
