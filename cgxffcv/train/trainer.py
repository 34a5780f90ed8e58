"""The trainer, which makes a trained network from a recipe, two .beton files and a communicator."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import Any

import _cgxffcv
import numpy as np

from cgxffcv import checkpoint, costs, nn, recipes
from cgxffcv.classes import check_names
from cgxffcv.device import choose as choose_gpu
from cgxffcv.device import devices
from cgxffcv.errors import UserError
from cgxffcv.nn.recipe import describe
from cgxffcv.recipes import Recipe, RecipeError
from cgxffcv.train import state as states
from cgxffcv.train.algorithms import describe_algorithms
from cgxffcv.train.compression import Compression
from cgxffcv.train.data import Samples
from cgxffcv.train.evaluate import run_evaluation
from cgxffcv.train.interface import EpochReport, EvaluationReport, StepReport
from cgxffcv.train.plan import LOOKAHEAD_BASE, TrainingPlan, image_flops, make_plan, training_flops
from cgxffcv.train.selection import HardestImages
from cgxffcv.train.steps import Parts, open_evaluation, open_steps
from cgxffcv.train.tally import Tally, TrainingDiverged, compare_replicas, epoch_report
from cgxffcv.train.team import Team
from cgxffcv.wording import NotebookText, counted

__all__ = ["Compression", "Trainer", "TrainingDiverged"]

TEST_BATCH, TEST_BATCH_GPU = 500, 2000


class Trainer:
    """Trains one recipe. See `cgxffcv.train.interface` for a short example and for the reports.

    Args:
        recipe: a Recipe or the name of one.
        train, test: .beton files with an image field (RGB, of the recipe's side) and an int field, called "image" and
            "label" if there are several. Without `test` there is no test.
        comm: a communicator of cgxffcv.comm; None: this process alone. The global permutation is shared among the
            ranks, so that together they see what one rank would with the sum of their batches. Batch-norm statistics
            are each rank's own; the test uses rank 0's.
        compression: how gradients are sent, a Compression or its fields as a dict; uncompressed by default.
        threads: of the network and the optimizer; 0: all cores of this process. The same seed gives the same bytes for
            any number of threads.
        num_workers: loader threads; below 1: as many as `threads`.
        device: "auto" (a GPU if there is one), "cpu" or "gpu".
        gpu: index of the GPU; None: the ranks of a machine take its GPUs in turn.
        precision: "auto", "float32", "bfloat16", or on a GPU "float16" (storage of activations; parameters are
            float32).
        deterministic: on a GPU only algorithms that give the same bytes every time; a CPU always does.
        seed: of initialisation, order and augmentation.
        test_batch: images per batch in the test; None: 500, on a GPU 2,000.
        resident: on a GPU, keep the data sets in its memory if they fit; else loader threads read batches, which are
            uploaded during the steps; the result is the same, byte for byte.
        graphs: on a GPU, record each phase's step once and replay it: faster, with the same result, byte for byte.
        train_indices, test_indices: the samples to use of each file, numbers or a boolean mask; None: all.
        classes: the names of the classes, which go into checkpoints; None: no names, except CIFAR-10's.

    Raises RecipeError if the batch does not fit the data or the ranks, DataError or BetonError for files that do not
    fit, NotBuiltError without oneDNN, UserError without the GPU that is asked for.
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
        classes: Sequence[str] | None = None,
    ):
        self.recipe = recipes.get(recipe) if isinstance(recipe, str) else recipe
        self.comm, self.seed = comm, seed
        self.classes = self._checked_classes(classes)
        self._team = Team(comm)
        self.rank, self.ranks = self._team.rank, self._team.ranks
        in_turn = 0 if comm is None or gpu is not None else comm.local_rank
        self.gpu = choose_gpu(device, gpu or 0, in_turn)  # None: on the CPU
        self.deterministic = deterministic
        self.steps_at_once: int | None = None  # between two returns to the host; None: whatever is best
        self.whitening_seconds = 0.0  # including the reading of its images
        self._tally = Tally(self.recipe)
        self._begin()
        if not isinstance(compression, Compression):
            compression = Compression(**(compression or {}))
        self._closers: list[Any] = []
        self._workers = num_workers if num_workers > 0 else threads
        test_batch = test_batch or (TEST_BATCH if self.gpu is None else TEST_BATCH_GPU)
        try:
            self._open(train, train_indices, test, test_indices)
            try:
                self._build(compression, threads, precision, min(test_batch, max(self.test_images, 1)))
            except (TypeError, ValueError, OverflowError) as error:
                if isinstance(error, UserError):
                    raise
                raise RecipeError(f"recipe {self.recipe.name} cannot be trained: {error}") from error
            self._open_data(test_batch, resident, graphs)
            self._initialise()
        except BaseException:
            self.close()
            raise

    def _checked_classes(self, names: Sequence[str] | None) -> tuple[str, ...] | None:
        if names is not None and len(check_names(names, "classes")) != self.recipe.classes:
            raise RecipeError(f"classes names {counted(len(names), 'class')}; the recipe has {self.recipe.classes}")
        return None if names is None else tuple(names)

    def _begin(self) -> None:
        """Sets what a training knows before its first step."""
        self.best_accuracy = 0.0
        self._device_test_seconds = 0.0
        self._tally.begin()

    def _open(self, train, train_indices, test, test_indices) -> None:
        everything = self._everything = Samples(train, self.recipe, train_indices, self.seed)
        self.samples, self._labels = len(everything), everything.labels_checksum()
        self.plan = make_plan(self.recipe, self.samples, self.ranks)
        self._hardest: HardestImages | None = None
        if self.recipe.hardest:
            self._hardest = HardestImages(self.plan.fractions, everything.order, self._team.exchange)
        self._test = None if test is None else Samples(test, self.recipe, test_indices)

    def _open_data(self, test_batch: int, resident: bool, graphs: bool) -> None:
        """Opens the batches of the epochs and of the test."""
        parts = Parts(
            self._core,
            self.recipe,
            self.plan,
            self._team,
            self._tally,
            self._everything,
            self._hardest,
            self._workers,
            self.threads,
        )
        self._steps = self._keep(open_steps(parts, self.seed, self.gpu, resident, graphs))
        self._evaluation = None
        if self._test is not None:
            self._evaluation = self._keep(open_evaluation(self._steps, parts, self.gpu, self._test, test_batch))
        # Ranks whose data are in different places return to the host together: when a training diverges, all of them
        # see it.
        wishes = [wish for wish in self._team.gather(self._steps.at_once) if wish is not None]
        self._at_once = min(wishes, default=None)

    def _lines(self, compression: Compression) -> costs.Lines | None:
        """The lines that `cgxffcv calibrate` has saved: nothing is measured before a training."""
        asked = self.ranks > 1 and compression.bits != 32 and compression.algorithm == "auto"
        return costs.kept(self.comm, self.gpu) if asked else None

    def _build(self, compression, threads, precision, test_batch) -> None:
        recipe, plan, ranks = self.recipe, self.plan, self.ranks
        network = self.network = nn.Network(
            describe(recipe),
            backend="cpu" if self.gpu is None else "cuda",
            precision=precision,
            threads=threads,
            deterministic=self.deterministic,
        )
        core = _cgxffcv.Trainer(
            network.core,
            self.comm if ranks > 1 else None,
            compression.core(self.seed, network.threads, self._lines(compression)),
            groups=[group.core() for group in plan.groups],
            phases=[vars(phase) for phase in plan.phases],
            steps=plan.steps,
            side=recipe.side,
            batch=plan.local_batch,
            test_batch=test_batch,
            mean=recipe.mean,
            std=recipe.std,
            label_smoothing=recipe.label_smoothing,
            loss="sum" if recipe.loss_sum else "mean",
            project=recipe.project,
            lookahead_every=plan.lookahead_every,
            lookahead_base=LOOKAHEAD_BASE,
        )
        self._core = self._keep(core)
        self.compression = compression

    def _keep(self, resource: Any) -> Any:
        self._closers.append(resource)
        return resource

    def _initialise(self) -> None:
        """Sets random parameters and the whitening; all ranks get rank 0's."""
        self.network.initialise(self.seed)
        if self.recipe.network == "airbench":
            begin = time.perf_counter()
            self._steps.whiten(min(self.recipe.whiten_images, self.samples), self.recipe.whiten_epsilon)
            self.whitening_seconds = time.perf_counter() - begin
        self._team.broadcast(self._core, "parameters")

    def restart(self, seed: int) -> None:
        """Starts over, as a Trainer of this seed would, bit for bit; files, plans and recorded steps stay. Collective.

        Raises UserError if gradients are rounded stochastically, since those draws belong to the first seed.
        """
        if self.ranks > 1 and self.compression.bits != 32 and self.compression.rounding == "stochastic":
            raise UserError(
                "a training whose gradients are rounded stochastically cannot start over: make a new Trainer"
            )
        self.seed = seed
        self._everything.seed = seed
        self._steps.restart(seed)
        self._core.steps_done = 0
        for name in ("momentum", "residual"):
            buffer = self._core.read(name)
            if buffer is not None:
                self._core.write(name, np.zeros_like(buffer))
        if self._hardest is not None:
            self._hardest.restart()
        self._begin()
        self._initialise()

    # ---- where it stands ----

    @property
    def step(self) -> int:
        """Steps done."""
        return self._core.steps_done

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.plan.steps

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a pass over all images; passes over the hardest images are shorter."""
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
        """True if all steps are done."""
        return self.step >= self.steps

    @property
    def skipped(self) -> int:
        """Steps whose update was skipped, of the whole training so far."""
        return self._tally.skipped

    @property
    def images_per_step(self) -> int:
        """Images per step, of all ranks."""
        return self.plan.global_batch

    @property
    def test_images(self) -> int:
        """Images of the test file (those in use); 0 without one."""
        return 0 if self._test is None else len(self._test)

    @property
    def flops_per_image(self) -> float:
        """Operations per image, forward and backward, in the phase that comes next, in the convolutions and the linear
        layer."""
        phase = self.plan.phase_at(min(self.step, self.steps - 1))
        return image_flops(self.recipe, phase.side, phase.first_block)[1]

    def total_flops(self) -> dict[str, float]:
        """Operations of the whole training and of one test, all ranks: train, optimizer (each rank's own), test."""
        views = len(self.recipe.views)
        per_image = 1 + self.recipe.test_share * (views - 1) if self.recipe.test_share < 1 else views
        return {
            "train": training_flops(self.recipe, self.samples, self.ranks),
            "optimizer": self._core.optimizer_flops * self.steps,
            "test": image_flops(self.recipe)[0] * per_image * self.test_images,
        }

    @property
    def precision(self) -> str:
        """The type in which activations are stored."""
        return self.network.precision

    @property
    def threads(self) -> int:
        """Threads that compute, on a CPU."""
        return self.network.threads

    def explain(self) -> str:
        """How gradients are exchanged, in words."""
        return NotebookText(self._core.explain())

    def algorithms(self) -> dict[str, Any]:
        """How the convolutions of the plans made so far are computed, in JSON's types: the device, the library with its
        version, the file in which it caches its plans and what is wrong with that ("": nothing), and `plans`.

        Each plan has layer, pass, side and images (that it was made for), test (whether it is the test's), algorithm,
        source ("timed" by this process, "cached" by an earlier one, "fixed": not chosen by time), milliseconds of a
        run when it was chosen (None: not known), workspace_bytes. Those of a phase exist from its first step on; on
        the CPU only the present phase's are there."""
        return describe_algorithms(self._core, "cpu" if self.gpu is None else devices()[self.gpu]["name"])

    @property
    def field_seconds(self) -> float | None:
        """Time of the training on the GPU: whitening (by the host's clock), all steps, the last test; without reading,
        upload and library set-up, except that, if the GPU is fed batch by batch, it includes the time that its steps
        and the test have waited for reading and upload. None on a CPU."""
        trained = self._steps.device_seconds
        return None if trained is None else trained + self._device_test_seconds

    @property
    def load_seconds(self) -> float:
        """Seconds spent waiting for the training loader, in this process."""
        return self._steps.load_seconds

    @property
    def _device(self) -> Any:
        """The training data of a GPU; None on a CPU."""
        return None if self.gpu is None else self._steps.data

    @property
    def resident(self) -> bool:
        """True if the training set is in the GPU's memory."""
        return self._device is not None and self._device.resident

    # ---- training ----

    def run_epoch(self) -> Iterator[StepReport]:
        """Trains the next epoch, or the rest of an interrupted one; one report after each step. `steps_at_once` steps
        (if None: one on a CPU, on a GPU all, or 64 if a rank's data are not on its GPU) are done before the first of
        their reports, and take the same time each.

        Raises TrainingDiverged after ten steps in a row whose update was skipped.
        """
        if self.finished:
            raise UserError(f"the training is over: all {self.steps} steps are done")
        epoch = self.plan.epoch_of(self.step)
        if self.step == self.plan.epoch_starts[epoch]:
            self._tally.begin_epoch()
            if self._hardest is not None:
                self._hardest.begin(epoch)
        yield from self._steps.run(epoch, self.plan.epoch_end(epoch), self.steps_at_once or self._at_once)

    def end_epoch(self) -> EpochReport:
        """Sums over all ranks of the epoch that has just been run; compares the replicas. Collective.

        Raises CommError if the parameters of two ranks differ.
        """
        mine = dict(vars(self._tally.sums), hash=f"{self._core.hash():016x}")
        everyone = self._team.gather(mine)
        compare_replicas([rank["hash"] for rank in everyone], self.step - 1)
        return epoch_report(everyone, self.plan.epoch_of(self.step - 1), self.plan.global_batch, mine["hash"])

    def evaluate(self, tta: bool = True) -> EvaluationReport:
        """Tests all images of the test file once, shared among the ranks, with rank 0's running statistics.

        With `tta` it uses the recipe's views, else the plain one. Collective. Raises UserError without a test file.
        """
        if self._test is None:
            raise UserError("there is no test set: this trainer was made without a test file")
        begin = time.perf_counter()
        self._team.broadcast(self._core, "statistics")
        sums = run_evaluation(self._evaluation, self.recipe, self.comm if self.ranks > 1 else None, tta)
        if self._device is not None:
            self._device_test_seconds = self._device.core.seconds()
        everyone = self._team.gather([sums.images, sums.correct, sums.loss])
        images, correct = sum(x[0] for x in everyone), sum(x[1] for x in everyone)
        accuracy = correct / images if images else 0.0
        self.best_accuracy = max(self.best_accuracy, accuracy)
        loss = sum(x[2] for x in everyone) / images if images else math.nan
        return EvaluationReport(self.epoch, images, correct, accuracy, loss, time.perf_counter() - begin)

    # ---- checkpoints ----

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint and the trainer that loads it must have in common."""
        return {
            "format": states.FORMAT,
            "recipe": self.recipe.as_dict(),
            "samples": self.samples,
            "labels": self._labels,
            "ranks": self.ranks,
            "seed": self.seed,
            "precision": self.precision,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs: a tensor for each layer and norm, flat buffers, plain values.

        Collective.
        """
        state = self._identity() | {
            "compression": vars(self.compression),
            "step": self.step,
            "epoch": self.epoch,
            "best_accuracy": self.best_accuracy,
            "skipped": self._tally.skipped,
            "skipped_in_a_row": self._tally.skipped_in_a_row,
            "sums": self._team.gather(self._tally.sums.saved()),
        }
        if self.classes is not None:
            state["classes"] = list(self.classes)
        state |= states.core_state(self._core)
        if self._hardest is not None:
            state |= {f"hardest.{name}": value for name, value in self._hardest.state_dict().items()}
        residual = self._core.read("residual")
        if residual is not None:
            pieces = self._team.exchange(residual.tobytes())
            state["residual"] = np.stack([np.frombuffer(piece, np.float32) for piece in pieces])
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from there, bit for bit. CheckpointError if the state is of another recipe, data set, seed or
        precision (nothing is changed then), or if something in it is missing or wrong.

        A recipe with another number of epochs continues with the schedule that it has from this step on. Another number
        of ranks may continue if all of them share one batch (`batch_scope` is global). Collective.
        """
        states.compare(self._identity(), state)
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
        if not isinstance(state["compression"], dict):
            raise TypeError(f"its compression is {state['compression']!r}")
        before = make_plan(self.recipe.replace(epochs=state["recipe"]["epochs"]), self.samples, self.ranks)
        if before.steps >= state["step"] > self.steps:
            raise checkpoint.CheckpointError(
                f"the checkpoint has done {state['step']:,} steps, and {counted(self.recipe.epochs, 'epoch')} would "
                f"be only {self.steps:,}; with more epochs it would continue"
            )
        states.fill_core(self._core, state)
        self._core.steps_done = state["step"]
        if self._hardest is not None:
            prefix = "hardest."
            self._hardest.load_state_dict({n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)})
        if "residual" in state and self._core.read("residual") is not None:
            residual = states.my_residual(state["residual"], self.rank, self.ranks, self.recipe.loss_sum)
            self._core.write("residual", residual)
        self.best_accuracy = float(state["best_accuracy"])
        self._tally.skipped, self._tally.skipped_in_a_row = int(state["skipped"]), int(state["skipped_in_a_row"])
        self._tally.sums = states.my_sums(state["sums"], self.rank, self.ranks)
        self._enter_pass(before)

    def _enter_pass(self, before: TrainingPlan) -> None:
        """If the plan before had other passes over the hardest images, begins the present one in its middle."""
        now = epoch, start, _ = self.plan.pass_at(self.step)
        if self.finished or self.step == start or now == before.pass_at(self.step):
            return
        self._tally.begin_epoch()
        if self._hardest is not None:
            self._hardest.begin(epoch)

    def save(self, path: str | PathLike[str], *, best: bool = False) -> None:
        """Writes a checkpoint, whole or not at all; it records whether it is the best so far. Every rank calls it, rank
        0 writes; a failure reaches all ranks."""
        state = self.state_dict() | {"best": best}
        problem = None
        if self.rank == 0:
            try:
                checkpoint.save(path, state)
            except OSError as error:
                if self.ranks == 1:
                    raise
                problem = f"{error}"
        problem = self._team.gather(problem)[0]
        if problem is not None:
            raise OSError(f"rank 0 could not write the checkpoint: {problem}")

    def resume(self, path: str | PathLike[str]) -> list[str]:
        """Loads a checkpoint that `save` wrote; every rank reads the file. Returns what differs from before, in
        sentences: the number of epochs, of ranks, the compression. CheckpointError if it does not fit."""
        state = checkpoint.load(path)
        self.load_state_dict(state)
        return self._changes(state["recipe"]["epochs"], state["ranks"], state["compression"])

    def _changes(self, epochs: float, ranks: int, compression: Mapping[str, Any]) -> list[str]:
        found = []
        if epochs != self.recipe.epochs:
            schedule = "learning rate, resolution and choice of images are those"
            if not self.recipe.hardest and len(self.recipe.resolutions) == 1:
                schedule = "the learning rate is that"
            rate = "" if self.finished else f"; the next step's rate is {self._core.rate(0, self.step)[0]:.4g}"
            found.append(
                f"the run had {counted(epochs, 'epoch')}, and now {self.recipe.epochs:g}: from here on {schedule} "
                f"of a training that long{rate}"
            )
        if ranks != self.ranks:
            found.append(
                f"the run had {counted(ranks, 'process')}, and now {self.ranks}: they share the "
                "same batches, but each one's batch norm sees another part of them, so the rest is not bit for bit "
                "what it would have been"
            )
        other = [name for name, value in vars(self.compression).items() if compression.get(name) != value]
        if other and max(ranks, self.ranks) > 1:
            before = ", ".join(f"{name} {compression.get(name)}" for name in other)
            now = ", ".join(f"{name} {getattr(self.compression, name)}" for name in other)
            found.append(f"gradients were compressed with {before}, and now with {now}")
        return found

    # ---- the end ----

    def close(self) -> None:
        """Ends threads and frees memory; the communicator stays the caller's."""
        while self._closers:
            self._closers.pop().close()

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()
