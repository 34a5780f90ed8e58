"""Arrays of any framework: NumPy, PyTorch, CuPy, JAX, and anything with DLPack, the CUDA array interface or the buffer
protocol, in host memory and on GPUs. None of them is imported here."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import _cgxffcv
import numpy as np

IMMUTABLE = ("jax", "jaxlib", "tensorflow")  # frameworks whose arrays are immutable
DLPACK_CUDA = (2, 13)  # device types: its own memory, managed memory
LEGACY_STREAM = 1  # DLPack's number for the default stream


@dataclass(frozen=True)
class Taken:
    """An array as the core sees it, and where it came from."""

    array: Any
    tensor: _cgxffcv.Tensor
    stream: int  # on which it is complete; 0 is the default stream; ignored in host memory
    framework: str

    @property
    def mutable(self) -> bool:
        return self.framework not in IMMUTABLE


def framework_of(array: object) -> str:
    return str(type(array).__module__).partition(".")[0]


def stream_number(stream: object) -> int:
    """The address behind a stream: a number, or a stream of PyTorch, CuPy, or anything with `__cuda_stream__`."""
    for name in ("cuda_stream", "ptr"):
        number = getattr(stream, name, None)
        if isinstance(number, int):
            return number
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])  # type: ignore[attr-defined]
    if isinstance(stream, int) and not isinstance(stream, bool) and stream >= 0:
        return stream
    raise TypeError(f"stream must be a CUDA stream or its address, not {stream!r}")


def current_stream(framework: str, device: int) -> int:
    """The stream that the framework uses now; the default stream if it cannot be asked."""
    module = sys.modules.get(framework)
    if framework == "torch" and module is not None:
        return module.cuda.current_stream(device).cuda_stream
    if framework == "cupy" and module is not None:
        return module.cuda.get_current_stream().ptr
    return 0


def take(array: Any, argument: str, dtype: str | None = None, stream: object = None) -> Taken:
    """The array as the core sees it; `dtype` says what the array cannot (bfloat16 kept as uint16). On a GPU it is
    complete on `stream`, by default on the stream that its framework uses. Raises TypeError, ValueError or BufferError
    that begins with `argument`."""
    try:
        taken = _take(array, dtype, None if stream is None else stream_number(stream))
        if dtype is not None and taken.tensor.dtype != dtype:
            raise TypeError(f"an array of {taken.tensor.dtype} is not one of {dtype}")
        return taken
    except (TypeError, ValueError, BufferError) as error:
        if type(error) in (TypeError, ValueError, BufferError):
            raise type(error)(f"{argument}: {error}") from error
        raise


def _take(array: Any, dtype: str | None, stream: int | None) -> Taken:
    framework = framework_of(array)
    if isinstance(array, np.ndarray):
        return Taken(array, _of_numpy(array, dtype), 0, "numpy")
    if getattr(array, "requires_grad", False) is True:
        array = array.detach()
    ordered = isinstance(array, _cgxffcv.Tensor) or framework in (
        "torch",
        *IMMUTABLE,
    )  # ordered between streams by DLPack
    if not ordered and hasattr(array, "__cuda_array_interface__"):
        tensor = _of_interface(array, dtype)
        return Taken(array, tensor, _ordered(array, tensor, framework, stream), framework)
    if hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
        return _of_dlpack(array, framework, stream)
    try:
        tensor = _cgxffcv.tensor_of_buffer(array, dtype)
    except (TypeError, BufferError):
        if isinstance(array, (memoryview, bytearray)):
            raise
        what = "an array is expected (of NumPy, PyTorch, CuPy, JAX, or with DLPack, the CUDA array interface or the "
        raise TypeError(f"{what}buffer protocol), not {type(array).__name__}") from None
    return Taken(array, tensor, 0, framework)


def _of_numpy(array: np.ndarray, dtype: str | None) -> _cgxffcv.Tensor:
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError("a masked array has missing elements: pass its .data, or fill it")
    if array.dtype.name == "bfloat16":
        return _cgxffcv.tensor_of_buffer(array.view(np.uint16), "bfloat16")
    return _cgxffcv.tensor_of_buffer(array, dtype)


# ---- GPUs ----


def _of_dlpack(array: Any, framework: str, stream: int | None) -> Taken:
    kind, device = array.__dlpack_device__()
    on_gpu, how = kind in DLPACK_CUDA, {}
    if on_gpu:
        stream = current_stream(framework, device) if stream is None else stream
        how["stream"] = stream or LEGACY_STREAM
    try:
        capsule = array.__dlpack__(**how, max_version=(1, 0))
    except TypeError:  # from before DLPack had versions
        capsule = array.__dlpack__(**how)
    tensor = _cgxffcv.tensor_of_dlpack(capsule)
    if on_gpu != (tensor.device >= 0) or (on_gpu and tensor.device != device):
        raise ValueError(f"__dlpack_device__ says {(int(kind), int(device))}, which is not where its capsule is")
    return Taken(array, tensor, stream or 0 if on_gpu else 0, framework)


def _of_interface(array: Any, dtype: str | None) -> _cgxffcv.Tensor:
    """By the CUDA array interface, versions 0 to 3."""
    interface = array.__cuda_array_interface__
    if not isinstance(interface, Mapping):
        raise TypeError(f"__cuda_array_interface__ must be a dict, not {type(interface).__name__}")
    missing = {"shape", "typestr", "data", "version"} - interface.keys()
    if missing:
        raise ValueError(f"__cuda_array_interface__ lacks {', '.join(sorted(missing))}")
    if interface.get("mask") is not None:
        raise TypeError("an array with a mask has missing elements")
    data = interface["data"]
    if not isinstance(data, tuple) or len(data) != 2:
        raise ValueError(f"__cuda_array_interface__ has data={data!r}: a pair of an address and a bool is expected")
    name = np.dtype(interface["typestr"]).name
    if dtype == "bfloat16" and name in ("uint16", "void16"):  # for which NumPy has no name
        name = dtype
    if name not in _cgxffcv.ALLREDUCE_DTYPES or str(interface["typestr"]).startswith(">"):
        raise TypeError(f"an array with elements of type {interface['typestr']!r} is not of a type that is summed")
    return _cgxffcv.tensor_of_address(array, data[0], interface["shape"], interface.get("strides"), name, not data[1])


def _ordered(array: Any, tensor: _cgxffcv.Tensor, framework: str, stream: int | None) -> int:
    """The stream to work on, which waits for the one that the interface names."""
    stream = current_stream(framework, tensor.device) if stream is None else stream
    made_on = array.__cuda_array_interface__.get("stream")
    if made_on is not None and (not isinstance(made_on, int) or made_on < 1):
        raise ValueError(f"__cuda_array_interface__ has stream={made_on!r}: None or a stream's address is expected")
    if made_on is not None and made_on != (stream or LEGACY_STREAM):
        _cgxffcv.device_order(tensor.device, stream, made_on)
    return stream


# ---- new ones ----


def copy(taken: Taken) -> Taken:
    """The same in new memory, which nobody else has yet."""
    return Taken(taken.array, taken.tensor.copy(stream=taken.stream), taken.stream, taken.framework)


def give(taken: Taken) -> Any:
    """A copy, as the work now on its stream leaves it, as an array of the framework from which the original came: by
    its `from_dlpack`. Without one, as NumPy's in host memory and as a Tensor, which has DLPack, on a GPU."""
    taken.tensor.made_on(taken.stream)
    if taken.framework == "numpy":
        return taken.tensor.numpy().view(taken.array.dtype)
    space = getattr(taken.array, "__array_namespace__", None)
    module = space() if space is not None else sys.modules.get(taken.framework)
    if hasattr(module, "from_dlpack"):
        return module.from_dlpack(taken.tensor)
    return taken.tensor.numpy() if taken.tensor.device < 0 else taken.tensor
