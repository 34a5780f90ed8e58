"""FFCV's module of this name."""

from cgxffcv.transforms import RandomHorizontalFlip

__all__ = ["RandomHorizontalFlip"]
