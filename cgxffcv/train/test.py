"""The test: every image once, shared among the ranks; more views for the images that the network is least sure of."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np

from cgxffcv.recipes import Recipe, TestView

__all__ = ["TestSums", "run_test"]


class TestSums(NamedTuple):
    """What one rank found."""

    __test__ = False
    images: int
    correct: int
    loss: float  # sum of the cross entropy
    seconds: float


def _softmax(logits: np.ndarray) -> np.ndarray:
    """float64 probabilities of float32 logits (n, classes)."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def least_confident(confidence: np.ndarray, ids: np.ndarray, count: int) -> np.ndarray:
    """The `count` sample numbers with the lowest confidence; of equally sure ones the lower numbers."""
    return ids[np.lexsort((ids, confidence))[:count]]


def _choose(core_ids: np.ndarray, confidence: np.ndarray, share: float, comm: Any) -> np.ndarray:
    """Which of this rank's images are among the least confident of all ranks; a mask."""
    mine = np.rec.fromarrays([core_ids, confidence], names="id,confidence")
    pieces = [mine.tobytes()] if comm is None else comm.allgather(mine.tobytes())
    everyone = np.concatenate([np.frombuffer(piece, mine.dtype) for piece in pieces])
    count = round(share * len(everyone))
    return np.isin(core_ids, least_confident(everyone["confidence"], everyone["id"], count))


def run_test(core: Any, loader: Any, recipe: Recipe, comm: Any, tta: bool = True) -> TestSums:
    """Tests this rank's share; collective only where the least confident images are sought among all ranks."""
    begin = time.perf_counter()
    views = recipe.views if tta else (TestView(),)
    few = len(views) > 1 and recipe.test_share < 1
    first = (TestView(),) if few else views
    labels, ids, logits = [], [], []
    for images, label, number in loader:
        if len(images) == 0:
            continue
        logits.append(core.evaluate(images, first))
        labels.append(np.array(label).reshape(-1))
        ids.append(np.array(number))
    label, number = (np.concatenate(x) if x else np.zeros(0, np.int64) for x in (labels, ids))
    scores = np.concatenate(logits) if logits else np.zeros((0, 1), np.float32)
    if few:
        chosen = _choose(number, _softmax(scores).max(axis=1), recipe.test_share, comm)
        scores = _more_views(core, loader, views, number, chosen, scores)
    probability = _softmax(scores)[np.arange(len(label)), label]
    with np.errstate(divide="ignore"):
        loss = float(-np.log(probability).sum())
    correct = int((scores.argmax(axis=1) == label).sum())
    return TestSums(len(label), correct, loss, time.perf_counter() - begin)


def _more_views(
    core: Any, loader: Any, views: tuple[TestView, ...], ids: np.ndarray, chosen: np.ndarray, scores: np.ndarray
) -> np.ndarray:
    """The scores with those of the chosen images replaced by the weighted sum over all views."""
    plain = [view for view in views if view == TestView(weight=view.weight)]
    others = [view for view in views if view not in plain]
    total = scores.copy()
    places = np.flatnonzero(chosen)
    for start in range(0, len(places), loader.batch_size):
        part = places[start : start + loader.batch_size]
        images = loader.get_batch(ids[part])[0]
        total[part] = np.float32(sum(view.weight for view in plain)) * scores[part] + core.evaluate(images, others)
    return total
