"""FFCV's module of this name."""

from cgxffcv.transforms import RandomTranslate

__all__ = ["RandomTranslate"]
