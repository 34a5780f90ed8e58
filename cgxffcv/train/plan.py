"""Turns a recipe into the numbers of one training: steps, groups of layers with their schedules, phases."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from typing import Any

from _cgxffcv import LAYER_KINDS

from cgxffcv.nn.recipe import describe
from cgxffcv.recipes import Recipe, RecipeError
from cgxffcv.train.optim import Muon, Sgd
from cgxffcv.wording import counted

__all__ = ["LOOKAHEAD_BASE", "Group", "Phase", "TrainingPlan", "image_flops", "make_plan", "training_flops"]

# Kinds of layers.
FILTERS, BIAS, NORM_SCALE, NORM_BIAS, LINEAR = ALL_KINDS = LAYER_KINDS
ALL_BLOCKS = (0, 1 << 20)
NEVER_FROZEN = (2, 1 << 20)
LOOKAHEAD_EVERY = 5
LOOKAHEAD_BASE = 0.95**5

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Group:
    """Layers that are trained in the same way: the rate of step t is base x (piecewise linear through `points`)(t)."""

    name: str
    rule: Sgd | Muon
    base: float
    points: Points  # (step, factor)
    kinds: tuple[str, ...] = ALL_KINDS
    blocks: tuple[int, int] = ALL_BLOCKS  # first, end
    steps: tuple[int, int] = (0, 1 << 60)  # active in steps [first, end)

    def core(self) -> dict[str, Any]:
        """The group as the C core takes it."""
        ranges = dict(
            zip(("first_block", "end_block", "first_step", "end_step"), self.blocks + self.steps, strict=True)
        )
        return {"rule": self.rule.group(), "base": self.base, "points": self.points, "kinds": self.kinds, **ranges}


@dataclass(frozen=True)
class Phase:
    """From a step on: images of side x side pixels, blocks below `first_block` frozen."""

    first_step: int
    side: int
    first_block: int


@dataclass(frozen=True)
class TrainingPlan:
    """One training of a recipe on `samples` images by `ranks` processes."""

    local_batch: int
    global_batch: int
    steps: int
    epoch_starts: tuple[int, ...]  # the first step of each pass over the data, or over its hardest images
    fractions: tuple[float, ...]  # of the images, in each pass
    groups: tuple[Group, ...]
    phases: tuple[Phase, ...]
    lookahead_every: int

    @property
    def epochs(self) -> int:
        """Passes; the last one may be cut short."""
        return len(self.epoch_starts)

    @property
    def steps_per_epoch(self) -> int:
        """The steps of a pass over all images."""
        return self.epoch_starts[1] if self.epochs > 1 else self.steps

    def epoch_of(self, step: int) -> int:
        """The pass that a step belongs to."""
        return bisect.bisect_right(self.epoch_starts, step) - 1

    def pass_at(self, step: int) -> tuple[int, int, float]:
        """The pass that a step belongs to: its number, its first step, the fraction of the images that it takes."""
        epoch = self.epoch_of(step)
        return epoch, self.epoch_starts[epoch], self.fractions[epoch]

    def epoch_end(self, epoch: int) -> int:
        """The steps done when a pass has ended."""
        return (*self.epoch_starts, self.steps)[epoch + 1]

    def phase_at(self, step: int) -> Phase:
        """The phase that a step belongs to."""
        return [phase for phase in self.phases if phase.first_step <= step][-1]

    def phase_lengths(self) -> list[tuple[Phase, int]]:
        """Each phase and its steps."""
        ends = [*(phase.first_step for phase in self.phases[1:]), self.steps]
        return [(phase, end - phase.first_step) for phase, end in zip(self.phases, ends, strict=True)]


def make_plan(recipe: Recipe, samples: int, ranks: int = 1) -> TrainingPlan:
    """The plan of a training. RecipeError if the batch of all ranks is larger than the data set."""
    local = recipe.local_batch(ranks)
    whole = local * ranks
    per_epoch = samples // whole
    if per_epoch == 0:
        raise RecipeError(_too_large(recipe, local, samples, ranks))
    steps = math.ceil(recipe.epochs * per_epoch - 1e-9)
    starts, fractions = _passes(recipe, samples, whole, steps)
    make_groups = {"sgd": _sgd, "muon": _muon, "nesterov": _nesterov}[recipe.optimizer]
    return TrainingPlan(
        local_batch=local,
        global_batch=whole,
        steps=steps,
        epoch_starts=starts,
        fractions=fractions,
        groups=make_groups(recipe, per_epoch, steps, whole),
        phases=_phases(recipe, per_epoch, steps),
        lookahead_every=LOOKAHEAD_EVERY if recipe.lookahead else 0,
    )


def _too_large(recipe: Recipe, local: int, samples: int, ranks: int) -> str:
    each = f"{counted(ranks, 'process')} with {counted(local, 'image')} each" if ranks > 1 else counted(local, "image")
    fits = samples // ranks * (1 if recipe.batch_scope == "process" else ranks)
    remedy = "start fewer processes or make the data set larger"
    if fits:
        remedy = f"make the batch smaller (batch_size={fits} at most) or the data set larger"
    return f"a step takes {each}, but the training set has only {samples:,}; {remedy}"


def _passes(recipe: Recipe, samples: int, batch: int, steps: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Where each pass begins, and the fraction of the images that it takes."""
    starts, fractions, at = [], [], 0
    while at < steps:
        fraction = [1.0, *(f for share, f in recipe.hardest if at >= share * steps)][-1]
        length = int(fraction * samples) // batch
        if length == 0:
            raise RecipeError(
                f"recipe field hardest: {fraction:g} of {samples} images are fewer than one batch of {batch}; make the "
                "batch smaller or the fraction larger"
            )
        starts.append(at)
        fractions.append(fraction)
        at += length
    return tuple(starts), tuple(fractions)


