"""The CUDA tests run on a GPU, or with the emulated build (tests/cuda/emulator/build.py):

PYTHONPATH=build/emulated/lib:. .venv/bin/pytest tests/cuda

The emulator is slow: there a test with three or more parameters runs with all pairs of their values, not with all
combinations, unless CGXFFCV_EMULATED_ALL=1.
"""

import itertools
import os
import sys
from pathlib import Path

import _cgxffcv
import numpy as np
import programs
import pytest
import small_data
from gpu_batches import COUNT

from cgxffcv.interop.torch import find_torch

HERE = Path(__file__).resolve().parent
# `python -m pytest` searches the current folder, which may have a module that was built in place, before PYTHONPATH.
asked_for = [Path(folder) for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
asked_for = next((folder.resolve() for folder in asked_for if any(folder.glob("_cgxffcv*.so"))), None)
if asked_for and asked_for != Path(_cgxffcv.__file__).resolve().parent:
    raise pytest.UsageError(f"{_cgxffcv.__file__} hides that of {asked_for}: run pytest, not python -m pytest")


@pytest.fixture
def without_torch(monkeypatch):
    """As if torch were not installed."""
    monkeypatch.setitem(sys.modules, "torch", None)
    find_torch.cache_clear()
    yield
    find_torch.cache_clear()


def has_gpu():
    return any(device["name"] != "emulated device" for device in _cgxffcv.devices())


def pairs_of(item):
    """The pairs of values that this item combines."""
    chosen = sorted((name, repr(value)) for name, value in item.callspec.params.items())
    return set(itertools.combinations(chosen, 2))


def enough_for_all_pairs(items):
    """Some of a test's items, which together have every pair that any of them has."""
    kept, left = [], set().union(*map(pairs_of, items))
    while left:
        best = max(items, key=lambda item: len(pairs_of(item) & left))
        kept.append(best)
        left -= pairs_of(best)
    return kept


def pytest_collection_modifyitems(config, items):
    if has_gpu() or os.environ.get("CGXFFCV_EMULATED_ALL") == "1":
        return
    tests = {}
    for item in items:
        given = getattr(getattr(item, "callspec", None), "params", ())
        if len(given) >= 3 and "built" not in given and HERE in item.path.parents:
            tests.setdefault((item.path, item.originalname), []).append(item)
    spare = {item for same in tests.values() for item in set(same) - set(enough_for_all_pairs(same))}
    if spare:
        config.hook.pytest_deselected(items=list(spare))
        items[:] = [item for item in items if item not in spare]


@pytest.fixture(scope="session", params=["emulated", "gpu"])
def built(request, tmp_path_factory):
    """built(program): the program, compiled for the emulator, and for a GPU if there is one."""
    if request.param == "emulated":
        why, build = programs.why_not_emulated(), programs.build_emulated
    else:
        why, build = "" if has_gpu() else "no GPU", programs.build_for_gpu
        why = why or ("" if programs.find_nvcc() else "no nvcc")
    if why:
        pytest.skip(why)
    directory, made = tmp_path_factory.mktemp(request.param), {}

    def get(program):
        if program not in made:
            made[program] = build(program, directory)
        return made[program]

    get.emulated = request.param == "emulated"
    return get


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """(a file of random images, the images, their labels)."""
    random = np.random.default_rng(3)
    images = random.integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8)
    labels = random.integers(0, 10, COUNT)
    return small_data.write(tmp_path_factory.mktemp("data") / "a.beton", images, labels), images, labels
