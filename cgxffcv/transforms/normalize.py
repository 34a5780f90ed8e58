"""FFCV's module of this name."""

from cgxffcv.transforms import NormalizeImage

__all__ = ["NormalizeImage"]
