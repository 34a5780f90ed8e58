"""FFCV's module of this name."""

from cgxffcv.transforms import ModuleWrapper

__all__ = ["ModuleWrapper"]
