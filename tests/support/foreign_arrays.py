"""Arrays of frameworks that are not installed: stand-ins with DLPack or the CUDA array interface, and forged
capsules."""

import ctypes

import _cgxffcv
import numpy as np

Delete = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    ]


class Old(ctypes.Structure):
    _fields_ = [("tensor", DLTensor), ("context", ctypes.c_void_p), ("deleter", Delete)]


class Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", Delete),
        ("flags", ctypes.c_uint64),
        ("tensor", DLTensor),
    ]


NAMES = {Old: b"dltensor", Versioned: b"dltensor_versioned"}
new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype, new_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
pointer_in = ctypes.pythonapi.PyCapsule_GetPointer
pointer_in.restype, pointer_in.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


class Forged:
    """A capsule's array of which we choose every number; `deleted` counts how often it was released."""

    def __init__(self, data, shape, strides=None, kind=Old, device=(1, 0), code=2, bits=32, lanes=1, **more):
        self.kept = [(ctypes.c_int64 * len(x))(*x) if x is not None else None for x in (shape, strides)]
        shape_at, strides_at = (None if x is None else ctypes.addressof(x) for x in self.kept)
        self.managed, self.deleted, self.device, self.kind = kind(), 0, device, kind
        if kind is Versioned:
            self.managed.major, self.managed.flags = more.pop("major", 1), more.pop("flags", 0)
        ndim, offset = more.pop("ndim", 0 if shape is None else len(shape)), more.pop("byte_offset", 0)
        assert not more
        self.managed.tensor = DLTensor(data, *device, ndim, code, bits, lanes, shape_at, strides_at, offset)
        self.managed.deleter = Delete(self._delete)

    def _delete(self, _):
        self.deleted += 1

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, stream=None):
        return new_capsule(ctypes.addressof(self.managed), NAMES[self.kind], None)


def address_of(array):
    """The memory address of anything with DLPack."""
    capsule = array.__dlpack__(max_version=(1, 0))
    tensor = Versioned.from_address(pointer_in(capsule, NAMES[Versioned])).tensor
    return tensor.data + tensor.byte_offset


class Dlpack:
    """Passes a NumPy array on by DLPack only, in the protocol from before it had versions, or in the present one."""

    def __init__(self, array, versioned=True):
        self.array, self.versioned = array, versioned

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, **how):
        if "max_version" in how and not self.versioned:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
        return self.array.__dlpack__(**how)


class CudaArray:
    """An array on a GPU that has only the CUDA array interface; `said` overrides entries of it."""

    def __init__(self, array, device=0, **said):
        array = np.ascontiguousarray(array)
        self.tensor = _cgxffcv.tensor_of_buffer(array).copy(device)
        self.said = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (address_of(self.tensor), False),
            "version": 3,
        } | said

    @property
    def __cuda_array_interface__(self):
        return self.said

    def numpy(self):
        return self.tensor.copy(-1).numpy()


class _Space:
    """What __array_namespace__ returns."""

    def __init__(self, kind):
        self.kind = kind

    def from_dlpack(self, array):
        return self.kind(array)


class Jax:
    """An array that can never be changed, like JAX's: has a namespace, and copies what it is given."""

    def __init__(self, array):
        self.tensor = _cgxffcv.tensor_of_dlpack(array.__dlpack__(max_version=(1, 0))).copy(stream=0)

    def __array_namespace__(self):
        return _Space(Jax)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()

    def __dlpack__(self, **how):
        return self.tensor.__dlpack__(**how)

    def numpy(self):
        return self.tensor.copy(-1).numpy()


Jax.__module__ = "jax._src.array"
