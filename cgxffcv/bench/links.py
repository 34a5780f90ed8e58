"""What ranks of one machine may use to talk: all there is, no peer access between GPUs, or sockets as between nodes."""

from __future__ import annotations

import os

_NO_PEER = {"CGXFFCV_P2P": "0", "NCCL_P2P_DISABLE": "1"}
_SOCKETS = _NO_PEER | {"NCCL_SHM_DISABLE": "1", "OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "self,tcp"}
LINKS = {"any": {}, "no-peer": _NO_PEER, "sockets": _SOCKETS}
WORDS = {"any": "all links", "no-peer": "without peer access", "sockets": "over sockets"}


def variables(link: str, ranks: int) -> dict[str, str]:
    """The environment that leaves ours and the rivals this link; over sockets each rank is a node of its own."""
    return LINKS[link] | ({"CGXFFCV_COMM_NODES": str(ranks)} if link == "sockets" else {})


def take(link: str, ranks: int) -> None:
    """For this process, before MPI and NCCL begin."""
    os.environ.update(variables(link, ranks))
