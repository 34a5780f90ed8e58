"""Random numbers of data sets while they are written: each sample gets its own, the same in every run, with any number
of workers; and the caller's generators are left alone."""

import functools
import random
import sys
import types

import numpy as np
import pytest

from cgxffcv import DatasetWriter, Reader
from cgxffcv.fields import FloatField, IntField

MODULE_GENERATOR = np.random.default_rng(5)


class Noise:
    """One draw from each kind of generator that a data set may use."""

    def __init__(self):
        self.own = np.random.default_rng(1)
        self.parts = [{"state": np.random.RandomState(2)}, random.Random(3)]
        self.partial = functools.partial(
            lambda generator: generator.integers(0, 1 << 60), np.random.Generator(np.random.Philox(4))
        )
        closed = np.random.default_rng(6)
        self.function = lambda: closed.integers(0, 1 << 60)

    def __len__(self):
        return 60

    def __getitem__(self, i):
        return (
            random.getrandbits(60),
            np.random.randint(0, 1 << 60),
            self.own.integers(0, 1 << 60),
            self.parts[0]["state"].randint(0, 1 << 60),
            self.parts[1].getrandbits(60),
            self.partial(),
            MODULE_GENERATOR.integers(0, 1 << 60),
            self.function(),
        )


class Wrapped:
    """Like torch's Subset: the generators are those of the data set inside."""

    def __init__(self):
        self.dataset = Noise()

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, i):
        return self.dataset[i]


FIELDS = {name: IntField() for name in ("random", "numpy", "own", "legacy", "python", "partial", "module", "closure")}


OTHER_MODULE = """
import random
import numpy as np
GENERATOR, PYTHONS = np.random.default_rng(8), random.Random(9)
def noise():
    return GENERATOR.integers(0, 1 << 60), PYTHONS.getrandbits(60)
"""


class Hidden:
    """Generators where they are harder to find."""

    __slots__ = ("bits", "many", "own", "unset")
    of_class = np.random.RandomState(1)

    def __init__(self):
        self.own, self.bits = np.random.default_rng(2), np.random.PCG64(3)
        self.many = [[None]] * 200 + [np.random.default_rng(4)]

    def __len__(self):
        return 60

    @property
    def shared(self):
        return self.of_class.randint(0, 1 << 60)

    @staticmethod
    def default(generator=np.random.default_rng(5), *, other=np.random.default_rng(6)):  # noqa: B008
        return generator.integers(0, 1 << 60), other.integers(0, 1 << 60)

    def __getitem__(self, i):
        from hidden_noises import noise

        return (
            self.own.integers(0, 1 << 60),
            self.shared,
            np.random.Generator(self.bits).integers(0, 1 << 60),
            self.many[-1].integers(0, 1 << 60),
            *self.default(),
            noises.inner.noise()[0],
            noise()[1],
        )


noises = types.ModuleType("noises")
noises.inner = types.ModuleType("noises.inner")
exec(OTHER_MODULE, vars(noises.inner))
sys.modules["hidden_noises"] = types.ModuleType("hidden_noises")
exec(OTHER_MODULE, vars(sys.modules["hidden_noises"]))


def columns(path, dataset, workers, seed=0, **options):
    DatasetWriter(path, FIELDS, num_workers=workers, seed=seed).from_indexed_dataset(dataset, chunksize=7, **options)
    with Reader(path) as reader:
        return {name: reader.column(name) for name in FIELDS}


@pytest.mark.parametrize("kind", [Noise, Wrapped, Hidden])
def test_every_sample_has_its_own_and_every_number_of_workers_the_same(tmp_path, kind):
    first = columns(tmp_path / "a", kind(), 4)
    for name, values in first.items():
        assert len(np.unique(values)) == len(values), name
    assert len(np.unique(np.concatenate(list(first.values())))) == 60 * len(FIELDS), "streams differ from each other"
    for workers in (1, 2, 3):
        for name, values in columns(tmp_path / "b", kind(), workers).items():
            np.testing.assert_array_equal(values, first[name], err_msg=f"{name}, {workers} workers")


def test_the_seed_is_the_writers(tmp_path):
    first = columns(tmp_path / "a", Noise(), 2, seed=0)
    np.random.seed(123)
    random.seed(5)
    same, other = columns(tmp_path / "b", Noise(), 2, seed=0), columns(tmp_path / "c", Noise(), 2, seed=1)
    for name, values in first.items():
        np.testing.assert_array_equal(values, same[name], err_msg=name)
        assert not np.any(values == other[name]), name


def test_a_sample_that_is_written_twice_is_drawn_twice(tmp_path):
    values = columns(tmp_path / "a", Noise(), 2, indices=[3] * 30)["numpy"]
    assert len(np.unique(values)) == 30


