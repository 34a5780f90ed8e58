"""What the package's processes leave in shared memory."""

import time
from pathlib import Path

FOLDER = Path("/dev/shm")


def files():
    return {path.name for path in FOLDER.iterdir() if "cgxffcv" in path.name} if FOLDER.is_dir() else set()


def left_since(before, wait_s=20):
    """The files that are not in `before` and that stay: those of jobs that other tests run meanwhile disappear by
    themselves."""
    end, left = time.monotonic() + wait_s, files() - before
    while left and time.monotonic() < end:
        time.sleep(0.1)
        left &= files()
    return left
