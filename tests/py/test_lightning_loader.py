"""cgxffcv.interop.torch.Loader does what Lightning's Trainer expects of a loader; Lightning itself is not needed."""

import pickle

import pytest
from loader_data import N, flat, ids_of

from cgxffcv.interop.torch import Loader
from cgxffcv.loader import Loader as Plain
from cgxffcv.loader import OrderOption

BATCH = 10
RANDOM = {"order": OrderOption.RANDOM, "seed": 3, "ids": True, "num_workers": 1, "arrays": "numpy"}


@pytest.fixture
def ranks(monkeypatch):
    """Sets, as torchrun would, which rank this is."""

    def say(rank, size):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(size))

    return say


def epochs_of(loader, count):
    return [ids_of(loader) for _ in range(count)]


def test_a_rank_that_is_not_known_yet_changes_nothing(path, monkeypatch):
    """In Lightning's processes on another node, before torch.distributed is initialised."""
    for name, value in (("LOCAL_RANK", "0"), ("NODE_RANK", "1"), ("WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    with Loader(path, BATCH, **RANDOM) as loader:
        plan = loader._plan
        assert len(loader) == N // BATCH and loader._plan is plan


def test_a_look_at_a_loader_is_no_epoch(path):
    with Plain(path, BATCH, **RANDOM) as plain, Loader(path, BATCH, **RANDOM) as loader:
        expected = epochs_of(plain, 2)
        iter(loader)  # Lightning checks whether this is possible
        assert [len(loader), ids_of(loader), ids_of(loader)] == [N // BATCH, *expected]
        assert loader.batch_sampler is None and not hasattr(loader, "dataset")


def test_the_epoch_is_what_the_sampler_is_told(path):
    with Plain(path, BATCH, **RANDOM) as plain, Loader(path, BATCH, **RANDOM) as loader:
        expected = epochs_of(plain, 4)
        for epoch in (3, 1, 1):
            loader.sampler.set_epoch(epoch)
            assert ids_of(loader) == expected[epoch]


def test_ranks_that_come_after_the_loader_share_its_samples(path, ranks):
    with Loader(path, BATCH, **RANDOM) as loader:
        alone = flat(ids_of(loader))
        shares = []
        for rank in range(2):
            ranks(rank, 2)
            loader.sampler.set_epoch(0)
            assert len(loader) == N // (2 * BATCH)
            shares.append(flat(ids_of(loader)))
    assert sorted(shares[0] + shares[1]) == sorted(alone[:100])
    ranks(1, 2)
    with Loader(path, BATCH, rank=0, world_size=1, **RANDOM) as loader:
        assert flat(ids_of(loader)) == alone


def test_a_training_goes_on_within_its_epoch(path):
    with Loader(path, BATCH, **RANDOM) as loader:
        loader.sampler.set_epoch(1)
        first = [batch[-1].tolist() for _, batch in zip(range(4), loader, strict=False)]
        loader.sampler.set_epoch(1)
        running = iter(loader)
        begun = [next(running)[-1].tolist() for _ in range(4)]
        state = loader.state_dict()
        expected = begun + [batch[-1].tolist() for batch in running]
        assert first == begun and loader.next_epoch == 2
        after = ids_of(loader)
    with Loader(path, BATCH, **{**RANDOM, "seed": 4}) as other:
        other.load_state_dict(state)
        other.sampler.set_epoch(1)  # as Lightning does after it
        assert len(other) == N // BATCH
        assert begun + ids_of(other) == expected
        other.sampler.set_epoch(2)
        assert ids_of(other) == after


def test_a_loop_that_is_left_ends_its_pass(path):
    with Loader(path, BATCH, **RANDOM) as loader:
        running = iter(loader)
        next(running)
        running.close()
        assert loader._pass == 0


def test_a_copy_is_one_of_its_kind(path):
    with Loader(path, BATCH, **RANDOM) as loader:
        loader.sampler.set_epoch(2)
        with pickle.loads(pickle.dumps(loader)) as other:
            assert type(other) is Loader and other.next_epoch == 2
            assert ids_of(other) == ids_of(loader)
