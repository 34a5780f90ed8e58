"""Training on the sample of CIFAR-10 that ships with the package, by one command: its files, and a recipe for a CPU."""

from __future__ import annotations

import os
from pathlib import Path

from cgxffcv import cifar
from cgxffcv.app import process
from cgxffcv.app.commands.write import write
from cgxffcv.app.config import Config
from cgxffcv.app.image_folder import alone

__all__ = ["prepare", "suit_cpu"]

# the same as `make train` uses for so few images
RECIPE = {"training.recipe": "airbench90", "training.epochs": 20, "training.test_every": 10}


def prepare(config: Config) -> None:
    """Writes the two .beton files of the sample if neither exists. Every rank calls it; one makes them, the others
    wait."""
    d = config.data
    paths = (d.train_dataset, d.val_dataset)
    if all(map(os.path.exists, paths)):
        return
    with alone(Path(d.train_dataset).parent, process.say_here):
        if not any(map(os.path.exists, paths)):
            data = cifar.obtain(d.root, "sample")
            write(paths[0], data.train_images, data.train_labels, d.num_workers, d.checksums, process.say_here)
            write(paths[1], data.test_images, data.test_labels, d.num_workers, d.checksums, process.say_here)


def suit_cpu(config: Config) -> None:
    """If no recipe is named and there is no GPU, chooses one that a CPU finishes in seconds."""
    from cgxffcv import device  # loads the C core

    gpu = config.training.device == "gpu" or (config.training.device == "auto" and device.devices())
    if not config.given("training.recipe") and not gpu:
        wanted = {key: value for key, value in RECIPE.items() if not config.has_value(key)}
        config.put(wanted, "for the sample on a CPU")