@pytest.mark.parametrize("workers", [1, 2])
def test_the_callers_generators_are_left_alone(tmp_path, workers):
    dataset = Noise()
    np.random.seed(7)
    random.seed(7)
    want = (
        np.random.RandomState(7).randint(0, 1 << 60),
        random.Random(7).getrandbits(60),
        np.random.default_rng(1).integers(1000),
    )
    columns(tmp_path / "a", dataset, workers)
    assert (np.random.randint(0, 1 << 60), random.getrandbits(60), dataset.own.integers(1000)) == want


def test_what_objects_do_when_they_are_looked_at_does_not_matter(tmp_path):
    class Strange(Noise):
        def __getattr__(self, name):
            raise RuntimeError(name)

        @property
        def broken(self):
            raise RuntimeError("broken")

    dataset = Strange()
    dataset.loop, dataset.modules, dataset.system = [dataset], sys.modules, random.SystemRandom()
    assert len(np.unique(columns(tmp_path / "a", dataset, 2)["own"])) == 60


@pytest.mark.parametrize("kind", ["PCG64", "Philox", "SFC64", "MT19937"])
@pytest.mark.parametrize("form", [np.random.RandomState, np.random.Generator])
def test_every_kind_of_numpys_generators(tmp_path, form, kind):
    class Normals:
        def __init__(self):
            self.generator = form(getattr(np.random, kind)(1))

        def __len__(self):
            return 40

        def __getitem__(self, i):
            return (self.generator.standard_normal(),)

    found = []
    for workers in (1, 2, 4):
        dataset, writer = Normals(), DatasetWriter(tmp_path / "a", {"x": FloatField()}, num_workers=workers)
        writer.from_indexed_dataset(dataset, chunksize=7)
        with Reader(tmp_path / "a") as reader:
            found.append(reader.column("x"))
        assert dataset.generator.standard_normal() == Normals().generator.standard_normal()
    assert len(np.unique(found[0])) == 40
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


def test_torch(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")

    class Tensors:
        def __init__(self):
            self.generator = torch.Generator().manual_seed(1)

        def __len__(self):
            return 60

        def __getitem__(self, i):
            return torch.randint(1 << 60, ()), torch.randint(1 << 60, (), generator=self.generator)

    fields = {"default": IntField(), "own": IntField()}
    torch.manual_seed(3)
    want, found = torch.randint(1 << 60, ()), []
    for workers in (1, 2, 4):
        torch.manual_seed(3)
        DatasetWriter(tmp_path / "a", fields, num_workers=workers).from_indexed_dataset(Tensors(), chunksize=7)
        assert torch.randint(1 << 60, ()) == want
        with Reader(tmp_path / "a") as reader:
            found.append(np.concatenate([reader.column("default"), reader.column("own")]))
        assert len(np.unique(found[-1])) == 120
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


def test_opencv(tmp_path, monkeypatch):
    """Its generator is in C, and is copied by a fork."""
    state = random.Random(0)
    opencv = types.SimpleNamespace(setRNGSeed=state.seed, draw=lambda: state.getrandbits(60))
    monkeypatch.setitem(sys.modules, "cv2", opencv)

    class Noises:
        def __len__(self):
            return 60

        def __getitem__(self, i):
            return (sys.modules["cv2"].draw(),)

    found = []
    for workers in (1, 2, 4):
        DatasetWriter(tmp_path / "a", {"value": IntField()}, num_workers=workers).from_indexed_dataset(
            Noises(), None, 7
        )
        with Reader(tmp_path / "a") as reader:
            found.append(reader.column("value"))
        assert len(np.unique(found[-1])) == 60
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


def test_who_imports_torch_changes_nothing(tmp_path, monkeypatch):
    """A spawned worker has not imported what its parent has: generators of the data set keep their numbers."""
    fields = {"value": FloatField()}

    class Own:
        def __init__(self):
            self.rng = np.random.default_rng(3)

        def __len__(self):
            return 50

        def __getitem__(self, i):
            return (self.rng.random(),)

    torch = types.SimpleNamespace(Generator=type("Generator", (), {}), default_generator=random.Random(1))
    files = []
    for loaded in (False, True):
        if loaded:
            monkeypatch.setitem(sys.modules, "torch", torch)
        else:
            monkeypatch.delitem(sys.modules, "torch", raising=False)
        files.append(tmp_path / f"{loaded}.beton")
        DatasetWriter(files[-1], fields, num_workers=1).from_indexed_dataset(Own(), chunksize=10)
    assert files[0].read_bytes() == files[1].read_bytes()
