"""Settings of a loader that are assigned after it was made, and orders that a user gives."""

import itertools
import json
import os
import pickle

import augment_reference as reference
import numpy as np
import pytest
import tiny_beton

from cgxffcv import transforms as tf
from cgxffcv.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
from cgxffcv.interop import torch as interop
from cgxffcv.loader import Loader, OrderOption
from cgxffcv.pipeline import PipelineSpec

N = 40
RANDOM = OrderOption.RANDOM


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    name = tmp_path_factory.mktemp("settings") / "x.beton"
    images = [np.full((4, 4, 3), i, np.uint8) for i in range(N)]
    return str(tiny_beton.write(name, {"image": ("image", images), "label": ("int", list(range(N)))}))


def epoch_of(loader):
    return [batch[-1].reshape(-1).tolist() for batch in loader]


def flat(batches):
    return [i for batch in batches for i in batch]


# ---- assigned settings ----


def test_indices_that_are_assigned_count_from_the_next_epoch_on(path):
    with Loader(path, 5, indices=range(10)) as loader:
        assert flat(epoch_of(loader)) == list(range(10))
        iterator = iter(loader)
        assert next(iterator)[-1].ravel().tolist() == [0, 1, 2, 3, 4]
        loader.indices = np.arange(N) >= 25
        assert loader.indices.tolist() == list(range(25, 40)) and len(loader) == 3 and loader.num_samples == 15
        assert [batch[-1].ravel().tolist() for batch in iterator] == [[5, 6, 7, 8, 9]]
        assert flat(epoch_of(loader)) == list(range(25, 40))
        loader.indices = None
        assert loader.indices.tolist() == list(range(N)) and flat(epoch_of(loader)) == list(range(N))


def test_the_users_array_may_change_and_the_loaders_cannot(path):
    mine = np.arange(10)
    with Loader(path, 5, indices=mine) as loader:
        mine[:] = 39
        loader.batch_size = 2
        with pickle.loads(pickle.dumps(loader)) as other, loader.filter("label", lambda label: True) as all_of_them:
            for each in (loader, other, all_of_them):
                assert each.indices.tolist() == list(range(10)) == flat(epoch_of(each))
        with pytest.raises(ValueError, match="read-only"):
            loader.indices[0] = 3
        with pytest.raises(TypeError):
            loader.pipelines["label"] = None
        with pytest.raises(TypeError):
            loader.order_kwargs["window_pages"] = 3


def test_the_users_order_may_change_within_an_epoch(path):
    mine = np.arange(N)
    with Loader(path, 4, order=mine) as loader:
        batches = iter(loader)
        next(batches)
        mine[:] = mine[::-1].copy()
        state = loader.state_dict()
        assert state["samples"] == list(range(N)) and flat([b[-1].ravel().tolist() for b in batches]) == list(
            range(4, N)
        )
        assert flat(epoch_of(loader)) == mine.tolist()  # what it is when the next epoch begins
        loader.load_state_dict(state)
        assert flat(epoch_of(loader)) == list(range(4, N))


def test_numbers_of_other_libraries_make_a_plain_state(path):
    """Scalars of NumPy, and what else stands for a whole number, as torch's do: json and torch.load take Python's."""

    class Number:
        def __index__(self):
            return 2

    options = {"order": OrderOption.QUASI_RANDOM, "order_kwargs": {"window_pages": np.uint8(3)}, "seed": np.int64(5)}
    given = {"rank": np.int8(0), "world_size": Number(), "num_workers": np.int16(1), "batches_ahead": np.int32(2)}
    with Loader(path, np.int64(4), **options, **given) as loader:
        next(iter(loader))
        state = json.loads(json.dumps(loader.state_dict()))
        assert state["samples_done"] == 8 and state["window_pages"] == 3 and state["seed"] == 5
        for name in ("batch_size", "num_workers", "batches_ahead", "rank", "world_size"):
            assert type(getattr(loader, name)) is int


