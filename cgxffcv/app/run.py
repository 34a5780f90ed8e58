"""One training run as the user sees it: the bar, the epoch lines, the forecast, the log, how it ends."""

from __future__ import annotations

import math
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _cgxffcv import CommError

from cgxffcv import __version__, device, rank_claim, recipes
from cgxffcv.app import config as configuration
from cgxffcv.app import doctor, process
from cgxffcv.app.config import Config
from cgxffcv.app.report import RunLog, set_aside, was_interrupted
from cgxffcv.app.runs import BEST, LAST
from cgxffcv.progress import Progress
from cgxffcv.recipes import Recipe, RecipeError
from cgxffcv.train.interface import EpochReport, EvaluationReport, StepReport, TrainerInterface
from cgxffcv.train.plan import image_flops, training_flops
from cgxffcv.train.tally import TrainingDiverged
from cgxffcv.wording import counted, duration, size

WARM_UP_STEPS = 1  # the first step makes its plans
TIMED_STEPS = 3
LONG_SECONDS = 60.0  # from here on another recipe is recommended
RECENT_STEPS = 20  # for images per second


def gigaflops(recipe: Recipe) -> float:
    """Floating-point operations of the convolutions, forward and backward, for one image at full size, in 10^9."""
    return image_flops(recipe)[1] / 1e9


def total_teraflops(recipe: Recipe, images: int) -> float:
    """What a whole training on `images` images costs, without its tests, in 10^12 floating-point operations."""
    try:
        return training_flops(recipe, images) / 1e12
    except RecipeError:
        return gigaflops(recipe) * images * recipe.epochs / 1e3  # fewer images than a batch


def cheapest(images: int, like: Recipe) -> Recipe:
    """The recipe that costs least, for images like those of `like`."""
    fitting = [
        recipe if like.of_cifar else recipe.fitted(like.side, like.classes) for recipe in recipes.RECIPES.values()
    ]
    return min(fitting, key=lambda recipe: total_teraflops(recipe, images))


def forecast(recipe: Recipe, seconds: float, images: int, on_gpu: bool = False) -> list[str]:
    """What to say about a training on that many images that will take that many seconds on this machine."""
    lines = [f"This will take about {duration(seconds)} on this machine (from the first {TIMED_STEPS} steps)."]
    other = cheapest(images, recipe)
    share = total_teraflops(other, images) / total_teraflops(recipe, images)
    if seconds >= LONG_SECONDS and share < 1 and other.name != recipe.name and not on_gpu:
        accuracy = f", for a test accuracy of about {other.target:.0%} on the full data set" if recipe.of_cifar else ""
        lines.append(
            f"Recipe {recipe.name} is made for GPUs. On a CPU --training.recipe={other.name} is faster: about "
            f"{duration(seconds * share)} here{accuracy}."
        )
    return lines


def _views(recipe: Recipe) -> str:
    """What the last test of a recipe looks at, other than the images as they are."""
    many, share = len(recipe.views), recipe.test_share
    of = f" for the least sure {share:.0%}" if share < 1 else ""
    return f", mean of {many} views{of}" if many > 1 and share > 0 else ""


