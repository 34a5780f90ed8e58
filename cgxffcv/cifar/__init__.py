"""CIFAR-10: found, downloaded, read and checked; the sample that is shipped."""

from cgxffcv.cifar.data import CLASSES, Cifar10, download, find, from_sample, obtain, read_archive, read_folder

__all__ = ["CLASSES", "Cifar10", "download", "find", "from_sample", "obtain", "read_archive", "read_folder"]
