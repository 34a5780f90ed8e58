"""A stand-in for the little of PyTorch that examples/vanilla_pytorch.py uses, where PyTorch itself is not installed.

Data, shapes, numbers of parameters and the flow of control are real; nothing is learnt, and every image is taken for
one of class 0. Wrong shapes and calls that the real library would refuse are refused here, too.
"""

import contextlib
import os
import sys
import types

import numpy as np

__version__ = "0.stand-in"
float64 = np.float64
_random = np.random.default_rng(0)


class Tensor(np.ndarray):
    def to(self, device, non_blocking=False):
        assert isinstance(device, _Device)
        return self

    def detach(self):
        return self

    def cpu(self):
        return self

    def float(self):
        return self.astype(np.float32)

    def is_floating_point(self):
        return self.dtype.kind == "f"

    def numpy(self):
        return self.view(np.ndarray)

    def backward(self):
        assert self.shape == ()


class _Device(str):
    type = property(lambda self: self.partition(":")[0])
    index = property(lambda self: int(self.partition(":")[2] or 0))


def device(kind, index=None):
    return _Device(kind if index is None else f"{kind}:{index}")


def tensor(values):
    return np.array(values, np.float32).view(Tensor)


def from_numpy(array):
    assert array.dtype == np.float32
    return array.view(Tensor)


def zeros(*shape, dtype=np.float32, device=None):
    return np.zeros(shape[0] if shape and isinstance(shape[0], tuple) else shape, dtype).view(Tensor)


def rand(count):
    return _random.random(count).view(Tensor)


def randint(low, high, shape):
    return _random.integers(low, high, shape).view(Tensor)


def manual_seed(seed):
    global _random
    _random = np.random.default_rng(seed)


no_grad = contextlib.nullcontext


class _Parameter:
    def __init__(self, *shape):
        self.shape = shape

    def numel(self):
        return int(np.prod(self.shape))


class Module:
    training = True

    def __init__(self):
        self.own = []

    def __call__(self, x):
        return self.forward(x)

    def children(self):
        return [value for value in vars(self).values() if isinstance(value, Module)]

    def parameters(self):
        return [*self.own, *(p for child in self.children() for p in child.parameters())]

    def buffers(self):
        return [np.zeros(1)]

    def to(self, device):
        assert isinstance(device, _Device)
        return self

    def train(self):
        self.training = True

    def eval(self):
        self.training = False


class Sequential(Module):
    def __init__(self, *parts):
        super().__init__()
        self.parts = parts

    def children(self):
        return self.parts

    def forward(self, x):
        for part in self.parts:
            x = part(x)
        return x


