"""From a recipe to the numbers of one training: steps, groups of layers with their schedules, phases."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cgxffcv.recipes import Recipe, RecipeError
from cgxffcv.train.optim import Muon, Sgd

__all__ = ["Group", "Phase", "TrainingPlan", "make_plan"]

# Kinds of layers, as the C core numbers them.
FILTERS, BIAS, NORM_SCALE, NORM_BIAS, LINEAR = range(5)
ALL_KINDS = (FILTERS, BIAS, NORM_SCALE, NORM_BIAS, LINEAR)
ALL_BLOCKS = (0, 1 << 20)
LOOKAHEAD_EVERY = 5
LOOKAHEAD_BASE = 0.95**5

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Group:
    """Layers that are trained alike: the rate of step t is base x (piecewise linear through `points`)(t)."""

    name: str
    rule: Sgd | Muon
    base: float
    points: Points  # (step, factor)
    kinds: tuple[int, ...] = ALL_KINDS
    blocks: tuple[int, int] = ALL_BLOCKS  # first, end
    steps: tuple[int, int] = (0, 1 << 60)  # active in steps [first, end)


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
    steps_per_epoch: int
    steps: int
    epochs: int  # the last one may be shorter
    groups: tuple[Group, ...]
    phases: tuple[Phase, ...]
    lookahead_every: int

    def last_step_of(self, epoch: int) -> int:
        """The steps done when `epoch` (from 0) has ended."""
        return min((epoch + 1) * self.steps_per_epoch, self.steps)


def make_plan(recipe: Recipe, samples: int, ranks: int = 1) -> TrainingPlan:
    """RecipeError if the batch of all ranks is larger than the data set."""
    local = recipe.local_batch(ranks)
    whole = local * ranks
    per_epoch = samples // whole
    if per_epoch == 0:
        remedy = f"--training.batch_size={max(samples // ranks if recipe.batch_scope == 'process' else samples, 1)}"
        raise RecipeError(
            f"a batch of {local} images on each of {ranks} processes is {whole} images a step, but the training set "
            f"has only {samples}; make the batch smaller (at most {remedy}) or the data set larger"
        )
    steps = math.ceil(recipe.epochs * per_epoch - 1e-9)
    make_groups = {"sgd": _sgd, "muon": _muon, "nesterov": _nesterov}[recipe.optimizer]
    return TrainingPlan(
        local_batch=local,
        global_batch=whole,
        steps_per_epoch=per_epoch,
        steps=steps,
        epochs=math.ceil(steps / per_epoch),
        groups=make_groups(recipe, per_epoch, steps, whole),
        phases=_phases(recipe, per_epoch, steps),
        lookahead_every=LOOKAHEAD_EVERY if recipe.lookahead else 0,
    )


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
    rule = Sgd(recipe.momentum, recipe.weight_decay)
    points = _points(recipe, per_epoch, steps)
    if recipe.network == "airbench":
        return _by_blocks("all", rule, recipe.lr, points, ALL_KINDS, recipe, per_epoch, steps)
    return (Group("all", rule, recipe.lr, points),)


def _by_blocks(
    name: str,
    rule: Sgd | Muon,
    base: float,
    points: Points,
    kinds: tuple[int, ...],
    recipe: Recipe,
    per_epoch: int,
    steps: int,
) -> tuple[Group, ...]:
    """One group for each part of an airbench network that may be frozen by itself."""
    whiten = _whiten_steps(recipe, per_epoch, steps)
    parts = [("", (2, ALL_BLOCKS[1]), (0, steps)), (" of block 1", (1, 2), (0, _freeze_step(recipe, steps)))]
    if BIAS in kinds:
        parts.append((" of the whitening", (0, 1), (0, whiten)))
    return tuple(Group(name + part, rule, base, points, kinds, blocks, active) for part, blocks, active in parts)


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
        Group("head", head, recipe.head_lr, points, (LINEAR,)),
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
        Group("head", others, rate, points, (LINEAR,)),
    )
