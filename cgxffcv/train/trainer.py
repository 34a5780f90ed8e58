"""The trainer: a recipe, two .beton files and a communicator become a trained network."""

from __future__ import annotations

import json
import math
import time
import warnings
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import _cgxffcv
import numpy as np

from cgxffcv import checkpoint, nn, recipes
from cgxffcv.device import choose as choose_gpu
from cgxffcv.errors import UserError
from cgxffcv.recipes import Recipe, RecipeError
from cgxffcv.train.data import (
    SIDE,
    order_of,
    permutation_of,
    reseed,
    test_loader,
    training_loader,
    whitening_images,
    whole_loader,
)
from cgxffcv.train.interface import EpochReport, EvaluationReport, StepReport
from cgxffcv.train.network import describe
from cgxffcv.train.optim import patch_moments, whitening_filters
from cgxffcv.train.plan import make_plan
from cgxffcv.train.resident import RECORD_FIELDS, ResidentTest, ResidentTraining
from cgxffcv.train.selection import HardestImages
from cgxffcv.train.test import LoaderTest, run_test

__all__ = ["Compression", "Trainer", "TrainingDiverged"]

FORMAT = 1  # of the state
PROJECT = {"never": 0, "always": 1, "thinning": 2}
ALGORITHMS = {"auto": 0, "one_shot": 1, "sra": 2, "ring": 3, "two_level": 4}
ROUNDINGS = {"nearest": 0, "stochastic": 1}
CODECS = {"maxmin": 0, "sign": 1, "maxmin_spikes": 2}
TEST_BATCH, TEST_BATCH_GPU = 500, 2000
READ_BATCH = 1000  # images at a time on their way to the GPU
MAX_SKIPPED = 10  # steps in a row without an update


class TrainingDiverged(UserError, ArithmeticError):
    """Losses or gradients have not been finite for many steps in a row."""


@dataclass(frozen=True)
class Compression:
    """How gradients travel between ranks. `bits` 32 is uncompressed; `layers` gives bits to single layers by name."""

    bits: int = 32
    bucket_size: int = 1024
    layer_min_size: int = 1024
    algorithm: str = "auto"  # one_shot, sra, ring, two_level
    codec: str = "maxmin"  # sign, maxmin_spikes
    rounding: str = "nearest"  # stochastic
    error_feedback: bool = False
    layers: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self):
        for name, table in (("algorithm", ALGORITHMS), ("codec", CODECS), ("rounding", ROUNDINGS)):
            value = getattr(self, name)
            if value not in table:
                raise ValueError(f"compression {name} must be one of {', '.join(table)}, not {value!r}")

    def core(self, seed: int, threads: int) -> tuple:
        """As the C core takes it."""
        special = tuple((name, bits, 0) for name, bits in self.layers.items())
        return (
            self.bits, self.bucket_size, self.layer_min_size, ALGORITHMS[self.algorithm], CODECS[self.codec],
            ROUNDINGS[self.rounding], self.error_feedback, seed, threads, special,
        )  # fmt: skip


@dataclass
class _EpochSums:
    """Of this rank, over the steps of the epoch that is under way."""

    images: int = 0
    correct: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    wire_bytes: int = 0
    skipped: int = 0


