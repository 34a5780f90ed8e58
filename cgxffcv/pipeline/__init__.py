"""Pipelines: what is done to a field on its way into a batch."""

from cgxffcv.pipeline.compile import PipelineSpec

__all__ = ["PipelineSpec"]
