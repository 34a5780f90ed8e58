"""The choice of the hardest images, against its definition, with one rank and with several."""

import numpy as np
import pytest

from cgxffcv.train.selection import HardestImages

IDS = np.array([3, 5, 8, 13, 21, 34, 55, 89, 144, 233])


def permutation(epoch):
    return np.random.default_rng(epoch).permutation(IDS)


def alone(data):
    return [data]


def test_all_images_come_in_the_random_order():
    hardest = HardestImages((1.0,), permutation, alone)
    hardest.begin(0)
    np.testing.assert_array_equal(hardest.sample_order(0), permutation(0))


def test_the_hardest_come_in_the_random_order():
    hardest = HardestImages((1.0, 0.45), permutation, alone)
    hardest.begin(0)
    losses = np.array([5, 1, 4, 2, 3, 9, 8, 7, 6, 0], np.float32)
    hardest.record(IDS[:6], losses[:6])
    hardest.record(IDS[6:], losses[6:])
    hardest.begin(1)
    chosen = {34, 55, 89, 144}
    np.testing.assert_array_equal(hardest.sample_order(1), [i for i in permutation(1) if i in chosen])


def test_unseen_images_and_old_losses_count():
    hardest = HardestImages((1.0, 0.3), permutation, alone)
    hardest.record(IDS[1:], np.arange(9, dtype=np.float32))
    hardest.begin(1)
    assert set(hardest.sample_order(1)) == {3, 233, 144}
    hardest.record(np.array([233]), np.array([0.5], np.float32))
    hardest.record(np.array([3]), np.array([np.nan], np.float32))
    hardest.begin(1)
    assert set(hardest.sample_order(1)) == {3, 144, 89}


def test_ties_go_to_the_lower_numbers():
    hardest = HardestImages((0.3,), permutation, alone)
    hardest.record(IDS, np.ones(10, np.float32))
    hardest.begin(0)
    assert set(hardest.sample_order(0)) == {3, 5, 8}


def test_ranks_choose_alike():
    """Two ranks that each saw half of the images make the same choice as one that saw all."""
    losses = np.random.default_rng(7).uniform(size=10).astype(np.float32)
    one = HardestImages((0.5,), permutation, alone)
    one.record(IDS, losses)
    one.begin(0)
    sent = [None, None]
    halves = [slice(0, 10, 2), slice(1, 10, 2)]

    def collect(rank):
        def exchange(data):
            sent[rank] = data
            raise StopIteration

        return exchange

    ranks = [HardestImages((0.5,), permutation, collect(rank)) for rank in (0, 1)]
    for rank, hardest in enumerate(ranks):
        hardest.record(IDS[halves[rank]], losses[halves[rank]])
        with pytest.raises(StopIteration):
            hardest.merge()
    for hardest in ranks:
        hardest._exchange = lambda data: sent
        hardest.begin(0)
        np.testing.assert_array_equal(hardest.sample_order(0), one.sample_order(0))
        np.testing.assert_array_equal(hardest.losses, one.losses)


def merged(ranks):
    """Merges all ranks' losses, as their exchange would: each gets the bytes of all, in rank order."""
    sent = []
    for hardest in ranks:
        hardest._exchange = lambda data: sent.append(data) or []
        before = hardest.losses.copy(), hardest._changed.copy()
        hardest.merge()
        hardest.losses[:], hardest._changed[:] = before
    for hardest in ranks:
        hardest._exchange = lambda data: sent
        hardest.merge()


def test_a_loss_is_told_once():
    """A sample that another rank trains on later keeps that rank's loss, on all."""
    ranks = [HardestImages((0.5,), permutation, alone) for _ in range(2)]
    ranks[1].record(IDS[:3], np.full(3, 5, np.float32))
    merged(ranks)
    ranks[0].record(IDS[1:4], np.full(3, 1, np.float32))
    merged(ranks)
    for hardest in ranks:
        np.testing.assert_array_equal(hardest.losses[:4], [5, 1, 1, 1])


def test_a_fraction_may_leave_out_a_single_image():
    hardest = HardestImages((1.0, 0.9), permutation, alone)
    hardest.record(IDS, np.arange(10, dtype=np.float32))
    hardest.begin(1)
    np.testing.assert_array_equal(hardest.sample_order(1), [i for i in permutation(1) if i != IDS[0]])


def test_state_goes_on():
    first, second = (HardestImages((1.0, 0.5), permutation, alone) for _ in range(2))
    first.record(IDS, np.arange(10, dtype=np.float32))
    first.begin(1)
    first.record(IDS[:3], np.full(3, 50, np.float32))
    second.load_state_dict(first.state_dict())
    np.testing.assert_array_equal(second.sample_order(1), first.sample_order(1))
    np.testing.assert_array_equal(second.losses, first.losses)
    with pytest.raises(RuntimeError, match="pass 0 has not begun"):
        second.sample_order(0)
    with pytest.raises(ValueError, match="losses of 3 samples, but 10 are in use"):
        second.load_state_dict(first.state_dict() | {"losses": np.zeros(3, np.float32)})
