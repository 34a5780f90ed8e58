"""Where the batches of an epoch come from: a loader's threads, for a CPU or on their way to a GPU, or a data set in the
memory of the GPU.

`open_steps` chooses; what it returns runs the steps of an epoch and counts each as soon as it is done.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cgxffcv.loader.orders import share_of_order
from cgxffcv.recipes import Recipe
from cgxffcv.train.data import (
    Samples,
    augmentation,
    core_operations,
    evaluation_loader,
    feeding_loader,
    whitening_images,
    whole_loader,
)
from cgxffcv.train.fed import FedEvaluation, FedTraining, HostTraining
from cgxffcv.train.interface import StepReport
from cgxffcv.train.plan import TrainingPlan
from cgxffcv.train.resident import RECORD_FIELDS, ResidentEvaluation, ResidentTraining
from cgxffcv.train.selection import HardestImages
from cgxffcv.train.tally import Tally, TrainingDiverged
from cgxffcv.train.team import Team

__all__ = ["Parts", "Steps", "open_evaluation", "open_steps"]

READ_BATCH = 1000  # images at a time on their way to the GPU
HOST_STEPS = 1  # on a CPU, whose steps take long: each is reported as soon as it is done
FED_STEPS = 64  # of batches on their way to a GPU, between two returns to the host
# Of the container or its control group, versions 2 and 1; "max" or a number.
MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Parts:
    """What a training's steps are made of, wherever their batches come from."""

    core: Any  # a _cgxffcv.Trainer
    recipe: Recipe
    plan: TrainingPlan
    team: Team
    tally: Tally
    samples: Samples  # of the training file
    hardest: HardestImages | None  # None: all samples in every pass
    workers: int  # loader threads
    threads: int  # of the network

    @property
    def path(self) -> str:
        return self.samples.path

    @property
    def indices(self) -> np.ndarray:
        """The numbers of the samples in use."""
        return self.samples.numbers

    def order(self, epoch: int) -> np.ndarray:
        """The sample numbers of a pass that has begun, for all ranks."""
        return self.samples.order(epoch) if self.hardest is None else self.hardest.sample_order(epoch)


class Steps:
    """Steps on one source of batches.

    `at_once`: steps between two returns to the host, unless the caller asks for another number; None: all of a pass.
    `load_seconds`: spent waiting for batches, in this process. `device_seconds`: of steps and whitening since the last
    restart, by the GPU's clock; None on a CPU.
    """

    def __init__(self, parts: Parts, data: ResidentTraining | FedTraining | HostTraining):
        self.core, self.data, self._parts, self.load_seconds = parts.core, data, parts, 0.0
        on_host = isinstance(data, HostTraining)
        self.device_seconds = None if on_host else 0.0
        self.at_once = None if data.resident else HOST_STEPS if on_host else FED_STEPS

    def whiten(self, count: int, epsilon: float) -> None:
        """Sets the frozen whitening layer from the first `count` training images."""
        parts, data = self._parts, self.data
        if isinstance(data, ResidentTraining):
            data.whiten(count, epsilon)
        elif isinstance(data, FedTraining):
            with whole_loader(parts.path, parts.recipe, READ_BATCH, parts.workers, parts.indices[:count]) as loader:
                data.whiten(loader, epsilon)
        else:
            images = whitening_images(parts.path, parts.recipe, count, parts.workers, parts.indices)
            data.whiten(images, epsilon, parts.threads)
        self._take_seconds()

    def _take_seconds(self) -> None:
        if self.device_seconds is not None:
            self.device_seconds += self.data.core.seconds()

    def run(self, epoch: int, end: int, at_once: int | None) -> Iterator[StepReport]:
        """Runs the steps of a pass from the core's current one to before step `end`. A step is counted in the tally
        before its report comes. `at_once`: steps between two returns to the host; None: all. May be closed early: the
        core is then between two steps."""
        plan, batch, at, ids = self._parts.plan, self._parts.plan.local_batch, -1, np.zeros(0, np.int64)
        while self.core.steps_done < end:
            if self.core.steps_done != at:
                at = self.core.steps_done
                ids = self._samples(epoch, at, end)
                self.data.expect(ids, epoch)
            steps = min(end - at, at_once or end)
            mine, ids, at = ids[: steps * batch], ids[steps * batch :], at + steps
            ahead = ids, epoch
            if at == end < plan.steps and self._parts.hardest is None:
                ahead = self._samples(epoch + 1, end, plan.epoch_end(epoch + 1)), epoch + 1
            yield from self._run(epoch, steps, mine, ahead)

    def _run(self, epoch: int, steps: int, ids: np.ndarray, ahead: tuple[np.ndarray, int]) -> Iterator[StepReport]:
        """All of these steps are done before the first report, and take the same time each. What a failure leaves
        undone is not counted. `ahead`: the samples that will come next, and their epoch."""
        hardest, batch = self._parts.hardest, self._parts.plan.local_batch
        begin, waited, before = time.perf_counter(), self.data.wait_seconds(), self.core.steps_done
        records = np.zeros((steps, RECORD_FIELDS))
        losses = None if hardest is None else np.empty(len(ids), np.float32)
        try:
            self.data.run(ids, epoch, records, losses)
            self.data.expect(*ahead)
        except MemoryError as error:
            if not self.data.resident:
                raise
            raise MemoryError(f"{error}; or keep the data sets out of it (resident=False)") from error
        finally:
            done = self.core.steps_done - before
            seconds = (time.perf_counter() - begin) / max(done, 1)
            waited = self.data.wait_seconds() - waited
            self.load_seconds += waited
            self._take_seconds()
            if hardest is not None:
                hardest.record(ids[: done * batch], losses[: done * batch])
            reports, diverged = self._count(epoch, before, seconds, waited / max(done, 1), records[:done].tolist())
        yield from reports
        if diverged is not None:
            raise diverged

    def _count(
        self, epoch: int, first: int, seconds: float, waited: float, records: list[list[float]]
    ) -> tuple[list[StepReport], TrainingDiverged | None]:
        """Reports of these steps, up to the one after which to stop, if any."""
        plan, reports = self._parts.plan, []
        for step, (loss, correct, images, skipped, side) in enumerate(records, first):
            report = StepReport(
                epoch,
                step,
                plan.steps,
                int(images),
                loss / images,
                int(correct),
                self.core.rate(0, step)[0],
                seconds,
                waited,
                self.core.wire(plan.phase_at(step).first_block)[0],
                bool(skipped),
                int(side),
            )
            reports.append(report)
            try:
                self._parts.tally.count(report, loss)
            except TrainingDiverged as error:
                return reports, error
        return reports, None

    def _samples(self, epoch: int, step: int, end: int) -> np.ndarray:
        """The sample numbers of this rank in the steps of a pass from `step` on, in their order."""
        plan, team = self._parts.plan, self._parts.team
        first = (step - plan.epoch_starts[epoch]) * plan.global_batch
        shared = self._parts.order(epoch)[first : first + (end - step) * plan.global_batch]
        return share_of_order(shared, plan.local_batch, team.rank, team.ranks)

    def restart(self, seed: int) -> None:
        """Starts over with orders and augmentation of another seed, from the first epoch on."""
        self.data.restart(seed)
        if self.device_seconds is not None:
            self.data.core.seconds()
            self.device_seconds = 0.0

    def close(self) -> None:
        self.data.close()


