"""The test: every image once, shared among the ranks; more views for the images that the network is least sure of."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np

from cgxffcv.recipes import Recipe, TestView

__all__ = ["EvaluationSums", "run_evaluation"]


class EvaluationSums(NamedTuple):
    """What one rank found."""

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
    """The `count` sample numbers with the lowest confidence; the lower numbers first if it is equal."""
    return ids[np.lexsort((ids, confidence))[:count]]


def _choose(core_ids: np.ndarray, confidence: np.ndarray, share: float, comm: Any) -> np.ndarray:
    """Which of this rank's images are among the least confident of all ranks; a mask."""
    mine = np.rec.fromarrays([core_ids, confidence], names="id,confidence")
    pieces = [mine.tobytes()] if comm is None else comm.allgather(mine.tobytes())
    everyone = np.concatenate([np.frombuffer(piece, mine.dtype) for piece in pieces])
    count = round(share * len(everyone))
    return np.isin(core_ids, least_confident(everyone["confidence"], everyone["id"], count))


def run_evaluation(source: Any, recipe: Recipe, comm: Any, tta: bool = True) -> EvaluationSums:
    """Tests this rank's share, from a ResidentEvaluation or FedEvaluation; collective only if the least confident
    images are to be found among all ranks."""
    begin = time.perf_counter()
    views = recipe.views if tta else (TestView(),)
    few = len(views) > 1 and recipe.test_share < 1
    label, number, scores = source.first((TestView(),) if few else views)
    if few:
        chosen = _choose(number, _softmax(scores).max(axis=1), recipe.test_share, comm)
        scores = _more_views(source, views, np.flatnonzero(chosen), scores)
    probability = _softmax(scores)[np.arange(len(label)), label]
    with np.errstate(divide="ignore"):
        loss = float(-np.log(probability).sum())
    correct = int((scores.argmax(axis=1) == label).sum())
    return EvaluationSums(len(label), correct, loss, time.perf_counter() - begin)


def _more_views(source: Any, views: tuple[TestView, ...], positions: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The scores with those of the chosen images replaced by the weighted sum over all views."""
    plain = [view for view in views if view == TestView(weight=view.weight)]
    others = tuple(view for view in views if view not in plain)
    total = scores.copy()
    if len(positions) > 0 and others:
        weight = np.float32(sum(view.weight for view in plain))
        total[positions] = weight * scores[positions] + source.again(positions, others)
    return total
