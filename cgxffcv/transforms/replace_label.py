"""FFCV's module of this name."""

from cgxffcv.transforms import ReplaceLabel

__all__ = ["ReplaceLabel"]
