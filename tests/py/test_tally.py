"""Sums of an epoch, and when a training has diverged."""

import pytest

from cgxffcv import recipes
from cgxffcv.train.interface import StepReport
from cgxffcv.train.tally import MAX_SKIPPED, Tally, TrainingDiverged


def step(number, skipped):
    return StepReport(0, number, 100, 10, float("nan") if skipped else 1.5, 4, 0.1, 0.25, 0.0, 7, skipped, 32)


def test_steps_in_between_are_forgiven():
    """Ten steps that were left out end a training only in a row."""
    tally, pattern = Tally(recipes.get("demo")), [True] * (MAX_SKIPPED - 1) + [False]
    for number, skipped in enumerate(pattern * 3):
        tally.count(step(number, skipped), 15.0)
    assert (tally.skipped, tally.skipped_in_a_row) == (3 * (MAX_SKIPPED - 1), 0)
    sums = tally.sums
    assert (sums.images, sums.correct, sums.loss, sums.seconds) == (300, 120, 45.0, 7.5)
    assert (sums.wire_bytes, sums.skipped) == (210, 27)
    for number in range(MAX_SKIPPED - 1):
        tally.count(step(number, True), 15.0)
    with pytest.raises(TrainingDiverged, match=r"in 10 steps in a row \(up to step 99\).*lr = 0.1"):
        tally.count(step(99, True), 15.0)
    tally.begin_epoch()
    assert (tally.sums.images, tally.sums.skipped, tally.skipped) == (0, 0, 37)
    tally.begin()
    assert (tally.skipped, tally.skipped_in_a_row) == (0, 0)
