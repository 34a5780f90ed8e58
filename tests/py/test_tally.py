"""Sums of an epoch, and when a training has diverged."""

import pytest

from cgxffcv import recipes
from cgxffcv.train.interface import StepReport
from cgxffcv.train.state import my_sums
from cgxffcv.train.tally import MAX_SKIPPED, EpochSums, Tally, TrainingDiverged


def step(number, skipped):
    return StepReport(0, number, 100, 10, float("nan") if skipped else 1.5, 4, 0.1, 0.25, 0.0, 7, skipped, 32)


def test_steps_in_between_are_forgiven():
    """Ten skipped steps end a training only if they are in a row."""
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


def test_sums_of_an_epoch_go_to_another_number_of_ranks():
    """Sums that belong to all go to rank 0; a skipped step was skipped on every rank."""
    before = [EpochSums(images=30, correct=7, loss=1.5, seconds=9, wire_bytes=100, skipped=2)]
    before.append(EpochSums(images=30, correct=8, loss=2.0, seconds=9, wire_bytes=50, skipped=2))
    kept = [sums.saved() for sums in before]
    assert [my_sums(kept, rank, 2) for rank in (0, 1)] == [EpochSums(**sums) for sums in kept]
    for ranks in (1, 3):
        after = [my_sums(kept, rank, ranks) for rank in range(ranks)]
        assert after[0] == EpochSums(images=60, correct=15, loss=3.5, wire_bytes=150, skipped=2)
        assert after[1:] == [EpochSums(skipped=2)] * (ranks - 1)
