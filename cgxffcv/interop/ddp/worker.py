"""One thread that carries out a state's allreduces in the order in which they were asked for, behind backward."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable

import torch

Job = tuple[Callable[[], None], "torch.futures.Future", "Failure"]


class Failure:
    """The first exception of a worker; all that comes later ends with it."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def check(self) -> None:
        if self.error is not None:
            raise self.error


def _work(jobs: queue.SimpleQueue[Job | None]) -> None:
    while (job := jobs.get()) is not None:
        action, done, failure = job
        if failure.error is None:
            try:
                action()
            except BaseException as error:
                failure.error = error
        done.set_result(None)
        del job, action, done, failure  # what they hold may be the last reference to a model


class Worker:
    def __init__(self) -> None:
        self.failure = Failure()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        threading.Thread(target=_work, args=(self._jobs,), name="cgx_hook", daemon=True).start()
        weakref.finalize(self, self._jobs.put, None)

    def submit(self, action: Callable[[], None], result: torch.Tensor) -> torch.futures.Future:
        """A future of `result`, which is complete when the action is; it raises what any action so far has raised."""
        done, failure = torch.futures.Future(), self.failure
        self._jobs.put((action, done, failure))

        def value(_: torch.futures.Future) -> torch.Tensor:
            failure.check()
            return result

        return done.then(value)

    def drain(self) -> None:
        """Waits until nothing is left to do; raises what an action has raised."""
        idle = threading.Event()
        self._jobs.put((idle.set, torch.futures.Future(), Failure()))
        idle.wait()
        self.failure.check()
