"""One thread that carries out a state's allreduces in the order in which they were asked for, alongside backward."""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections.abc import Callable

import torch

Job = tuple[Callable[[], None], "torch.Tensor | None", "torch.futures.Future", "torch.cuda.Stream | None", "Failure"]


class Failure:
    """The first exception of a worker; everything that comes later fails with it."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def check(self) -> None:
        if self.error is not None:
            raise self.error


def _work(jobs: queue.SimpleQueue[Job | None]) -> None:
    while (job := jobs.get()) is not None:
        action, result, done, stream, failure = job
        if failure.error is None:
            try:
                action()
            except BaseException as error:
                failure.error = error
        with contextlib.nullcontext() if stream is None else torch.cuda.stream(stream):
            done.set_result(result)  # the tensor itself: for anything else, a future remembers no work on streams
        del job, action, result, done, stream, failure  # what they hold may be the last reference to a model


class Worker:
    def __init__(self) -> None:
        self.failure = Failure()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        threading.Thread(target=_work, args=(self._jobs,), name="cgx_hook", daemon=True).start()
        weakref.finalize(self, self._jobs.put, None)

    def submit(
        self, action: Callable[[], None], result: torch.Tensor, stream: torch.cuda.Stream | None = None
    ) -> torch.futures.Future:
        """A future of `result`, which is complete when the action is, and the work that it has put on the stream; it
        raises what any action so far has raised."""
        devices = None if stream is None else [result.device]
        done, failure = torch.futures.Future(devices=devices), self.failure
        self._jobs.put((action, result, done, stream, failure))

        def value(_: torch.futures.Future) -> torch.Tensor:
            failure.check()
            return result

        return done.then(value)

    def drain(self) -> None:
        """Waits until nothing is left to do; raises what an action has raised."""
        idle = threading.Event()
        self._jobs.put((idle.set, None, torch.futures.Future(), None, Failure()))
        idle.wait()
        self.failure.check()
