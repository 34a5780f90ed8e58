"""What `bench ddp` trains: networks of torchvision, GPT-2 in plain PyTorch, and a tiny one; on random data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from cgxffcv.bench.ddp_names import MODELS
from cgxffcv.errors import UserError

IMAGE_SIZE, CLASSES = 224, 1000


@dataclass(frozen=True)
class Sizes:
    """The sizes of a GPT-2; the defaults are those of the one with 124 M parameters."""

    vocabulary: int = 50257
    context: int = 1024
    width: int = 768
    heads: int = 12
    blocks: int = 12


class Block(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.width
        self.heads = sizes.heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        split = self.qkv(self.norm_attention(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.mix(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.norm_mlp(x)), approximate="tanh"))


class Gpt2(nn.Module):
    """Logits of the next token at every position; the last product shares its weights with the embedding."""

    def __init__(self, sizes: Sizes | None = None) -> None:
        super().__init__()
        self.sizes = sizes = sizes or Sizes()
        self.tokens = nn.Embedding(sizes.vocabulary, sizes.width)
        self.places = nn.Embedding(sizes.context, sizes.width)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.blocks))
        self.norm = nn.LayerNorm(sizes.width)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.places.weight, std=0.01)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x), self.tokens.weight)


class Task(nn.Module):
    """A network with its loss."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = self.network(inputs)
        return functional.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), labels.reshape(-1))


def _of_torchvision(name: str) -> nn.Module:
    try:
        from torchvision import models
    except ImportError as error:
        raise UserError(f"bench ddp: {name} comes from torchvision: pip install torchvision ({error})") from error
    return getattr(models, name)(weights=None)


def make(name: str, device: torch.device) -> Task:
    """The network of that name, the same on all ranks."""
    torch.manual_seed(0)
    if name == "gpt2":
        network: nn.Module = Gpt2()
    elif name == "tiny":
        network = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, 10))
    else:
        network = _of_torchvision(name)
    return Task(network).to(device)


def batch_of(name: str, count: int, rank: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Random inputs and labels, different on each rank."""
    random = torch.Generator().manual_seed(1 + rank)
    if name == "gpt2":
        shape, limit = (count, Sizes().context), Sizes().vocabulary
        inputs = torch.randint(limit, shape, generator=random)
        labels = torch.randint(limit, shape, generator=random)
    else:
        shape = (count, 64) if name == "tiny" else (count, 3, IMAGE_SIZE, IMAGE_SIZE)
        inputs = torch.randn(shape, generator=random)
        labels = torch.randint(10 if name == "tiny" else CLASSES, (count,), generator=random)
    return inputs.to(device), labels.to(device)


def items(name: str, count: int) -> int:
    """Images or tokens of a batch."""
    return count * (Sizes().context if MODELS[name].unit == "tokens" else 1)
