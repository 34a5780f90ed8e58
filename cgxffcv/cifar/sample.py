"""The shipped sample of CIFAR-10: 5,000 training and 1,000 test images, exactly as in the official files.

The images are stored without loss in ``sample.npz`` (NumPy and zlib read it): each pixel is predicted from its
neighbours and from the planes already known by a linear filter in integers, and what is left goes to one of sixteen
deflate streams, chosen by how busy the neighbourhood is. All images of a block are processed together, one pixel
position at a time, so reading is a few thousand NumPy calls. ``tools/make_sample.py`` made the file.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

PATH = Path(__file__).with_name("sample.npz")
TRAIN, TEST = 5000, 1000
SHA256 = "59e4129fc76327eca997b7b79f4c6de7d997bb028673d93ac7d1db078ad0eb2f"

SIDE, PAD = 32, 2
WIDE = SIDE + 2 * PAD
BLOCKS = 2  # of consecutive images, each coded separately, so that two threads can read
CONTEXTS = 16
SHIFT = 11  # the filters' weights are integers in units of 2**-SHIFT
PLANES = (1, 0, 2)  # green first: the other two follow it closely
# (dy, dx) of the neighbours known before a pixel of its own plane, and of those taken from a finished plane
OWN = ((0, -1), (-1, 0), (-1, -1), (-1, 1), (0, -2), (-2, 0), (-2, 1), (-1, 2))
OTHER = ((0, 0), (0, -1), (-1, 0), (0, 1), (1, 0), (-1, -1), (-1, 1))

# source(step, y, x, near): the pixels of one position, all images at once; near: (taps, images), float32
Source = Callable[[int, int, int, np.ndarray], np.ndarray]


def taps(step: int) -> np.ndarray:
    """Row numbers, in a table of 3 x 36 x 36 rows, of the neighbours of pixel (0, 0) of the step-th plane."""
    offsets = [(PLANES[step], dy, dx) for dy, dx in OWN]
    offsets += [(plane, dy, dx) for plane in PLANES[:step] for dy, dx in OTHER]
    return np.array([(plane * WIDE + dy + PAD) * WIDE + dx + PAD for plane, dy, dx in offsets])


def predict(near: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The filter: float32 (images,) of whole numbers 0..255. Every sum is an integer below 2**24, hence exact."""
    guess = np.floor((weights[:-1] @ near + weights[-1]) * np.float32(2.0**-SHIFT))
    return np.clip(guess, 0, 255, out=guess)


def activity(near: np.ndarray) -> np.ndarray:
    """How much the neighbourhood varies: float32 (images,) of whole numbers."""
    busy = np.abs(near[0] - near[2]) + np.abs(near[1] - near[2]) + np.abs(near[1] - near[3])
    if len(near) > len(OWN):
        last = near[-len(OTHER) :]
        busy += 2 * (np.abs(last[0] - last[1]) + np.abs(last[0] - last[2]))
    return busy


def walk(images: int, source: Source) -> np.ndarray:
    """Visits every pixel position in coding order, asks `source` for the pixels; (images, 3, 32, 32) uint8."""
    table = np.full((3, WIDE, WIDE, images), 128, np.float32)
    rows = table.reshape(-1, images)
    for step, plane in enumerate(PLANES):
        offsets, page = taps(step), table[plane]
        for y in range(SIDE):
            if y > 0:
                page[y + PAD, :PAD] = page[y + PAD - 1, PAD]
            for x in range(SIDE):
                pixels = source(step, y, x, rows[offsets + (y * WIDE + x)])
                page[y + PAD, x + PAD] = pixels
                if y == 0:
                    page[:PAD, x + PAD + 1 :] = pixels
            page[y + PAD, SIDE + PAD :] = page[y + PAD, SIDE + PAD - 1]
        page[SIDE + PAD :] = page[SIDE + PAD - 1]
    inside = table[:, PAD : PAD + SIDE, PAD : PAD + SIDE].astype(np.uint8)
    return np.ascontiguousarray(inside.transpose(3, 0, 1, 2))


def _read_block(images: int, streams: list[list[bytes]], weights: list[np.ndarray], bounds: np.ndarray) -> np.ndarray:
    left = [[np.frombuffer(zlib.decompress(stream), np.uint8) for stream in plane] for plane in streams]

    def source(step: int, y: int, x: int, near: np.ndarray) -> np.ndarray:
        context = np.searchsorted(bounds[step], activity(near), side="right").astype(np.uint8)
        counts = np.bincount(context, minlength=CONTEXTS)
        streams = left[step]
        parts = [stream[:count] for stream, count in zip(streams, counts, strict=True)]
        left[step] = [stream[count:] for stream, count in zip(streams, counts, strict=True)]
        residual = np.empty(images, np.uint8)
        residual[np.argsort(context, kind="stable")] = np.concatenate(parts)
        return predict(near, weights[step]).astype(np.uint8) + residual

    return walk(images, source)


def digest(images: np.ndarray, labels: np.ndarray) -> str:
    """SHA-256 of the labels, then the images (n, 3, 32, 32)."""
    return hashlib.sha256(labels.tobytes() + images.tobytes()).hexdigest()


def load(path: Path = PATH) -> tuple[np.ndarray, np.ndarray]:
    """The sample: images (6000, 3, 32, 32) uint8 and labels (6000,) uint8; the first 5,000 are for training.

    Raises OSError if the file is missing, ValueError if it is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            labels, bounds = archive["labels"], archive["bounds"]
            weights = [archive[f"weights{step}"] for step in range(3)]
            data, sizes = archive["data"].tobytes(), archive["sizes"].ravel()
        ends = np.cumsum(sizes).tolist()
        pieces = [data[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
        blocks = [[pieces[(b * 3 + s) * CONTEXTS :][:CONTEXTS] for s in range(3)] for b in range(BLOCKS)]
        share = (TRAIN + TEST) // BLOCKS
        with ThreadPoolExecutor(BLOCKS) as pool:
            images = np.concatenate(list(pool.map(lambda block: _read_block(share, block, weights, bounds), blocks)))
    except (KeyError, IndexError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not the shipped CIFAR-10 sample ({error}); install cgxffcv again") from error
    if digest(images, labels) != SHA256:
        raise ValueError(f"{path}: the shipped CIFAR-10 sample is damaged (its SHA-256 differs); install cgxffcv again")
    return images, labels
