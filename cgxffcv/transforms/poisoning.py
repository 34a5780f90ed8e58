"""FFCV's module of this name."""

from cgxffcv.transforms import Poison

__all__ = ["Poison"]
