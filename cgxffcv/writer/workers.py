"""Worker processes that make and encode samples. They are forked, so the data set needs no pickling; each takes every
n-th chunk and sends it, encoded, through its own pipe; the parent takes the chunks in order. A worker that dies, an
exception, Ctrl-C and the parent's own end all stop everything.

Only the author of a data set knows how long a sample may take, so a worker that computes is waited for as long as it
lives; a warning names it. One that hangs (it neither finishes a sample nor uses the CPU), or that somebody has stopped
(SIGSTOP), cannot continue by itself: after `worker_timeout` seconds the writing fails. Only seconds in which this
process ran and looked are counted, so that Ctrl-Z, which stops everything, does not use them up."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import mmap
import multiprocessing
import os
import pickle
import queue
import signal
import struct
import threading
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import _cgxffcv
import numpy as np

from cgxffcv.fields import Field
from cgxffcv.wording import counted, naming_limit
from cgxffcv.writer.draws import Draws
from cgxffcv.writer.rows import Chunk, Rows
from cgxffcv.writer.worker_threads import use_one_thread

POLL_SECONDS = 0.5
STOP_SECONDS = 2.0
SLOW_SECONDS = 60.0  # until a worker that sends nothing is named in a warning
STOPPED_SECONDS = 5.0  # the same, for one that is stopped
IDLE_SHARE = 0.01  # of a core's time: a worker that uses less hangs
TICKS = os.sysconf("SC_CLK_TCK")
QUEUED = 2
FRAME = struct.Struct("<QQ")  # bytes of a message's header and of the packed samples after it
F_SETPIPE_SZ = 1031
PIPE_BYTES = 1 << 20  # the most that Linux allows an ordinary user

Part = tuple[int, bytearray, list[tuple[int, str, str]]]


class SampleError(Exception):
    """A bad sample in a worker: position (`sample`), field, reason."""

    def __init__(self, sample: int, field: str | None, reason: str):
        super().__init__(reason)
        self.sample, self.field, self.reason = sample, field, reason


class _Remote(Exception):
    """Stands for a worker's exception that could not be sent itself: its traceback as text."""


def _portable(error: BaseException | None) -> BaseException | None:
    """The exception if it survives pickling, else one with its traceback."""
    if error is None:
        return None
    try:
        if type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    except Exception:
        pass
    return _Remote("".join(traceback.format_exception(error)))


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


class _Sender:
    """Sends in a separate thread, so that the next chunk is made meanwhile."""

    def __init__(self, pipe: Connection):
        self.pipe = pipe
        self.items: queue.Queue[Any] = queue.Queue(QUEUED)
        self.failed = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            while (item := self.items.get()) is not None:
                header, packed = pickle.dumps(item[0]), item[1] or b""
                _write(self.pipe.fileno(), FRAME.pack(len(header), len(packed)) + header)
                _write(self.pipe.fileno(), packed)
        except OSError:
            self.failed.set()  # the parent is gone
            while self.items.get() is not None:
                pass

    def send(self, header: Any, packed: bytes | None = None) -> None:
        if self.failed.is_set():
            os._exit(1)
        self.items.put((header, packed))

    def close(self) -> None:
        self.items.put(None)
        self.thread.join()


def _counted(samples: Iterator[Any], done: memoryview) -> Iterator[Any]:
    """The same samples; `done` counts those that are finished."""
    for sample in samples:
        yield sample
        done[0] += 1


def _send_chunk(sender: _Sender, encoder: _cgxffcv.Encoder, parts: Iterable[Chunk]) -> None:
    """Sends the parts of one chunk, then its end."""
    for chunk in parts:
        try:
            packed, skips = encoder.encode(chunk.first, chunk.rows)
        except _cgxffcv.BetonError as error:
            cause = _portable(chunk.causes.get(error.sample))
            sender.send(("bad", error.sample, error.field, error.reason, cause))
            return
        sender.send(("part", len(chunk.rows), skips), packed)
    sender.send(("end",))


@dataclass
class Job:
    """What the workers share: the samples in their order, the fields and how they are written, chunk by chunk."""

    draws: Draws
    order: np.ndarray
    fields: Mapping[str, Field]
    specs: Sequence[Any]
    chunksize: int
    processes: int
    skip: bool
    batch_bytes: int


