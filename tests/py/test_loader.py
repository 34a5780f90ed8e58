"""The loader's orders, ranks, states, errors, lifetimes. Fields: test_loader_fields.py; pixels: test_augment.py."""

import os
from pathlib import Path

import _cgxffcv
import augment_reference as reference
import numpy as np
import pytest
import tiny_beton
from loader_data import N, flat, ids_of, pixels

from cgxffcv import decoders as dec
from cgxffcv import transforms as tf
from cgxffcv.loader import Loader, OrderOption

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
RANDOM, QUASI = OrderOption.RANDOM, OrderOption.QUASI_RANDOM
STEPS = [
    tf.RandomHorizontalFlip(),
    tf.RandomTranslate(2, (9, 8, 7)),
    tf.Cutout(4),
    tf.NormalizeImage((1, 2, 3), (4, 5, 6), np.float16),
    tf.ToTorchImage(False),
]


@pytest.fixture(scope="module")
def paged(tmp_path_factory):
    """13 pages of at most 5 samples."""
    name = tmp_path_factory.mktemp("paged") / "paged.beton"
    return tiny_beton.write(
        name, {"x": ("array", list(np.arange(61 * 200, dtype=np.float32).reshape(61, 200)))}, page_size=4096
    )


def everything(path, **options):
    """All images of some epochs in a pass, by sample number."""
    options = {"batch_size": 8, "num_workers": 2, "seed": 11, "drop_last": False, "order": RANDOM, **options}
    with Loader(path, pipelines={"image": STEPS}, ids=True, **options) as loader:
        return [{int(i): image.copy() for image, i in pairs(loader)} for _ in range(3)]


def pairs(loader):
    for batch in loader:
        yield from zip(batch[0], batch[-1], strict=True)


# ---- orders ----


def test_sequential_and_indices(path):
    with Loader(path, 10, ids=True, drop_last=False) as loader:
        assert flat(ids_of(loader)) == list(range(N)) and len(loader) == 11 and loader.num_samples == N
    with Loader(path, 10, ids=True) as loader:
        assert flat(ids_of(loader)) == list(range(100)) and len(loader) == 10
    chosen = [5, 3, 99, 7, 7]
    with Loader(path, 2, ids=True, indices=chosen, drop_last=False) as loader:
        assert ids_of(loader) == [[5, 3], [99, 7], [7]]
        for image, label, ids in loader:
            np.testing.assert_array_equal(image, pixels()[ids])
            np.testing.assert_array_equal(label[:, 0], ids)
    mask = np.arange(N) % 10 == 3
    with Loader(path, 4, ids=True, indices=mask, drop_last=False) as loader:
        assert flat(ids_of(loader)) == np.flatnonzero(mask).tolist()
        assert loader.get_batch(mask)[-1].tolist() == np.flatnonzero(mask).tolist()


@pytest.mark.parametrize("length", [0, 1, N - 1, N + 1])
def test_a_mask_of_another_length_is_refused(path, length):
    mask = np.ones(length, bool)
    message = rf"is a boolean mask of {length} entries, but the file has {N} samples"
    with pytest.raises(IndexError, match=f"indices {message}"):
        Loader(path, 1, indices=mask)
    with Loader(path, 1, order=lambda epoch: mask) as loader, pytest.raises(IndexError, match=f"order {message}"):
        iter(loader)
    with Loader(path, 1, indices=[1, 2]) as loader, pytest.raises(IndexError, match=f"ids {message}"):
        loader.get_batch(mask)


def test_random_is_the_reference_permutation(path):
    with Loader(path, 10, ids=True, order=RANDOM, seed=2**40 + 3, drop_last=False) as loader:
        for epoch in range(3):
            expected = reference.shuffled(range(N), 2**40 + 3, epoch)
            assert loader.next_traversal_order().tolist() == expected
            assert flat(ids_of(loader)) == expected
            assert sorted(expected) == list(range(N))
    for indices in (range(50, 70), np.arange(1000) % N, np.arange(129) % N, [3], [3, 4]):
        with Loader(path, 1, order=RANDOM, seed=1, indices=indices) as loader:
            assert loader.next_traversal_order().tolist() == reference.shuffled(list(indices), 1, 0)


