"""Random numbers that a data set draws while its samples are made (noise, crops): a function of the writer's seed and
of where a chunk of samples begins, whichever process makes the chunk. Forked workers would else all draw the same."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import random
import struct
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

MAX_OBJECTS = 10_000  # of a data set, that are looked at
MAX_ITEMS = 100  # of a list, tuple or dict, likewise


class _Source(NamedTuple):
    """A generator of random numbers: its state, to get and to set, and what seeds it."""

    get: Callable[[], Any]
    set: Callable[[Any], Any]
    seed: Callable[[int], Any]


def _source(value: Any) -> _Source | None:
    """`value` as a source, None if it is no generator that can be seeded. The modules are their own generators."""
    if value is random or (isinstance(value, random.Random) and not isinstance(value, random.SystemRandom)):
        return _Source(value.getstate, value.setstate, value.seed)
    if value is np.random or isinstance(value, np.random.RandomState):
        kind = getattr(np.random, value.get_state(legacy=False)["bit_generator"])

        def seed(number: int) -> None:
            if kind is np.random.MT19937:
                value.seed([number & 0xFFFFFFFF, number >> 32])
            else:  # which seed() refuses
                value.set_state(kind(number).state)

        return _Source(lambda: value.get_state(legacy=False), value.set_state, seed)
    if isinstance(value, np.random.Generator):
        bits: Any = value.bit_generator

        def put(state: Any) -> None:
            bits.state = state

        return _Source(lambda: bits.state, put, lambda n: put(type(bits)(n).state))
    if isinstance(value, getattr(sys.modules.get("torch"), "Generator", ())) and value.device.type == "cpu":
        return _Source(value.get_state, value.set_state, value.manual_seed)
    return None


def _parts(value: Any) -> list[Any]:
    """What an object is made of, as far as a generator may be in it; of a module's values only those themselves."""
    if isinstance(value, list | tuple | dict):
        return list(value.values() if isinstance(value, dict) else value)[:MAX_ITEMS]
    if isinstance(value, type | types.ModuleType):
        return []
    parts: list[Any] = []
    if isinstance(value, types.MethodType):
        parts += [value.__self__, value.__func__]
    elif isinstance(value, functools.partial):
        parts += [value.func, value.args, value.keywords]
    elif isinstance(value, types.FunctionType):
        parts += inspect.getclosurevars(value).nonlocals.values()
    parts += getattr(value, "__dict__", {}).values()
    module = sys.modules.get((value if isinstance(value, types.FunctionType) else type(value)).__module__)
    return parts + [other for other in list(vars(module).values() if module else ()) if _source(other) is not None]


def generators(dataset: Any) -> list[Any]:
    """Python's, NumPy's and torch's own generators, and those in the data set: in its attributes, in theirs, in what
    its functions hold, and in the modules of all these."""
    waiting, seen = [dataset], {}
    while waiting and len(seen) < MAX_OBJECTS:
        value = waiting.pop()
        if id(value) not in seen:
            seen[id(value)] = value
            with contextlib.suppress(Exception):  # objects may do anything when they are looked at
                waiting += _parts(value) if _source(value) is None else []
    found = [random, np.random, getattr(sys.modules.get("torch"), "default_generator", None), *seen.values()]
    return list({id(value): value for value in found if _source(value) is not None}.values())


class Draws:
    """The generators that a data set may draw from; as a context it gives them their states back at the end."""

    def __init__(self, dataset: Any, seed: int):
        self.dataset, self.seed = dataset, seed
        self.sources = [_source(value) for value in generators(dataset)]

    def begin(self, position: int) -> None:
        """Seeds all for the chunk of samples that begins at `position` of the file."""
        for number, source in enumerate(self.sources):
            text = struct.pack("<QQQ", self.seed, position, number)
            source.seed(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little"))

    def samples(self, order: np.ndarray, chunksize: int, first: int = 0) -> Iterator[Callable[[], Any]]:
        """dataset[i] for each i of `order`, which begins at `first`, as functions that must be called in turn."""
        dataset = self.dataset
        for position, index in enumerate(order.tolist(), first):
            if position % chunksize == 0:
                yield lambda position=position, index=index: self._first(position, index)
            else:
                yield lambda index=index: dataset[index]

    def _first(self, position: int, index: int) -> Any:
        self.begin(position)
        return self.dataset[index]

    def __enter__(self) -> Draws:
        self._states = [source.get() for source in self.sources]
        return self

    def __exit__(self, *exc: object) -> None:
        for source, state in zip(self.sources, self._states, strict=True):
            source.set(state)
