"""FFCV's module of this name."""

from cgxffcv.transforms import RandomResizedCrop

__all__ = ["RandomResizedCrop"]