def test_random_permutations_are_uniform(path):
    """Each of the 24 orders of four samples, over 4,800 epochs, within five standard deviations."""
    counts = {}
    with Loader(path, 1, order=RANDOM, seed=7, indices=range(4)) as loader:
        for epoch in range(4800):
            loader.next_epoch = epoch
            key = tuple(loader.next_traversal_order().tolist())
            counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 24
    assert all(abs(count - 200) < 5 * 13.85 for count in counts.values())


def test_quasi_random_stays_within_windows_of_pages(paged):
    page_of = np.arange(61) // 5
    with Loader(paged, 4, order=QUASI, order_kwargs={"window_pages": 3}, seed=9) as loader:
        orders = []
        for epoch in range(3):
            loader.next_epoch = epoch
            orders.append(loader.next_traversal_order())
        for order in orders:
            assert sorted(order.tolist()) == list(range(61))
            seen, position = [], 0
            while position < 61:
                window = []  # the pages of the next three, from the samples themselves
                size = 0
                while len(window) < 3 and position + size < 61:
                    page = page_of[order[position + size]]
                    if page not in window:
                        window.append(page)
                    size += 1
                size = sum((page_of == page).sum() for page in window)
                assert set(page_of[order[position : position + size]]) == set(window)
                seen += window
                position += size
            assert sorted(seen) == list(range(13))
        assert not np.array_equal(orders[0], orders[1])
        assert any(np.diff(page_of[orders[0]]) < 0), "samples are shuffled across the pages of a window"


