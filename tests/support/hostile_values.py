"""What does not belong in a call of _cgxffcv: values for test_hostile_calls.py, and objects that do something while
they are converted."""

import ctypes
import itertools

import numpy as np


class Refusal(ValueError):
    """Raised by the evil objects."""


class Evil:
    """Does something when it is converted, and then acts as the value it stands for."""

    def __init__(self, value, act):
        self.value, self.act = value, act

    def _run(self, convert):
        self.act()
        return convert(self.value)

    def __index__(self):
        return self._run(int)

    def __float__(self):
        return self._run(float)

    def __bool__(self):
        return self._run(bool)

    def __str__(self):
        return self._run(str)

    def __fspath__(self):
        return self._run(str)

    def __len__(self):
        return self._run(len)

    def __getitem__(self, index):
        self.act()
        return self.value[index]

    def __buffer__(self, flags):  # from Python 3.12 on
        self.act()
        return memoryview(self.value)


class Liar:
    """A sequence that has fewer items than it says, or far more."""

    def __init__(self, length, items):
        self.length, self.items = length, items

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return self.items[index]


def unaligned(count=8):
    return np.zeros(count * 8 + 8, np.uint8)[1 : count * 8 + 1]


def released():
    view = memoryview(bytearray(8))
    view.release()
    return view


class Record(ctypes.Structure):
    _fields_ = [("a", ctypes.c_int), ("b", ctypes.c_double)]


def hostile_values():
    numbers = [
        None,
        True,
        -1,
        0,
        1,
        7,
        65536,
        2**31 - 1,
        2**31,
        -(2**31),
        2**32,
        2**63 - 1,
        2**63,
        -(2**63),
        2**64,
        10**40,
    ]
    numbers += [0.5, -0.0, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf"), 1j]
    texts = [
        "",
        "x",
        "cpu",
        "a" * 5000,
        "\ud800",
        "nul\0here",
        "é",
        b"",
        b"x",
        b"\xff" * 100,
        bytearray(b"xyz"),
        "%s%n",
    ]
    holders = [
        (),
        [],
        {},
        set(),
        (None,),
        [None],
        ("x",),
        [[]] * 3,
        ((),),
        range(3),
        range(2**40),
        itertools.count(),
        iter("ab"),
    ]
    holders += [
        Liar(3, []),
        Liar(2**62, "abc"),
        Liar(-1, ""),
        Liar(0, [1]),
        Liar(1, [None]),
        lambda: 0,
        object,
        object(),
    ]
    arrays = [
        np.zeros((), np.float32),
        np.zeros(0, np.float32),
        np.zeros(8, np.float32),
        np.zeros((2, 8, 8, 3), np.uint8),
    ]
    arrays += [
        np.zeros(8, np.int64),
        np.full(8, 2**62),
        np.full(8, -5),
        np.arange(8)[::2],
        np.zeros(8, ">f4"),
        np.zeros(3, "M8[s]"),
    ]
    arrays += [np.zeros(3, object), np.zeros(4, "S3"), np.zeros((2**40, 0), np.float64), np.zeros((0, 5), np.float64)]
    arrays += [
        np.broadcast_to(np.float32(1), (4, 4)),
        unaligned().view(np.float32),
        unaligned().view(np.int64),
        memoryview(b"abc"),
    ]
    arrays += [
        (ctypes.c_int * 3)(),
        Record(),
        np.float32(1),
        np.zeros((1,) * 64, np.uint8),
        np.zeros(2, [("a", "f4"), ("b", "i8")]),
    ]
    arrays += [
        np.asfortranarray(np.zeros((4, 6), np.float32)),
        released(),
        memoryview(bytearray(8)).cast("B", (2, 2, 2)),
    ]
    return [*numbers, *texts, *holders, *arrays]


def places(value, path=()):
    """The paths of all arguments and of the items inside them."""
    if path:
        yield path
    if isinstance(value, (tuple, list)):
        for i, item in enumerate(value):
            yield from places(item, (*path, i))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*path, key))


def taken(value, path):
    for step in path:
        value = value[step]
    return value


def put(value, path, new):
    """A copy with another item at the path; everything not on the way to it is shared."""
    if not path:
        return new
    if isinstance(value, dict):
        return value | {path[0]: put(value[path[0]], path[1:], new)}
    items = list(value)
    items[path[0]] = put(items[path[0]], path[1:], new)
    return type(value)(items)


def fresh(value, holder=None):
    """A copy of the containers, all of them of one type if that is given: lists can be emptied, tuples cannot."""
    if isinstance(value, dict):
        return {key: fresh(item, holder) for key, item in value.items()}
    if not isinstance(value, (tuple, list)):
        return value
    return (holder or type(value))(fresh(item, holder) for item in value)


def lists_in(value):
    """The lists and dicts among the containers, which can be emptied."""
    if isinstance(value, (list, dict)):
        yield value
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from lists_in(item)
