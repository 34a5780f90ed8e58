"""Shows whether a change costs speed: runs the benchmarks of two checkouts, built in place, alternately in one run.

usage: python tools/compare_builds.py OLD NEW [--rounds N] [--only WORD]

OLD and NEW are folders, each with its own .venv. Prints, for each figure, the median of the ratios of neighbouring runs
(above 1: NEW is faster), the lowest and the highest of them. They are meaningful only on an otherwise idle machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

MPIRUN = ["mpirun", "-np", "2", "--oversubscribe", "--bind-to", "none"]
SUM = ["bench", "allreduce", "-b", "1M", "-e", "16M", "-f", "16", "--rounds", "15"]


def rows(figures, key):
    return {f"{row['size'] >> 20} MiB": 1 / row[key] for row in figures["rows"]}


def of_cifar(figures):
    return {"images/s": 1 / min(run["seconds"]["steps"] for run in figures["runs"])}


def of_loader(figures):
    return {f"{row['threads']} threads": row["images_per_second_best"] for row in figures["results"]}


def of_quantize(figures):
    names = ("quantise", "dequantise", "add")
    return {f"{row['bits']} bits, {name}": row[f"{name}_gbps"] for row in figures["rows"] for name in names}


def of_beton(figures):
    parts = [("writing", "unsynced"), ("opening", "shuffled"), ("jpeg", "encode_threads"), ("jpeg", "verify_decoding")]
    return {f"{a}, {b}": 1 / figures[a][b]["best"] for a, b in parts if b in figures.get(a, {})}


# A name, the command, and its figures: higher is better.
BENCHMARKS = {
    "loader, CIFAR pipeline": (["bench", "loader", "--epochs", "10", "--writes", "1"], of_loader),
    "quantize": (["bench", "quantize", "--bits", "2", "4", "8", "--rounds", "5"], of_quantize),
    "allreduce, 2 ranks, 4 bits": ([*SUM, "--bits", "4", "--no-rival"], lambda figures: rows(figures, "time_us")),
    "allreduce, 2 ranks, exact": ([*SUM, "--bits", "32", "--no-rival"], lambda figures: rows(figures, "time_us")),
    "beton": (["bench", "beton", "--runs", "15", "--samples", "300000"], of_beton),
    "cifar, airbench90, 1 epoch": (["bench", "cifar", "--runs", "1", "--set", "epochs=1"], of_cifar),
}


def measure(folder, command, figures_of, data):
    start = MPIRUN if command[1] == "allreduce" else []
    if command[1] == "cifar":
        command = [*command, "--recipe", "airbench90", "--device", "cpu", "--train", data[0], "--test", data[1]]
    with tempfile.TemporaryDirectory() as out:
        path = Path(out, "figures.json")
        done = subprocess.run(
            [*start, f"{folder}/.venv/bin/python", "-m", "cgxffcv", *command, "--json", str(path)],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(folder)},
        )
        if done.returncode:
            raise SystemExit(f"{folder}: {' '.join(command)} failed\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return figures_of(json.loads(path.read_text()))


def compare(folders, rounds, command, figures_of, data):
    """{figure: (old, new) of each round}; the order changes from round to round."""
    pairs = {}
    for number in range(rounds):
        found = [None, None]
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            found[side] = measure(folders[side], command, figures_of, data)
        for name in found[0].keys() & found[1].keys():
            pairs.setdefault(name, []).append((found[0][name], found[1][name]))
    return pairs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs=2, type=lambda text: Path(text).resolve(), metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", metavar="WORD", help="benchmarks whose names contain this word")
    parser.add_argument("--data", nargs=2, default=["data/cifar_train.beton", "data/cifar_test.beton"], metavar="FILE")
    options = parser.parse_args()
    print("| benchmark | new / old: median | lowest | highest |\n|---|---|---|---|", flush=True)
    for title, (command, figures_of) in BENCHMARKS.items():
        if options.only in title:
            pairs = compare(options.folders, options.rounds, command, figures_of, options.data)
            for name, both in sorted(pairs.items()):
                ratios = [new / old for old, new in both]
                figures = f"{statistics.median(ratios):.3f} | {min(ratios):.3f} | {max(ratios):.3f}"
                print(f"| {title}: {name} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
