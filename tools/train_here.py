"""Chooses what `make train` trains: on GPUs airbench94, one rank each; else a recipe and a length that suit a CPU.

usage: python tools/train_here.py RANKS [options of train_cifar_ffcv_cgx.py]     (RANKS: a number, or auto)
"""

from __future__ import annotations

import os
import sys

from cgxffcv import beton, device, recipes
from cgxffcv.app import config, process
from cgxffcv.errors import UsageError
from cgxffcv.wording import counted

SMALL = 20_000  # training images; with fewer, more epochs
WHOLE = 50_000
CPU_RANKS = 2


def on_cpu(images: int) -> tuple[str, list[str], str]:
    chosen = ["--dist-backend", "cgx", "--quantization-bits", "4"]
    chosen += ["--epochs", "20", "--training.test_every=10"] if images < SMALL else ["--training.test_every=3"]
    return (
        "airbench90",
        chosen,
        f"{counted(len(os.sched_getaffinity(0)), 'core')}: recipe airbench90, gradients in 4 bits",
    )


def on_gpus(images: int, gpus: int) -> tuple[str, list[str], str]:
    """The whole recipe; with fewer images, the same number of steps."""
    epochs = max(round(recipes.get("airbench94").epochs * WHOLE / images), 1)
    chosen = ["--epochs", str(epochs), f"--training.test_every={epochs}"] if images < SMALL else []
    return "airbench94", chosen, f"{counted(gpus, 'GPU')}: recipe airbench94"


def main(ranks: str, options: list[str]) -> None:
    if ranks != "auto" and (not ranks.isdecimal() or int(ranks) < 1):
        raise UsageError(f"RANKS = {ranks!r}: expected a whole number from 1, or auto")
    options = ["--config-file", "default_config.yaml", *options]
    settings = config.load(options, prog="train_cifar_ffcv_cgx.py")
    images = beton.info(settings.data.train_dataset).num_samples
    gpus = device.check(settings.training.device, settings.data.gpu)
    if ranks == "auto":
        ranks = str(gpus or CPU_RANKS)
    recipe, chosen, where = on_gpus(images, gpus) if gpus else on_cpu(images)
    print(f"\n{images:,} training images, {counted(int(ranks), 'rank')} on {where}.")
    print("(By itself train_cifar_ffcv_cgx.py trains recipe resnet9: 20 epochs, 93.6 %, for GPUs.)", flush=True)
    chosen.insert(0, f"--training.recipe={recipe}")
    script = ["train_cifar_ffcv_cgx.py", *chosen, *options]
    os.execv(sys.executable, [sys.executable, "-m", "cgxffcv", "launch", "-np", ranks, *script])


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    process.run("train_cifar_ffcv_cgx.py", lambda: main(sys.argv[1], sys.argv[2:]))
