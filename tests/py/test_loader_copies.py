"""Copies of a Loader, and what reads its file again: by which class, and which file."""

import copy
import os
import pickle
import shutil

import numpy as np
import pytest
import tiny_beton

from cgxffcv import BetonError
from cgxffcv import transforms as tf
from cgxffcv.decoders import IntDecoder
from cgxffcv.loader import Loader, OrderOption

N = 40


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    images = [np.full((4, 4, 3), i, np.uint8) for i in range(N)]
    name = tmp_path_factory.mktemp("copies") / "x.beton"
    return str(tiny_beton.write(name, {"image": ("image", images), "label": ("int", list(range(N)))}))


def labels_of(loader):
    return [i for batch in loader for i in batch[-1].reshape(-1).tolist()]


class Doubled(Loader):
    """With an __init__ of its own, which its copies do not need."""

    def __init__(self, name, factor):
        self._factor = factor
        super().__init__(name, 5)
        self.names = ["a"]

    def __iter__(self):
        for _, label in super().__iter__():
            yield (self._factor * label,)


AGAIN = [copy.copy, copy.deepcopy, lambda loader: pickle.loads(pickle.dumps(loader))]


@pytest.mark.parametrize("again", [*AGAIN, lambda loader: loader.filter("label", lambda label: True)])
def test_copies_and_parts_are_of_the_users_class(path, again):
    with Doubled(path, 2) as loader, again(loader) as other:
        assert type(other) is Doubled and other.names == ["a"]
        assert labels_of(other) == list(range(0, 2 * N, 2))
        loader.batch_size = 4
        assert other.batch_size == 5


@pytest.mark.parametrize("again", AGAIN)
def test_copies_are_loaders_of_their_own(path, again):
    pipelines = {
        "image": [tf.RandomTranslate(2), tf.RandomHorizontalFlip()],
        "label": [IntDecoder(), tf.LabelMixup(1, True)],
    }
    options = {"order": OrderOption.QUASI_RANDOM, "order_kwargs": {"window_pages": 2}, "indices": list(range(3, 30))}
    with Loader(path, 4, 1, pipelines=pipelines, **options) as loader:
        next(iter(loader))
        with again(loader) as other:
            assert other.seed == loader.seed and other.next_epoch == 1 and other.indices.tolist() == options["indices"]
            for mine, theirs in zip(list(loader), list(other), strict=True):
                for one, two in zip(mine, theirs, strict=True):
                    np.testing.assert_array_equal(one, two)


def test_a_loader_outlives_a_change_of_folder(path, tmp_path, monkeypatch):
    folder, name = os.path.split(path)
    monkeypatch.chdir(folder)
    with Loader(name, 5) as loader:
        monkeypatch.chdir(tmp_path)
        assert loader.fname == path
        with loader.filter("label", lambda value: value[0] < 5) as few:
            assert few.num_samples == 5 and few.indices.tolist() == [0, 1, 2, 3, 4]
        loader.batch_size = 10
        assert len(list(loader)) == 4 and loader.reader[3]["label"] == 3
    assert loader.reader.closed


def test_another_file_of_the_same_name_is_told(path, tmp_path):
    """The Loader goes on with the file that it opened; what would read the new one says so."""
    name = shutil.copy(path, str(tmp_path / "x.beton"))
    with Loader(name, 5) as loader:
        tiny_beton.write(name + "2", {"image": ("image", [np.zeros((4, 4, 3), np.uint8)]), "label": ("int", [7])})
        os.replace(name + "2", name)
        loader.batch_size = 4
        assert labels_of(loader) == list(range(N))
        rest = (lambda: loader.reader, lambda: loader.filter("label", lambda label: True))
        for ask in (*rest, *(lambda again=again: again(loader) for again in AGAIN)):
            with pytest.raises(BetonError, match="x.beton: another file has taken its place since it was opened"):
                ask()
        assert "batches of 4" in loader._repr_html_()
        os.remove(name)
        assert "batches of 4" in loader._repr_html_()
        assert labels_of(loader) == list(range(N))
        with pytest.raises(FileNotFoundError):
            loader.reader  # noqa: B018
    with Loader(os.fsencode(path), 5) as loader:
        assert loader.reader.num_samples == N
