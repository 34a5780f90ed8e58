#!/usr/bin/env python3
"""Writes CIFAR-10 as two .beton files, for train_cifar_ffcv_cgx.py.

    python write_datasets.py --config-file default_config.yaml

The data comes from where data.source says: files below data.root, a download, or the sample that ships with cgxffcv.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from cgxffcv import app, cifar, config
from cgxffcv.fields import IntField, RGBImageField
from cgxffcv.report import duration, size
from cgxffcv.writer import DatasetWriter


class Images:
    """What a DatasetWriter takes: len() and samples by index, each a tuple in the order of the fields."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], int(self.labels[index])


def write(path: str, images: np.ndarray, labels: np.ndarray, workers: int) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    fields = {"image": RGBImageField(), "label": IntField()}
    writer = DatasetWriter(path, fields, num_workers=workers)
    writer.from_indexed_dataset(Images(images, labels))
    seconds = time.monotonic() - began
    print(f"{path}: {len(images):,} images, {size(Path(path).stat().st_size)}, written in {duration(seconds)}")


def main() -> int:
    settings = config.load(prog="write_datasets.py", description="Writes CIFAR-10 as two .beton files.")
    d = settings.data
    data = cifar.obtain(d.root, d.source, d.url, say=app.say, mode=settings.log.progress)
    write(d.train_dataset, data.train_images, data.train_labels, d.num_workers)
    write(d.val_dataset, data.test_images, data.test_labels, d.num_workers)
    print(f"from {data.origin}")
    return 0


if __name__ == "__main__":
    app.run("write_datasets.py", main)
