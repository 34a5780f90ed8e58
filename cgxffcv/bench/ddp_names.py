"""The names that `bench ddp` knows, without PyTorch."""

from __future__ import annotations

from typing import NamedTuple


class Model(NamedTuple):
    unit: str
    batch: int  # per rank


MODELS = {
    "resnet50": Model("images", 64),
    "vit_b_16": Model("images", 32),
    "gpt2": Model("tokens", 4),
    "tiny": Model("samples", 16),
}
WAYS = {
    "floor": "no sum (floor)",
    "plain": "DDP plain",
    "bf16": "bf16 hook",
    "powersgd": "PowerSGD rank 4",
    **{f"ours{bits}": f"cgx_hook, {bits} bits" for bits in (8, 4, 3, 2)},
}
