"""Transforms: the steps of a pipeline after the decoder. Names and arguments as in FFCV 1.0.2, and a few more.

A Loader fuses the image operations, NormalizeImage, Convert and ToTorchImage of a pipeline into one pass over each
sample in a worker thread. From the first step that it cannot fuse (any callable of yours, say), steps run on whole
batches in the thread that iterates.
"""

from __future__ import annotations

import copy
import operator
from typing import Any

import numpy as np
from _cgxffcv import IMAGE_TYPES, devices, tensor_of_buffer

from cgxffcv.decoders import RandomResizedCropRGBImageDecoder, function_address, row_dtype, row_shape
from cgxffcv.device import check
from cgxffcv.interop.torch import find_torch, is_installed, is_tensor, loaded_torch, move
from cgxffcv.transforms.operations import (
    MAX_CHANNELS,
    OPERATIONS,
    ImageOperation,
    LabelOperation,
    Transform,
    by_channel,
    limits,
    of_channels,
    pair,
)
from cgxffcv.wording import brief

__all__ = [
    "Convert",
    "ImageOperation",
    "LabelOperation",
    "MixupToOneHot",
    "ModuleWrapper",
    "NormalizeImage",
    "RandomResizedCrop",
    "SampleFunction",
    "Squeeze",
    "ToDevice",
    "ToTensor",
    "ToTorchImage",
    "Transform",
    "View",
]


MAX_DIMS = 64  # NumPy's
FLOATS = tuple(name for name in IMAGE_TYPES if "float" in name)  # to which the core converts images
MAX_CLASSES = 2**24  # whole numbers that float32 can distinguish


