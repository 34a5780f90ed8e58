"""What a bucket of DistributedDataParallel holds: its parameters, in the order of its flat buffer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from cgxffcv.allreduce import DTYPES, UNCOMPRESSED
from cgxffcv.interop.ddp.settings import PerLayer


@dataclass(frozen=True)
class Layout:
    """Parameters are told apart by identity, not by position: `key` holds their ids, and `parameters` keeps those from
    being reused."""

    key: tuple[int, ...]
    parameters: list[torch.Tensor] = field(repr=False)
    dtype: str
    item_bytes: int
    device: torch.device

    @classmethod
    def of(cls, key: tuple[int, ...], bucket: dist.GradBucket) -> Layout:
        buffer, parameters = bucket.buffer(), list(bucket.parameters())
        first = parameters[0] if parameters and parameters[0].is_complex() else buffer  # whose buffer may be of floats
        return cls(key, parameters, str(first.dtype).removeprefix("torch."), first.element_size(), buffer.device)

    @property
    def is_summed(self) -> bool:
        """Whether plans sum elements of its type; else, as of complex ones, that is for the process group."""
        return self.dtype in DTYPES

    @property
    def elems(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters)

    def spans(self) -> Iterable[tuple[int, int, int]]:
        """Identity, first element and elements of each parameter."""
        first = 0
        for identity, parameter in zip(self.key, self.parameters, strict=True):
            yield identity, first, parameter.numel()
            first += parameter.numel()


class Names:
    """The names of a model's parameters, by the parameters themselves. A copy of it, made together with the model or
    not, is of the copied parameters."""

    def __init__(self, model: Any) -> None:
        own = _unwrapped(model)
        named = own.named_parameters() if hasattr(own, "named_parameters") else own
        self.__setstate__([(name.replace("_orig_mod.", ""), parameter) for name, parameter in named or ()])

    def __getstate__(self) -> list[tuple[str, Any]]:
        return [(name, self._parameters[identity]) for identity, name in self._by_identity.items()]

    def __setstate__(self, named: list[tuple[str, Any]]) -> None:
        self._parameters = {id(parameter): parameter for _, parameter in named}  # held: no other gets its identity
        self._by_identity = {id(parameter): name for name, parameter in named}

    def all(self) -> list[str]:
        return list(self._by_identity.values())

    def of(self, identity: int) -> str | None:
        return self._by_identity.get(identity)

    def parameter(self, identity: int) -> Any:
        """None for one that is not the model's."""
        return self._parameters.get(identity)

    def identity(self, name: str) -> int | None:
        return next((identity for identity, own in self._by_identity.items() if own == name), None)


def _unwrapped(model: Any) -> Any:
    """The user's own module, without what DistributedDataParallel and torch.compile put around it."""
    while True:
        inner = getattr(model, "module", None) if hasattr(model, "register_comm_hook") else None
        inner = getattr(model, "_orig_mod", None) if inner is None else inner
        if inner is None:
            return model
        model = inner


@dataclass(frozen=True)
class Rules:
    """How layers are compressed, as the user has configured it."""

    names: Names
    bits: PerLayer
    bucket_size: PerLayer
    layer_min_size: int

    def _is_large(self, parameter: Any) -> bool:
        return parameter.dim() > 1 and parameter.numel() >= self.layer_min_size

    def chooses(self, identity: int) -> bool:
        """True if one of the model's parameters may get chosen bits: it has none of its own, and is not exact."""
        return self.bits.of(self.names.of(identity))[0] is None and self._is_large(self.names.parameter(identity))

    def table(self, layout: Layout) -> dict[str, Any]:
        """Arguments of an AllreducePlan: the layers, and their own values by their numbers."""
        layers: list[tuple[str | None, tuple[int, ...]]] = []
        bits, sizes = {}, {}
        for index, (identity, parameter) in enumerate(zip(layout.key, layout.parameters, strict=True)):
            name = self.names.of(identity)
            layers.append((name, tuple(parameter.shape)))
            own, by_name = self.bits.of(name)
            if own is not None and (by_name or self._is_large(parameter) or own == UNCOMPRESSED):
                bits[index] = own
            size, _ = self.bucket_size.of(name)
            if size is not None:
                sizes[index] = size
        return {
            "layers": layers,
            "bits": {"default": self.bits.default, **bits} if bits else self.bits.default,
            "bucket_size": {"default": self.bucket_size.default, **sizes},
            "layer_min_size": self.layer_min_size,
        }
