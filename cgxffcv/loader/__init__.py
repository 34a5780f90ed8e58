"""The loader: batches of a .beton file. Names and arguments as in FFCV 1.0.2, and more."""

from cgxffcv.loader.epoch_iterator import EpochIterator
from cgxffcv.loader.loader import Loader
from cgxffcv.loader.orders import OrderOption
from cgxffcv.loader.ranks import find_ranks
from cgxffcv.pipeline.compile import PipelineSpec

__all__ = ["EpochIterator", "Loader", "OrderOption", "PipelineSpec", "find_ranks"]
