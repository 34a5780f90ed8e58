"""A rank's side of `cgxffcv.launch`: the channel to the process that launched it, over which it asks for the memory of
its communicators and hands back what its function returned.

Every message is a length and a pickle. Each `comm.world()` of a rank asks for the segment of that number; the launcher
makes one when the first rank asks, and sends its descriptor to each that does.
"""

from __future__ import annotations

import os
import pickle
import socket
import struct
import threading
from typing import Any

from _cgxffcv import CommError

from cgxffcv import place

LENGTH = struct.Struct("<Q")
LAUNCHER = "cgxffcv.launch"

_channel: socket.socket | None = None
_owner = 0  # the process that sits here: its forked children do not
_worlds = 0  # how often it has asked
_asking = threading.Lock()  # one question and its answer at a time


def take(channel: socket.socket, rank: int, size: int) -> None:
    """Makes this process `rank` of `size` for all that asks `place`."""
    global _channel, _owner
    _channel, _owner = channel, os.getpid()
    place.settle(place.Place(LAUNCHER, rank, size, rank, size, False, "its call in another process"))


def send(message: Any) -> None:
    """To the launcher; OSError if it is gone."""
    assert _channel is not None
    data = pickle.dumps(message)
    _channel.sendall(LENGTH.pack(len(data)) + data)


def segment(slot_bytes: int | None) -> int:
    """The descriptor of the segment for this rank's next communicator; the caller closes it. CommError in a child of
    the rank, and if the launcher is gone or could make none."""
    global _worlds
    if _channel is None or _owner != os.getpid():
        raise CommError("world: this process is a child of a rank of cgxffcv.launch, and no rank itself")
    with _asking:
        try:
            send(("world", _worlds, slot_bytes))
            told, descriptors, _, _ = socket.recv_fds(_channel, 1 << 12, 1)
        except OSError as error:
            raise CommError(f"world: the process that launched this rank cannot be asked: {error}") from None
        if not descriptors:
            raise CommError(f"world: {told.decode() or 'the process that launched this rank is gone'}")
        _worlds += 1
        return descriptors[0]