def test_every_setting_acts(path):
    with Loader(path, 8, seed=1, num_workers=1) as loader:
        loader.batch_size = 16
        assert len(loader) == 2 and [len(batch) for batch in epoch_of(loader)] == [16, 16]
        loader.drop_last = False
        assert len(loader) == 3 and [len(batch) for batch in epoch_of(loader)] == [16, 16, 8]
        loader.order = RANDOM
        assert flat(epoch_of(loader)) == reference.shuffled(range(N), 1, 2)
        loader.seed = 9
        assert flat(epoch_of(loader)) == reference.shuffled(range(N), 9, 3)
        loader.ids = True
        assert all(label.ravel().tolist() == ids.tolist() for _, label, ids in loader)
        loader.pipelines = {"image": None, "twice": PipelineSpec("label", IntDecoder(), [lambda batch: 2 * batch])}
        for label, twice, ids in loader:
            assert twice.ravel().tolist() == (2 * label.ravel()).tolist() == (2 * ids).tolist()
        loader.world_size = 2
        loader.rank = 1
        loader.order = OrderOption.SEQUENTIAL
        assert epoch_of(loader) == [list(range(16, 32)), list(range(36, 40))]
        loader.num_workers, loader.batches_ahead = 3, 2
        list(loader)
        assert loader.stats()["workers"] == 3 == loader.num_workers
        loader.num_workers = -1
        assert loader.num_workers == len(os.sched_getaffinity(0))


def test_distributed_is_read_from_the_environment_again(path, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("OMPI_", "PMI_", "SLURM_", "RANK", "WORLD_SIZE")):
            monkeypatch.delenv(name)
    with Loader(path, 8, order=RANDOM) as loader:
        with pytest.raises(RuntimeError, match="world_size"):
            loader.distributed = True
        assert not loader.distributed and loader.world_size == 1
        monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
        monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
        with pytest.warns(UserWarning, match="seed") as warned:
            loader.distributed = True  # a separate seed in each process would make the ranks disagree
        assert warned[0].filename == __file__
        assert (loader.rank, loader.world_size, loader.seed, len(loader)) == (1, 2, 0, 2)


def test_ranks_without_a_seed_are_warned_when_it_begins_to_matter(path):
    with Loader(path, 8, rank=0, world_size=2) as loader:
        with pytest.warns(UserWarning, match="seed"):
            loader.order = RANDOM
        assert loader.seed == 0


def test_a_drawn_seed_stays(path):
    with Loader(path, 8, order=RANDOM) as loader:
        seed = loader.seed
        loader.batch_size = 4
        assert loader.seed == seed and flat(epoch_of(loader)) == reference.shuffled(range(N), seed, 0)


@pytest.mark.parametrize(
    "name, value, error, text",
    [
        ("batch_size", 0, ValueError, "batch_size must be at least 1, not 0"),
        ("batch_size", 2.5, TypeError, "float"),
        ("seed", -1, ValueError, "seed"),
        ("indices", [N], IndexError, "40 samples"),
        ("indices", 3, TypeError, "indices"),
        ("indices", [[1], [2, 3]], TypeError, "indices"),
        ("order", "random", TypeError, "OrderOption"),
        ("order_kwargs", {"x": 1}, TypeError, "x"),
        ("rank", 1, ValueError, "rank must be in 0..0"),
        ("pipelines", {"nobody": []}, ValueError, "nobody"),
        ("batches_ahead", 0, ValueError, "batches_ahead"),
        ("page_locked", True, TypeError, "page_locked is the number of a GPU, None or False, not True"),
        ("next_epoch", -1, ValueError, "epoch"),
        ("next_epoch", 2.5, TypeError, "epoch must be a whole number, not 2.5"),
    ],
)
def test_a_bad_value_is_refused_and_changes_nothing(path, name, value, error, text):
    with Loader(path, 8, seed=1, order=RANDOM) as loader:
        with pytest.raises(error, match=text):
            setattr(loader, name, value)
        assert flat(epoch_of(loader)) == reference.shuffled(range(N), 1, 0)