def _points(recipe: Recipe, per_epoch: int, steps: int) -> Points:
    if recipe.schedule == "triangle":
        peak = recipe.lr_peak_epoch * per_epoch
        return ((0, 0.0), (peak, 1.0), (max(recipe.epochs * per_epoch, peak), 0.0))
    if recipe.schedule == "linear":
        return ((0, 1.0), (steps, recipe.lr_end_factor))
    if recipe.schedule == "warm":
        return ((0, 0.2), (int(recipe.lr_warm_share * steps), 1.0), (steps, recipe.lr_end_factor))
    points: list[tuple[float, float]] = [(0, 1.0)]
    for epoch in recipe.lr_drop_epochs if recipe.schedule == "steps" else ():
        points += [(epoch * per_epoch, points[-1][1]), (epoch * per_epoch, points[-1][1] * recipe.lr_drop_factor)]
    return tuple(points)


def _whiten_steps(recipe: Recipe, per_epoch: int, steps: int) -> int:
    return min(round(recipe.whiten_bias_epochs * per_epoch), steps) if recipe.network == "airbench" else 0


def _freeze_step(recipe: Recipe, steps: int) -> int:
    return round((1 - recipe.freeze_block1_share) * steps)


def _frozen_points(recipe: Recipe, points: Points, steps: int) -> Points:
    """Block 1's schedule: it ends when the block is frozen, as FreezeOut's with unscaled rates (arXiv 1706.04983)."""
    end = _freeze_step(recipe, steps)
    return tuple((step * end / steps, factor) for step, factor in points) if end < steps else points


def _phases(recipe: Recipe, per_epoch: int, steps: int) -> tuple[Phase, ...]:
    """A new phase wherever the resolution or the first trained block changes."""
    sides = [(round(share * steps), side) for share, side in recipe.resolutions]
    blocks = [(0, 0)]
    if recipe.network == "airbench":
        blocks.append((_whiten_steps(recipe, per_epoch, steps), 1))
        if recipe.freeze_block1_share > 0:
            blocks.append((_freeze_step(recipe, steps), 2))
    starts = sorted({step for step, _ in sides + blocks if step < steps})
    phases: list[Phase] = []
    for start in starts:
        side = [s for step, s in sides if step <= start][-1]
        block = max(b for step, b in blocks if step <= start)
        if not phases or (side, block) != (phases[-1].side, phases[-1].first_block):
            phases.append(Phase(start, side, block))
    return tuple(phases)


def _decay(product: float, rate: float) -> float:
    return product / rate if rate > 0 else 0.0


