"""FFCV's module of this name."""

from cgxffcv.transforms import Cutout

__all__ = ["Cutout"]