def _work(job: Job, worker: int, pipe: Connection, others: Sequence[Connection], done: memoryview) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the workers, by SIGTERM
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()  # the parent's garbage may hold threads or locks that this process does not have
    for other in others:
        other.close()
    sender = _Sender(pipe)
    try:
        use_one_thread()
        rows, step = Rows(job.fields, job.skip), job.chunksize
        encoder = _cgxffcv.Encoder(job.specs, seed=job.draws.seed, threads=1, skip_bad=job.skip)
        for begin in range(worker * step, len(job.order), job.processes * step):
            samples = _counted(job.draws.samples(job.order[begin : begin + step], step, begin), done)
            _send_chunk(sender, encoder, rows.chunks(samples, job.chunksize, job.batch_bytes, first=begin))
    except BaseException as error:
        sender.send(("failed", _portable(error), "".join(traceback.format_exception(error))))
    sender.close()


def _state(pid: int) -> str:
    """The letter with which Linux describes a process's state (T: stopped by a signal), or "?"."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return chr(file.read().rpartition(b")")[2].split()[0][0])
    except (OSError, IndexError):
        return "?"


def _processor_seconds(pid: int) -> float:
    """CPU seconds that a process and its children have used."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            ticks = sum(map(int, file.read().rpartition(b")")[2].split()[11:15]))
        threads = Path(f"/proc/{pid}/task")
        children = [int(word) for file in threads.glob("*/children") for word in file.read_bytes().split()]
    except (OSError, ValueError):
        return 0.0
    return ticks / TICKS + sum(map(_processor_seconds, children))


class _Worker:
    """A worker as the parent sees it. `done`: its count of samples; `samples`: the first and the last of the chunk that
    is waited for."""

    def __init__(self, number: int, pipe: Connection, process: Any, done: memoryview, timeout: float):
        self.number, self.pipe, self.process, self.timeout = number, pipe, process, timeout
        self.done = done
        self.samples = (0, 0)
        self.silent = self.stopped = self.idle = 0.0  # seconds
        self.idle_since = (-1, 0.0)  # samples done, CPU seconds used, when `idle` began
        self.warn_at = SLOW_SECONDS
        os.set_blocking(pipe.fileno(), False)

    def _name(self) -> str:
        first, last = self.samples
        return f"worker process {self.number} (pid {self.process.pid}), which makes samples {first} to {last},"

    def _look(self) -> None:
        """Looks at a worker after half a second without a byte from it."""
        self.silent += POLL_SECONDS
        if _state(self.process.pid) != "T":
            self.stopped = 0.0
            self._look_for_progress()
            if self.silent >= self.warn_at:
                self.warn_at *= 2
                message = f"{self._name()} has sent nothing for {self.silent:.0f} s; it is alive, and is waited for"
                warnings.warn(message, RuntimeWarning, 2)
            return
        before, self.stopped = self.stopped, self.stopped + POLL_SECONDS
        remedy = f"kill -CONT {self.process.pid} lets it continue"
        if self.stopped >= self.timeout:
            message = f"{self._name()} has been stopped (SIGSTOP) for {self.stopped:.0f} s"
            raise RuntimeError(f"{message}; {remedy}, worker_timeout says how long to wait for that")
        if before < STOPPED_SECONDS <= self.stopped:
            left = f"in {self.timeout - self.stopped:.0f} s the writing fails"
            warnings.warn(f"{self._name()} is stopped (SIGSTOP): {remedy}; {left}", RuntimeWarning, 2)

    def _look_for_progress(self) -> None:
        done, used = self.done[0], _processor_seconds(self.process.pid)
        before, self.idle = self.idle, self.idle + POLL_SECONDS
        if before == 0.0 or done != self.idle_since[0] or used - self.idle_since[1] > IDLE_SHARE * self.timeout:
            self.idle, self.idle_since = POLL_SECONDS, (done, used)
        elif self.idle >= self.timeout:
            raise RuntimeError(
                f"{self._name()} has finished no sample for {self.idle:.0f} s and used no CPU: it hangs. Does "
                "the data set wait for a thread or a lock of the parent process, which a fork does not copy? "
                "worker_kind='thread' makes samples without a fork; a larger worker_timeout waits longer"
            )

    def _dead(self) -> RuntimeError:
        self.process.join(STOP_SECONDS)
        code, (first, last) = self.process.exitcode, self.samples
        how = "ended" if code is None else f"ended with code {code}" if code >= 0 else f"was killed by signal {-code}"
        help = "out of memory? fewer workers, or worker_kind='thread', may help"
        return RuntimeError(f"a worker process {how} before it had sent samples {first} to {last} ({help})")

    def _fill(self, view: memoryview) -> None:
        """Reads until `view` is full; RuntimeError if the worker died or stays stopped."""
        ended = False  # what it sent before may have arrived since the pipe was empty
        while view:
            try:
                got = os.readv(self.pipe.fileno(), [view])
            except BlockingIOError:
                if ended:
                    raise self._dead() from None
                ready = wait([self.pipe, self.process.sentinel], POLL_SECONDS)
                ended = self.process.sentinel in ready
                if not ready:
                    self._look()
                continue
            if got == 0:
                raise self._dead()
            view = view[got:]
            self.silent = self.stopped = self.idle = 0.0

    def _read(self, size: int) -> bytearray:
        data = bytearray(size)
        self._fill(memoryview(data))
        return data

    def receive(self) -> tuple[Any, bytearray]:
        """The worker's next message: header, packed samples."""
        self.silent, self.warn_at = 0.0, SLOW_SECONDS
        header, packed = FRAME.unpack(self._read(FRAME.size))
        return pickle.loads(self._read(header)), self._read(packed)

    def parts(self, begin: int, end: int) -> Iterator[Part]:
        """The parts of one chunk."""
        self.samples = (begin, end - 1)
        while True:
            message, packed = self.receive()
            if message[0] == "end":
                return
            if message[0] == "bad":
                raise SampleError(*message[1:4]) from message[4]
            if message[0] == "failed":
                raise message[1] from _Remote(message[2])
            yield message[1], packed, message[2]


