"""Worker processes that make and encode samples. They are forked, so the data set needs no pickling; each takes every
n-th chunk and sends it, encoded, through its own pipe; the parent takes the chunks in order. A worker that dies, an
exception, Ctrl-C and the parent's own end all stop everything: nothing waits for ever."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import _cgxffcv
import numpy as np

from cgxffcv.fields import Field
from cgxffcv.rows import Rows

POLL_SECONDS = 0.5
STOP_SECONDS = 2.0
QUEUED = 2
F_SETPIPE_SZ = 1031
PIPE_BYTES = 1 << 20  # what Linux lets an ordinary user have

Part = tuple[int, bytes, list[tuple[int, str, str]]]


class SampleError(Exception):
    """A bad sample in a worker: position (`sample`), field, reason."""

    def __init__(self, sample: int, field: str | None, reason: str):
        super().__init__(reason)
        self.sample, self.field, self.reason = sample, field, reason


class _Remote(Exception):
    """An exception of a worker that could not be sent itself: its traceback as text."""


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


class _Sender:
    """Sends in a thread of its own, so that the next chunk is made meanwhile."""

    def __init__(self, pipe: Connection):
        self.pipe = pipe
        self.items: queue.Queue[Any] = queue.Queue(QUEUED)
        self.failed = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            while (item := self.items.get()) is not None:
                header, packed = item
                self.pipe.send(header)
                if packed is not None:
                    self.pipe.send_bytes(packed)
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


def _make_chunk(
    rows: Rows, encoder: _cgxffcv.Encoder, dataset: Any, order: np.ndarray, begin: int, end: int, batch_bytes: int,
    sender: _Sender,
) -> None:  # fmt: skip
    """Sends the parts of one chunk, then its end."""
    samples = (_fetch(dataset, index) for index in order[begin:end].tolist())
    for chunk in rows.chunks(samples, end - begin, batch_bytes, first=begin):
        try:
            packed, skips = encoder.encode(chunk.first, chunk.rows)
        except _cgxffcv.BetonError as error:
            cause = _portable(chunk.causes.get(error.sample))
            sender.send(("bad", error.sample, error.field, error.reason, cause))
            return
        sender.send(("part", len(chunk.rows), skips), packed)
    sender.send(("end",))


def _fetch(dataset: Any, index: int) -> Callable[[], Any]:
    return lambda: dataset[index]


def _work(
    worker: int, processes: int, pipe: Connection, others: Sequence[Connection], dataset: Any, order: np.ndarray,
    fields: Mapping[str, Field], specs: Sequence[Any], chunksize: int, seed: int, skip: bool, batch_bytes: int,
) -> None:  # fmt: skip
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the workers, by SIGTERM
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()  # the parent's garbage may hold threads or locks that this process does not have
    for other in others:
        other.close()
    sender = _Sender(pipe)
    try:
        rows = Rows(fields, skip)
        encoder = _cgxffcv.Encoder(specs, seed=seed, threads=1, skip_bad=skip)
        for begin in range(worker * chunksize, len(order), processes * chunksize):
            end = min(begin + chunksize, len(order))
            _make_chunk(rows, encoder, dataset, order, begin, end, batch_bytes, sender)
    except BaseException as error:
        sender.send(("failed", _portable(error), "".join(traceback.format_exception(error))))
    sender.close()


def _receive(pipe: Connection, process: Any, begin: int, end: int) -> Any:
    """The worker's next message; RuntimeError if it died."""
    while True:
        ready = wait([pipe, process.sentinel], POLL_SECONDS)
        if pipe in ready:
            try:
                return pipe.recv()
            except (EOFError, OSError):
                ready = [process.sentinel]
        if process.sentinel in ready:
            process.join(STOP_SECONDS)
            code = process.exitcode
            how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
            raise RuntimeError(f"a worker process {how} before it had sent samples {begin} to {end - 1}"
                               " (out of memory? fewer workers, or worker_kind='thread', may help)")  # fmt: skip


def _parts(pipe: Connection, process: Any, begin: int, end: int) -> Iterator[Part]:
    """The parts of one chunk."""
    while True:
        message = _receive(pipe, process, begin, end)
        if message[0] == "end":
            return
        if message[0] == "bad":
            raise SampleError(*message[1:4]) from message[4]
        if message[0] == "failed":
            raise message[1] from _Remote(message[2])
        try:
            packed = pipe.recv_bytes()
        except (EOFError, OSError):
            _receive(pipe, process, begin, end)  # raises: the worker is dead
            raise
        yield message[1], packed, message[2]


def _widen(pipe: Connection) -> None:
    """Fewer switches between the processes; only a hint."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(pipe.fileno(), F_SETPIPE_SZ, PIPE_BYTES)


def _stop(processes: Sequence[Any], finished: bool) -> None:
    """Workers that have sent everything end by themselves."""
    for process in processes if finished else ():
        process.join(STOP_SECONDS)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(STOP_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
        process.close()


def run_workers(
    dataset: Any, order: np.ndarray, fields: Mapping[str, Field], specs: Sequence[Any], *, chunksize: int,
    processes: int, seed: int, skip: bool, batch_bytes: int,
) -> Iterator[Part]:  # fmt: skip
    """(samples, packed chunk, samples left out) of all samples in order; SampleError for the first bad one."""
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(processes)]
    workers: list[Any] = []
    finished = False
    try:
        for worker, (_, mine) in enumerate(pipes):
            others = [end for i, pair in enumerate(pipes) for end in pair if not (i == worker and end is mine)]
            others = [end for end in others if not end.closed]
            process = context.Process(
                target=_work, daemon=True,
                args=(worker, processes, mine, others, dataset, order, fields, specs, chunksize, seed, skip,
                      batch_bytes),
            )  # fmt: skip
            _widen(mine)
            process.start()
            workers.append(process)
            mine.close()
        for chunk, begin in enumerate(range(0, len(order), chunksize)):
            worker = chunk % processes
            yield from _parts(pipes[worker][0], workers[worker], begin, min(begin + chunksize, len(order)))
        finished = True
    finally:
        _stop(workers, finished)
        for pair in pipes:
            for end in pair:
                end.close()
