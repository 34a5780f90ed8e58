"""The test: every image once, shared among the ranks; more views for the images that the network is least sure of."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np

from cgxffcv.recipes import Recipe, TestView

__all__ = ["EvaluationSums", "LoaderEvaluation", "run_evaluation"]


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
    """The `count` sample numbers with the lowest confidence; of equally sure ones the lower numbers."""
    return ids[np.lexsort((ids, confidence))[:count]]


def _choose(core_ids: np.ndarray, confidence: np.ndarray, share: float, comm: Any) -> np.ndarray:
    """Which of this rank's images are among the least confident of all ranks; a mask."""
    mine = np.rec.fromarrays([core_ids, confidence], names="id,confidence")
    pieces = [mine.tobytes()] if comm is None else comm.allgather(mine.tobytes())
    everyone = np.concatenate([np.frombuffer(piece, mine.dtype) for piece in pieces])
    count = round(share * len(everyone))
    return np.isin(core_ids, least_confident(everyone["confidence"], everyone["id"], count))


class LoaderEvaluation:
    """This rank's share of the test set, batch by batch from a loader, for `run_evaluation` on a CPU."""

    def __init__(self, core: Any, loader: Any):
        self._core, self._loader = core, loader
        self._ids = np.zeros(0, np.int64)

    def first(self, views: tuple[TestView, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels, sample numbers and logits (images, classes) of all images."""
        labels, ids, logits = [], [], []
        for images, label, number in self._loader:
            if len(images) == 0:
                continue
            logits.append(self._core.evaluate(images, views))
            labels.append(np.array(label).reshape(-1))
            ids.append(np.array(number))
        label, self._ids = (np.concatenate(x) if x else np.zeros(0, np.int64) for x in (labels, ids))
        return label, self._ids, np.concatenate(logits) if logits else np.zeros((0, 1), np.float32)

    def again(self, positions: np.ndarray, views: tuple[TestView, ...]) -> np.ndarray:
        """Logits of the images with these indices in `first`'s results."""
        size = self._loader.batch_size
        parts = [positions[at : at + size] for at in range(0, len(positions), size)]
        return np.concatenate(
            [self._core.evaluate(self._loader.get_batch(self._ids[part])[0], views) for part in parts]
        )

    def close(self) -> None:
        self._loader.close()


def run_evaluation(source: Any, recipe: Recipe, comm: Any, tta: bool = True) -> EvaluationSums:
    """Tests this rank's share, which a LoaderEvaluation, ResidentEvaluation or FedEvaluation gives; collective only
    where the least confident images are sought among all ranks."""
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