def _sgd(recipe: Recipe, per_epoch: int, steps: int, batch: int) -> tuple[Group, ...]:
    points = _points(recipe, per_epoch, steps)
    parts = [("all", ALL_KINDS, recipe.weight_decay)]
    if recipe.decay_on == "weights":
        parts = [("weights", (FILTERS, LINEAR), recipe.weight_decay), ("others", (BIAS, NORM_SCALE, NORM_BIAS), 0.0)]
    groups: list[Group] = []
    for name, kinds, decay in parts:
        rule = Sgd(recipe.momentum, decay, recipe.nesterov)
        if recipe.network == "airbench":
            groups += _by_blocks(name, rule, recipe.lr, points, kinds, recipe, per_epoch, steps)
        else:
            groups.append(Group(name, rule, recipe.lr, points, kinds))
    return tuple(groups)


def _by_blocks(
    name: str,
    rule: Sgd | Muon,
    base: float,
    points: Points,
    kinds: tuple[str, ...],
    recipe: Recipe,
    per_epoch: int,
    steps: int,
) -> tuple[Group, ...]:
    """One group for each part of an airbench network that may be frozen by itself."""
    whiten = _whiten_steps(recipe, per_epoch, steps)
    shorter = _frozen_points(recipe, points, steps)
    parts = [("", points, NEVER_FROZEN, (0, steps)), (" of block 1", shorter, (1, 2), (0, _freeze_step(recipe, steps)))]
    if BIAS in kinds:
        parts.append((" of the whitening", points, (0, 1), (0, whiten)))
    return tuple(Group(name + part, rule, base, curve, kinds, blocks, active) for part, curve, blocks, active in parts)


def _muon(recipe: Recipe, per_epoch: int, steps: int, batch: int) -> tuple[Group, ...]:
    points = _points(recipe, per_epoch, steps)
    whiten = _whiten_steps(recipe, per_epoch, steps)
    muon = Muon(
        recipe.momentum, recipe.muon_decay, recipe.muon_iterations, recipe.muon_coefficients, recipe.muon_epsilon
    )
    bias = Sgd(recipe.sgd_momentum, _decay(recipe.weight_decay, recipe.bias_lr), nesterov=True)
    head = Sgd(recipe.sgd_momentum, _decay(recipe.weight_decay, recipe.head_lr), nesterov=True)
    norms = (NORM_BIAS, NORM_SCALE)
    return (
        *_by_blocks("filters", muon, recipe.lr, points, (FILTERS,), recipe, per_epoch, steps),
        *_by_blocks("norms", bias, recipe.bias_lr, points, norms, recipe, per_epoch, steps),
        Group("head", head, recipe.head_lr, points, (LINEAR,), NEVER_FROZEN),
        Group("whitening bias", bias, recipe.bias_lr, ((0, 1.0), (whiten, 0.0)), (BIAS,), (0, 1), (0, whiten)),
    )


def _nesterov(recipe: Recipe, per_epoch: int, steps: int, batch: int) -> tuple[Group, ...]:
    """The older optimizer: rates in units of 1 / (1024 x (1 + 1/(1 - momentum))) of a summed loss."""
    scale = 1024 * (1 + 1 / (1 - recipe.momentum))
    points = _points(recipe, per_epoch, steps)
    rate, product = recipe.lr / scale, recipe.weight_decay * batch / scale
    norm_rate = rate * recipe.bias_scale
    others = Sgd(recipe.momentum, _decay(product, rate), nesterov=True)
    norms = Sgd(recipe.momentum, _decay(product, norm_rate), nesterov=True)
    kinds = (FILTERS, BIAS)
    return (
        *_by_blocks("filters", others, rate, points, kinds, recipe, per_epoch, steps),
        *_by_blocks("norms", norms, norm_rate, points, (NORM_BIAS, NORM_SCALE), recipe, per_epoch, steps),
        Group("head", others, rate, points, (LINEAR,), NEVER_FROZEN),
    )


# ---- what it costs ----


def image_flops(recipe: Recipe, side: int | None = None, first_block: int = 0) -> tuple[float, float]:
    """Operations of one image, see `nn.Description.flops`: forward, and forward and backward. `side` None: the
    recipe's."""
    return describe(recipe).flops(side or recipe.side, first_block)


def training_flops(recipe: Recipe, samples: int, ranks: int = 1) -> float:
    """Operations of a whole training on all ranks, without its tests."""
    plan = make_plan(recipe, samples, ranks)
    return plan.global_batch * sum(
        image_flops(recipe, phase.side, phase.first_block)[1] * steps for phase, steps in plan.phase_lengths()
    )
