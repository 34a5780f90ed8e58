"""Files as the package writes them, from a data set that may misbehave."""

import beton_files as files
import numpy as np

from cgxffcv import DatasetWriter

FIELDS = [("bytes", "b", None), ("int", "n", None), ("image", "img", None), ("json", "d", None)]


class Samples:
    """A data set of random samples that may misbehave at one index."""

    def __init__(self, count, at=None, act=None):
        self.samples = files.package_samples(FIELDS, files.random_samples(np.random.default_rng(0), FIELDS, count))
        self.at, self.act = at, act

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        if index == self.at:
            return self.act(self.samples[index])
        return self.samples[index]


def write(path, dataset, fields=None, **options):
    chunksize = options.pop("chunksize", 7)
    indices = options.pop("indices", None)
    options.setdefault("page_size", 4096)
    options.setdefault("allow_small_pages", True)
    return DatasetWriter(path, fields or files.package_fields(FIELDS), **options).from_indexed_dataset(
        dataset, indices=indices, chunksize=chunksize
    )
