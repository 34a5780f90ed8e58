"""Orders of a user's own, as FFCV's scripts write them. (The usual ones are cgxffcv.loader.OrderOption.)"""

from cgxffcv.traversal_order.base import TraversalOrder

__all__ = ["TraversalOrder"]
