"""Random numbers that a data set draws while its samples are made (noise, crops): a function of the writer's seed and
of where a chunk of samples begins, whichever process makes the chunk. Forked workers would otherwise all draw the
same."""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import random
import struct
import sys
import types
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import numpy as np

MAX_OBJECTS = 10_000  # of a data set that are looked at
MAX_ITEMS = 100  # of a list, tuple or dict, likewise
OPENCV = 1 << 32  # the number of OpenCV's own generator, which is above those of a data set's
LIBRARIES = {*sys.stdlib_module_names, "numpy", "torch"}


class _Source(NamedTuple):
    """A generator of random numbers: its state, to get and to set, and what seeds it."""

    get: Callable[[], Any]
    set: Callable[[Any], Any]
    seed: Callable[[int], Any]


def _source(value: Any) -> _Source | None:
    """`value` as a source, None if it is not a generator that can be seeded. The modules are their own generators."""
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
    if isinstance(value, np.random.Generator | np.random.BitGenerator):
        bits: Any = getattr(value, "bit_generator", value)

        def put(state: Any) -> None:
            bits.state = state

        return _Source(lambda: bits.state, put, lambda n: put(type(bits)(n).state))
    if isinstance(value, getattr(sys.modules.get("torch"), "Generator", ())) and value.device.type == "cpu":
        return _Source(value.get_state, value.set_state, value.manual_seed)
    return None


def _of_opencv() -> _Source | None:
    """The generator behind cv2.randn and others, if the program has imported cv2. Its state cannot be read."""
    seed = getattr(sys.modules.get("cv2"), "setRNGSeed", None)
    return None if seed is None else _Source(lambda: None, lambda state: None, lambda n: seed(n & 0x7FFFFFFF))


def _is_generator(value: Any) -> bool:
    torchs = getattr(sys.modules.get("torch"), "Generator", random.Random)
    numpys = np.random.Generator, np.random.RandomState, np.random.BitGenerator
    return isinstance(value, (random.Random, *numpys, torchs))


def _is_librarys(value: Any) -> bool:
    """True if a class or function belongs to Python, NumPy or torch, whose own generators are known."""
    return str(value.__module__).partition(".")[0] in LIBRARIES


def _items(values: Collection[Any]) -> list[Any]:
    """The first items of a collection, and the generators among the others."""
    return [value for place, value in enumerate(values) if place < MAX_ITEMS or _is_generator(value)]


def _names(code: types.CodeType) -> list[str]:
    """The names that a function's code, and that of the functions inside it, uses of its module and of objects."""
    inner = [name for part in code.co_consts if isinstance(part, types.CodeType) for name in _names(part)]
    return [*code.co_names, *inner]


def _used_by(function: types.FunctionType) -> list[Any]:
    """What a function holds, and what it uses by name of its module and of the modules imported there."""
    if _is_librarys(function):
        return []
    names = _names(function.__code__)
    known = collections.ChainMap(function.__globals__, sys.modules)  # a function may import by itself
    found = [known[name] for name in names if name in known]
    modules = [value for value in found if isinstance(value, types.ModuleType)]
    for module in modules:
        inner = [vars(module)[name] for name in names if name in vars(module)]
        modules += [value for value in inner if isinstance(value, types.ModuleType) and value not in modules]
        found += inner
    found += [cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType()]
    return [*found, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]


def _class_parts(kind: type) -> list[Any]:
    """Its attributes and functions, and the generators of its module."""
    if _is_librarys(kind):
        return []
    module = sys.modules.get(kind.__module__)
    return [*kind.__bases__, *vars(kind).values(), *filter(_is_generator, vars(module).values() if module else ())]


def _slots(value: Any) -> list[Any]:
    found = []
    for base in type(value).__mro__:
        for slot in vars(base).values() if "__slots__" in vars(base) else ():
            if isinstance(slot, types.MemberDescriptorType):
                with contextlib.suppress(AttributeError):  # has no value yet
                    found.append(slot.__get__(value))
    return found


def _parts(value: Any) -> list[Any]:
    """What an object is made of, and what its functions use, as far as a generator may be in it."""
    if isinstance(value, dict):
        return _items(value.values())
    if isinstance(value, list | tuple | set | frozenset | collections.deque):
        return _items(value)
    if isinstance(value, types.ModuleType):
        return []
    if isinstance(value, type):
        return _class_parts(value)
    parts: list[Any] = [type(value), *_items(getattr(value, "__dict__", {}).values()), *_slots(value)]
    if isinstance(value, types.MethodType | staticmethod | classmethod):
        parts += [getattr(value, "__self__", None), value.__func__]
    elif isinstance(value, property):
        parts += [value.fget]
    elif isinstance(value, functools.partial):
        parts += [value.func, value.args, value.keywords]
    elif isinstance(value, types.FunctionType):
        parts += _used_by(value)
    return parts


def generators(dataset: Any) -> dict[int, Any]:
    """Python's, NumPy's and torch's own generators as numbers 0 to 2 (torch's if the program has imported it), and from
    3 on those in the data set: in its attributes, in theirs, in what the functions of all these hold and name, and in
    their modules; the nearest first."""
    waiting, seen = collections.deque([dataset]), {}
    while waiting and len(seen) < MAX_OBJECTS:
        value = waiting.popleft()
        if id(value) not in seen:
            seen[id(value)] = value
            with contextlib.suppress(Exception):  # objects may do anything when they are looked at
                waiting += _parts(value) if _source(value) is None else []
    known = [random, np.random, getattr(sys.modules.get("torch"), "default_generator", None)]
    own = [value for value in seen.values() if _source(value) is not None and not any(value is k for k in known)]
    return {number: value for number, value in enumerate([*known, *own]) if value is not None}


class Draws:
    """The generators that a data set may draw from; as a context manager it restores their states at the end (but not
    OpenCV's, which cannot be read)."""

    def __init__(self, dataset: Any, seed: int):
        self.dataset, self.seed = dataset, seed
        self.sources = {number: _source(value) for number, value in generators(dataset).items()}
        opencv = _of_opencv()
        if opencv is not None:
            self.sources[OPENCV] = opencv

    def begin(self, position: int) -> None:
        """Seeds all of them for the chunk of samples that begins at `position` of the file."""
        for number, source in self.sources.items():
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
        self._states = {number: source.get() for number, source in self.sources.items()}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, state in self._states.items():
            self.sources[number].set(state)
