"""Small data sets for tests of training: ten classes of noisy patterns, easy to tell apart."""

import numpy as np

from cgxffcv.fields import IntField, RGBImageField
from cgxffcv.writer import DatasetWriter


def images_and_labels(count, seed=0, noise=40.0):
    """uint8 (count, 32, 32, 3) and int64 (count,): smooth patterns, one per class, with noise."""
    random = np.random.default_rng(seed)
    patterns = np.random.default_rng(12345).uniform(40, 215, (10, 4, 4, 3)).repeat(8, axis=1).repeat(8, axis=2)
    labels = np.arange(count) % 10
    pixels = patterns[labels] + random.normal(0, noise, (count, 32, 32, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8), labels.astype(np.int64)


def write(path, images, labels, image="image"):
    """A .beton file with the fields that trainers expect."""
    DatasetWriter(str(path), {image: RGBImageField(), "label": IntField()}).from_arrays(
        **{image: images, "label": labels}
    )
    return str(path)


def make(folder, train=250, test=103):
    """(training file, test file)."""
    return write(folder / "train.beton", *images_and_labels(train)), write(
        folder / "test.beton", *images_and_labels(test, 1)
    )