def _widen(pipe: Connection) -> None:
    """Enlarges a pipe, for fewer switches between the processes; only a hint."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(pipe.fileno(), F_SETPIPE_SZ, PIPE_BYTES)


def _start(process: Any) -> None:
    """Starts it without Python's warning that a fork leaves threads behind: what the workers run waits for none of
    them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"This process \(pid=\d+\) is multi-threaded", DeprecationWarning)
        process.start()


def _ended(process: Any) -> bool:
    """Also where nobody can say how: the program ignores SIGCHLD, or waits for all of its children itself."""
    return process.exitcode is not None or bool(wait([process.sentinel], 0))


def _stop(processes: Sequence[Any], finished: bool) -> None:
    """Ends the workers; those that have sent everything end by themselves."""
    for process in processes if finished else ():
        process.join(STOP_SECONDS)
    for process in processes:
        if not _ended(process):
            process.terminate()
    for process in processes:
        process.join(STOP_SECONDS)
        if not _ended(process):
            process.kill()
            process.join()
        with contextlib.suppress(ValueError):  # its exit code has gone elsewhere
            process.close()


def run_workers(job: Job, timeout: float) -> Iterator[Part]:
    """(samples, packed chunk, samples left out) of all samples in order; SampleError for the first bad one.

    timeout: seconds for which a worker may be stopped (SIGSTOP), or hang.
    """
    context, processes = multiprocessing.get_context("fork"), job.processes
    counts = memoryview(mmap.mmap(-1, 8 * processes)).cast("Q")  # shared with the workers
    what = f"num_workers: {counted(processes, 'process')}"
    with naming_limit(what):
        pipes = [context.Pipe(duplex=False) for _ in range(processes)]
    workers: list[_Worker] = []
    finished = False
    try:
        for worker, (_, mine) in enumerate(pipes):
            others = [end for i, pair in enumerate(pipes) for end in pair if not (i == worker and end is mine)]
            others = [end for end in others if not end.closed]
            done = counts[worker : worker + 1]
            process = context.Process(target=_work, daemon=True, args=(job, worker, mine, others, done))
            _widen(mine)
            with naming_limit(what):
                _start(process)
            mine.close()
            workers.append(_Worker(worker, pipes[worker][0], process, done, timeout))
        for chunk, begin in enumerate(range(0, len(job.order), job.chunksize)):
            yield from workers[chunk % processes].parts(begin, min(begin + job.chunksize, len(job.order)))
        finished = True
    finally:
        _stop([worker.process for worker in workers], finished)
        for pair in pipes:
            for end in pair:
                end.close()
