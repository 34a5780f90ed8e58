"""What the ranks of one machine may communicate through: everything, no peer access between GPUs, or only sockets, as
between nodes."""

from __future__ import annotations

import os

_NO_PEER = {"CGXFFCV_P2P": "0", "NCCL_P2P_DISABLE": "1"}
_SOCKETS = _NO_PEER | {"NCCL_SHM_DISABLE": "1", "OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "self,tcp"}
LINKS = {"any": {}, "no-peer": _NO_PEER, "sockets": _SOCKETS}
WORDS = {"any": "all links", "no-peer": "without peer access", "sockets": "over sockets"}


def variables(link: str, ranks: int) -> dict[str, str]:
    """The environment that leaves ours and the rivals this link; over sockets each rank counts as a separate node."""
    return LINKS[link] | ({"CGXFFCV_COMM_NODES": str(ranks)} if link == "sockets" else {})


def take(link: str, ranks: int) -> None:
    """Sets the link for this process, before MPI and NCCL are initialised."""
    os.environ.update(variables(link, ranks))
