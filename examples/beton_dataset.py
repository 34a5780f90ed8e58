"""Writes any data set as a .beton file, looks into it, and loads augmented batches from it.

python examples/beton_dataset.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from cgxffcv import beton
from cgxffcv.fields import IntField, JSONField, NDArrayField, RGBImageField
from cgxffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
from cgxffcv.loader import Loader, OrderOption
from cgxffcv.reader import Reader
from cgxffcv.transforms import Convert, Cutout, NormalizeImage, RandomHorizontalFlip, RandomTranslate, ToTorchImage
from cgxffcv.writer import DatasetWriter


class Disks:
    """A data set is anything with len() and []; here, discs of ten sizes on noise, with their centres."""

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> tuple[np.ndarray, int, np.ndarray, dict[str, int]]:
        rng = np.random.default_rng(index)
        image = rng.integers(0, 100, (32, 32, 3), dtype=np.uint8)
        size, centre = index % 10, rng.uniform(12, 20, 2)
        y, x = np.mgrid[:32, :32]
        image[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < (size + 2) ** 2] = 230
        return image, size, centre.astype(np.float32), {"index": index}


def main(folder: Path) -> None:
    path = folder / "discs.beton"
    fields = {
        "image": RGBImageField(),
        "label": IntField(),
        "centre": NDArrayField(np.dtype("float32"), (2,)),
        "about": JSONField(),
    }
    print(DatasetWriter(path, fields, checksums=True).from_indexed_dataset(Disks()))
    print(beton.info(path))

    with Reader(path) as reader:  # single samples
        sample = reader[123]
        print("sample 123:", sample["image"].shape, sample["label"], sample["centre"], sample["about"])

    augmentation = [
        SimpleRGBImageDecoder(),
        RandomHorizontalFlip(),
        RandomTranslate(padding=2),
        Cutout(4, (125, 122, 113)),
        ToTorchImage(),
        Convert(np.float32),
        NormalizeImage(np.full(3, 127.5), np.full(3, 50.0), np.float32),
    ]
    with Loader(
        path,
        batch_size=100,
        order=OrderOption.RANDOM,
        seed=1,
        pipelines={"image": augmentation, "label": [IntDecoder()], "about": None},
    ) as loader:
        for epoch in range(2):
            total = 0.0
            for images, labels, centres in loader:  # noqa: B007
                total += float(images.mean())
            print(
                f"epoch {epoch}: {len(loader)} batches, mean {total / len(loader):.3f}; the last:",
                images.shape,
                images.dtype,
                labels.shape,
                centres.shape,
            )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))
