"""Several files as one set: the same as their merged file, batch for batch and bit for bit."""

import json
import pickle

import numpy as np
import pytest
import tiny_beton

from cgxffcv import BetonError
from cgxffcv import transforms as tf
from cgxffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
from cgxffcv.loader import Loader, OrderOption

PARTS = (0, 37, 1, 50, 0, 12)  # samples of each file
TOTAL = sum(PARTS)


def columns(first, end):
    rng = [np.random.default_rng(i) for i in range(first, end)]
    return {
        "image": ("image", [r.integers(0, 256, (8, 7, 3), dtype=np.uint8) for r in rng]),
        "label": ("int", list(range(first, end))),
        "weight": ("float", [i / 7 for i in range(first, end)]),
        "text": ("bytes", [b"x" * (i % 5) + str(i).encode() for i in range(first, end)]),
        "about": ("json", [{"sample": i} for i in range(first, end)]),
    }


def write(path, first, end, **options):
    given = columns(first, end)
    if first == end:  # an empty file needs a value to describe its fields
        given = {name: (kind, []) for name, (kind, _) in given.items()}
    return tiny_beton.write(path, given, **options)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    folder, first, paths = tmp_path_factory.mktemp("several"), 0, []
    for i, count in enumerate(PARTS):
        paths.append(write(folder / f"{i}.beton", first, first + count, page_size=4096 << i % 3))
        first += count
    return paths


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    return write(tmp_path_factory.mktemp("merged") / "all.beton", 0, TOTAL, page_size=4096)


def pipelines():
    chain = [tf.RandomHorizontalFlip(), tf.RandomTranslate(2), tf.ImageMixup(0.4, False)]
    return {"image": [SimpleRGBImageDecoder(), *chain], "label": [IntDecoder()]}


def same(a, b):
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        if isinstance(left, list):
            assert left == right
        else:
            np.testing.assert_array_equal(left, right)


def epochs(loader, count=2):
    return [batch for _ in range(count) for batch in loader]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"order": OrderOption.RANDOM},
        {"order": OrderOption.RANDOM, "indices": np.arange(0, TOTAL, 3)},
        {"order": OrderOption.RANDOM, "rank": 1, "world_size": 3, "drop_last": False},
        {"os_cache": False},
        {"order": np.arange(TOTAL)[::-1].copy()},
        {"resident": True, "order": OrderOption.RANDOM},
    ],
    ids=["sequential", "random", "indices", "ranks", "no os_cache", "own order", "resident"],
)
def test_batches_are_those_of_one_file(several, merged, options):
    options = {"batch_size": 7, "num_workers": 2, "seed": 5, "ids": True, "pipelines": pipelines(), **options}
    with Loader(several, **options) as loader, Loader(merged, **options) as whole:
        assert len(loader) == len(whole) and loader.num_samples == whole.num_samples
        np.testing.assert_array_equal(loader.next_traversal_order(), whole.next_traversal_order())
        got, want = epochs(loader), epochs(whole)
    assert len(got) == len(want) > 3
    for a, b in zip(got, want, strict=True):
        same(a, b)


@pytest.mark.parametrize("os_cache", [True, False])
def test_quasi_random_visits_every_sample_once_and_is_shared_by_ranks(several, os_cache):
    options = {"batch_size": 5, "seed": 2, "ids": True, "drop_last": False, "os_cache": os_cache}
    options |= {"order": OrderOption.QUASI_RANDOM, "order_kwargs": {"window_pages": 2}}
    with Loader(several, **options) as loader:
        first, second = (np.concatenate([batch[-1] for batch in loader]) for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(TOTAL)) and list(first) != list(second)
    parts = []
    for rank in range(2):
        with Loader(several, rank=rank, world_size=2, **options) as loader:
            for *_, labels, ids in ((batch[1], batch[-1]) for batch in loader):
                np.testing.assert_array_equal(labels[:, 0], ids)
                parts += ids.tolist()
    assert sorted(parts) == list(range(TOTAL))


def test_resumed_in_the_middle_of_an_epoch(several):
    options = {"batch_size": 8, "seed": 3, "ids": True, "order": OrderOption.RANDOM, "pipelines": pipelines()}
    with Loader(several, **options) as loader:
        whole = epochs(loader, 2)
    with Loader(several, **options) as loader:
        taken = iter(loader)
        for _ in range(5):
            next(taken)
        state = json.loads(json.dumps(loader.state_dict()))
    with Loader(several, **options) as loader:
        loader.load_state_dict(state)
        rest = epochs(loader, 2)
    assert len(rest) == len(whole) - 5
    for a, b in zip(rest, whole[5:], strict=True):
        same(a, b)
    with Loader(several[::-1], **options) as loader, pytest.raises(ValueError, match="firsts"):
        loader.load_state_dict(state)


