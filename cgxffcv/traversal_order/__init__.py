"""Base classes of a user's own orders, as FFCV's scripts write them. (The usual ones are
cgxffcv.loader.OrderOption.)"""

from cgxffcv.traversal_order.base import TraversalOrder
from cgxffcv.traversal_order.random import Random
from cgxffcv.traversal_order.sequential import Sequential

__all__ = ["Random", "Sequential", "TraversalOrder"]
