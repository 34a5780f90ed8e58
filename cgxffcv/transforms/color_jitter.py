"""FFCV's module of this name."""

from cgxffcv.transforms import RandomBrightness, RandomContrast, RandomSaturation

__all__ = ["RandomBrightness", "RandomContrast", "RandomSaturation"]