class Trainer:
    """Trains one recipe. See `cgxffcv.train.interface` for a short example and for the reports.

    Args:
        recipe: a Recipe or the name of one.
        train, test: .beton files with fields "image" (32 x 32 RGB) and "label" (int). Without `test` there is none.
        comm: a communicator of cgxffcv.comm; None: this process alone. The global permutation is shared among the
            ranks, so that together they see what one rank would with the sum of their batches. Batch-norm statistics
            are each rank's own; the test uses rank 0's.
        compression: how gradients travel, a Compression or its fields as a dict; uncompressed by default.
        threads: of the network and the optimizer; 0: all cores of this process. The same seed gives the same bytes
            for any number of threads.
        num_workers: loader threads; below 1: as many as `threads`.
        device: "auto" (a GPU if there is one), "cpu" or "gpu".
        gpu: index of the GPU; None: the ranks of a machine take its GPUs in turn.
        precision: "auto", "float32", "bfloat16", or on a GPU "float16" (storage of activations; parameters are
            float32).
        deterministic: on a GPU only algorithms that give the same bytes every time; a CPU always does.
        seed: of initialisation, order and augmentation.
        test_batch: images at a time in the test; None: 500, on a GPU 2,000.
        resident: on a GPU, keep the data sets in its memory if they fit; else batches come from loader threads.
        graphs: on a GPU with resident data, record each phase's step once and replay it: the same bytes, faster.
        train_indices, test_indices: the samples to use of each file, numbers or a boolean mask; None: all.

    Raises RecipeError if the batch does not fit the data or the ranks, DataError or BetonError for files that do not
    fit, NotBuiltError without oneDNN, UserError without the GPU that is wished for.
    """

    def __init__(
        self,
        recipe: Recipe | str,
        train: str | PathLike[str],
        test: str | PathLike[str] | None = None,
        *,
        comm: Any = None,
        compression: Compression | Mapping[str, Any] | None = None,
        threads: int = 0,
        num_workers: int = 0,
        device: str = "auto",
        gpu: int | None = None,
        precision: str = "auto",
        deterministic: bool = False,
        seed: int = 0,
        test_batch: int | None = None,
        train_indices: np.ndarray | None = None,
        test_indices: np.ndarray | None = None,
        resident: bool = True,
        graphs: bool = True,
    ):
        self.recipe = recipes.get(recipe) if isinstance(recipe, str) else recipe
        self.comm, self.seed = comm, seed
        self.rank, self.ranks = (0, 1) if comm is None else (comm.rank, comm.size)
        in_turn = 0 if comm is None or gpu is not None else comm.local_rank
        self.gpu = choose_gpu(device, gpu or 0, in_turn)  # None: on the CPU
        self.deterministic = deterministic
        self.steps_at_once: int | None = None  # with resident data, between two returns to the host; None: an epoch's
        self.whitening_seconds = 0.0  # including the reading of its images
        self.load_seconds = 0.0  # waiting for the training loader, in this process
        self._begin()
        if not isinstance(compression, Compression):
            compression = Compression(**(compression or {}))
        self._closers: list[Any] = []
        self._workers = num_workers if num_workers > 0 else threads
        self._train, self._train_indices = train, train_indices
        test_batch = test_batch or (TEST_BATCH if self.gpu is None else TEST_BATCH_GPU)
        try:
            self._open(test, test_indices, test_batch)
            try:
                self._build(compression, threads, precision, min(test_batch, max(self.test_images, 1)))
            except (TypeError, ValueError, OverflowError) as error:
                if isinstance(error, UserError):
                    raise
                raise RecipeError(f"recipe {self.recipe.name} cannot be trained: {error}") from error
            self._open_data(resident and self.gpu is not None, graphs)
            self._initialise()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        """What a training knows before its first step."""
        self.best_accuracy = 0.0
        self._sums = _EpochSums()
        self._skipped_in_a_row = 0
        self._device_seconds, self._device_test_seconds = 0.0, 0.0

    def _open(self, test, test_indices, test_batch) -> None:
        everything = self._everything = self._keep(permutation_of(self._train, self.seed, self._train_indices))
        self._train_indices = everything.indices  # numbers, where a mask was given
        self.samples = everything.num_samples
        self.plan = make_plan(self.recipe, self.samples, self.ranks)
        self._hardest = self._make_hardest()
        self._test = None
        if test is not None:
            self._test = self._keep(test_loader(test, test_batch, self._workers, self.rank, self.ranks, test_indices))

    def _make_hardest(self) -> HardestImages | None:
        if not self.recipe.hardest:
            return None
        return HardestImages(self.plan.fractions, lambda epoch: order_of(self._everything, epoch), self._exchange)

    def _open_data(self, resident: bool, graphs: bool) -> None:
        """The data sets into the GPU's memory, as far as they are wanted there and fit; loaders for the rest."""
        self._resident: ResidentTraining | None = None
        self._loader = None
        self._test_source: Any = None if self._test is None else LoaderTest(self._core, self._test)
        if resident:
            try:
                with whole_loader(self._train, self.recipe, READ_BATCH, self._workers, self._train_indices) as loader:
                    self._resident = self._keep(ResidentTraining(self._core, loader, self.seed, graphs))
                if self._test is not None:
                    self._test_source = ResidentTest(self._resident, self._test)
            except MemoryError as error:
                part = "training" if self._resident is None else "test"
                warnings.warn(f"the {part} set stays in host memory: {error}", stacklevel=4)
        if self._resident is None:
            self._loader = self._keep(
                training_loader(
                    self._train, self.recipe, self.plan.local_batch, self.seed, self._workers, self.rank, self.ranks,
                    self._train_indices, None if self._hardest is None else _Choice(self),
                )
            )  # fmt: skip

    def _build(self, compression, threads, precision, test_batch) -> None:
        recipe, plan, ranks = self.recipe, self.plan, self.ranks
        network = self.network = nn.Network(
            describe(recipe), backend="cpu" if self.gpu is None else "cuda", precision=precision, threads=threads,
            deterministic=self.deterministic,
        )  # fmt: skip
        self._core = self._keep(
            _cgxffcv.Trainer(
                model=network.core, groups=[_core_group(group) for group in plan.groups],
                phases=[(p.first_step, p.side, p.first_block) for p in plan.phases], steps=plan.steps, side=SIDE,
                batch=plan.local_batch, test_batch=test_batch, mean=recipe.mean, std=recipe.std,
                label_smoothing=recipe.label_smoothing, loss_sum=recipe.loss_sum, project=PROJECT[recipe.project],
                lookahead_every=plan.lookahead_every, lookahead_base=0.95**5, comm=self.comm if ranks > 1 else None,
                reduction=compression.core(self.seed, network.threads),
            )
        )  # fmt: skip
        self.compression = compression

    def _keep(self, resource: Any) -> Any:
        self._closers.append(resource)
        return resource

    def _initialise(self) -> None:
        """Random parameters and the whitening; rank 0's count."""
        self.network.initialise(self.seed)
        if self.recipe.network == "airbench":
            begin = time.perf_counter()
            self._whiten()
            self.whitening_seconds = time.perf_counter() - begin
        self._broadcast("parameters")

    def _whiten(self) -> None:
        count = min(self.recipe.whiten_images, self.samples)
        if self._resident is not None:
            self._resident.core.whiten(count, self.recipe.whiten_epsilon)
            self._device_seconds += self._resident.core.seconds()
            return
        images = whitening_images(self._train, self.recipe, count, self._workers, self._train_indices)
        moments = patch_moments(images, threads=self.network.threads)
        filters = whitening_filters(moments, self.recipe.whiten_epsilon)
        parameters = self._core.read("parameters")
        for name, _, _, trained, shape, offset in self._core.layers():
            if not trained:
                assert shape == (24, 2, 2, 3), f"{name} is no whitening layer"
                parameters[offset : offset + filters.size] = filters.transpose(0, 2, 3, 1).reshape(-1)
        self._core.write("parameters", parameters)

    def restart(self, seed: int) -> None:
        """Begins anew, as a Trainer of this seed would, bit for bit; files, plans and recorded steps stay. Collective.

        Raises UserError where gradients are rounded stochastically, for those draws belong to the first seed.
        """
        if self.ranks > 1 and self.compression.bits != 32 and self.compression.rounding == "stochastic":
            raise UserError("a training whose gradients are rounded stochastically cannot begin anew: make a Trainer")
        self.seed = seed
        reseed(self._everything, seed)
        if self._loader is not None:
            reseed(self._loader, seed)
        if self._resident is not None:
            self._resident.core.restart(seed)
            self._resident.core.seconds()
        self._core.steps_done = 0
        for name in ("momentum", "residual"):
            buffer = self._core.read(name)
            if buffer is not None:
                self._core.write(name, np.zeros_like(buffer))
        self._hardest = self._make_hardest()
        self._begin()
        self._initialise()

    def _broadcast(self, name: str) -> None:
        if self.ranks > 1:
            data = self.comm.broadcast(self._core.read(name).tobytes() if self.rank == 0 else None)
            self._core.write(name, np.frombuffer(data, np.float32))

    def _gather(self, value: Any) -> list[Any]:
        """Every rank's JSON value, in rank order."""
        if self.ranks == 1:
            return [value]
        return [json.loads(text) for text in self.comm.allgather(json.dumps(value).encode())]

    def _exchange(self, data: bytes) -> list[bytes]:
        """Every rank's bytes, in rank order."""
        return [data] if self.ranks == 1 else self.comm.allgather(data)

    # ---- where it stands ----

    @property
    def step(self) -> int:
        """Steps done."""
        return self._core.steps_done

    @property
    def steps(self) -> int:
        return self.plan.steps

    @property
    def steps_per_epoch(self) -> int:
        """Of a pass over all images; passes over the hardest images are shorter."""
        return self.plan.steps_per_epoch

    @property
    def epochs(self) -> int:
        """Passes over the data or its hardest images; the last may be cut short."""
        return self.plan.epochs

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return self.epochs if self.finished else self.plan.epoch_of(self.step)

    @property
    def finished(self) -> bool:
        return self.step >= self.steps

    @property
    def images_per_step(self) -> int:
        """Of all ranks."""
        return self.plan.global_batch

    @property
    def test_images(self) -> int:
        """Images of the test file (those in use); 0 without one."""
        return 0 if self._test is None else self._test.num_samples

    @property
    def flops_per_image(self) -> float:
        """Forward and backward in the phase that comes next, in the convolutions and the linear layer."""
        phase = self._phase(min(self.step, self.steps - 1))
        return self._core.flops(phase.side, phase.first_block)[1]

    def _phase(self, step: int) -> Any:
        return [p for p in self.plan.phases if p.first_step <= step][-1]

    def total_flops(self) -> dict[str, float]:
        """Operations of the whole training and of one test, all ranks: train, optimizer (each rank's own), test."""
        train = sum(self._core.flops(p.side, p.first_block)[1] * p_steps for p, p_steps in self._phase_lengths())
        forward, _, optimizer = self._core.flops(SIDE, 0)
        views = len(self.recipe.views)
        per_image = 1 + self.recipe.test_share * (views - 1) if self.recipe.test_share < 1 else views
        return {
            "train": train * self.plan.global_batch,
            "optimizer": optimizer * self.steps,
            "test": forward * per_image * self.test_images,
        }

    def _phase_lengths(self) -> list[tuple[Any, int]]:
        phases = self.plan.phases
        ends = [p.first_step for p in phases[1:]] + [self.steps]
        return [(p, end - p.first_step) for p, end in zip(phases, ends, strict=True)]

    @property
    def precision(self) -> str:
        """What activations are stored as."""
        return self.network.precision

    @property
    def threads(self) -> int:
        return self.network.threads

    def explain(self) -> str:
        """How gradients are exchanged, for people."""
        return self._core.explain()

    @property
    def field_seconds(self) -> float | None:
        """Time of the training on the GPU: whitening (by the host's clock), all steps, the last test; reading, upload
        and library set-up are not in it. None where steps come from host memory."""
        return None if self._resident is None else self._device_seconds + self._device_test_seconds

    @property
    def resident(self) -> bool:
        """Whether the training set lies in the GPU's memory."""
        return self._resident is not None

    # ---- training ----

    def run_epoch(self) -> Iterator[StepReport]:
        """Trains the next epoch, or the rest of an interrupted one; one report after each step. With resident data all
        steps (or `steps_at_once`) are done before the first report, and take the same time each.

        Raises TrainingDiverged after ten steps in a row whose update had to be left out.
        """
        if self.finished:
            raise UserError(f"the training is over: all {self.steps} steps are done")
        epoch = self.plan.epoch_of(self.step)
        first, end = self.step - self.plan.epoch_starts[epoch], self.plan.epoch_end(epoch)
        if first == 0:
            self._sums = _EpochSums()
            if self._hardest is not None:
                self._hardest.begin(epoch)
        if self._resident is not None:
            while self.step < end:
                yield from self._run_resident(epoch, min(end - self.step, self.steps_at_once or end))
            return
        self._seek(epoch, first)
        passing = iter(self._loader)
        last = time.perf_counter()
        try:
            while self.step < end:
                images, labels, ids = next(passing)
                loaded = time.perf_counter()
                losses = None if self._hardest is None else np.empty(len(images), np.float32)
                step, loss, correct, count, skipped, side, _, wire = self._core.step(images, labels, losses)
                if self._hardest is not None:
                    self._hardest.record(ids, losses)
                del images, labels, ids
                now = time.perf_counter()
                self.load_seconds += loaded - last
                self._count(count, correct, loss, now - last, wire, skipped)
                rate = self._core.rate(0, step)[0]
                report = StepReport(
                    epoch, step, self.steps, count, loss / count, correct, rate, now - last, loaded - last, wire,
                    skipped, side,
                )  # fmt: skip
                last = now
                yield report
        finally:
            passing.close()

    def _run_resident(self, epoch: int, steps: int) -> Iterator[StepReport]:
        """Steps on resident data; the trainer has counted all of them when the first report comes."""
        begin = time.perf_counter()
        before, batch = self.step, self.plan.local_batch
        order = order_of(self._everything, epoch) if self._hardest is None else self._hardest.order
        first = (before - self.plan.epoch_starts[epoch]) * self.plan.global_batch
        shared = order[first : first + steps * self.plan.global_batch].reshape(steps, self.ranks, batch)
        ids = shared[:, self.rank].reshape(-1)
        records = np.zeros((steps, RECORD_FIELDS))
        losses = None if self._hardest is None else np.empty(steps * batch, np.float32)
        reports: list[StepReport] = []
        diverged = None
        try:
            self._resident.run(ids, epoch, records, losses)
        finally:
            done = self.step - before
            seconds = (time.perf_counter() - begin) / max(done, 1)
            self._device_seconds += self._resident.core.seconds()
            if losses is not None:
                self._hardest.record(ids[: done * batch], losses[: done * batch])
            for step, (loss, correct, images, skipped, side) in zip(
                range(before, before + done), records.tolist(), strict=False
            ):
                wire = self._core.wire(self._phase(step).first_block)[0]
                reports.append(
                    StepReport(
                        epoch,
                        step,
                        self.steps,
                        int(images),
                        loss / images,
                        int(correct),
                        self._core.rate(0, step)[0],
                        seconds,
                        0.0,
                        wire,
                        bool(skipped),
                        int(side),
                    )  # fmt: skip
                )
                try:
                    self._count(int(images), int(correct), loss, seconds, wire, bool(skipped))
                except TrainingDiverged as error:
                    diverged = error
                    break
        yield from reports
        if diverged is not None:
            raise diverged

    def _seek(self, epoch: int, batch: int) -> None:
        self._loader.load_state_dict(
            self._loader.state_dict() | {"epoch": epoch, "samples_done": batch * self.plan.global_batch}
        )

    def _count(self, images: int, correct: int, loss: float, seconds: float, wire: int, skipped: bool) -> None:
        sums = self._sums
        sums.images += images
        sums.correct += correct
        sums.seconds += seconds
        sums.wire_bytes += wire
        if not skipped:
            sums.loss += loss
            self._skipped_in_a_row = 0
            return
        sums.skipped += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= MAX_SKIPPED:
            raise TrainingDiverged(
                f"the loss or the gradients were not finite in {MAX_SKIPPED} steps in a row (up to step "
                f"{self.step - 1}), so nothing was learned in them; lower the learning rate (recipe "
                f"{self.recipe.name}: lr = {self.recipe.lr:g}), or check the data"
            )

    def end_epoch(self) -> EpochReport:
        """Sums over all ranks of the epoch that has just been run; compares the replicas. Collective.

        Raises CommError if the parameters of two ranks differ.
        """
        mine = dict(vars(self._sums), hash=f"{self._core.hash():016x}")
        everyone = self._gather(mine)
        different = [rank for rank, other in enumerate(everyone) if other["hash"] != everyone[0]["hash"]]
        if different:
            raise _cgxffcv.CommError(
                f"the networks of rank 0 and rank {different[0]} differ after step {self.step - 1} (hashes "
                f"{everyone[0]['hash']} and {everyone[different[0]]['hash']}); the ranks may run different processors, "
                "builds or files"
            )
        total = {name: sum(other[name] for other in everyone) for name in mine if name != "hash"}
        trained = total["images"]
        counted = trained - everyone[0]["skipped"] * self.plan.global_batch  # skipped steps have no loss
        return EpochReport(
            epoch=self.plan.epoch_of(self.step - 1),
            images=trained,
            loss=total["loss"] / counted if counted else math.nan,
            correct=total["correct"],
            accuracy=total["correct"] / trained if trained else 0.0,
            seconds=max(other["seconds"] for other in everyone),
            wire_bytes=total["wire_bytes"],
            skipped=everyone[0]["skipped"],
            replica_hash=mine["hash"],
        )

    def evaluate(self, tta: bool = True) -> EvaluationReport:
        """Tests all images of the test file once, shared among the ranks, with rank 0's running statistics.

        With `tta` on the recipe's views, else on the plain one. Collective. Raises UserError without a test file.
        """
        if self._test is None:
            raise UserError("there is no test set: this trainer was made without a test file")
        begin = time.perf_counter()
        self._broadcast("statistics")
        sums = run_test(self._test_source, self.recipe, self.comm if self.ranks > 1 else None, tta)
        if self._resident is not None:
            self._device_test_seconds = self._resident.core.seconds()
        everyone = self._gather([sums.images, sums.correct, sums.loss])
        images, correct = sum(x[0] for x in everyone), sum(x[1] for x in everyone)
        accuracy = correct / images if images else 0.0
        self.best_accuracy = max(self.best_accuracy, accuracy)
        loss = sum(x[2] for x in everyone) / images if images else math.nan
        return EvaluationReport(self.epoch, images, correct, accuracy, loss, time.perf_counter() - begin)

    # ---- checkpoints ----

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint and the trainer that takes it must have in common."""
        return {
            "format": FORMAT,
            "recipe": self.recipe.as_dict(),
            "samples": self.samples,
            "ranks": self.ranks,
            "seed": self.seed,
            "precision": self.precision,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs: a tensor for each layer and norm, flat buffers, plain values.

        Collective.
        """
        state = self._identity() | {
            "step": self.step,
            "epoch": self.epoch,
            "best_accuracy": self.best_accuracy,
            "skipped_in_a_row": self._skipped_in_a_row,
        }
        everyone = self._gather(vars(self._sums))
        state["sums"] = everyone
        state |= self._tensors(self._core.read("parameters"), self._core.read("statistics"), "")
        state["momentum"] = self._core.read("momentum")
        slow = self._core.read("slow_parameters")
        if slow is not None:
            state |= self._tensors(slow, self._core.read("slow_statistics"), "slow.")
        if self._hardest is not None:
            state |= {f"hardest.{name}": value for name, value in self._hardest.state_dict().items()}
        residual = self._core.read("residual")
        if residual is not None:
            pieces = self.comm.allgather(residual.tobytes())
            state["residual"] = np.stack([np.frombuffer(piece, np.float32) for piece in pieces])
        return state

    def _tensors(self, parameters: np.ndarray, statistics: np.ndarray, prefix: str) -> dict[str, np.ndarray]:
        """Flat buffers as named tensors."""
        out = {}
        for name, _, _, _, shape, offset in self._core.layers():
            out[prefix + name] = parameters[offset : offset + math.prod(shape)].reshape(shape)
        for name, channels, mean, variance in self._core.norms():
            out[f"{prefix}{name}.running_mean"] = statistics[mean : mean + channels]
            out[f"{prefix}{name}.running_variance"] = statistics[variance : variance + channels]
        return out

    def _fill(self, state: Mapping[str, Any], names: tuple[str, str], prefix: str) -> None:
        parameters, statistics = (self._core.read(name) for name in names)
        for name, array in self._tensors(parameters, statistics, prefix).items():
            if name not in state or state[name].shape != array.shape:
                found = "is missing" if name not in state else f"has the shape {state[name].shape}, not {array.shape}"
                raise checkpoint.CheckpointError(f"the state does not fit this network: {name} {found}")
            array[...] = state[name]
        for name, array in zip(names, (parameters, statistics), strict=True):
            self._core.write(name, array)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from there, bit for bit. CheckpointError if the state is of another recipe, data set, seed,
        precision or number of ranks (nothing is changed then), or if something in it is missing or wrong."""
        self._compare(state)
        try:
            self._take(state)
        except checkpoint.CheckpointError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise checkpoint.CheckpointError(
                f"the checkpoint is damaged or not one of a trainer's: {reason}"
            ) from error

    def _take(self, state: Mapping[str, Any]) -> None:
        self._fill(state, ("parameters", "statistics"), "")
        self._core.write("momentum", state["momentum"])
        if self._core.read("slow_parameters") is not None:
            self._fill(state, ("slow_parameters", "slow_statistics"), "slow.")
        self._core.steps_done = state["step"]
        if self._hardest is not None:
            prefix = "hardest."
            self._hardest.load_state_dict({n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)})
        if "residual" in state:
            self._core.write("residual", np.ascontiguousarray(state["residual"][self.rank]))
        self.best_accuracy = float(state["best_accuracy"])
        self._skipped_in_a_row = int(state["skipped_in_a_row"])
        self._sums = _EpochSums(**state["sums"][self.rank])

    def _compare(self, state: Mapping[str, Any]) -> None:
        for name, mine in self._identity().items():
            theirs = state.get(name)
            if theirs == mine:
                continue
            if name == "recipe" and isinstance(theirs, dict):
                name, theirs, mine = next(
                    (f"recipe field {key}", theirs.get(key), value)
                    for key, value in mine.items()
                    if theirs.get(key) != value
                )
            raise checkpoint.CheckpointError(
                f"the checkpoint is of another training: its {name} is {theirs!r}, this one's {mine!r}; resume with "
                "the same settings, or start anew"
            )

    def save(self, path: str | PathLike[str], *, best: bool = False) -> None:
        """Writes a checkpoint, whole or not at all; it says whether it is the best so far. Every rank calls it, rank 0
        writes; a failure reaches all ranks."""
        state = self.state_dict() | {"best": best}
        problem = None
        if self.rank == 0:
            try:
                checkpoint.save(path, state)
            except OSError as error:
                if self.ranks == 1:
                    raise
                problem = f"{error}"
        problem = self._gather(problem)[0]
        if problem is not None:
            raise OSError(f"rank 0 could not write the checkpoint: {problem}")

    def resume(self, path: str | PathLike[str]) -> None:
        """Loads a checkpoint that `save` wrote; every rank reads the file. CheckpointError if it does not fit."""
        self.load_state_dict(checkpoint.load(path))

    # ---- the end ----

    def close(self) -> None:
        """Ends threads and frees memory; the communicator stays the caller's."""
        while self._closers:
            self._closers.pop().close()

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


class _Choice:
    """The order that a loader asks for, of the trainer's hardest images."""

    def __init__(self, trainer: Trainer):
        self._trainer = weakref.proxy(trainer)

    def sample_order(self, epoch: int) -> np.ndarray:
        return self._trainer._hardest.sample_order(epoch)


def _core_group(group: Any) -> tuple:
    """A Group as the C core takes it."""
    kinds = sum(1 << kind for kind in group.kinds)
    return (group.rule.group(), group.base, group.points, *group.steps, kinds, *group.blocks)
