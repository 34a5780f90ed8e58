"""Fast .beton data loading, compressed allreduce and CIFAR-10 training over one C extension.

The names below are imported when they are first used, so that ``import cgxffcv`` is quick and ``cgxffcv doctor`` can
say what is wrong when the extension module itself cannot be loaded.
"""

from __future__ import annotations

from cgxffcv.bundled import provide as _provide

TYPE_CHECKING = False  # type checkers treat it as typing's, which takes time to import

__version__ = "0.1.0"

# name: the module that defines it
_EXPORTS = {
    **dict.fromkeys(
        [
            "BetonError",
            "CommError",
            "CommTimeout",
            "CudaError",
            "NotBuiltError",
            "PeerLost",
            "build_info",
            "set_max_image_pixels",
        ],
        "_cgxffcv",
    ),
    "DatasetWriter": "cgxffcv.writer",
    "Loader": "cgxffcv.loader",
    "OrderOption": "cgxffcv.loader",
    "RankError": "cgxffcv.errors",
    "Reader": "cgxffcv.reader",
    "launch": "cgxffcv.ranks",
}

__all__ = [*_EXPORTS, "__version__"]

if TYPE_CHECKING:
    from typing import Any

    from _cgxffcv import BetonError as BetonError
    from _cgxffcv import CommError as CommError
    from _cgxffcv import CommTimeout as CommTimeout
    from _cgxffcv import CudaError as CudaError
    from _cgxffcv import NotBuiltError as NotBuiltError
    from _cgxffcv import PeerLost as PeerLost
    from _cgxffcv import build_info as build_info
    from _cgxffcv import set_max_image_pixels as set_max_image_pixels

    from cgxffcv.errors import RankError as RankError
    from cgxffcv.loader import Loader as Loader
    from cgxffcv.loader import OrderOption as OrderOption
    from cgxffcv.ranks import launch as launch
    from cgxffcv.reader import Reader as Reader
    from cgxffcv.writer import DatasetWriter as DatasetWriter


_provide()


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'cgxffcv' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
