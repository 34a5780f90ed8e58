"""The contents of a sequence may change while its items are converted, since that may run Python code; and an item may
not be a tuple. csrc/python/arguments.c handles this; the other files of the binding go through it."""

import re
from pathlib import Path

import pytest
from checkout import CSRC
from rooms import code

FILES = sorted((CSRC / "python").glob("*.c"))
# A function, and its arguments up to the first comma or bracket.
FORBIDDEN = re.compile(
    r"\b(PySequence_(?:Fast\w*|Tuple|List|ITEM)|PyList_(?:GET_\w+|GetItem|Size|AsTuple)|PyObject_GetIter)\b"
)
UNPACKED = re.compile(r"\bPyArg_(?:ParseTuple|ParseTupleAndKeywords|VaParse\w*|UnpackTuple)\(\s*(\w+)")
# Formats of numbers that the interpreter silently truncates to their lowest bits.
WRAPPING = re.compile(r'\b(?:PyArg_Parse\w*|py_arguments_unpack)\([^;"]*"([^":;]*[BHIkK][^":;]*)[":;]')


def test_the_pattern_is_found():
    assert WRAPPING.search('if (!PyArg_ParseTuple(args, "nK:value", &field)) return NULL;')
    assert not WRAPPING.search('py_arguments_unpack(item, "iipf;a view is a tuple (dy, Bx)", &view->dy)')
    assert FORBIDDEN.search("x = PySequence_Fast_GET_ITEM(fast, i);")
    assert UNPACKED.findall('PyArg_ParseTuple(item, "i")') == ["item"]


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "arguments.c"], ids=lambda path: path.name)
def test_items_come_through_arguments(path: Path):
    text = code(path)
    found = FORBIDDEN.search(text)
    assert found is None, f"{path.name} calls {found[1]}: use py_arguments_tuple"
    # `args` is the tuple that the interpreter made for this call, `none` an empty one.
    unpacked = set(UNPACKED.findall(text)) - {"args", "none"}
    assert not unpacked, f"{path.name} unpacks {sorted(unpacked)}: use py_arguments_unpack"


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "arguments.c"], ids=lambda path: path.name)
def test_numbers_are_not_wrapped(path: Path):
    found = WRAPPING.search(path.read_text())
    assert found is None, f"{path.name} reads {found[1]!r}: use py_arguments_number or a table of python/spec.h"
