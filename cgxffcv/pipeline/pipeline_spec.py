"""FFCV's module of this name."""

from cgxffcv.pipeline.compile import PipelineSpec

__all__ = ["PipelineSpec"]