def test_quasi_random_is_the_reference(paged):
    """Pages drawn, concatenated, then shuffled within windows: from the definition."""
    indices = [60, 3, 17, 4, 33, 5, 18, 0, 59]
    with Loader(paged, 1, order=QUASI, order_kwargs={"window_pages": 2}, seed=4, indices=indices) as loader:
        got = loader.next_traversal_order().tolist()
    pages = {}
    for sample in indices:
        pages.setdefault(sample // 5, []).append(sample)
    by_page = [pages[page] for page in sorted(pages)]
    drawn = reference.shuffled(by_page, 4, 0, draw=1)
    expected, offset = [], 0
    for first in range(0, len(drawn), 2):
        window = [sample for page in drawn[first : first + 2] for sample in page]
        expected += reference.shuffled(window, 4, 0, draw=2, offset=offset)
        offset += len(window)
    assert got == expected


class Sampler:
    def __init__(self):
        self.epoch = None

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        return iter([self.epoch, 10, 20, 30])


class Traversal:
    def __init__(self, loader, step=1):
        self.loader, self.step = loader, step

    def sample_order(self, epoch):
        return np.arange(epoch, N, self.step)


def test_custom_orders(path):
    def order(epoch):
        return [epoch, 1, 2]

    for given in (order, Sampler(), np.array([4, 4, 9]), [1, 2, 3]):
        with Loader(path, 2, order=given, ids=True, drop_last=False) as loader:
            assert len(loader) == (2 if not isinstance(given, Sampler) else 2)
            for epoch in range(2):
                expected = list(given(epoch)) if callable(given) else list(given)
                if isinstance(given, Sampler):
                    expected = [epoch, 10, 20, 30]
                assert flat(ids_of(loader)) == expected
    with Loader(path, 50, order=Traversal, order_kwargs={"step": 2}, ids=True, drop_last=False) as loader:
        assert flat(ids_of(loader)) == list(range(0, N, 2))
        assert flat(ids_of(loader)) == list(range(1, N, 2))


# ---- ranks ----


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("order", [OrderOption.SEQUENTIAL, RANDOM])
def test_ranks_together_see_one_large_batch(path, world, drop_last, order):
    options = {"order": order, "seed": 3, "drop_last": drop_last, "ids": True}
    with Loader(path, 6 * world, **options) as single:
        whole = ids_of(single)
    parts = []
    for rank in range(world):
        with Loader(path, 6, rank=rank, world_size=world, **options) as loader:
            parts.append(ids_of(loader))
            assert len(parts[-1]) == len(loader) == len(whole)
    for batches, expected in zip(zip(*parts, strict=True), whole, strict=True):
        assert flat(batches) == expected
        assert max(map(len, batches)) - min(map(len, batches)) <= 1


def test_a_rank_may_get_an_empty_batch(path):
    with Loader(path, 4, rank=2, world_size=3, indices=range(14), drop_last=False, ids=True) as loader:
        assert [len(batch) for batch in ids_of(loader)] == [4, 0]
        shapes = [image.shape for image, _, _ in loader]
        assert shapes == [(4, 16, 16, 3), (0, 16, 16, 3)]


def test_ranks_from_the_environment(path, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("OMPI_", "PMI_", "SLURM_", "RANK", "WORLD_SIZE")):
            monkeypatch.delenv(name)
    with pytest.raises(RuntimeError, match="world_size"):
        Loader(path, 4, distributed=True)
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.warns(UserWarning, match="seed"):
        loader = Loader(path, 4, distributed=True, order=RANDOM)
    assert (loader.rank, loader.world_size, loader.seed) == (1, 2, 0)
    loader.close()


# ---- the same pixels ----


def test_pixels_do_not_depend_on_workers_ranks_or_batches(path):
    expected = everything(path, num_workers=1, batches_ahead=1)
    for options in (
        {"num_workers": 5},
        {"batch_size": 1},
        {"batch_size": 103},
        {"batches_ahead": 9},
        {"resident": True},
        {"os_cache": False},
    ):
        for got, want in zip(everything(path, **options), expected, strict=True):
            assert got.keys() == want.keys()
            assert all(np.array_equal(got[i], want[i]) for i in want), options
    merged = [{}, {}, {}]
    for rank in range(3):
        for into, part in zip(merged, everything(path, rank=rank, world_size=3), strict=True):
            assert not into.keys() & part.keys()
            into.update(part)
    for got, want in zip(merged, expected, strict=True):
        assert got.keys() == want.keys() and all(np.array_equal(got[i], want[i]) for i in want)


def test_get_batch_gives_the_epochs_pixels(path):
    expected = everything(path)
    with Loader(path, 8, seed=11, order=RANDOM, pipelines={"image": STEPS}, ids=True) as loader:
        for epoch, want in enumerate(expected):
            image, label, ids = loader.get_batch([3, 99, 3, 0], epoch=epoch)
            assert ids.tolist() == [3, 99, 3, 0] and label[:, 0].tolist() == [3, 99, 3, 0]
            np.testing.assert_array_equal(image, np.stack([want[i] for i in ids.tolist()]))
        for next_epoch, epoch in ((0, 0), (1, 0), (4, 3)):  # by default, the epoch that is under way, or was last
            loader.next_epoch = next_epoch
            assert np.array_equal(loader.get_batch(range(N))[0], loader.get_batch(range(N), epoch=epoch)[0])
        assert not np.array_equal(loader.get_batch(range(N), epoch=0)[0], loader.get_batch(range(N), epoch=1)[0])
        plain, _, _ = loader.get_batch(range(N), evaluate=True)
        np.testing.assert_array_equal(plain[50], reference.pipeline(STEPS, pixels()[50], (11, 0, 50), evaluate=True))
        assert loader.get_batch([])[0].shape == (0, 3, 16, 16)


def test_get_batch_within_a_pass(path):
    with Loader(path, 8, seed=1, order=RANDOM, ids=True) as loader:
        iterator = iter(loader)
        first = next(iterator)[-1].tolist()
        assert loader.get_batch([1, 2])[-1].tolist() == [1, 2]
        assert first + flat(ids_of(iterator)) == reference.shuffled(range(N), 1, 0)[:96]


# ---- state ----


@pytest.mark.parametrize("order", [RANDOM, OrderOption.SEQUENTIAL, QUASI])
def test_resume_continues_bit_for_bit(path, order):
    options = {"batch_size": 8, "order": order, "drop_last": False, "pipelines": {"image": STEPS}, "ids": True}
    with Loader(path, seed=77, **options) as loader:
        batches, states = [], [loader.state_dict()]
        for _ in range(2):
            for batch in loader:
                batches.append([array.tobytes() for array in batch])
                states.append(loader.state_dict())
    for stop in (0, 1, 5, 12, 13, 20, 26):
        with Loader(path, seed=123, num_workers=1, **options) as loader:
            loader.load_state_dict(states[stop])
            assert loader.state_dict() == states[stop]
            rest = []
            for _ in range(2 if stop < 13 else 1):
                iterator = iter(loader)
                left = len(iterator)
                part = [[array.tobytes() for array in batch] for batch in iterator]
                assert len(part) == left
                rest += part
            assert rest[: 26 - stop] == batches[stop:], stop


def test_resume_on_another_number_of_ranks(path):
    options = {"order": RANDOM, "ids": True, "seed": 5}
    with Loader(path, 12, **options) as loader:
        iterator = iter(loader)
        for _ in range(3):
            next(iterator)
        state = loader.state_dict()
        rest = ids_of(iterator)
    parts = []
    for rank in range(2):
        with Loader(path, 6, rank=rank, world_size=2, **options) as loader:
            loader.load_state_dict(state)
            parts.append(ids_of(loader))
    assert [a + b for a, b in zip(*parts, strict=True)] == rest


@pytest.mark.parametrize(
    "change, text",
    [
        ({"version": 2}, "version"),
        ({"order": "SEQUENTIAL"}, "order"),
        ({"num_samples": 5}, "num_samples"),
        ({"samples_done": 13}, "multiple"),
        ({"samples_done": -8}, "multiple"),
        ({"seed": -1}, "seed"),
        ({"epoch": -1}, "epoch"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(path, change, text):
    with Loader(path, 8, order=RANDOM, seed=1, ids=True) as loader:
        with pytest.raises(ValueError, match=text):
            loader.load_state_dict({**loader.state_dict(), **change})
        assert flat(ids_of(loader)) == reference.shuffled(range(N), 1, 0)[:96]


# ---- errors ----


@pytest.mark.parametrize(
    "options, error, text",
    [
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, not 0"),
        ({"batch_size": -1}, ValueError, "batch_size"),
        ({"batch_size": 2.5}, TypeError, "float"),
        ({"batches_ahead": 0}, ValueError, "batches_ahead"),
        ({"num_workers": 10**6}, ValueError, "num_workers"),
        ({"rank": 2, "world_size": 2, "seed": 1}, ValueError, "rank must be in 0..1, not 2"),
        ({"rank": 1}, ValueError, "together"),
        ({"seed": -1}, ValueError, "seed"),
        ({"seed": "x"}, TypeError, "seed must be a whole number"),
        ({"indices": [N]}, IndexError, "103 samples"),
        ({"indices": [-1]}, IndexError, "-1"),
        ({"indices": [0.5]}, TypeError, "indices"),
        ({"indices": [[1]]}, TypeError, "indices"),
        ({"order": "random"}, TypeError, "OrderOption"),
        ({"order": RANDOM, "order_kwargs": {"window_pages": 2}}, TypeError, "window_pages"),
        ({"order": QUASI, "order_kwargs": {"window_pages": 0}}, ValueError, "window_pages"),
        ({"custom_fields": {"x": object}}, KeyError, "has no field .x."),
        ({"custom_fields": ["x"]}, TypeError, r"custom_fields must be a dict or None, not \['x'\]"),
        ({"order_kwargs": [1]}, TypeError, "order_kwargs must be a dict or None"),
        ({"pipelines": [[]]}, TypeError, "pipelines must be a dict or None"),
        ({"pipelines": {"images": []}}, ValueError, "image, label"),
        ({"pipelines": {"image": 5}}, TypeError, "list"),
        ({"pipelines": {"image": [dec.IntDecoder()]}}, TypeError, "SimpleRGBImageDecoder"),
        ({"pipelines": {"image": [dec.SimpleRGBImageDecoder]}}, TypeError, "class"),
        ({"pipelines": {"label": [tf.Cutout(1)]}}, TypeError, "images"),
        ({"pipelines": {"label": [dec.IntDecoder(), dec.IntDecoder()]}}, TypeError, "not a transform"),
    ],
)
def test_bad_arguments(path, options, error, text):
    with pytest.raises(error, match=text):
        Loader(path, **{"batch_size": 4, **options})


def test_files_that_cannot_be_opened(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Loader(tmp_path / "nowhere.beton", 4)
    (tmp_path / "short.beton").write_bytes(b"12345")
    with pytest.raises(_cgxffcv.BetonError, match="short"):
        Loader(tmp_path / "short.beton", 4)


def test_images_of_several_sizes(tmp_path):
    images = [np.zeros((4, 4 + (i == 3), 3), np.uint8) for i in range(6)]
    path = tiny_beton.write(tmp_path / "sizes.beton", {"image": ("image", images)})
    with pytest.raises(TypeError, match="4x5.*4x4.*indices") as caught:
        Loader(path, 2)
    assert "sample 3" in str(caught.value) and "'image'" in str(caught.value)
    with Loader(path, 2, indices=[0, 1, 2, 4]) as loader:
        assert len(list(loader)) == 2
        with pytest.raises(ValueError, match="sample 3"):
            loader.get_batch([0, 3])
        assert loader.get_batch([0, 5])[0].shape == (2, 4, 4, 3)


@pytest.mark.skipif(not _cgxffcv.build_info()["jpeg"], reason="this build has no libjpeg-turbo")
def test_of_several_bad_samples_the_first_is_named(tmp_path):
    """Although another worker finds the second long before."""
    image = np.random.default_rng(1).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)
    stream = _cgxffcv.jpeg_encode(image, 95)
    scan = stream.index(b"\xff\xda") + 14
    streams = [stream[:-2000] + b"\xff\xd9", stream[:scan] + b"\xff\xd9"]
    path = tiny_beton.write(tmp_path / "x.beton", {"image": ("image", streams)}, sides=(1000, 1000))
    with Loader(path, 2, num_workers=2) as loader, pytest.raises(_cgxffcv.BetonError) as caught:
        list(loader)
    assert caught.value.sample == 0


def test_a_bad_sample_comes_after_the_batches_before_it(tmp_path):
    images = [tiny_beton.jpeg(image) for image in pixels(40)]
    images[23] = images[23][: len(images[23]) // 2]
    path = tiny_beton.write(tmp_path / "cut.beton", {"image": ("image", images)}, sides=(16, 16))
    with Loader(path, 4, num_workers=3, ids=True) as loader:
        for _ in range(3):
            got = []
            with pytest.raises(_cgxffcv.BetonError) as caught:
                for _, ids in loader:
                    got.append(ids.tolist())
            assert flat(got) == list(range(20))
            error = caught.value
            assert (error.sample, error.field, error.path) == (23, "image", str(path))
            assert "decode" in str(error)
            loader.next_epoch = 0
        with pytest.raises(_cgxffcv.BetonError, match="sample 23"):
            loader.get_batch([1, 23, 2])
        assert loader.get_batch([1, 2])[0].shape == (2, 16, 16, 3)
    with pytest.raises(_cgxffcv.BetonError, match="sample 23"):
        Loader(path, 4, resident=True)


def test_a_file_that_is_cut_while_it_is_open(tmp_path):
    name = tiny_beton.write(tmp_path / "x.beton", {"x": ("array", list(np.zeros((64, 4096), np.uint8)))}, 1 << 16)
    with Loader(name, 4, num_workers=1) as loader:
        assert len(list(loader)) == 16
        os.truncate(name, 8192)
        with pytest.raises(_cgxffcv.BetonError, match="has become shorter"):
            list(loader)
        with pytest.raises(_cgxffcv.BetonError, match="has become shorter"):
            loader.get_batch([63])


def test_the_first_bad_sample_of_a_batch_is_named(tmp_path):
    images = [tiny_beton.jpeg(image) for image in pixels(64)]
    for i in (9, 33, 50):
        images[i] = images[i][:100]
    path = tiny_beton.write(tmp_path / "cut.beton", {"image": ("image", images)}, sides=(16, 16))
    order = reference.shuffled(range(64), 0, 0)
    first = min((9, 33, 50), key=order.index)
    with Loader(path, 64, num_workers=4, order=RANDOM, seed=0) as loader:
        for _ in range(20):
            loader.next_epoch = 0
            with pytest.raises(_cgxffcv.BetonError) as caught:
                list(loader)
            assert caught.value.sample == first


def test_an_empty_file_and_too_few_samples(tmp_path, path):
    empty = tiny_beton.write(tmp_path / "empty.beton", {"label": ("int", [])})
    with Loader(empty, 4) as loader:
        assert len(loader) == 0 and list(loader) == []
    with pytest.warns(UserWarning, match="drop_last"):
        loader = Loader(path, 200)
    assert list(loader) == []
    loader.close()
    with Loader(path, 4, indices=[], drop_last=False) as loader:
        assert list(loader) == [] and loader.get_batch([])[0].shape[0] == 0
