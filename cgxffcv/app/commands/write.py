"""Writes CIFAR-10 as two .beton files, for training.

The data comes from where data.source says: files below data.root, a download, or the sample that ships with cgxffcv.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cgxffcv import cifar, interrupts
from cgxffcv.app import config, process
from cgxffcv.errors import ConfigError
from cgxffcv.fields import IntField, RGBImageField
from cgxffcv.writer import DatasetWriter

USED = ["data.train_dataset", "data.val_dataset", "data.source", "data.root", "data.url", "data.num_workers"]
USED += ["log.progress"]


def write(path: str, images: np.ndarray, labels: np.ndarray, workers: int) -> None:
    """images: (n, 32, 32, 3) uint8; labels: (n,) whole numbers."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    writer = DatasetWriter(path, {"image": RGBImageField(), "label": IntField()}, num_workers=workers)
    process.say(str(writer.from_arrays(image=images, label=labels)))


def main(prog: str, arguments: Sequence[str]) -> int:
    settings = config.load(arguments, prog=prog, description=__doc__, used=USED)
    d = settings.data
    if os.path.realpath(d.train_dataset) == os.path.realpath(d.val_dataset):
        raise ConfigError([f"data.train_dataset and data.val_dataset are one file: {d.train_dataset}; name two"])
    interrupts.careful()
    data = cifar.obtain(d.root, d.source, d.url, say=process.say, mode=settings.log.progress)
    write(d.train_dataset, data.train_images, data.train_labels, d.num_workers)
    write(d.val_dataset, data.test_images, data.test_labels, d.num_workers)
    return 0