@pytest.mark.parametrize("kind", [Loader, interop.Loader])
def test_names_without_effect_are_refused(path, kind):
    with kind(path, 8) as loader:
        with pytest.raises(AttributeError, match="'indicies'.*did you mean indices"):
            loader.indicies = [1]
        with pytest.raises(AttributeError, match="did you mean batch_size"):
            loader.batchsize = 3
        for name in ("sampler", "recompile", "custom_fields", "fname", "num_samples", "reader", "outputs"):
            with pytest.raises(AttributeError, match=name):
                setattr(loader, name, None)
        with pytest.raises(AttributeError):
            del loader.indices


def test_a_class_of_the_users_own_may_have_attributes(path):
    class Mine(Loader):
        def __init__(self, name):
            super().__init__(name, 2)
            self.label = "mine"

    with Mine(path) as loader:
        loader.indices = [1, 2]
        assert loader.label == "mine" and loader.num_samples == 2


def test_changes_within_a_pass_leave_nothing_behind(path):
    def threads():
        return len(os.listdir("/proc/self/task"))

    with Loader(path, 4, num_workers=2) as loader:
        list(loader)
        before, files = threads(), len(os.listdir("/proc/self/fd"))
        for batch_size in (1, 2, 3, 4) * 5:
            iterator = iter(loader)
            next(iterator)
            loader.batch_size = batch_size
            loader.seed = batch_size
            rest = len(iterator)
            assert len(list(iterator)) == rest
            assert len(epoch_of(loader)) == N // batch_size
        assert threads() == before and len(os.listdir("/proc/self/fd")) == files
        kept = iter(loader)
        next(kept)
        loader.drop_last = False
    assert threads() == before - 2
    with pytest.raises(ValueError, match="closed"):
        loader.batch_size = 2


def test_a_state_within_a_pass_speaks_of_that_pass(path):
    with Loader(path, 8, order=RANDOM, seed=3) as loader:
        iterator = iter(loader)
        next(iterator)
        loader.batch_size, loader.seed = 10, 5
        state = loader.state_dict()
        assert (state["epoch"], state["samples_done"], state["seed"]) == (0, 8, 3)
        rest = epoch_of(iterator)
        state = loader.state_dict()
        assert (state["epoch"], state["samples_done"], state["seed"]) == (1, 0, 5)
    with Loader(path, 8, order=RANDOM, seed=3) as loader:
        loader.load_state_dict({**state, "epoch": 0, "samples_done": 8, "seed": 3})
        assert epoch_of(loader) == rest


def test_settings_after_load_state_dict(path):
    with Loader(path, 8, order=RANDOM, seed=3) as loader:
        iterator = iter(loader)
        next(iterator)
        state, rest = loader.state_dict(), flat(epoch_of(iterator))
        loader.load_state_dict(state)
        loader.batch_size = 4
        assert flat(epoch_of(loader)) == rest
        loader.load_state_dict({**state, "samples_done": 12})
        loader.batch_size = 5
        with pytest.raises(ValueError, match="12 samples are done"):
            iter(loader)
        with pytest.raises(ValueError, match="before load_state_dict"):
            loader.indices = range(5)
        loader.next_epoch = 0
        assert flat(epoch_of(loader)) == reference.shuffled(range(N), 3, 0)


@pytest.mark.parametrize(
    "options, others",
    [
        ({"indices": range(20)}, {"indices": range(20, 40)}),
        ({"order": OrderOption.QUASI_RANDOM}, {"order": OrderOption.QUASI_RANDOM, "order_kwargs": {"window_pages": 3}}),
    ],
)
def test_a_state_of_other_samples_or_windows_is_refused(path, options, others):
    with Loader(path, 5, **options) as one:
        state = one.state_dict()
    with Loader(path, 5, **others) as other, pytest.raises(ValueError, match=": (indices|window_pages) is"):
        other.load_state_dict(state)


