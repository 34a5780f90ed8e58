"""A rank's side of `cgxffcv.launch`: the channel to the process that launched it, over which it asks for the memory of
its communicators and returns what its function returned.

Every message is a length and a pickle. Each `comm.world()` of a rank asks for the segment of that number; the launcher
makes one when the first rank asks, and sends its descriptor to each rank that does.
"""

from __future__ import annotations

import os
import pickle
import socket
import struct
import threading
from typing import Any

from _cgxffcv import CommError, CommTimeout

from cgxffcv import process_info

LENGTH = struct.Struct("<Q")
LAUNCHER = "cgxffcv.launch"
DEFAULT_SECONDS, MOST_SECONDS = 300.0, 1e6  # of a wait; sockets accept no more

_channel: socket.socket | None = None
_owner = 0  # the process that is the rank: its forked children are not
_worlds = 0  # how often it has asked
_asking = threading.Lock()  # only one question and its answer at a time
_unanswered = False  # a question whose answer was not received: later ones would get it


def take(channel: socket.socket, rank: int, size: int) -> None:
    """Makes this process `rank` of `size` for everything that asks `process_info`."""
    global _channel, _owner
    _channel, _owner = channel, os.getpid()
    process_info.settle(
        process_info.ProcessInfo(LAUNCHER, rank, size, rank, size, False, "its call in another process")
    )


def send(message: Any) -> None:
    """Sends a message to the launcher; OSError if it is gone."""
    assert _channel is not None
    data = pickle.dumps(message)
    _channel.sendall(LENGTH.pack(len(data)) + data)


def _seconds(timeout: Any) -> float:
    """The timeout as `comm.attach` takes it; values that it refuses are refused there."""
    try:
        seconds = float(os.environ.get("CGXFFCV_COMM_TIMEOUT") or DEFAULT_SECONDS if timeout is None else timeout)
    except (TypeError, ValueError, OverflowError):
        return DEFAULT_SECONDS
    return min(seconds, MOST_SECONDS) if seconds > 0 else DEFAULT_SECONDS


def _ask(channel: socket.socket, question: Any, seconds: float) -> tuple[bytes, list[int]]:
    global _unanswered
    if _unanswered:
        raise CommError("world: the process that launched this rank has left an earlier question unanswered")
    channel.settimeout(seconds)
    try:
        _unanswered = True
        send(question)
        answer, descriptors, _, _ = socket.recv_fds(channel, 1 << 12, 1)
        _unanswered = False
    except TimeoutError:
        late = CommTimeout(
            f"world: the process that launched this rank, {os.getppid()}, has not answered within {seconds:g} s: it is "
            "stopped, or cannot write what rank 0 prints"
        )
        late.rank, late.operation = None, "world"
        raise late from None
    except OSError as error:
        _unanswered = False
        raise CommError(f"world: the process that launched this rank cannot be asked: {error}") from None
    finally:
        channel.settimeout(None)
    return answer, descriptors


def segment(slot_bytes: int | None, timeout: Any = None) -> int:
    """The descriptor of the segment for this rank's next communicator; the caller closes it. CommError in a child of
    the rank, and if the launcher is gone or could make none; CommTimeout if it does not answer."""
    global _worlds
    if _channel is None or _owner != os.getpid():
        raise CommError("world: this process is a child of a rank of cgxffcv.launch, and not a rank itself")
    with _asking:
        answer, descriptors = _ask(_channel, ("world", _worlds, slot_bytes), _seconds(timeout))
        if not descriptors:
            raise CommError(f"world: {answer.decode() or 'the process that launched this rank is gone'}")
        _worlds += 1
        return descriptors[0]