class Run:
    """Shows and records how a training proceeds; a context manager. Ranks other than 0 show and keep nothing.

    `began`: time.monotonic() at the start of the process. `resumed`: the checkpoint that the trainer resumed from;
    `changes`: what differs from then. `warning`: what to say at the start and next to the test accuracy.
    """

    def __init__(
        self,
        config: Config,
        trainer: TrainerInterface,
        began: float,
        resumed: Path | None = None,
        changes: Sequence[str] = (),
        warning: str | None = None,
    ):
        self.trainer, self.began, self.resumed = trainer, began, resumed
        self.changes, self.warning = changes, warning
        self.folder = Path(config.log.dir)
        self.ranks, self.epochs = trainer.ranks, trainer.epochs
        self.shown = trainer.rank == 0
        self._goes_on = resumed is not None and resumed.parent.resolve() == self.folder.resolve()
        self.log = self._open(config) if self.shown else None
        self.progress = Progress("", trainer.steps, config.log.progress if self.shown else "off", config.log.interval)
        self.progress.begin_at(trainer.step)
        self.test_every = config.training.test_every
        self.rate = 0.0
        self.sent = 0
        self.tested: EvaluationReport | None = None
        # a run resumed into another folder keeps its own best network, even if the run before had a better one
        self._best = trainer.best_accuracy if self._goes_on and trainer.epoch > 0 else -1.0
        self._recent: deque[float] = deque(maxlen=RECENT_STEPS)
        self._epoch, self._loss, self._counted, self._correct, self._images = -1, 0.0, 0, 0, 0
        self._timed: list[float] = []
        self._plans: list[dict[str, Any]] = []  # those that run.jsonl has

    def _open(self, config: Config) -> RunLog:
        """Opens the folder with a new log, or to continue the log there; what an earlier run left is set aside."""
        if not self._goes_on and self.folder.is_dir():
            aside = set_aside(self.folder)
            if aside is not None:
                process.say(f"the earlier run in {self.folder} is now in {aside}")
        log = RunLog(
            self.folder, resume=self._goes_on, tensorboard=self.trainer.step if config.log.tensorboard else None
        )
        configuration.save(config, self.folder / "config.yaml")
        start = {"version": __version__, "ranks": self.ranks, "steps": self.trainer.steps, "step": self.trainer.step}
        start |= {"resumed": self.resumed, "changes": self.changes, "warning": self.warning}
        log.event("start", start | {"machine": self._machine(), "config": config.as_dict()})
        return log

    def _machine(self) -> dict[str, Any]:
        """The machine that rank 0 runs on."""
        found = doctor.system()
        gpu = self.trainer.gpu
        memory = size(found["memory_bytes"]) if found["memory_bytes"] else None
        machine = {"processor": found["processor"], "cores": found["usable_cores"], "memory": memory, "os": found["os"]}
        machine |= {"gpu": None if gpu is None else device.devices()[gpu]["name"], "precision": self.trainer.precision}
        return machine | {"host": socket.gethostname()}

    def __enter__(self) -> Run:
        t = self.trainer
        what = f"{counted(self.ranks, 'process')}, {counted(t.images_per_step, 'image')} per step"
        if self.resumed is not None:
            self.note(
                f"resuming from {self.resumed}: {t.epoch} of {counted(self.epochs, 'epoch')}, {t.step:,} of "
                f"{counted(t.steps, 'step')} done"
            )
            for change in self.changes:
                self.note(f"note: {change}")
        if t.gpu is not None:
            what += f"; on GPU {t.gpu} ({device.devices()[t.gpu]['name']}), {t.precision}"
        self.note(f"training {t.recipe.name}: {counted(self.epochs, 'epoch')}, {counted(t.steps, 'step')}, {what}")
        if t.gpu is not None and self.ranks > 1:
            self.note(f"gradients are reduced {t.explain().splitlines()[0]}")
        if t.recipe.hardest:
            self.note("(later epochs pass over the hardest images only, so there are more of them than full passes)")
        if self.warning is not None:
            self.note(self.warning)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        failure = None
        if error is None:
            failure = self._finish()
        elif isinstance(error, KeyboardInterrupt):
            self._interrupted()
        else:
            failure = error
        if isinstance(failure, CommError):
            process.go_on_with(self._how_to_go_on())
        if failure is not None:
            self.event("failed", {"error": f"{type(failure).__name__}: {failure}"})
        if self.log is not None:
            self.log.close()
        if failure is not None and failure is not error:
            raise failure

    def _interrupted(self) -> None:
        """A single process saves what has been done so far; with several ranks, only the last epoch's checkpoint
        exists."""
        if self.ranks == 1:
            self.trainer.save(self.folder / LAST)
        self._keep_plans()
        self.event("interrupted", {"step": self.trainer.step})
        hint = self._how_to_go_on()
        if not hint:
            return
        if self.shown:
            self.note("\n" + hint)
        elif rank_claim.is_first_left() and not was_interrupted(self.folder):
            print(
                hint, file=sys.stderr, flush=True
            )  # mpirun ends this process because rank 0 was killed without a message

    def _how_to_go_on(self) -> str:
        """Empty as long as there is no checkpoint."""
        path = self.folder / LAST
        return f"{path} exists: the same command with --resume continues from it" if path.exists() else ""

    def note(self, text: str) -> None:
        """Prints a line that stays, on rank 0."""
        if not self.shown:
            return
        if self.progress.mode == "off":
            print(text, flush=True)
        else:
            self.progress.note(text)

    def event(self, name: str, values: dict[str, Any]) -> None:
        """Adds a record to run.jsonl."""
        if self.log is not None:
            self.log.event(name, values)

    def step(self, step: StepReport) -> None:
        """Moves the bar; after the first few steps says how long all of it will take."""
        if step.epoch != self._epoch:
            self._epoch, self._loss, self._counted, self._correct, self._images = step.epoch, 0.0, 0, 0, 0
        if not step.skipped:
            self._loss += step.loss * step.images
            self._counted += step.images
        self._correct += step.correct
        self._images += step.images
        self.rate, self.sent = step.rate, self.sent + step.wire_bytes
        self._recent.append(step.seconds)
        speed = self.trainer.images_per_step * len(self._recent) / max(sum(self._recent), 1e-9)
        self._forecast(step)
        loss = self._loss / self._counted if self._counted else math.nan
        text = f"{speed:,.0f} img/s  loss {loss:.3f}  acc {self._correct / self._images:.1%}"
        if self.ranks > 1:
            text += f"  sent {size(self.sent)}"
        self.progress.label = f"epoch {step.epoch + 1}/{self.epochs}"
        self.progress.update(step.step + 1, text)
        if step.skipped:
            self.note(f"step {step.step}: a loss or a gradient was not finite; nothing was updated in this step")
        self.event("step", step._asdict())

    def _forecast(self, step: StepReport) -> None:
        """After the first few steps, says how long everything will take at their rate of floating-point operations."""
        self._timed.append(step.seconds)
        if len(self._timed) != WARM_UP_STEPS + TIMED_STEPS:
            return
        t, steps = self.trainer, self._timed[WARM_UP_STEPS:]
        of_a_step = t.images_per_step * t.flops_per_image
        total = t.total_flops()
        tests = max(self.epochs // self.test_every - 1, 0) * t.test_images * image_flops(t.recipe)[0] + total["test"]
        left = max(total["train"] - of_a_step * (step.step + 1), 0) + tests
        seconds = left * sum(steps) / (TIMED_STEPS * of_a_step)
        for line in forecast(t.recipe, seconds, t.steps_per_epoch * t.images_per_step, t.gpu is not None):
            self.note(line)
        self.event("forecast", {"seconds": seconds})

    def test_is_due(self) -> bool:
        """True if the epoch that has just ended is to be tested; the last one always is."""
        return self.trainer.finished or self.trainer.epoch % self.test_every == 0

    def _keep(self, test: EvaluationReport | None) -> None:
        """Saves the checkpoints of an epoch: the last one, and the best one if it is the best. Collective."""
        self.trainer.save(self.folder / LAST)
        if test is not None and test.accuracy > self._best:
            self._best = test.accuracy
            self.trainer.save(self.folder / BEST, best=True)

    def _keep_plans(self) -> None:
        """Records the plans of convolutions made since the last such record, if there are any."""
        if self.log is None:
            return
        algorithms = self.trainer.algorithms()
        new = [plan for plan in algorithms["plans"] if plan not in self._plans]
        if new:
            self._plans += new
            self.event("plans", algorithms | {"plans": new})

    def epoch(self, epoch: EpochReport, test: EvaluationReport | None) -> None:
        """Prints a line that stays, adds a record to run.jsonl and log.csv, saves the checkpoints. Collective."""
        self._keep(test)
        self.tested = test
        speed = self._images * self.ranks / max(epoch.seconds, 1e-9)  # of the part that was trained in this process
        line = f"epoch {epoch.epoch + 1:>3}/{self.epochs}: loss {epoch.loss:.3f}, train {epoch.accuracy:6.2%}, "
        line += f"test {test.accuracy:6.2%}, " if test else ""
        line += f"{speed:,.0f} img/s, {duration(epoch.seconds)}"
        line += f" + {duration(test.seconds)}" if test else ""
        if test is not None or self.test_every == 1:  # the log has every epoch
            self.note(line + (f", {size(epoch.wire_bytes)} sent" if self.ranks > 1 else ""))
        record = {"epoch": epoch.epoch + 1, "steps": self.trainer.step, "seconds": epoch.seconds}
        record |= {"images_per_second": speed, "lr": self.rate}
        record |= {"train_loss": epoch.loss, "train_accuracy": epoch.accuracy, "wire_bytes": epoch.wire_bytes}
        record |= {"skipped": epoch.skipped, "replica_hash": epoch.replica_hash}
        if test is not None:
            record |= {"test_loss": test.loss, "test_accuracy": test.accuracy, "test_seconds": test.seconds}
        self._keep_plans()
        self.event("epoch", record)

    def _finish(self) -> TrainingDiverged | None:
        """Prints the summary; returns the error for a training that has learned nothing."""
        seconds = time.monotonic() - self.began
        if self.tested is None:
            self.note(
                f"nothing to do: all {self.epochs} epochs are already done; with more than "
                f"{self.trainer.recipe.epochs:g} epochs (--epochs) the training continues"
            )
            return None
        best = max(self.trainer.best_accuracy, self.tested.accuracy)
        hits = f"{self.tested.correct:,} of {counted(self.tested.images, 'image')}{_views(self.trainer.recipe)}"
        self.note(
            f"\ntest accuracy {self.tested.accuracy:.2%} ({hits}), best {best:.2%}; {duration(seconds)} from start to "
            f"end on {counted(self.ranks, 'process')}"
        )
        if self.warning is not None:
            self.note(self.warning)
        if self.trainer.skipped:
            self.note(f"{self.trainer.skipped:,} of {self.trainer.step:,} steps were skipped (see above)")
        if self.ranks > 1:
            self.note(f"each rank sent {size(self.sent)} for gradients")
        self.note(f"saved in {self.folder}/: {LAST}, {BEST}, run.jsonl, log.csv, config.yaml")
        self.event(
            "end", {"test_accuracy": self.tested.accuracy, "best_accuracy": best, "seconds": seconds, "sent": self.sent}
        )
        return self._diverged()

    def _diverged(self) -> TrainingDiverged | None:
        t = self.trainer
        if t.skipped * 2 >= t.step:
            found = (
                f"{t.skipped:,} of {t.step:,} steps were skipped, because a loss or a gradient was not finite in them"
            )
        elif self.tested is not None and math.isnan(self.tested.loss):
            found = "the network's outputs for the test images are not finite"
        else:
            return None
        return TrainingDiverged(
            f"this training has diverged: {found}; lower the learning rate (recipe {t.recipe.name}: lr = "
            f"{t.recipe.lr:g}), or check the data"
        )