def whole(value: Any, who: str, name: str, least: int, most: int) -> int:
    """A whole number within bounds."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{who}: {name} must be a whole number, not {brief(value)}")
    number = operator.index(value)
    if not least <= number <= most:
        raise ValueError(f"{who}: {name} must be in {least}..{most}, not {brief(number)}")
    return number


def dtype_name(dtype: Any) -> str:
    """The name of a NumPy, torch or ml_dtypes dtype, or of its name: "float16", "bfloat16"..."""
    text = str(dtype).removeprefix("torch.")
    if text == "bfloat16":
        return text
    named = isinstance(dtype, str) or str(dtype).startswith("torch.")
    try:
        found = None if dtype is None else np.dtype(text if named else dtype)
    except TypeError:
        found = None
    if found is None or found.kind not in "biufc":
        raise TypeError(
            f"{brief(dtype)} is not a dtype of numbers: pass numpy.float16, 'bfloat16', torch.float16 or the like"
        )
    return found.name


class NormalizeImage(Transform):
    """(value - mean) / std with mean and std in the units of the pixels (0..255 of uint8), computed in float64 and
    rounded once to `type`.

    Args:
        mean, std: one number, or one per channel.
        type: numpy.float32, numpy.float16, "bfloat16" (NumPy arrays then hold its bits as uint16), or torch dtypes.
    """

    def __init__(self, mean, std, type):  # noqa: A002 (FFCV's name)
        self.mean, self.std = mean, std
        if len({len(values) for values in (self.mean, self.std) if len(set(values)) > 1}) > 1:
            raise ValueError(f"mean and std have different numbers of channels: {mean!r} and {std!r}")
        self.type = type

    def _kept_mean(self, mean: Any) -> tuple[float, ...]:
        return by_channel(mean, "mean")

    def _kept_std(self, std: Any) -> tuple[float, ...]:
        values = by_channel(std, "std")
        if min(values) <= 0:
            raise ValueError(f"std must be above 0, not {std!r}")
        return values

    def _kept_type(self, given: Any) -> str:
        name = dtype_name(given)
        if name not in FLOATS:
            raise ValueError(f"type must be one of {', '.join(FLOATS)}, not {name}")
        return name

    def of_batch(self, batch: Any, channel: int) -> Any:
        """Normalises a whole batch, after steps that cannot be fused; `channel` is the number of its dimension of
        channels."""
        self._check_array(batch)
        if batch.ndim == 3 and channel == 3:
            return self.of_batch(batch[..., None], channel)[..., 0]
        if batch.ndim != 4 or not 1 <= batch.shape[channel] <= MAX_CHANNELS:
            where = "(batch, channels, height, width)" if channel == 1 else "(batch, height, width, channels)"
            raise TypeError(f"{self!r} takes images {where} of up to {MAX_CHANNELS} channels, not {tuple(batch.shape)}")
        channels = batch.shape[channel]
        shape = [channels if dim == channel else 1 for dim in range(4)]
        both = (("mean", self.mean), ("std", self.std))
        mean, std = (np.reshape(of_channels(values, f"{self!r}: {name}", channels), shape) for name, values in both)
        if is_tensor(batch):
            torch = find_torch()
            mean, std = (torch.as_tensor(values, device=batch.device) for values in (mean, std))
            return ((batch - mean) / std).to(getattr(torch, self.type))
        if self.type == "bfloat16":
            raise TypeError("NumPy has no bfloat16: put ToTensor() before steps that cannot be fused")
        return ((batch - mean) / std).astype(self.type)


class ToTensor(Transform):
    """Turns arrays, also pairs of them, into torch tensors over the same memory; this imports torch. If torch is not
    installed they stay NumPy arrays. Anything else (a list of values) stays as it is."""

    def __call__(self, batch):
        if isinstance(batch, tuple):
            return tuple(map(self, batch))
        torch = find_torch()
        return torch.from_numpy(batch) if torch is not None and isinstance(batch, np.ndarray) else batch


def device_name(device: Any) -> str:
    """ "cpu", "cuda:1"... from a name, a torch.device, or the number of a GPU; ValueError if torch, once it is
    imported, does not know it."""
    if isinstance(device, bool) or not (
        isinstance(device, str) or hasattr(device, "__index__") or hasattr(device, "type")
    ):
        raise TypeError(f"a device is 'cpu', 'cuda:0', a torch.device or the number of a GPU, not {device!r}")
    if hasattr(device, "__index__"):
        number = operator.index(device)
        if number < 0:
            raise ValueError(f"GPUs are numbered from 0, not {number}")
        return f"cuda:{number}"
    torch = loaded_torch()
    if torch is None or not isinstance(device, str):
        return str(device)
    try:
        return str(torch.device(device))
    except RuntimeError as error:
        raise ValueError(f"torch knows no device {device!r}: {str(error).splitlines()[0]}") from None


def gpu_number(device: str) -> int:
    """The number in "cuda:1" or "cuda", without torch. ValueError or UserError if there is no such device."""
    kind, _, number = device.partition(":")
    if kind != "cuda" or not (number or "0").isdigit():
        raise ValueError(
            f"ToDevice({device!r}): without torch a device is 'cpu', 'cuda' or 'cuda:' and a number; tensors, which "
            "ToTensor() gives if torch is installed, go to all of torch's devices"
        )
    check("gpu", int(number or 0))
    return int(number or 0)


class ToDevice(Transform):
    """Moves the batch to a device: a name, a torch.device, or the number of a GPU. Torch tensors go wherever torch can.

    In a program that does not use torch, NumPy arrays go to a GPU and become arrays with DLPack and
    `__cuda_array_interface__` (`cupy.asarray(batch)`), which a callable of yours after it gets. A program uses torch if
    it has imported it when it makes the Loader, or if one of the Loader's pipelines has ToTensor and torch is
    installed. With `Loader(arrays="numpy")`, only pipelines that have ToTensor use torch. A pipeline that uses torch
    needs tensors here, which ToTensor gives.

    The Loader's batches are in page-locked memory, from which a GPU copies while it works, unless its `page_locked`
    says otherwise.

    Images of uint8 with three channels are moved as they are, and operations, NormalizeImage, Convert and ToTorchImage
    after it are done on the GPU, with the same draws and the same values, if the GPU can do all of them; else before
    the move, as other transforms are. `Loader.explain()` says what is done where, and why."""

    def __init__(self, device, non_blocking: bool = True):
        self.device = device
        self.non_blocking = bool(non_blocking)
        self._gpu = None if self.device == "cpu" or is_installed() else gpu_number(self.device)

    def _kept_device(self, device: Any) -> str:
        return device_name(device)

    def _arguments(self) -> str:
        return f"{self.device!r}, non_blocking={self.non_blocking}"

    @property
    def gpu(self) -> int | None:
        """The number of the GPU, for "cuda" torch's current one; None if the core does not see it."""
        kind, _, number = self.device.partition(":")
        if kind != "cuda":
            return None
        torch = loaded_torch() if self._gpu is None else None
        if number == "" and torch is not None and torch.cuda.is_available():
            number = torch.cuda.current_device()
        return int(number or 0) if int(number or 0) < len(devices()) else None

    @property
    def comes_last(self) -> bool:
        """True if no step here can work on what it gives."""
        return self._gpu is not None

    def settled(self, tensors: bool) -> ToDevice:
        """The same for a pipeline in which torch's tensors come to it, or else arrays. Raises ValueError or UserError
        if there is no such device for them."""
        gpu = None if tensors or self.device == "cpu" else gpu_number(self.device)
        if tensors:
            device_name(self.device)
        if gpu == self._gpu:
            return self  # an object of a user's class stays the one that the user has
        chosen = copy.copy(self)
        chosen._gpu = gpu
        return chosen

    def __call__(self, batch):
        if isinstance(batch, tuple):
            return tuple(map(self, batch))
        if is_tensor(batch):
            return move(batch, self.device, self.non_blocking)
        if self.device == "cpu":
            return batch
        if not isinstance(batch, np.ndarray):
            raise TypeError(f"ToDevice({self.device!r}) moves arrays and tensors, not a {type(batch).__name__}")
        if self._gpu is None and loaded_torch() is not None:
            raise TypeError(
                f"ToDevice({self.device!r}) needs torch tensors: put ToTensor() before it; or, for arrays with DLPack "
                "and __cuda_array_interface__ on the GPU, Loader(arrays='numpy')"
            )
        gpu = gpu_number(self.device) if self._gpu is None else self._gpu
        return tensor_of_buffer(np.ascontiguousarray(batch)).copy(device=gpu)


