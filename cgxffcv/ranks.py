"""`cgxffcv.launch`: runs a function on several ranks of this host, from a notebook cell or a script, without mpirun.

Each rank is a new interpreter, never a fork: a notebook's kernel has threads whose locks a fork would copy as they are,
and a GPU that has been used cannot be used in a fork. The function is sent by value if cloudpickle is installed, so
that it may be defined in a cell, in the script itself, or within another function; without it, it must be one that
another process can import. `__main__` is not run again: a script needs no guard. Ranks have separate sessions, so a
terminal's Ctrl-C reaches only the launching process, which then ends them; they cannot outlive it. They share memory
without a name (memfd).
"""

from __future__ import annotations

import codecs
import ctypes
import faulthandler
import linecache
import mmap
import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from cgxffcv import comm, launch_channel, process_info
from cgxffcv.allreduce import check_timeout
from cgxffcv.errors import RankError, UsageError
from cgxffcv.lengths import taken
from cgxffcv.process_info import MOST_RANKS
from cgxffcv.rank_claim import is_stopped
from cgxffcv.wording import brief, counted, naming_limit

__all__ = ["launch"]

LOOK_SECONDS = 0.05
HEARD_SECONDS = 2.0  # for other ranks to report, perhaps a more specific failure than the first one's
GRACE_SECONDS = 5.0  # for a rank to end after KeyboardInterrupt was raised in it, or its function has returned
STACK_SECONDS = 1.0
MOST_ARGUMENTS = 1 << 16
TAIL_BYTES = 4000  # of what a rank printed, kept for an error
PR_SET_PDEATHSIG = 1
STACK_SIGNAL = signal.SIGUSR2
BEGIN = (
    "import sys; sys.path[:] = {path!r}; sys.argv[:] = {argv!r}; from cgxffcv import ranks; ranks.serve{arguments!r}"
)


# ---- in a rank ----


def serve(rank: int, size: int, parent: int, channel: int, payload: int, stack: int) -> None:
    """Runs a rank: receives the function, calls it, sends the outcome. The last three arguments are descriptors."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    faulthandler.enable(stack, all_threads=False)
    faulthandler.register(STACK_SIGNAL, stack, all_threads=False)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    launch_channel.take(socket.socket(fileno=channel), rank, size)
    with suppress(OSError):  # the launcher is gone
        launch_channel.send(_outcome(payload))


def _taken(payload: int) -> Any:
    """Mapped, not read: all ranks share one file position, which each read would move."""
    try:
        with mmap.mmap(payload, 0, access=mmap.ACCESS_READ) as memory:
            return pickle.loads(memory)
    finally:
        os.close(payload)


def _outcome(payload: int) -> tuple[Any, ...]:
    try:
        function, arguments, sources = _taken(payload)
        for name, lines in sources.items():
            linecache.cache[name] = (sum(map(len, lines)), None, lines, name)
        value = function(*arguments)
    except BaseException as error:
        summary = "".join(traceback.format_exception_only(error)).strip()
        comm.abort_all(summary)
        frames = error.__traceback__.tb_next if error.__traceback__ is not None else None
        text = "".join(traceback.format_exception(type(error), error, frames))
        return "failed", f"raised {summary}", text, isinstance(error, comm.CommError)
    try:
        return "value", _pickled(value)
    except Exception as error:
        return "failed", f"returned a {type(value).__name__}, which cannot be pickled: {error}", "", False


# ---- what is sent ----


def _pickled(value: Any) -> bytes:
    try:
        import cloudpickle
    except ImportError:
        return pickle.dumps(value)
    return cloudpickle.dumps(value)


def _cells() -> dict[str, list[str]]:
    """Lines of source that are in no file, by name: a notebook's cells, for tracebacks."""
    entries = {name: entry for name, entry in linecache.cache.items() if len(entry) == 4 and not os.path.exists(name)}
    return {name: list(entry[2]) for name, entry in entries.items()}  # type: ignore[misc]


def _payload(function: Callable[..., Any], arguments: Sequence[Any]) -> bytes:
    remedy = "pip install cloudpickle, with which it is sent by value; or put it into a module that can be imported"
    given = tuple(taken(arguments, MOST_ARGUMENTS, lambda: f"launch: args must be a tuple, not {brief(arguments)}"))
    by_value = True
    try:
        import cloudpickle  # noqa: F401
    except ImportError:
        by_value = False
    if not by_value and getattr(function, "__module__", None) == "__main__":
        raise UsageError(f"launch: {function!r} is defined in __main__, which other processes cannot import: {remedy}")
    try:
        return _pickled((function, given, _cells()))
    except Exception as error:
        more = "" if by_value else f"; {remedy}"
        raise UsageError(f"launch: the function, or what it uses, cannot be pickled: {error}{more}") from error