class Conv2d(Module):
    def __init__(self, inputs, outputs, kernel, stride=1, padding=0, bias=True):
        super().__init__()
        assert not bias
        self.own = [_Parameter(outputs, inputs, kernel, kernel)]
        self.inputs, self.outputs, self.kernel, self.stride, self.padding = inputs, outputs, kernel, stride, padding

    def forward(self, x):
        count, channels, rows, columns = x.shape
        assert channels == self.inputs and x.dtype == np.float32
        rows, columns = ((n + 2 * self.padding - self.kernel) // self.stride + 1 for n in (rows, columns))
        return np.zeros((count, self.outputs, rows, columns), np.float32).view(Tensor)


class BatchNorm2d(Module):
    def __init__(self, channels):
        super().__init__()
        self.own = [_Parameter(channels), _Parameter(channels)]

    def forward(self, x):
        assert x.shape[1] == self.own[0].shape[0]
        return x


class ReLU(Module):
    def __init__(self, inplace=False):
        super().__init__()

    def forward(self, x):
        return x


class MaxPool2d(Module):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        return x[:, :, :: self.size, :: self.size]


class AdaptiveMaxPool2d(Module):
    def __init__(self, size):
        super().__init__()
        assert size == 1

    def forward(self, x):
        assert x.shape[2:] == (6, 6)
        return x.max(axis=(2, 3), keepdims=True)


class Flatten(Module):
    def forward(self, x):
        return x.reshape(len(x), -1)


class Linear(Module):
    def __init__(self, inputs, outputs, bias=True):
        super().__init__()
        assert not bias
        self.own = [_Parameter(outputs, inputs)]

    def forward(self, x):
        return np.zeros((len(x), self.own[0].shape[0]), np.float32).view(Tensor) + 0 * x.sum()


class CrossEntropyLoss:
    def __call__(self, logits, labels):
        assert logits.shape == (len(labels), 10) and labels.dtype == np.int64
        return np.array(np.log(10.0), np.float32).view(Tensor)


class DistributedDataParallel(Module):
    def __init__(self, module, device_ids=None):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


class SGD:
    def __init__(self, parameters, lr, momentum, weight_decay):
        assert (lr, momentum, weight_decay) == (0.1, 0.9, 1e-4) and len(list(parameters)) > 0

    def zero_grad(self):
        pass

    def step(self):
        pass


class MultiStepLR:
    def __init__(self, optimizer, milestones, gamma):
        assert isinstance(optimizer, SGD) and (milestones, gamma) == ([60, 120, 160], 0.2)

    def step(self):
        pass


class Dataset:
    pass


class Subset(Dataset):
    def __init__(self, dataset, indices):
        self.dataset, self.indices = dataset, list(indices)

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, index):
        return self.dataset[self.indices[index]]


class DistributedSampler:
    def __init__(self, dataset, num_replicas, rank, shuffle, seed, drop_last):
        self.count, self.ranks, self.rank, self.seed, self.epoch = len(dataset), num_replicas, rank, seed, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.count)
        return iter(order[self.rank :: self.ranks][: self.count // self.ranks])


class DataLoader:
    def __init__(
        self,
        dataset,
        batch_size,
        sampler=None,
        drop_last=False,
        num_workers=0,
        pin_memory=False,
        persistent_workers=False,
    ):
        assert num_workers > 0 or not persistent_workers
        self.dataset, self.batch_size, self.sampler, self.drop_last = dataset, batch_size, sampler, drop_last

    def __iter__(self):
        order = list(range(len(self.dataset)) if self.sampler is None else self.sampler)
        for first in range(0, len(order), self.batch_size):
            part = [self.dataset[index] for index in order[first : first + self.batch_size]]
            if len(part) == self.batch_size or not self.drop_last:
                images, labels = zip(*part, strict=True)
                yield np.stack(images).view(Tensor), np.array(labels, np.int64).view(Tensor)


def _join(backend, rank, world_size):
    assert backend == "gloo" and {"MASTER_ADDR", "MASTER_PORT"} <= set(os.environ) and rank < world_size


def _module(name, **members):
    module = types.ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module
    return module


cuda = _module("torch.cuda", is_available=lambda: False)
nn = _module(
    "torch.nn",
    Module=Module,
    Sequential=Sequential,
    Conv2d=Conv2d,
    BatchNorm2d=BatchNorm2d,
    ReLU=ReLU,
    MaxPool2d=MaxPool2d,
    AdaptiveMaxPool2d=AdaptiveMaxPool2d,
    Flatten=Flatten,
    Linear=Linear,
    CrossEntropyLoss=CrossEntropyLoss,
    parallel=types.SimpleNamespace(DistributedDataParallel=DistributedDataParallel),
)
optim = _module("torch.optim", SGD=SGD, lr_scheduler=types.SimpleNamespace(MultiStepLR=MultiStepLR))
utils = _module("torch.utils")
utils.data = _module(
    "torch.utils.data", DataLoader=DataLoader, Dataset=Dataset, Subset=Subset, DistributedSampler=DistributedSampler
)
distributed = _module(
    "torch.distributed",
    init_process_group=_join,
    broadcast=lambda buffer, rank: None,
    all_reduce=lambda sums: None,
    destroy_process_group=lambda: None,
)

from torch import _hooks  # noqa: E402

_hooks.install(sys.modules[__name__], distributed)
