"""A file of small images for the tests of the loader, and what a pass over it gives."""

import numpy as np
import tiny_beton

N = 103


def pixels(count=N, size=(16, 16), seed=5):
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def write_plain(folder):
    fields = {"image": ("image", list(pixels())), "label": ("int", list(range(N)))}
    return tiny_beton.write(folder / "plain.beton", fields)


def ids_of(loader):
    """The sample numbers of each batch of a pass."""
    return [batch[-1].tolist() for batch in loader]


def flat(batches):
    return [number for batch in batches for number in batch]