# ---- in the launching process ----


@dataclass
class _Rank:
    """A rank as the launching process sees it. `outcome`: its last message, or one made up for a rank that ended
    without."""

    number: int
    process: subprocess.Popen[bytes]
    channel: socket.socket
    stack: int
    inbox: bytearray = field(default_factory=bytearray)
    tail: bytearray = field(default_factory=bytearray)
    worlds: int = 0
    outcome: tuple[Any, ...] | None = None

    def ended(self) -> os.waitid_result | None:
        """How its process ended; it stays a zombie until `reap`, so that its process number is not reused."""
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)

    def stopped(self) -> bool:
        return is_stopped(self.process.pid)

    def fail(self, what: str, text: str = "", heard: bool = False) -> None:
        self.outcome = ("failed", what, text, heard)

    def signal(self, number: int) -> None:
        if self.ended() is None:
            os.kill(self.process.pid, number)

    def reap(self) -> None:
        """Ends what is left of the rank and of the processes that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr, self.channel):
            pipe.close()  # type: ignore[union-attr]
        os.close(self.stack)

    def stack_text(self) -> str:
        return os.pread(self.stack, 1 << 16, 0).decode(errors="replace").strip()


class _Job:
    """The ranks of one call, and what comes from them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.ranks: list[_Rank] = []
        self.selector = selectors.DefaultSelector()
        self.worlds: list[tuple[int, int | None]] = []  # segment and slot_bytes of each
        self.interrupted = False

    def start(self, payload: int) -> None:
        cores = len(os.sched_getaffinity(0))
        environ = {"OMP_NUM_THREADS": str(max(cores // self.size, 1)), **os.environ}
        path, argv = [str(folder) for folder in sys.path], [str(word) for word in sys.argv]
        for number in range(self.size):
            ours, theirs = socket.socketpair()
            with theirs, ExitStack() as undo:
                undo.callback(ours.close)
                stack = os.memfd_create("cgxffcv-stack")
                undo.callback(os.close, stack)
                arguments = (number, self.size, os.getpid(), theirs.fileno(), payload, stack)
                process = subprocess.Popen(
                    [sys.executable, "-u", "-c", BEGIN.format(path=path, argv=argv, arguments=arguments)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env=environ,
                    pass_fds=(theirs.fileno(), payload, stack),
                    start_new_session=True,
                )
                undo.pop_all()
            rank = _Rank(number, process, ours, stack)
            self.ranks.append(rank)
            self._watch(ours, lambda rank=rank: self._read(rank))
            for pipe, name in ((process.stdout, "stdout"), (process.stderr, "stderr")):
                decoder = codecs.getincrementaldecoder("utf-8")("replace")
                self._watch(pipe, lambda rank=rank, p=pipe, n=name, d=decoder: self._pass_on(rank, p, n, d))

    def _watch(self, what: Any, call: Callable[[], bool]) -> None:
        os.set_blocking(what.fileno(), False)
        self.selector.register(what, selectors.EVENT_READ, call)

    def look(self, seconds: float = LOOK_SECONDS) -> None:
        """Takes what has arrived, waiting up to `seconds` for something; then checks which ranks have ended."""
        for key, _ in self.selector.select(seconds):
            if not key.data():
                self.selector.unregister(key.fileobj)
        for rank in self.ranks:
            how = rank.ended() if rank.outcome is None else None
            if how is not None and (not self._read(rank) or rank.outcome is None) and rank.outcome is None:
                rank.fail(_end_of(how), rank.stack_text())

    def _read(self, rank: _Rank) -> bool:
        """Takes a rank's messages; returns False at their end."""
        data = b"?"
        while data:
            try:
                data = rank.channel.recv(1 << 20)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            rank.inbox += data
        head = launch_channel.LENGTH.size
        while len(rank.inbox) >= head:
            end = head + launch_channel.LENGTH.unpack_from(rank.inbox)[0]
            if len(rank.inbox) < end:
                break
            message = pickle.loads(memoryview(rank.inbox)[head:end].tobytes())
            del rank.inbox[:end]
            if message[0] == "world":
                self._world(rank, *message[1:])
            else:
                rank.outcome = message
        self._look_for_absent()
        return bool(data)

    def _world(self, rank: _Rank, number: int, slot_bytes: int | None) -> None:
        """Sends the rank the segment of its communicator, or why there is none."""
        rank.worlds = number + 1
        answer, descriptors = b"here", []
        try:
            if number == len(self.worlds):
                self.worlds.append((comm.segment(self.size, slot_bytes), slot_bytes))
            if self.worlds[number][1] != slot_bytes:
                answer = f"the ranks differ in slot_bytes: {self.worlds[number][1]} and {slot_bytes}".encode()
            else:
                descriptors = [self.worlds[number][0]]
        except (OSError, ValueError, TypeError) as error:
            answer = str(error).encode()
        with suppress(OSError):  # it has ended since
            socket.send_fds(rank.channel, [answer], descriptors)

    def _look_for_absent(self) -> None:
        """Fails a rank that has returned without a call of comm.world() for which others wait."""
        for rank in self.ranks:
            if rank.outcome is not None and rank.outcome[0] == "value" and rank.worlds < len(self.worlds):
                calls = f"call {len(self.worlds)} of comm.world()" if rank.worlds else "a call of comm.world()"
                rank.fail(f"returned without {calls}, in which other ranks wait for it")

    def _pass_on(self, rank: _Rank, pipe: Any, name: str, decoder: codecs.IncrementalDecoder) -> bool:
        try:
            data = os.read(pipe.fileno(), 1 << 16)
        except BlockingIOError:
            return True
        rank.tail += data
        del rank.tail[:-TAIL_BYTES]
        stream, text = getattr(sys, name), decoder.decode(data, not data) if rank.number == 0 else ""
        if text and stream is not None:
            stream.write(text)
            stream.flush()
        return bool(data)

    def wait(self, timeout: float | None) -> list[Any]:
        """Returns what the ranks returned; raises RankError."""
        began, failed = time.monotonic(), 0.0
        while any(rank.outcome is None for rank in self.ranks) and not self.interrupted:
            self.look()
            now = time.monotonic()
            if any(rank.outcome is not None and rank.outcome[0] == "failed" for rank in self.ranks):
                failed = failed or now
                if now - failed > HEARD_SECONDS:
                    break
            elif timeout is not None and now - began > timeout:
                raise self._late(timeout)
        failures = [rank for rank in self.ranks if rank.outcome is not None and rank.outcome[0] == "failed"]
        if failures and not self.interrupted:
            raise self._failure(min(failures, key=lambda rank: rank.outcome[3]))  # type: ignore[index]
        return [] if self.interrupted else [self._value(rank) for rank in self.ranks]

    def _value(self, rank: _Rank) -> Any:
        assert rank.outcome is not None
        try:
            return pickle.loads(rank.outcome[1])
        except Exception as error:
            what = f"returned what cannot be unpickled here: {type(error).__name__}: {error}"
            raise RankError(f"rank {rank.number} of {self.size} {what}", rank.number) from error

    def _failure(self, rank: _Rank) -> RankError:
        assert rank.outcome is not None
        text = f"rank {rank.number} of {self.size} {rank.outcome[1]}"
        if rank.outcome[2]:
            text += f"\n\n{rank.outcome[2].rstrip()}"
        return RankError(text + self._printed(rank), rank.number)

    def _printed(self, rank: _Rank) -> str:
        """What a rank printed whose output is not shown."""
        printed = bytes(rank.tail).decode(errors="replace").strip() if rank.number else ""
        return f"\n\nthe last that rank {rank.number} printed:\n{printed}" if printed else ""

    def _late(self, timeout: float) -> RankError:
        """Names the ranks that have not returned, and where they are."""
        late = [rank for rank in self.ranks if rank.outcome is None]
        for rank in late:
            rank.signal(STACK_SIGNAL)
        end = time.monotonic() + STACK_SECONDS
        while time.monotonic() < end and not all(rank.stack_text() for rank in late):
            self.look()
        names = ", ".join(str(rank.number) for rank in late)
        text = f"rank{'s' * (len(late) > 1)} {names} of {self.size} did not return within {timeout:g} s"
        for rank in late:
            where = rank.stack_text() or ("it is stopped" if rank.stopped() else "it does not answer")
            text += f"\n\nrank {rank.number} (process {rank.process.pid}): {where}{self._printed(rank)}"
        return RankError(text, late[0].number)

    def end(self) -> None:
        """Ends all ranks, and all processes that they started. Those that have not returned are interrupted first."""
        try:
            for rank in self.ranks:
                if rank.outcome is None:
                    rank.signal(signal.SIGINT)
            limit = time.monotonic() + GRACE_SECONDS
            while time.monotonic() < limit and not all(rank.ended() or rank.stopped() for rank in self.ranks):
                self.look()
            for rank in self.ranks:
                rank.signal(signal.SIGKILL)
            self.look(0)
        finally:  # sys.stdout may raise
            self.selector.close()
            for rank in self.ranks:
                rank.reap()
            for descriptor, _ in self.worlds:
                os.close(descriptor)


def _end_of(how: os.waitid_result) -> str:
    if how.si_code == os.CLD_EXITED:
        return f"ended with code {how.si_status} before its function returned"
    known = {number.value: number.name for number in signal.Signals}
    name = known.get(how.si_status, f"signal {how.si_status}")
    return f"was killed by {name}" + " (is there enough memory?)" * (how.si_status == signal.SIGKILL)


@contextmanager
def _interruptible(job: _Job) -> Iterator[None]:
    """Records Ctrl-C, and raises it as it would have been once the ranks have ended."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return

    def note(number: int, frame: Any) -> None:
        job.interrupted = True

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if job.interrupted:
            signal.raise_signal(signal.SIGINT)


def _check(function: object, ranks: object, timeout: object) -> None:
    if not callable(function):
        raise TypeError(f"launch: expected a function, not {function!r}")
    if isinstance(ranks, bool) or not isinstance(ranks, int):
        raise TypeError(f"launch: ranks must be a whole number, not {ranks!r}")
    if ranks < 1:
        raise ValueError(f"launch: ranks must be 1 or more, not {brief(ranks)}")
    if ranks > MOST_RANKS:
        raise ValueError(f"launch: at most {MOST_RANKS} ranks can share one machine's memory, not {brief(ranks)}")
    check_timeout(timeout)
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
        raise UsageError(
            "launch: this process ignores SIGCHLD, so it cannot be seen how ranks end: "
            "call signal.signal(signal.SIGCHLD, signal.SIG_DFL) before"
        )
    here = process_info.or_alone()
    if here.launcher == launch_channel.LAUNCHER or here.size != 1:
        raise UsageError(
            f"launch: this process is already rank {here.rank} of a job of {here.launcher}, and ranks launch no ranks: "
            "call it outside of the job, or use comm.world()"
        )


def launch(
    function: Callable[..., Any], ranks: int = 2, args: Sequence[Any] = (), *, timeout: float | None = None
) -> list:
    """Calls `function(*args)` on that many ranks of this host, each a separate process. Returns what they returned, in
    the order of ranks. Inside, `cgxffcv.comm.world()` is their communicator, over shared memory; the loader's
    `distributed=True` also uses it.

        def mean():
            with cgxffcv.comm.world() as world:
                return world.allreduce(np.full(1000, world.rank, np.float32), bits=4)[0]

        cgxffcv.launch(mean, ranks=2)

    Ranks are new interpreters, not forks, which threads and GPUs would not survive. With cloudpickle installed the
    function, what it uses of the notebook or the script, and `args` are sent by value (what a rank changes stays
    there); without it, functions must be importable. They share the cores (OMP_NUM_THREADS, unless it is set). Rank 0's
    output appears as it is printed; the end of the others' output is shown if they fail.

    timeout: seconds after which ranks that have not returned end the call; None: only waits between ranks have a
    deadline (`comm.world`). Ctrl-C raises KeyboardInterrupt in the ranks, and here once they have ended. However the
    call ends, no rank is left, nor a process that it has started, unless that has a separate session. A rank has five
    seconds to end (threads, what `atexit` calls) once its function has returned, and is killed then.

    Raises RankError if a rank raises (its traceback is the message), is killed, is late, or returns what cannot be
    pickled, or unpickled here; the others are ended. UsageError (a UserError) in a rank of this or of another launcher,
    in a process that ignores SIGCHLD, and for a function that cannot be sent; TypeError, ValueError for wrong
    arguments.
    """
    _check(function, ranks, timeout)
    data = _payload(function, args)
    job = _Job(ranks)
    with _interruptible(job), ExitStack() as stack:
        payload = os.memfd_create("cgxffcv-launch")
        with open(payload, "wb") as file:
            file.write(data)
            file.flush()
            stack.callback(job.end)
            with naming_limit(f"launch: {counted(ranks, 'rank')}"):
                job.start(payload)
            return job.wait(timeout)
