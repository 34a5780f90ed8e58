"""Training on another data set: scikit-learn's handwritten digits, 1,797 grey images of 8 x 8 pixels, here as 16 x 16.

    python digits.py [FOLDER]

Writes two .beton files, trains a narrow network on one, and prints its accuracy on the other next to that of
scikit-learn's support vector machine on the same split. Needs scikit-learn.
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

from cgxffcv import nn
from cgxffcv.classes import write_names
from cgxffcv.fields import IntField, RGBImageField
from cgxffcv.train import Trainer, fitted
from cgxffcv.writer import DatasetWriter

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
digits = load_digits()
parts = train_test_split(digits.images, digits.target, test_size=0.25, random_state=0, stratify=digits.target)
names = [str(number) for number in range(10)]


def write(name, images, labels):
    """Grey levels 0..16 become three equal channels 0..255, and each pixel a square of four."""
    pixels = np.round(images * (255 / 16)).astype(np.uint8).repeat(2, axis=1).repeat(2, axis=2)
    colours = np.ascontiguousarray(pixels[..., None].repeat(3, axis=3))
    path = folder / f"digits_{name}.beton"
    fields = {"image": RGBImageField(), "label": IntField()}
    DatasetWriter(path, fields, num_workers=1).from_arrays(image=colours, label=labels)
    write_names(path, names)
    return path


train = write("train", parts[0], parts[2])
test = write("test", parts[1], parts[3])
# Left and right differ, so nothing is mirrored; the head's scale is the inverse of the last block's width.
recipe = fitted("airbench94", train, test).replace(
    widths=(32, 64, 64), head_scale=1 / 64, flip="none", translate=1, batch_size=100, epochs=8, lr=0.15
)
with Trainer(recipe, train, test, seed=0, device="cpu", classes=names) as trainer:
    while not trainer.finished:
        for _ in trainer.run_epoch():
            pass
        trainer.end_epoch()
    ours = trainer.evaluate().accuracy
    trainer.save(folder / "digits.safetensors")

machine = SVC(gamma=0.001).fit(parts[0].reshape(len(parts[0]), -1), parts[2])
theirs = machine.score(parts[1].reshape(len(parts[1]), -1), parts[3])
print(f"{len(parts[1])} test images: ours {ours:.2%}, scikit-learn's SVC {theirs:.2%}")
print("classes of the checkpoint:", " ".join(nn.load(folder / "digits.safetensors").classes))