def _resident_data(parts: Parts, seed: int, graphs: bool) -> ResidentTraining:
    """MemoryError if the set does not fit."""
    with whole_loader(parts.path, parts.recipe, READ_BATCH, parts.workers, parts.indices) as loader:
        return ResidentTraining(parts.core, loader, seed, graphs)


def host_room(team: Team, meminfo: str = "/proc/meminfo", limits: tuple[str, ...] = MEMORY_LIMITS) -> int:
    """Bytes of the host's memory that this rank may keep images in: half of its share of what is available, within the
    limit of its container."""
    with open(meminfo) as file:
        room = next((int(line.split()[1]) for line in file if line.startswith("MemAvailable:")), 0) * 1024
    for limit in limits:
        with contextlib.suppress(OSError, ValueError):  # there is none
            room = min(room, int(Path(limit).read_text()))
    return room // 2 // (1 if team.comm is None else team.comm.local_size)


def _fed_data(parts: Parts, seed: int, gpu: int, graphs: bool) -> FedTraining:
    keep = len(parts.samples) * parts.recipe.side**2 * 3 <= host_room(parts.team)
    loader = feeding_loader(parts.path, parts.plan.local_batch, parts.workers, gpu, parts.indices, keep)
    try:
        return FedTraining(parts.core, loader, core_operations(augmentation(parts.recipe)), seed, graphs)
    except BaseException:
        loader.close()
        raise


def _host_data(parts: Parts, seed: int) -> HostTraining:
    steps = augmentation(parts.recipe)
    loader = feeding_loader(parts.path, parts.plan.local_batch, parts.workers, None, parts.indices, True, steps, seed)
    return HostTraining(parts.core, loader)


def open_steps(parts: Parts, seed: int, gpu: int | None, resident: bool, graphs: bool) -> Steps:
    """Opens the batches of a training. On a GPU: the data set in its memory, if that is wanted and it fits, else batch
    by batch."""
    if gpu is None:
        return Steps(parts, _host_data(parts, seed))
    if resident:
        try:
            return Steps(parts, _resident_data(parts, seed, graphs))
        except MemoryError as error:
            warnings.warn(f"the training set stays in host memory: {error}", stacklevel=4)
    return Steps(parts, _fed_data(parts, seed, gpu, graphs))


def open_evaluation(
    steps: Steps, parts: Parts, gpu: int | None, samples: Samples, batch: int
) -> ResidentEvaluation | FedEvaluation:
    """The test set, `batch` images at a time: next to the training set, if that is on the GPU and there is room for
    both, else batch by batch."""
    rank, ranks = parts.team.rank, parts.team.ranks
    if steps.data.resident:
        try:
            with evaluation_loader(samples.path, batch, parts.workers, rank, ranks, samples.numbers) as loader:
                return ResidentEvaluation(steps.data.core, loader)
        except MemoryError as error:
            warnings.warn(f"the test set stays in host memory: {error}", stacklevel=4)
    ids = share_of_order(samples.numbers, batch, rank, ranks)
    feeding = feeding_loader(samples.path, min(batch, len(samples)), parts.workers, gpu, ids, keep=False)
    return FedEvaluation(steps.data.core, feeding, ids)
