"""FFCV's module of this name."""

from cgxffcv.transforms import Squeeze

__all__ = ["Squeeze"]