@pytest.mark.parametrize("state", [{}, {"epoch": 1}, {"epoch": 1, "samples_done": 0}])
def test_half_a_state_is_refused(path, state):
    with Loader(path, 5) as loader, pytest.raises(ValueError, match="the state has no"):
        loader.load_state_dict(state)


# ---- orders of the user's own ----


class Drawing:
    """A sampler like torch's that draws from numpy.random, as most do from torch's generator."""

    def __init__(self):
        self.draws = 0

    def __iter__(self):
        self.draws += 1
        return iter(np.random.permutation(N).tolist())


class Sized(Drawing):
    def __len__(self):
        return N


@pytest.mark.parametrize("kind", [Drawing, Sized])
@pytest.mark.parametrize("indices", [None, range(20)])
def test_asking_for_the_length_changes_no_epoch(path, kind, indices):
    def epochs(ask):
        np.random.seed(3)
        sampler = kind()
        found = []
        with Loader(path, 8, order=sampler, indices=indices, drop_last=False) as loader:
            for number in range(2):
                assert not ask or len(loader) == (5 if indices is None else 3)
                assert not ask or number == 0 or loader.next_traversal_order().tolist()
                found.append([])
                for batch in loader:
                    assert not ask or len(loader) == (5 if indices is None else 3)
                    found[-1] += batch[-1].ravel().tolist()
                assert sampler.draws == number + 1
        return found

    first = epochs(False)
    assert first == epochs(True)
    assert sorted(first[0]) == list(range(N if indices is None else 20)) and first[0] != first[1]


def test_the_order_that_was_shown_is_the_one_that_comes(path):
    with Loader(path, 8, order=Drawing()) as loader:
        shown = loader.next_traversal_order()
        expected = shown.tolist()
        shown[:] = 0
        assert flat(epoch_of(loader)) == expected


class EvenFirst:
    """As FFCV's users write it: reads the loader when it is made."""

    def __init__(self, loader):
        assert loader.reader.num_samples == N and not loader.distributed and loader.num_samples == len(loader.indices)
        self.ids, self.seed = np.asarray(loader.indices), loader.seed

    def sample_order(self, epoch):
        return np.concatenate([self.ids[self.ids % 2 == 0], self.ids[self.ids % 2 == 1]]) if epoch != 5 else self.ids


def test_an_order_that_reads_the_loader(path):
    with Loader(path, 2, order=EvenFirst, seed=1, indices=[3, 4, 5, 6]) as loader:
        assert flat(epoch_of(loader)) == [4, 6, 3, 5]
        loader.indices = [7, 8]
        assert flat(epoch_of(loader)) == [8, 7]
        loader.indices = None
        loader.next_epoch = 5
        assert flat(epoch_of(loader)) == list(range(N))


def test_the_order_in_force_may_be_looked_at_and_narrowed(path):
    """As FFCV's users narrow an epoch: both assignments, or one of them."""
    with Loader(path, 2, order=RANDOM, seed=1) as loader:
        loader.indices = [3, 4, 5, 6]
        loader.traversal_order.indices = loader.indices
        assert loader.traversal_order.sample_order(4).tolist() == reference.shuffled([3, 4, 5, 6], 1, 4)
        assert sorted(flat(epoch_of(loader))) == [3, 4, 5, 6]
        loader.traversal_order.indices = [7, 8]
        assert sorted(flat(epoch_of(loader))) == loader.indices.tolist() == [7, 8]
        loader.order = [8, 9, 7]
        assert loader.traversal_order.sample_order(0).tolist() == [8, 7]
        loader.order = EvenFirst
        assert isinstance(loader.traversal_order, EvenFirst)
        assert Loader(path, 2, recompile=True).recompile is True


