"""Makes `init_process_group("cgx")` of a script written for torch_cgx fail with what to write instead."""

from __future__ import annotations

from typing import NoReturn

import torch.distributed as dist

MESSAGE = (
    'there is no backend "cgx" here: compression is done by a hook, and the process group is one of PyTorch. '
    'Write init_process_group("nccl") (or "gloo" on CPUs), and then model.register_comm_hook(CGXState(None, '
    'compression_params={"bits": 4, "bucket_size": 1024}), cgx_hook) with both from cgxffcv.interop.torch'
)


def _refuse(*_: object) -> NoReturn:
    raise ValueError(MESSAGE)


def refuse_cgx_backend() -> None:
    """Registers the refusal, unless torch_cgx itself has been imported and has that name."""
    if dist.is_available() and not hasattr(dist.Backend, "CGX"):
        dist.Backend.register_backend("cgx", _refuse, devices=["cpu", "cuda"])