class ToTorchImage(Transform):
    """Turns images (batch, height, width, channels) into (batch, channels, height, width); those of one channel may be
    (batch, height, width).

    Args:
        channels_last: keep the memory in the order of height, width, channel; else it is contiguous in the new shape.
        convert_back_int16: accepted for compatibility with FFCV; bfloat16 and float16 need no detour here.
    """

    def __init__(self, channels_last: bool = True, convert_back_int16: bool = True):
        self.channels_last = bool(channels_last)
        self.convert_back_int16 = bool(convert_back_int16)

    def __call__(self, batch):
        self._check_array(batch)
        if batch.ndim == 3:
            batch = batch[..., None]
        if batch.ndim != 4:
            raise TypeError(f"{self!r} takes images (batch, height, width, channels), not {tuple(batch.shape)}")
        if is_tensor(batch):
            moved = batch.permute(0, 3, 1, 2)
            return moved if self.channels_last else moved.contiguous()
        moved = np.moveaxis(batch, 3, 1)
        return moved if self.channels_last else np.ascontiguousarray(moved)


class Convert(Transform):
    """Converts to another dtype, by value."""

    def __init__(self, target_dtype):
        self.target_dtype = target_dtype

    def _kept_target_dtype(self, target_dtype: Any) -> str:
        return dtype_name(target_dtype)

    def __call__(self, batch):
        self._check_array(batch)
        if is_tensor(batch):
            return batch.to(getattr(find_torch(), self.target_dtype))
        if self.target_dtype == "bfloat16":
            raise TypeError("NumPy has no bfloat16: put Convert('bfloat16') before steps that cannot be fused")
        return batch.astype(self.target_dtype)


class View(Transform):
    """Reinterprets the bytes as another dtype."""

    def __init__(self, target_dtype):
        self.target_dtype = target_dtype

    def _kept_target_dtype(self, target_dtype: Any) -> str:
        return dtype_name(target_dtype)

    def __call__(self, batch):
        self._check_array(batch)
        try:
            return batch.view(getattr(find_torch(), self.target_dtype) if is_tensor(batch) else self.target_dtype)
        except (RuntimeError, TypeError, ValueError) as error:
            raise TypeError(
                f"{self!r}: the last dimension of {batch.dtype} {tuple(batch.shape)} does not hold a whole number of "
                f"{self.target_dtype}, or not contiguous ({error})"
            ) from None


class Squeeze(Transform):
    """Drops the given dimensions where their size is 1 (dimension 0 is the batch); without arguments, all of size 1
    but the batch."""

    def __init__(self, *dims: int):
        self.dims = tuple(whole(dim, "Squeeze", "a dimension", -MAX_DIMS, MAX_DIMS - 1) for dim in dims)

    def __call__(self, batch):
        self._check_array(batch)
        ndim = len(batch.shape)
        beyond = [dim for dim in self.dims if not -ndim <= dim < ndim]
        if beyond:
            raise ValueError(f"{self!r}: a batch of shape {tuple(batch.shape)} has no dimension {beyond[0]}")
        dims = {dim % ndim for dim in self.dims} if self.dims else set(range(1, ndim))
        shape = [size for dim, size in enumerate(batch.shape) if dim not in dims or size != 1]
        return batch.reshape(shape)


