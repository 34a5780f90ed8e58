"""What `make train` trains: a recipe and a length that suit a CPU, on as many ranks as asked for.

usage: python tools/train_here.py RANKS [options of train_cifar_ffcv_cgx.py]
"""

from __future__ import annotations

import os
import sys

from cgxffcv import beton, config, recipes

SMALL = 20_000  # training images; with fewer, more epochs


def main(ranks: str, options: list[str]) -> None:
    if not ranks.isdecimal() or int(ranks) < 1:
        sys.exit(f"RANKS = {ranks!r}: expected a whole number from 1")
    options = ["--config-file", "default_config.yaml", *options]
    images = beton.info(config.load(options).data.train_dataset).num_samples
    chosen = ["--training.recipe=airbench90", "--dist-backend", "cgx", "--quantization-bits", "4"]
    chosen += ["--epochs", "20", "--training.test_every=10"] if images < SMALL else ["--training.test_every=3"]
    batch = recipes.get("airbench90").batch_size  # of all ranks together
    if batch % int(ranks):
        chosen.append(f"--training.batch_size={max(batch - batch % int(ranks), int(ranks))}")
    cores = len(os.sched_getaffinity(0))
    print(f"\n{images:,} training images, {ranks} ranks on {cores} cores: recipe airbench90, gradients in 4 bits.")
    print("(By itself train_cifar_ffcv_cgx.py trains as the demo does: ResNet-9, 20 epochs, for GPUs.)", flush=True)
    script = ["train_cifar_ffcv_cgx.py", *chosen, *options]
    os.execv(sys.executable, [sys.executable, "-m", "cgxffcv", "launch", "-np", ranks, *script])


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