def test_a_class_that_fails_leaves_the_loader_as_it_was(path):
    with Loader(path, 8) as loader:
        with pytest.raises(ZeroDivisionError):
            loader.order = type("Fails", (), {"__init__": lambda self, loader: 1 / 0})
        assert loader.order is OrderOption.SEQUENTIAL and flat(epoch_of(loader)) == list(range(N))


@pytest.mark.parametrize(
    "order",
    [
        list(range(N)),
        np.arange(N),
        Drawing(),
        Sized(),
        lambda epoch: np.arange(N),
        lambda epoch: iter(range(N)),
        type("Whole", (), {"__init__": lambda self, loader: None, "sample_order": lambda self, epoch: range(N)}),
    ],
)
def test_orders_are_restricted_to_indices(path, order):
    chosen = [30, 3, 17]
    with Loader(path, 1, order=order, indices=chosen, resident=True) as loader:
        for _ in range(2):
            assert sorted(flat(epoch_of(loader))) == sorted(chosen)
        assert len(loader) == 3


def test_an_order_of_other_samples_than_the_indices_is_refused(path):
    with Loader(path, 1, order=[1, 2, 3], indices=[4, 5]) as loader, pytest.raises(ValueError, match="none of its 3"):
        iter(loader)


@pytest.mark.parametrize("order", [(i for i in range(N)), iter([1, 2]), map(int, "123"), itertools.count()])
def test_what_can_be_read_only_once_is_no_order(path, order):
    with pytest.raises(TypeError, match="only once"):
        Loader(path, 4, order=order)


class Reused:
    """Returns the same iterator every time, so that nothing is left for a second epoch."""

    def __init__(self):
        self.iterator = iter(range(N))

    def __iter__(self):
        return self.iterator


@pytest.mark.parametrize("order", [Reused(), (lambda ids: lambda epoch: ids)(iter(range(N)))])
def test_an_order_that_runs_dry_is_refused(path, order):
    with Loader(path, 4, order=order) as loader:
        assert len(epoch_of(loader)) == 10
        with pytest.raises(ValueError, match="no samples in epoch 1"):
            iter(loader)


class Endless:
    def __iter__(self):
        return itertools.cycle(range(N))


@pytest.mark.parametrize("order", [Endless(), lambda epoch: itertools.repeat(1)])
def test_an_order_without_end_is_refused(path, order):
    with Loader(path, 4, order=order) as loader, pytest.raises(ValueError, match="ever end"):
        len(loader)


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("bad", [N, 2**62])
def test_a_sample_that_the_file_lacks(path, resident, bad):
    with Loader(path, 2, order=[0, 1, bad], resident=resident) as loader:
        with pytest.raises(IndexError, match=f"order.2. is {bad}, but the file has 40 samples"):
            iter(loader)
        with pytest.raises(IndexError, match=f"order.2. is {bad}, but the file has 40 samples"):
            loader._core.begin(0, 0, False, False, np.array([0, 1, bad]))  # the core does not rely on Python


# ---- resuming an order of the user's own ----


@pytest.mark.parametrize("order", [Drawing, lambda: lambda epoch: np.random.permutation(N)])
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resumed_sampler_neither_repeats_nor_loses(path, order, stop):
    with Loader(path, 8, order=order()) as loader:
        iterator = iter(loader)
        seen = flat(next(iterator)[-1].ravel().tolist() for _ in range(stop))
        state = loader.state_dict()
        rest = flat(epoch_of(iterator))
    with Loader(path, 4, order=order()) as loader:
        loader.load_state_dict(state)
        assert loader.state_dict() == state
        resumed = flat(epoch_of(loader))
        if stop == 5:  # the epoch was over: the next one is a new draw
            assert sorted(resumed) == list(range(N))
        else:
            assert resumed == rest and sorted(seen + resumed) == list(range(N))
        assert sorted(flat(epoch_of(loader))) == list(range(N)) and loader.next_epoch == (3 if stop == 5 else 2)


