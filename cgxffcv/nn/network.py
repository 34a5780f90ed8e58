"""A network of the C core, with its layers by name."""

from __future__ import annotations

from typing import NamedTuple

import _cgxffcv
import numpy as np

from cgxffcv.nn.describe import Description
from cgxffcv.wording import counted

__all__ = ["Layer", "Network", "Statistic"]


class Layer(NamedTuple):
    """One parameter tensor. `shape` is (out, kernel, kernel, in) for filters, (classes, in) for the linear layer."""

    name: str
    kind: str  # filters, bias, norm_scale, norm_bias, linear
    node: int
    block: int
    trained: bool
    shape: tuple[int, ...]
    offset: int  # in elements of the flat buffers
    elems: int


class Statistic(NamedTuple):
    """Where the running mean and variance of one norm are in `Network.running`."""

    name: str
    node: int
    block: int
    mean_offset: int
    variance_offset: int
    channels: int


class Network:
    """Parameters, gradients and running statistics of a described network.

    `parameters`, `gradients`, `running` are flat float32 arrays: what is written there applies from the next call on.
    On the CPU they are views of the C core's memory; on a GPU they are host memory: a call of a plan copies them to the
    device if they were written to, and back when it is done. Layers are in the order in which the backward pass
    finishes them; layers that are not trained come after those and have no gradient.

    backend: "cpu", or "cuda" for the first GPU. precision: "float32", "bfloat16", "float16" (GPU only): activations and
    products; parameters, statistics and sums stay float32. "auto" is bfloat16 if the CPU multiplies it faster, float16
    on a GPU. threads: of the CPU; 0 takes all cores of this process. deterministic: on a GPU, only algorithms that give
    the same bytes every time; the CPU always does. Raises ValueError for a description that cannot be built,
    NotBuiltError without oneDNN (when a plan is made) or CUDA, CudaError without a usable GPU.
    """

    def __init__(
        self,
        description: Description,
        *,
        backend: str = "cpu",
        precision: str = "auto",
        convolution: str = "auto",
        threads: int = 0,
        deterministic: bool = False,
    ):
        self.description = description
        self.core = _cgxffcv.Model(
            description.core(),
            description.image_channels,
            backend=backend,
            precision=precision,
            convolution=convolution,
            threads=threads,
            deterministic=deterministic,
        )
        self.layers = [Layer(*item) for item in self.core.layers]
        self.statistics = [Statistic(*item) for item in self.core.statistics]
        self.parameters: np.ndarray = self.core.parameters
        self.gradients: np.ndarray = self.core.gradients
        self.running: np.ndarray = self.core.running
        self.backend: str = self.core.backend
        self.precision: str = self.core.precision
        self.threads: int = self.core.threads

    def __repr__(self) -> str:
        if not hasattr(self, "threads"):  # a debugger or a traceback may look at one whose constructor failed
            return f"<Network {getattr(self.description, 'name', '?')}: could not be made>"
        parameters = sum(layer.elems for layer in self.layers)
        where = counted(self.threads, "thread") if self.backend == "cpu" else self.backend
        return f"<Network {self.description.name}: {parameters:,} parameters, {self.precision}, {where}>"

    def initialise(self, seed: int) -> None:
        """Sets initial values by the description, a pure function of seed and layer name; frozen filters stay."""
        self.core.initialise(seed)

    def gradient_elems(self, first_block: int = 0) -> int:
        """Length of the prefix of `gradients` that belongs to blocks from `first_block` on."""
        return self.core.gradient_elems(first_block)

    def _layer(self, name: str) -> Layer:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(f"no layer {name!r}; there are {', '.join(layer.name for layer in self.layers)}")

    def parameter(self, name: str) -> np.ndarray:
        """A layer's values, a view in its shape."""
        layer = self._layer(name)
        return self.parameters[layer.offset : layer.offset + layer.elems].reshape(layer.shape)

    def gradient(self, name: str) -> np.ndarray:
        """A trained layer's gradient, a view in its shape."""
        layer = self._layer(name)
        if not layer.trained:
            raise KeyError(f"layer {name!r} is not trained, so it has no gradient")
        return self.gradients[layer.offset : layer.offset + layer.elems].reshape(layer.shape)

    def running_mean(self, name: str) -> np.ndarray:
        """The running mean of a norm, a view."""
        statistic = self._statistic(name)
        return self.running[statistic.mean_offset : statistic.mean_offset + statistic.channels]

    def running_variance(self, name: str) -> np.ndarray:
        """The running variance of a norm, a view."""
        statistic = self._statistic(name)
        return self.running[statistic.variance_offset : statistic.variance_offset + statistic.channels]

    def _statistic(self, name: str) -> Statistic:
        for statistic in self.statistics:
            if statistic.name == name:
                return statistic
        raise KeyError(f"no norm {name!r}; there are {', '.join(item.name for item in self.statistics)}")

    def plan(
        self, batch: int, size: int | tuple[int, int], *, training: bool = True, keep_all: bool = False
    ) -> _cgxffcv.Plan:
        """Memory and code for up to `batch` images of size x size (or height x width) pixels.

        Plans of several sizes share the parameters. keep_all, for tests, keeps every intermediate tensor readable.
        """
        height, width = (size, size) if isinstance(size, int) else size
        return _cgxffcv.Plan(self.core, batch, height, width, training=training, keep_all=keep_all)
