"""Writes CIFAR-10, or your own images, as two .beton files for training.

The data comes from where data.source says: files under data.root, a download, the sample that ships with cgxffcv, or
(folder) your own images in data.folder, one sub-folder per class.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cgxffcv import cifar, interrupts
from cgxffcv.app import config, image_folder, process, session
from cgxffcv.classes import keep_names
from cgxffcv.errors import ConfigError
from cgxffcv.fields import IntField, RGBImageField
from cgxffcv.writer import DatasetWriter

USED = ["data.train_dataset", "data.val_dataset", "data.source", "data.root", "data.url", "data.num_workers"]
USED += ["data.folder", "data.val_folder", "data.val_share", "data.split_seed", "data.side", "data.on_error"]
USED += ["data.checksums", "log.progress"]


def write(
    path: str,
    images: np.ndarray,
    labels: np.ndarray,
    workers: int,
    checksums: bool = False,
    say: process.Say = process.say,
) -> None:
    """images: (n, 32, 32, 3) uint8; labels: (n,) whole numbers."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    fields = {"image": RGBImageField(), "label": IntField()}
    writer = DatasetWriter(path, fields, num_workers=workers, checksums=checksums)
    say(str(writer.from_arrays(image=images, label=labels)))
    keep_names(path, None)


def main(prog: str, arguments: Sequence[str]) -> int:
    settings = config.load(arguments, prog=prog, description=__doc__, used=USED)
    d = settings.data
    if d.source == "folder":
        interrupts.careful()
        image_folder.prepare(settings, process.say)
        process.say(f"saved in {settings.data.train_dataset} and {settings.data.val_dataset}")
        return 0
    session.refuse_unread_folder(settings)
    if os.path.realpath(d.train_dataset) == os.path.realpath(d.val_dataset):
        raise ConfigError([f"data.train_dataset and data.val_dataset are the same file: {d.train_dataset}; name two"])
    interrupts.careful()
    data = cifar.obtain(d.root, d.source, d.url, say=process.say, mode=settings.log.progress)
    write(d.train_dataset, data.train_images, data.train_labels, d.num_workers, d.checksums)
    write(d.val_dataset, data.test_images, data.test_labels, d.num_workers, d.checksums)
    return 0
