"""Where the checkout is, and the environment of the processes that a test starts."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"


def environ(*folders, **more):
    """This process's environment, in which Python finds the modules in `folders` first, then what this process
    finds."""
    paths = [*map(str, folders), *filter(None, sys.path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **{name: str(value) for name, value in more.items()}}