def test_what_a_loader_of_several_files_says(several, merged):
    with Loader(several, 4, ids=True, seed=1) as loader, Loader(merged, 4, ids=True, seed=1) as whole:
        assert loader.fname == tuple(map(str, several)) and "0.beton (and 5 more)" in loader.explain()
        assert loader.reader.num_samples == len(loader.reader) == TOTAL
        assert loader.reader[-1]["label"] == TOTAL - 1 and loader.reader.value(37, "label") == 37
        assert [sample["label"] for sample in loader.reader] == list(range(TOTAL))
        assert len(loader.reader[35:40]) == 5
        same(loader.get_batch([99, 36, 37, 38, 0]), whole.get_batch([99, 36, 37, 38, 0]))
        with pytest.raises(IndexError, match="100 samples"):
            loader.get_batch([TOTAL])
        chosen = loader.filter("label", lambda row: row[0] % 10 == 7)
        assert chosen.indices.tolist() == list(range(7, TOTAL, 10)) and chosen.fname == loader.fname
        chosen.close()
        copy = pickle.loads(pickle.dumps(loader))
        same(next(iter(copy)), next(iter(loader)))
        copy.close()


def test_errors_name_the_file_and_the_number_in_the_whole(several, tmp_path):
    data = bytearray(several[3].read_bytes())
    at = data.index(b'{"sample": 40}')
    data[at : at + 14] = b'{"sample": 40 '
    bad = tmp_path / "bad.beton"
    bad.write_bytes(data)
    with Loader([*several[:3], bad, *several[4:]], 10, pipelines={"about": None}) as loader:
        assert len(list(loader)) == 10
    from cgxffcv.decoders import JSONDecoder

    with (
        Loader([*several[:3], bad, *several[4:]], 10, pipelines={"about": [JSONDecoder()]}) as loader,
        pytest.raises(BetonError) as caught,
    ):
        list(loader)
    assert caught.value.path == str(bad) and caught.value.sample == 40 and caught.value.field == "about"


@pytest.mark.parametrize(
    "fields, text",
    [
        ({"image": ("image", [np.zeros((8, 7, 3), np.uint8)])}, "it has 1 fields, but .* has 5"),
        ({**columns(0, 1), "about": ("bytes", [b"{}"])}, "'about': the field holds bytes, but json in"),
        (
            {("label" if k == "weight" else "weight" if k == "label" else k): v for k, v in columns(0, 1).items()},
            "it has 'weight' where that has 'label'",
        ),
    ],
)
def test_files_with_other_fields_are_refused(several, tmp_path, fields, text):
    other = tiny_beton.write(tmp_path / "other.beton", fields)
    with pytest.raises(ValueError, match=text) as caught:
        Loader([several[1], other], 4)
    assert str(other) in str(caught.value) and str(several[1]) in str(caught.value)


def test_arrays_and_images_of_other_sizes_are_refused(tmp_path):
    paths = []
    for i, side in enumerate((4, 5)):
        fields = {"image": ("image", [np.zeros((side, 4, 3), np.uint8)]), "label": ("int", [1])}
        paths.append(tiny_beton.write(tmp_path / f"image{i}.beton", fields))
        fields = {"x": ("array", [np.zeros((2, side), np.float32)])}
        paths.append(tiny_beton.write(tmp_path / f"array{i}.beton", fields))
    with pytest.raises(ValueError, match=r"float32 \(2, 5\), but float32 \(2, 4\) in .*array0.beton"):
        Loader(paths[1::2], 1)
    with pytest.raises(TypeError, match="image1.beton.*5x4.*the first in use is 4x4"):
        Loader(paths[::2], 1, pipelines={"image": [SimpleRGBImageDecoder()]})
    with Loader(paths[::2], 1, pipelines={"image": [SimpleRGBImageDecoder()]}, indices=[1]) as loader:
        assert next(iter(loader))[0].shape == (1, 5, 4, 3)


def test_paths_that_are_none(several, tmp_path):
    with pytest.raises(ValueError, match="the list of files is empty"):
        Loader([], 4)
    for empty in ("", b"", [several[1], ""]):
        with pytest.raises(ValueError, match="fname: a path is empty"):
            Loader(empty, 4)
    with pytest.raises(TypeError, match="a path or a list of paths, not 3"):
        Loader(3, 4)
    with open(several[1], "rb") as file, pytest.raises(TypeError, match="a path or a list of paths, not <_io"):
        Loader(file, 4)
    with pytest.raises(FileNotFoundError, match="missing.beton"):
        Loader([several[1], tmp_path / "missing.beton"], 4)
    with Loader((path for path in several[1:2]), 4) as loader:
        assert loader.num_samples == PARTS[1]
    with Loader([several[1], several[1]], 4, ids=True) as loader:  # twice is twice
        assert loader.num_samples == 2 * PARTS[1]


def test_a_file_that_becomes_shorter_is_named(several, tmp_path):
    cut = tmp_path / "cut.beton"
    cut.write_bytes(several[3].read_bytes())
    with Loader([several[1], cut], 10, num_workers=1) as loader:
        with open(cut, "r+b") as file:
            file.truncate(4096)
        with pytest.raises(BetonError, match="shorter") as caught:
            list(loader)
        assert caught.value.path == str(cut)
