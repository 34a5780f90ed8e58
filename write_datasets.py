#!/usr/bin/env python3
"""Writes CIFAR-10 as two .beton files, for train_cifar_ffcv_cgx.py.

    python write_datasets.py --config-file default_config.yaml

The data comes from where data.source says: files below data.root, a download, or the sample that ships with cgxffcv.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from cgxffcv import app, cifar, config
from cgxffcv.errors import ConfigError
from cgxffcv.fields import IntField, RGBImageField
from cgxffcv.writer import DatasetWriter


def write(path: str, images: np.ndarray, labels: np.ndarray, workers: int) -> None:
    """images: (n, 32, 32, 3) uint8; labels: (n,) whole numbers."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    writer = DatasetWriter(path, {"image": RGBImageField(), "label": IntField()}, num_workers=workers)
    print(writer.from_arrays(image=images, label=labels))


def main() -> int:
    settings = config.load(prog="write_datasets.py", description=__doc__)
    d = settings.data
    if os.path.realpath(d.train_dataset) == os.path.realpath(d.val_dataset):
        raise ConfigError([f"data.train_dataset and data.val_dataset are one file: {d.train_dataset}; name two"])
    data = cifar.obtain(d.root, d.source, d.url, say=app.say, mode=settings.log.progress)
    write(d.train_dataset, data.train_images, data.train_labels, d.num_workers)
    write(d.val_dataset, data.test_images, data.test_labels, d.num_workers)
    return 0


if __name__ == "__main__":
    app.run("write_datasets.py", main)