def test_an_order_that_was_drawn_ahead_is_in_the_state(path):
    with Loader(path, 8, order=Drawing()) as loader:
        assert len(loader) == 5
        state = loader.state_dict()
        expected = flat(epoch_of(loader))
    with Loader(path, 8, order=Drawing()) as loader:
        loader.load_state_dict(state)
        assert flat(epoch_of(loader)) == expected


@pytest.mark.parametrize(
    "change, error, text",
    [
        ({"samples": None}, ValueError, "does not hold the samples"),
        ({"samples": [N]}, IndexError, "40 samples"),
        ({"samples": [1, 2]}, ValueError, "8 samples are done of an epoch of 2"),
        ({"samples": "abc"}, TypeError, "whole"),
        ({"samples": [*range(10), 35]}, ValueError, "not among"),
    ],
)
def test_a_state_whose_samples_do_not_fit_is_refused(path, change, error, text):
    with Loader(path, 8, order=Drawing(), indices=range(30)) as loader:
        iterator = iter(loader)
        next(iterator)
        state = loader.state_dict()
        with pytest.raises(error, match=text):
            loader.load_state_dict({**state, **change})
        assert len(epoch_of(iterator)) == 2


# ---- what else ----


def test_filter_keeps_the_settings_that_were_assigned(path):
    with Loader(path, 5) as loader:
        loader.batch_size, loader.indices, loader.order = 3, range(12), Drawing()
        with loader.filter("label", lambda value: value[0] % 2 == 0) as even:
            assert even.batch_size == 3 and sorted(flat(epoch_of(even))) == [0, 2, 4, 6, 8, 10]


def test_what_is_assigned_to_a_decoder_counts_from_the_next_epoch_on(tmp_path):
    """As FFCV's training on ImageNet increases the resolution."""
    images = list(np.random.default_rng(2).integers(0, 256, (24, 40, 50, 3), dtype=np.uint8))
    path = tiny_beton.write(tmp_path / "a.beton", {"image": ("image", images)})
    drawn = []

    def order(epoch):
        drawn.append(epoch)
        return np.random.default_rng(epoch).permutation(24)

    decoder, flip = RandomResizedCropRGBImageDecoder((16, 16)), tf.RandomHorizontalFlip(0)
    with Loader(path, 8, 2, pipelines={"image": [decoder, flip]}, seed=4, ids=True, order=order) as loader:
        first = iter(loader)
        shown = [next(first)]
        decoder.output_size, flip.flip_prob = (32, 24), 1.0
        shown += list(first)
        assert [image.shape for image, _ in shown] == [(8, 16, 16, 3)] * 3
        coming = loader.next_traversal_order()
        grown = list(loader)
        assert [image.shape for image, _ in grown] == [(8, 32, 24, 3)] * 3 and drawn == [0, 1]
        np.testing.assert_array_equal(np.concatenate([ids for _, ids in grown]), coming)
        core = loader._core
        list(loader)
        assert loader._core is core  # nothing has changed since
        same = RandomResizedCropRGBImageDecoder((32, 24)), tf.RandomHorizontalFlip(1)
        with Loader(path, 8, 1, pipelines={"image": list(same)}, seed=4) as other:
            (want,) = other.get_batch(coming[:8], epoch=1)
            np.testing.assert_array_equal(grown[0][0], want)
        with pytest.raises(ValueError, match="each in 1..65535"):
            decoder.output_size = (0, 5)
        assert decoder.output_size == (32, 24)
        decoder.output_size = (5, 5)
        assert next(iter(loader))[0].shape == (8, 5, 5, 3)


@pytest.mark.parametrize("ask", [len, Loader.next_traversal_order, lambda loader: loader.get_batch([0]), iter])
def test_what_a_class_cannot_ask_yet_is_said(path, ask):
    class Asking:
        def __init__(self, loader):
            assert loader.num_samples == len(loader.indices) == loader.reader.num_samples
            self.answer = ask(loader)

    with pytest.raises(ValueError, match="still being made.*by an order's class.*indices, num_samples and reader"):
        Loader(path, 4, order=Asking)
