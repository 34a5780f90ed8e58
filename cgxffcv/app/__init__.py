"""What the two scripts and the command line are made of: from a configuration to a run that reports."""

# What other programs may want from `process`, which is imported when one of these is used.
__all__ = ["Say", "cores_of_this_rank", "end", "local_rank", "local_ranks", "rank", "ranks", "say"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'cgxffcv.app' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module("cgxffcv.app.process"), name)
