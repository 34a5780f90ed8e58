"""Reads the pickles of CIFAR-10's Python version without running anything they say.

A pickle is a program that may call any function. This reader works through the program's opcodes on a stack of
plain values; a call only makes a record of itself (`Call`), which the reader of the batch looks at. Anything that the
batches of CIFAR-10, or the same re-saved by NumPy 1 or 2, do not need is refused.
"""

from __future__ import annotations

import pickletools
import reprlib
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_OPCODES = 1_000_000

PLAIN = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT"}
TEXTS = {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
BYTES = {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
ARGUMENT = NUMBERS | TEXTS | BYTES
LATIN = {"STRING", "BINSTRING", "SHORT_BINSTRING"}  # Python 2's strings: bytes that pickletools shows as latin-1
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
PUT = {"PUT", "BINPUT", "LONG_BINPUT"}
GET = {"GET", "BINGET", "LONG_BINGET"}


class PickleError(ValueError):
    """The pickle is damaged, or contains something that a batch of CIFAR-10 does not need."""


@dataclass(frozen=True)
class Name:
    """A function or class that the pickle names; never looked up."""

    name: str


@dataclass
class Call:
    """What the pickle wanted to call, with which arguments and which state; never called."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def pop_to_mark(self) -> list[Any]:
        begin = self.marks.pop()
        items = self.stack[begin:]
        del self.stack[begin:]
        return items

    def call(self) -> Call | bytes:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise PickleError("it calls something that is not a function")
        if function.name == "_codecs.encode" and arguments[1:] == ("latin1",) and isinstance(arguments[0], str):
            return arguments[0].encode("latin-1")  # how Python 3 writes bytes for Python 2
        return Call(function.name, arguments)

    def store(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(pairs) % 2:
            raise PickleError("it stores into something that is not a dict")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str | bytes | int):
                raise PickleError("a key is neither text nor a number")
            target[key] = value

    def extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise PickleError("it appends to something that is not a list")
        self.stack[-1].extend(items)

    def step(self, op: str, argument: Any) -> None:
        stack = self.stack
        if op in PLAIN:
            stack.append(PLAIN[op])
        elif op in ARGUMENT:
            stack.append(argument)
        elif op in LATIN:
            stack.append(argument.encode("latin-1"))
        elif op in TUPLES:
            items = stack[-TUPLES[op] :]
            del stack[-TUPLES[op] :]
            stack.append(tuple(items))
        elif op in PUT:
            self.memo[argument] = stack[-1]
        elif op in GET:
            stack.append(self.memo[argument])
        else:
            self.rare_step(op, argument)

    def rare_step(self, op: str, argument: Any) -> None:
        stack = self.stack
        if op == "MARK":
            self.marks.append(len(stack))
        elif op == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif op in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[op]())
        elif op in ("TUPLE", "LIST"):
            items = self.pop_to_mark()
            stack.append(tuple(items) if op == "TUPLE" else items)
        elif op in ("APPEND", "APPENDS"):
            items = [stack.pop()] if op == "APPEND" else self.pop_to_mark()
            self.extend(items)
        elif op in ("SETITEM", "SETITEMS"):
            pairs = [stack.pop(-2), stack.pop()] if op == "SETITEM" else self.pop_to_mark()
            self.store(pairs)
        elif op == "GLOBAL":
            stack.append(Name(argument.replace(" ", ".")))
        elif op == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            if not isinstance(name, str) or not isinstance(module, str):  # the text of anything else may grow for ever
                raise PickleError("it names something that has no name")
            stack.append(Name(f"{module}.{name}"))
        elif op == "REDUCE":
            stack.append(self.call())
        elif op == "BUILD":
            state = stack.pop()
            if not isinstance(stack[-1], Call):
                raise PickleError("it gives a state to something that is not an object")
            stack[-1].state = state
        elif op not in ("PROTO", "FRAME"):
            raise PickleError(f"it uses the pickle opcode {op}, which a batch of CIFAR-10 does not need")


def parse(data: bytes) -> Any:
    """The value that `data` describes, made of dicts, lists, tuples, strings, numbers, `Name` and `Call`."""
    machine = _Machine()
    try:
        for count, (op, argument, _) in enumerate(pickletools.genops(data)):
            if op.name == "STOP":
                return machine.stack.pop()
            if count > MAX_OPCODES:
                raise PickleError(f"it has more than {MAX_OPCODES} opcodes")
            machine.step(op.name, argument)
    except PickleError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, AttributeError) as error:
        raise PickleError(f"not a complete pickle ({error})") from error
    raise PickleError("not a complete pickle")


ARRAY_MODULES = {"numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric"}


def uint8_array(value: Any, columns: int) -> np.ndarray:
    """The C-ordered uint8 array of shape (n, columns) that a `Call` describes; PickleError for anything else."""
    if not isinstance(value, Call) or value.name.rpartition(".")[0] not in ARRAY_MODULES:
        raise PickleError("the pixels are not a NumPy array")
    try:
        if value.name.endswith("._reconstruct"):
            _, shape, dtype, fortran, data = value.state
        elif value.name.endswith("._frombuffer"):
            data, dtype, shape, order = value.arguments
            fortran = order != "C"
        else:
            raise PickleError(f"the pixels come from {value.name}")
    except (TypeError, ValueError) as error:
        raise PickleError("the pixels are not a NumPy array as NumPy saves them") from error
    code = dtype.arguments[0] if isinstance(dtype, Call) and dtype.name == "numpy.dtype" and dtype.arguments else None
    if code not in ("u1", b"u1", "uint8", b"uint8") or fortran not in (False, 0):
        raise PickleError("the pixels are not unsigned bytes in C order")
    if not isinstance(data, bytes | bytearray):
        raise PickleError("the pixels are not bytes")
    pixels = np.frombuffer(data, np.uint8)
    if not isinstance(shape, tuple) or shape != (pixels.size // columns, columns) or pixels.size % columns:
        shown = reprlib.repr(shape)  # tuples that contain each other many times over have an endless text
        raise PickleError(f"the pixels have shape {shown}, {pixels.size} bytes; expected (n, {columns})")
    return pixels.reshape(-1, columns)
