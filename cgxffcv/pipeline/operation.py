"""FFCV's module of this name: the base of what stands in a pipeline."""

from cgxffcv.transforms import Transform as Operation

__all__ = ["Operation"]
