"""FFCV's module of this name."""

from cgxffcv.transforms import ImageMixup, LabelMixup, MixupToOneHot

__all__ = ["ImageMixup", "LabelMixup", "MixupToOneHot"]
