"""How arrays of other frameworks are checked before anything is done with them; no GPU is needed to refuse one."""

from types import SimpleNamespace

import numpy as np
import pytest

from cgxffcv import tensors

SAID = {"shape": (3,), "typestr": "<f4", "data": (4096, False), "version": 3}


class Interface:
    """Has only the CUDA array interface, which returns `said`."""

    def __init__(self, said):
        self.__cuda_array_interface__ = said


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ([1], TypeError, "must be a dict, not list"),
        ({"shape": (3,), "data": (1, False)}, ValueError, "lacks typestr, version"),
        (SAID | {"mask": Interface(SAID)}, TypeError, "an array with a mask"),
        (SAID | {"data": [1, False]}, ValueError, r"data=\[1, False\]: a pair"),
        (SAID | {"data": (1, False, 2)}, ValueError, "a pair of an address and a bool"),
        (SAID | {"typestr": ">f4"}, TypeError, "'>f4' is not of a type that is summed"),
        (SAID | {"typestr": "<c8"}, TypeError, "'<c8' is not of a type that is summed"),
    ],
    ids=lambda value: None if isinstance(value, (dict, list, type)) else value,
)
def test_interfaces_that_are_none(said, error, words):
    with pytest.raises(error, match=f"here: .*{words}"):
        tensors.take(Interface(said), "here")


class Stream:
    def __init__(self, **members):
        vars(self).update(members)


class Protocol:
    def __cuda_stream__(self):
        return 0, 77


def test_streams_by_their_addresses():
    given = {0: 0, 5: 5, Stream(cuda_stream=7): 7, Stream(ptr=8): 8, Protocol(): 77}
    assert [tensors.stream_number(stream) for stream in given] == list(given.values())
    for stream in (True, False, -1, 1.0, "1", None, Stream(ptr="1")):
        with pytest.raises(TypeError, match="stream must be a CUDA stream or its address"):
            tensors.stream_number(stream)


def test_buffers_say_themselves_what_is_wrong_with_them():
    """Other objects are not arrays at all."""
    for array in (np.ones(3, bool), np.ones(2, complex)):
        with pytest.raises(TypeError, match="here: an array with elements of format"):
            tensors.take(memoryview(array), "here")
    for thing in (5, "text", None, object()):
        with pytest.raises(TypeError, match="here: an array is expected .*not"):
            tensors.take(thing, "here")


def test_whose_arrays_change():
    taken = tensors.take(np.ones(3, np.float32), "here")
    assert taken.mutable and taken.framework == "numpy"
    for framework in ("jax", "jaxlib", "tensorflow"):
        assert not tensors.Taken(taken.array, taken.tensor, 0, framework).mutable


def test_a_type_that_an_array_is_not_of():
    assert tensors.take(np.ones(3, np.uint16), "here", "bfloat16").tensor.dtype == "bfloat16"
    with pytest.raises(TypeError, match="here: .*float32"):
        tensors.take(np.ones(3, np.float64), "here", "float32")


def test_a_copy_is_given_in_the_arrays_own_type():
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    given = tensors.give(tensors.copy(tensors.take(array, "here")))
    assert given.dtype == array.dtype and not np.shares_memory(given, array)
    np.testing.assert_array_equal(given, array)


class Bfloat16(np.ndarray):
    """An array of a type that another package has given that name."""

    dtype = property(lambda self: SimpleNamespace(name="bfloat16"))

    def view(self, kind):
        return np.frombuffer(self.tobytes(), kind)


def test_bfloat16_is_known_by_its_name():
    taken = tensors.take(np.array([0x3F80, 0x4000], np.uint16).view(Bfloat16), "here")
    assert taken.tensor.dtype == "bfloat16" and taken.framework == "numpy"
