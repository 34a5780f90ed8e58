"""What of PyTorch the hook of cgxffcv.interop uses, where ranks are threads: a bucket is handed to it as
DistributedDataParallel would, in an array of NumPy."""

import sys
import threading
import types

import numpy as np


class Future:
    """Complete or not, with an error or not; callbacks run where it becomes complete."""

    def __class_getitem__(cls, item):
        return cls

    def __init__(self, *, devices=None):
        self._done, self._value, self._error, self._next = threading.Event(), None, None, None
        self._devices, self._stream = devices, None

    def set_result(self, value):
        self._value = value
        if self._devices is not None and value is not None:  # what is no tensor has no stream
            self._stream = sys.modules["torch"].cuda.current_stream().cuda_stream
        self._done.set()
        if self._next is not None:
            self._next()

    def then(self, callback):
        child = Future()
        child._stream = self._stream

        def run():
            child._stream = self._stream
            try:
                child.set_result(callback(self))
            except Exception as error:
                child._error = error
                child._done.set()

        self._next = run
        if self._done.is_set():
            run()
        return child

    def wait(self):
        assert self._done.wait(60)
        if self._error is not None:
            raise RuntimeError(f"{type(self._error).__name__}: {self._error}")
        if self._stream is not None:
            cuda = sys.modules["torch"].cuda
            cuda.order(cuda.current_stream().cuda_stream, self._stream)
        return self._value


class Store:
    def __init__(self):
        self._values, self._lock = {}, threading.Lock()

    def set(self, key, value):
        self._values[key] = value

    def add(self, key, amount):
        with self._lock:
            self._values[key] = self._values.get(key, 0) + amount
            return self._values[key]

    def check(self, keys):
        return all(key in self._values for key in keys)

    def get(self, key):
        return self._values[key].encode()


class ProcessGroup:
    def __init__(self, rank, size, store):
        self.rank, self.size, self.store = rank, size, store


class Parameter:
    def __init__(self, *shape):
        self.shape = shape

    def dim(self):
        return len(self.shape)

    def numel(self):
        return int(np.prod(self.shape))

    def is_complex(self):
        return False


class Buffer(np.ndarray):
    layout, device = "strided", types.SimpleNamespace(type="cpu", index=None)

    def detach(self):
        return self

    def numpy(self):
        return self.view(np.ndarray)

    def element_size(self):
        return self.itemsize


class GradBucket:
    def __init__(self, parameters, gradients, last=True, index=0):
        flat = [np.ravel(gradients[parameter]) for parameter in parameters]
        self._parameters, self._buffer = parameters, np.concatenate(flat).view(Buffer)
        self._index, self._last = index, last

    def buffer(self):
        return self._buffer

    def parameters(self):
        return list(self._parameters)

    def is_last(self):
        return self._last

    def index(self):
        return self._index


class GpuBucket(GradBucket):
    """Its buffer comes again at every step."""

    def __init__(self, parameters, buffer, index, last):
        self._parameters, self._buffer, self._index, self._last = parameters, buffer, index, last


class Backend:
    @classmethod
    def register_backend(cls, name, creator, devices):
        setattr(cls, name.upper(), creator)


def _module(name, **members):
    module = types.ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module
    return module


def install(torch, distributed):
    """Into the stand-in's modules."""
    vars(torch).update(strided="strided", bfloat16="bfloat16", dtype=np.dtype)
    torch.futures = _module("torch.futures", Future=Future)
    torch._C = types.SimpleNamespace()
    torch.cuda.Stream = object
    core = _module("torch.distributed.distributed_c10d", _get_process_group_store=lambda group: group.store)
    hooks = _module("torch.distributed.algorithms.ddp_comm_hooks.default_hooks")
    _module("torch.distributed.algorithms.ddp_comm_hooks", default_hooks=hooks)
    _module("torch.distributed.algorithms")
    vars(distributed).update(
        ProcessGroup=ProcessGroup,
        GradBucket=GradBucket,
        Backend=Backend,
        distributed_c10d=core,
        is_available=lambda: True,
        is_initialized=lambda: False,
        get_rank=lambda group: group.rank,
        get_world_size=lambda group: group.size,
    )
