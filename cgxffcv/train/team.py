"""The ranks of a training: what they exchange besides gradients."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

__all__ = ["Team"]


class Team:
    """This rank among all. `comm`: a communicator of cgxffcv.comm; None: this process alone. All methods are
    collective."""

    def __init__(self, comm: Any = None):
        self.comm = comm
        self.rank, self.ranks = (0, 1) if comm is None else (comm.rank, comm.size)

    def exchange(self, data: bytes) -> list[bytes]:
        """Every rank's bytes, in rank order."""
        return [data] if self.ranks == 1 else self.comm.allgather(data)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's JSON value, in rank order."""
        if self.ranks == 1:
            return [value]
        return [json.loads(text) for text in self.comm.allgather(json.dumps(value).encode())]

    def broadcast(self, core: Any, name: str) -> None:
        """Gives every rank's trainer core rank 0's buffer of this name."""
        if self.ranks > 1:
            data = self.comm.broadcast(core.read(name).tobytes() if self.rank == 0 else None)
            core.write(name, np.frombuffer(data, np.float32))