class ModuleWrapper(Transform):
    """Runs a torch module, or any callable, on the whole batch (without gradients, like all steps of a pipeline)."""

    def __init__(self, module):
        if isinstance(module, type) or not callable(module):
            hint = f": write {module.__name__}(...)" if isinstance(module, type) else ""
            raise TypeError(f"ModuleWrapper: module must be callable on a batch, which {brief(module)} is not{hint}")
        self.module = module

    def __call__(self, batch):
        return self.module(batch)


class SampleFunction(Transform):
    """A C function that works on each sample's row in the worker threads, any number of which call it at the same time.
    It comes after the decoder and what is fused with it, and before all steps on whole batches.

        int32_t function(void *to, const void *from, uint64_t sample)

    fills `to`, whose bytes are zero at first, from the row `from` as it is so far, both C-contiguous. A return value
    other than 0 ends the pass with BetonError. A bare function of ctypes, cffi or numba.cfunc in a pipeline means the
    same as SampleFunction(function).

    Args:
        function: from numba.cfunc, ctypes or cffi, or its address. It must not touch Python objects.
        shape, dtype: of the rows that it makes; None: the same as those that it gets. shape is () for one value per
        sample.
    """

    def __init__(self, function: Any, shape: Any = None, dtype: Any = None):
        if dtype is not None and shape is None:
            raise ValueError("SampleFunction: dtype needs a shape: give both")
        self.function, self.address = function, function_address(function)
        self.shape = None if shape is None else row_shape(shape)
        self.dtype = None if shape is None else row_dtype(np.uint8 if dtype is None else dtype)

    def core_step(self) -> dict[str, Any]:
        """As the core takes it."""
        same = self.shape is None
        return {"address": self.address, "same": same, "dtype": self.dtype or "uint8", "shape": self.shape or ()}

    def _arguments(self) -> str:
        return f"{self.function!r}" + ("" if self.shape is None else f", shape={self.shape}, dtype={self.dtype}")


class MixupToOneHot(Transform):
    """Turns what LabelMixup or LabelCutMix gives, (batch, 3), into (batch, num_classes): the share of each class. Those
    of two equal labels add up to 1."""

    def __init__(self, num_classes: int):
        self.num_classes = whole(num_classes, "MixupToOneHot", "num_classes", 1, MAX_CLASSES)

    def __call__(self, batch):
        self._check_array(batch)
        if batch.ndim != 2 or batch.shape[1] != 3:
            raise TypeError(f"{self!r} takes labels of LabelMixup or LabelCutMix (batch, 3), not {tuple(batch.shape)}")
        if is_tensor(batch):
            shares, first, second = batch.new_zeros((len(batch), self.num_classes)), *batch[:, :2].long().T
            rows = find_torch().arange(len(batch), device=batch.device)
        else:
            shares, first, second = np.zeros((len(batch), self.num_classes), batch.dtype), *batch[:, :2].astype(int).T
            rows = np.arange(len(batch))
        for labels in (first, second):
            for bad in (int(labels.min()), int(labels.max())) if len(labels) else ():
                if not 0 <= bad < self.num_classes:
                    raise ValueError(f"{self!r}: label {bad} is not one of the classes 0..{self.num_classes - 1}")
        shares[rows, first] += batch[:, 2]
        shares[rows, second] += 1 - batch[:, 2]
        return shares


class RandomResizedCrop(Transform):
    """The random rectangle of RandomResizedCropRGBImageDecoder, as the first step: after a SimpleRGBImageDecoder,
    instead of which the Loader decodes with that one, so that images may have any sizes; or after an NDArrayDecoder,
    for arrays that are images.

    Args:
        scale, ratio, interpolation: as the decoder's.
        size: side, or (height, width), of the result.
    """

    def __init__(self, scale, ratio, size, interpolation: str = "area"):
        self.scale, self.ratio = limits(scale, "scale"), limits(ratio, "ratio")
        self.size, self.interpolation = pair(size, "size"), interpolation
        self.decoder("accurate")

    def decoder(self, jpeg_mode: str) -> RandomResizedCropRGBImageDecoder:
        """The decoder that does this while it decodes."""
        return RandomResizedCropRGBImageDecoder(self.size, self.scale, self.ratio, self.interpolation, jpeg_mode)


globals().update(OPERATIONS)
__all__ += OPERATIONS
