"""Pipelines: what is done to a field on its way into a batch."""

from cgxffcv.pipeline.compile import PipelineSpec
from cgxffcv.pipeline.compiler import Compiler

__all__ = ["Compiler", "PipelineSpec"]
