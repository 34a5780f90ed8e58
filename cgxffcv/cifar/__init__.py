"""CIFAR-10: found, downloaded, read and checked; the sample that is shipped."""

from cgxffcv.cifar.data import (
    BATCHES,
    BINARY,
    CLASSES,
    OFFICIAL_URL,
    Archive,
    Cifar10,
    download,
    find,
    from_binary,
    from_python,
    from_sample,
    obtain,
    read_archive,
    read_folder,
)

__all__ = [
    "BATCHES",
    "BINARY",
    "CLASSES",
    "OFFICIAL_URL",
    "Archive",
    "Cifar10",
    "download",
    "find",
    "from_binary",
    "from_python",
    "from_sample",
    "obtain",
    "read_archive",
    "read_folder",
]
