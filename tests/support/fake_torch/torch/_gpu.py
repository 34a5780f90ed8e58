"""What of PyTorch's CUDA the hook of cgxffcv.interop uses, on an emulated GPU: backward works on its default stream.
Buffers are memory of the GPU; nothing but streams says when it may be read."""

import contextlib
import ctypes
import sys
import types

import _cgxffcv
import numpy as np
from foreign_arrays import address_of

import torch

DEVICE = types.SimpleNamespace(type="cuda", index=0)
_current = [0]
_emulator = ctypes.CDLL(_cgxffcv.__file__)
_emulator.emulated_stream.restype = ctypes.c_uint64
_emulator.emulated_copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


def order(later, earlier):
    _cgxffcv.device_order(0, later, earlier)


class Stream:
    def __init__(self, device=DEVICE):
        assert device is DEVICE
        self.cuda_stream = _emulator.emulated_stream()

    def wait_event(self, event):
        order(self.cuda_stream, event.stream)

    def synchronize(self):
        order(0, self.cuda_stream)
        _cgxffcv.tensor_of_buffer(np.zeros(1, np.float32)).copy(0).copy(-1, stream=0)


class Event:
    """`seconds` is what a test says of the moment."""

    clock = 0.0

    def __init__(self, enable_timing=False):
        self.stream, self.seconds = None, None

    def record(self, stream):
        self.stream, self.seconds = stream.cuda_stream, Event.clock

    def synchronize(self):
        assert self.seconds is not None

    def elapsed_time(self, later):
        return 1e3 * (later.seconds - self.seconds)


def current_stream(device=DEVICE):
    return types.SimpleNamespace(cuda_stream=_current[-1])


@contextlib.contextmanager
def stream(chosen):
    _current.append(chosen.cuda_stream)
    yield
    _current.pop()


@contextlib.contextmanager
def device(_):
    yield


class Engine:
    """Of autograd: the passes of a test, each a `with`."""

    def __init__(self):
        self.task, self._next, self._callbacks = -1, 0, []

    def queue_callback(self, callback):
        assert self.task >= 0, "Final callbacks can only be installed during backward pass."
        self._callbacks.append(callback)

    @contextlib.contextmanager
    def backward(self):
        self.task, self._next = self._next, self._next + 1
        yield
        for callback in self._callbacks:
            callback()
        self.task, self._callbacks = -1, []


engine = Engine()


class Buffer:
    """A flat gradient bucket of float32 in the GPU's memory."""

    layout, device, dtype = "strided", DEVICE, np.dtype(np.float32)

    def __init__(self, elems):
        self.memory = _cgxffcv.tensor_of_buffer(np.zeros(elems, np.float32)).copy(0)
        self.address = address_of(self.memory)

    def data_ptr(self):
        return self.address

    def element_size(self):
        return 4

    def write(self, values):
        """On backward's stream."""
        self._source = values  # read when the stream comes to it
        assert _emulator.emulated_copy(self.address, values.ctypes.data, values.nbytes) == 0

    def read(self):
        """As what is on backward's stream now leaves it."""
        return self.memory.copy(-1, stream=0).numpy().copy()


vars(sys.modules["torch.cuda"]).update(
    Stream=Stream,
    Event=Event,
    ExternalStream=Stream,
    current_stream=current_stream,
    stream=stream,
    device=device,
    is_current_stream_capturing=lambda: False,
    device_count=lambda: 1,
    order=order,
)
torch._C._current_graph_task_id = lambda: engine.task
torch._C._cuda_getCurrentRawStream = lambda index: _current[-1]
torch.autograd = types.SimpleNamespace(Variable=types.SimpleNamespace(_execution_engine=engine))
