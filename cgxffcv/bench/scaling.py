"""How the cells of photos.py scale: one process of N threads, N processes of one thread, and one of these alone, epoch
by epoch in turns, so that what disturbs the machine disturbs all three. The processes share nothing but the file: what
they reach together is what the machine allows, with its clock rates, its memory and cores that are half a core.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cgxffcv.bench.photos import CELLS, Server

WHO = ("one", "threads", "processes")


def rate(servers: Sequence[Server], images: int) -> tuple[float, float]:
    """(images per second, seconds that all workers worked per image) of an epoch in each of them at the same time."""
    for server in servers:
        server.begin()
    epochs = [server.answer() for server in servers]
    worked = sum(epoch["work"] for epoch in epochs) / len(epochs)
    return sum(images / epoch["seconds"] for epoch in epochs), worked / images


def measure(name: str, path: Path, number: int, rounds: int) -> dict[str, Any]:
    """One cell with that number of threads."""
    with contextlib.ExitStack() as stack:
        many = [stack.enter_context(Server(name, path, 1)) for _ in range(number)]
        threads = stack.enter_context(Server(name, path, number))
        one, all_threads = [server.answer()["images"] for server in (*many, threads)][-2:]
        groups = ((many[:1], one), ([threads], all_threads), (many, one))
        found = [[rate(*group) for group in groups] for _ in range(rounds)]
    alone, threads_rates, processes_rates = ([of[i][0] for of in found] for i in range(3))
    idle = [1 - images * work / number for _, (images, work), _ in found]
    work = {who: round(statistics.median(of[i][1] for of in found) * 1e6, 1) for i, who in enumerate(WHO)}
    return {
        "cell": name,
        "number": number,
        "one_images_per_second": round(statistics.median(alone)),
        "one_images_per_second_range": [round(min(alone)), round(max(alone))],
        "threads_images_per_second": round(statistics.median(threads_rates)),
        "processes_images_per_second": round(statistics.median(processes_rates)),
        "threads_of_processes": round(
            statistics.median(a / b for a, b in zip(threads_rates, processes_rates, strict=True)), 3
        ),
        "idle_share": round(statistics.median(idle), 4),
        "work_microseconds_per_image": work,
    }


def run(paths: Mapping[str, Path], threads: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    return [measure(name, paths[name], number, rounds) for name in CELLS for number in threads if number > 1]


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    heads = ("number", "one alone/s", "(range)", "threads/s", "times", "processes/s", "times", "ratio", "idle")
    widths = (8, 12, 16, 11, 7, 13, 7, 7, 7)
    print(f"\n{'N threads, N processes, one alone in turns':<42}" + "".join(map("{:>{}}".format, heads, widths)))
    for row in rows:
        one, threads, several = (row[f"{who}_images_per_second"] for who in WHO)
        low, high = row["one_images_per_second_range"]
        values = (row["number"], f"{one:,}", f"{low:,}-{high:,}", f"{threads:,}", f"{threads / one:.2f}")
        values += (f"{several:,}", f"{several / one:.2f}", row["threads_of_processes"], f"{row['idle_share']:.1%}")
        print(f"{CELLS[row['cell']].what:<42}" + "".join(map("{:>{}}".format, values, widths)))
