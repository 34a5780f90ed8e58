"""Training recipes as data: network, augmentation, optimizer, schedule and test of one way to train on CIFAR-10.

Every hyper-parameter is a field that can be overridden: ``recipes.get("airbench94").replace(epochs=4, lr=0.2)``.
Sources: ``ffcv`` and ``demo`` follow FFCV's CIFAR example, and ``resnet9`` is ``ffcv`` for any number of processes;
``resnet18`` is K. He et al., "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), in its usual form for
small images, with L. Smith's triangular rate (arXiv 1708.07120); the ``airbench`` family is K. Jordan, "94% on CIFAR-10
in 3.29 seconds on a single GPU" (arXiv 2404.00498), with Muon as its optimizer or, in the recipes that say so, the
older Nesterov SGD with averaging.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cgxffcv.errors import UserError
from cgxffcv.lengths import taken
from cgxffcv.nearest import suggest
from cgxffcv.wording import brief

__all__ = ["RECIPES", "Recipe", "RecipeError", "TestView", "get", "names"]


class RecipeError(UserError, ValueError):
    """There is no such recipe, or a value is one that a recipe cannot take."""


class TestView(NamedTuple):
    """One view of the test images: shifted by (dy, dx) pixels with reflection, then mirrored; weight of its logits."""

    dy: int = 0
    dx: int = 0
    mirror: bool = False
    weight: float = 1.0


PLAIN = (TestView(),)
MIRROR = (TestView(weight=0.5), TestView(mirror=True, weight=0.5))
SIX = (
    TestView(weight=0.25),
    TestView(mirror=True, weight=0.25),
    TestView(-1, -1, weight=0.125),
    TestView(-1, -1, True, 0.125),
    TestView(1, 1, weight=0.125),
    TestView(1, 1, True, 0.125),
)
CIFAR_SIDE = 32
CIFAR_COLOURS = ((125, 122, 113), (125, 123, 114))  # its mean, with which recipes fill
MOST_ITEMS = 1024  # of a value
CLASSES, SIDES = (2, 1000), (16, 96)  # least and most
VIEWS = {"plain": PLAIN, "mirror": MIRROR, "six": SIX}

CHOICES: dict[str, tuple[str, ...]] = {
    "network": ("resnet9", "resnet18", "airbench"),
    "activation": ("relu", "gelu", "silu"),
    "batch_scope": ("process", "global"),
    "flip": ("none", "random", "alternating"),
    "padding": ("fill", "reflect"),
    "optimizer": ("sgd", "muon", "nesterov"),
    "decay_on": ("all", "weights"),
    "schedule": ("constant", "steps", "triangle", "linear", "warm"),
    "project": ("never", "always", "thinning"),
    "head_init": ("default", "unit"),
    "test_views": tuple(VIEWS),
}


@dataclass(frozen=True)
class Recipe:
    """One way to train. Images are 3 x side x side with values 0..255; steps and epochs count from 0."""

    name: str
    summary: str

    # the network
    network: str = "resnet9"
    widths: tuple[int, ...] = ()  # airbench: channels of the three blocks; resnet18: of the four stages
    depths: tuple[int, ...] = (2, 2, 2)  # airbench: convolutions of each block; a third adds the block's first output
    activation: str = "relu"
    norm_momentum: float = 0.1  # share of the batch in a running statistic
    head_scale: float = 0.2  # factor of the network's output; resnet9's is fixed
    head_init: str = "default"  # unit: rescaled to standard deviation 1
    whiten_bias_random: bool = True  # else it starts from 0
    whiten_images: int = 5000
    whiten_epsilon: float = 5e-4

    # the data: the published recipes have CIFAR-10's values; `fitted` replaces them
    classes: int = 10
    side: int = 32  # pixels
    mean: tuple[float, float, float] = (125.307, 122.961, 113.8575)
    std: tuple[float, float, float] = (51.5865, 50.847, 51.255)
    flip: str = "random"  # alternating: a fixed bit for each image, all turned in odd epochs
    translate: int = 2
    padding: str = "fill"
    translate_fill: tuple[int, int, int] = (0, 0, 0)
    cutout: int = 0
    cutout_fill: tuple[int, int, int] = (125, 122, 113)
    # (share of the training after which it starts, pixels): a lower resolution at first
    resolutions: tuple[tuple[float, int], ...] = ((0.0, 32),)
    # (share of the training, fraction): a pass over the data that begins after it takes only that fraction of the
    # images, those whose loss was highest when they were last trained on
    hardest: tuple[tuple[float, float], ...] = ()

    # the length
    batch_size: int = 256
    batch_scope: str = "process"  # global: batch_size is shared among the processes
    epochs: float = 20

    # the loss
    label_smoothing: float = 0.0
    loss_sum: bool = False  # summed over the global batch instead of averaged

    # the optimizer; lr and momentum are SGD's, or Muon's if Muon trains the convolutions
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4  # muon, nesterov: the product of decay constant and rate; each group's constant is fixed
    decay_on: str = "all"  # sgd: weights: not on norms and biases
    nesterov: bool = False  # sgd: with Nesterov's momentum
    schedule: str = "constant"
    lr_peak_epoch: float = 5  # triangle
    lr_drop_epochs: tuple[float, ...] = ()  # steps
    lr_drop_factor: float = 0.2
    lr_warm_share: float = 0.23  # warm: share of the steps in which the factor rises from 0.2 to 1
    lr_end_factor: float = 0.0  # warm, linear: the factor at the end
    # muon only: SGD for norm biases, head and whitening bias
    bias_lr: float = 0.053
    head_lr: float = 0.67
    sgd_momentum: float = 0.85
    muon_decay: float = 0.0
    muon_iterations: int = 3
    muon_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315)
    muon_epsilon: float = 1e-7
    project: str = "always"
    # nesterov only: norm biases learn that many times faster; the average that pulls the weights every 5 steps
    bias_scale: float = 64.0
    lookahead: bool = False
    # what is trained for how long
    whiten_bias_epochs: float = 3.0  # airbench: the whitening bias is trained only in these epochs
    # airbench: the first block stays as it is for that last share of the training; its schedule, of the same shape as
    # the others', ends where that begins
    freeze_block1_share: float = 0.0

    # the test
    test_views: str = "plain"
    test_share: float = (
        1.0  # all views only for that share of the images, the least confident ones; the plain view for all
    )

    # what is known about it
    target: float = 0.90  # test accuracy that the recipe is made for

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _converted(field.name, field.type, getattr(self, field.name)))
        _check(self)

    def replace(self, **changes: Any) -> Recipe:
        """A copy with some fields changed; RecipeError names an unknown field and the nearest known, or a bad value.

        With fewer epochs the peak of a triangular schedule comes proportionally earlier, unless `lr_peak_epoch` is
        given.
        """
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name == "lr_tta":
                continue
            if name not in known:
                raise RecipeError(f"a recipe has no field {brief(name)}{suggest(name, known)}")
        if "lr_tta" in changes:
            mirrored = changes.pop("lr_tta")
            if mirrored and self.test_views == "plain":
                changes.setdefault("test_views", "mirror")
            elif not mirrored:
                changes.setdefault("test_views", "plain")
        triangle = changes.get("schedule", self.schedule) == "triangle"
        if triangle and "epochs" in changes and "lr_peak_epoch" not in changes:
            epochs = _converted("epochs", "float", changes["epochs"])
            changes["lr_peak_epoch"] = self.lr_peak_epoch * min(epochs / self.epochs, 1.0)
        return dataclasses.replace(self, **changes)

    @property
    def lr_tta(self) -> bool:
        """True if the test averages over more views than the plain one (FFCV's name for it)."""
        return self.test_views != "plain"

    @property
    def views(self) -> tuple[TestView, ...]:
        """The test-time views: shifts grow with the images, and a network that is not trained on mirrored images is not
        shown them either."""
        unit = max(1, round(self.side / CIFAR_SIDE))
        views = [view for view in VIEWS[self.test_views] if self.flip != "none" or not view.mirror]
        whole = sum(view.weight for view in views)
        return tuple(TestView(v.dy * unit, v.dx * unit, v.mirror, v.weight / whole) for v in views)

    @property
    def of_cifar(self) -> bool:
        """True if its images have as many pixels and classes as CIFAR-10's."""
        return (self.side, self.classes) == (CIFAR_SIDE, 10)

    def fitted(
        self, side: int, classes: int, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> Recipe:
        """The recipe for images other than CIFAR-10's: of `classes` classes and side x side pixels.

        Shifts, cutout and lower resolutions keep their share of the side (at least 16 pixels remain); fills of
        CIFAR-10's mean colour become `mean`. mean, std: of the training images, in units of 0..255; None: as they are.
        RecipeError for fewer than 2 or more than 1,000 classes, and for sides outside 16 to 96 pixels.
        """
        for name, value, (least, most) in (("classes", classes, CLASSES), ("side", side, SIDES)):
            if not least <= value <= most:
                raise _refuse(name, value, f"a whole number from {least} to {most:,}")
        share = side / self.side
        changes: dict[str, Any] = {"side": side, "classes": classes}
        for name in ("translate", "cutout"):
            pixels = getattr(self, name)
            changes[name] = max(1, round(pixels * share)) if pixels else 0
        sides: dict[int, float] = {}
        for start, pixels in self.resolutions:
            sides.setdefault(max(SIDES[0], round(pixels * share)), start)
        changes["resolutions"] = tuple((start, pixels) for pixels, start in sides.items())
        if mean is not None:
            colour = tuple(round(value) for value in mean)
            changes["mean"] = tuple(mean)
            for name in ("translate_fill", "cutout_fill"):
                if getattr(self, name) in CIFAR_COLOURS:
                    changes[name] = colour
        if std is not None:
            changes["std"] = tuple(std)
        return self.replace(**changes)

    def local_batch(self, ranks: int) -> int:
        """Images per step on each of `ranks` processes; RecipeError if a global batch cannot be shared evenly."""
        if self.batch_scope == "process":
            return self.batch_size
        if self.batch_size % ranks != 0:
            fits = [n for n in range(1, self.batch_size + 1) if self.batch_size % n == 0]
            near = sorted(sorted(fits, key=lambda n: abs(n - ranks))[:8])
            listed = ", ".join(map(str, near)) + (", ..." if len(fits) > len(near) else "")
            down = self.batch_size // ranks * ranks
            others = f"{down} or {down + ranks}" if down else str(ranks)
            raise RecipeError(
                f"recipe {self.name}: a step's batch of {self.batch_size} images cannot be shared evenly by {ranks} "
                f"processes; start a number that divides it ({listed}), or use batch_size={others}"
            )
        return self.batch_size // ranks

    def as_dict(self) -> dict[str, Any]:
        """Field to value, in plain JSON types."""
        return {name: _plain(value) for name, value in dataclasses.asdict(self).items()}


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _refuse(name: str, value: Any, wanted: str) -> RecipeError:
    return RecipeError(f"recipe field {name} = {brief(value)}: expected {wanted}")


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _converted(name: str, kind: str, value: Any) -> Any:
    """`value` in the field's type (numbers may come as text), or RecipeError."""
    try:
        if kind == "str" and isinstance(value, str):
            if name in CHOICES and value not in CHOICES[name]:
                raise _refuse(name, value, "one of " + ", ".join(CHOICES[name]))
            return value
        if kind == "bool" and (isinstance(value, bool) or value in (0, 1)):
            return bool(value)
        if kind == "int" and not isinstance(value, bool) and int(value) == float(value):
            return int(value)
        if kind == "float" and not isinstance(value, bool):
            return _finite(value)
        if kind.startswith("tuple"):
            number = int if "int" in kind else _finite
            items = taken(value, MOST_ITEMS, name)
            if kind.startswith("tuple[tuple"):
                return tuple((_finite(share), number(item)) for share, item in items)
            return tuple(number(item) for item in items)
    except RecipeError:
        raise
    except (TypeError, ValueError, OverflowError):
        pass
    words = {"str": "text", "bool": "true or false", "int": "a whole number", "float": "a number"}
    raise _refuse(name, value, words.get(kind, "a list of numbers"))


def _check(r: Recipe) -> None:
    def need(condition: bool, name: str, wanted: str) -> None:
        if not condition:
            raise _refuse(name, getattr(r, name), wanted)

    need(r.batch_size >= 1, "batch_size", "at least 1")
    need(0 < r.epochs <= 1e6, "epochs", "more than 0, at most a million")
    need(r.lr >= 0, "lr", "0 or more")
    need(0 <= r.momentum < 1, "momentum", "0 or more, below 1")
    need(0 <= r.sgd_momentum < 1, "sgd_momentum", "0 or more, below 1")
    need(r.weight_decay >= 0, "weight_decay", "0 or more")
    need(0 <= r.label_smoothing < 1, "label_smoothing", "0 or more, below 1")
    need(1e-6 <= r.norm_momentum <= 1, "norm_momentum", "at least a millionth, at most 1")
    need(CLASSES[0] <= r.classes <= CLASSES[1], "classes", "{} to {:,}".format(*CLASSES))
    need(SIDES[0] <= r.side <= SIDES[1], "side", "{} to {} pixels".format(*SIDES))
    need(0 <= r.translate <= r.side // 2, "translate", f"0 to {r.side // 2}, half of the images' side")
    need(0 <= r.cutout <= r.side, "cutout", f"0 to {r.side}, the images' side")
    need(len(r.mean) == 3, "mean", "three numbers")
    need(len(r.std) == 3 and all(s > 0 for s in r.std), "std", "three positive numbers")
    for name in ("translate_fill", "cutout_fill"):
        colour = getattr(r, name)
        need(len(colour) == 3 and all(0 <= value <= 255 for value in colour), name, "three numbers from 0 to 255")
    need(r.whiten_images >= 1, "whiten_images", "at least 1")
    need(0 <= r.test_share <= 1, "test_share", "0 to 1")
    need(0 <= r.freeze_block1_share < 1, "freeze_block1_share", "0 or more, below 1")
    need(len(r.muon_coefficients) == 3, "muon_coefficients", "three numbers")
    need(r.network != "airbench" or len(r.widths) == 3, "widths", "three numbers of channels")
    need(r.network != "resnet18" or len(r.widths) == 4, "widths", "four numbers of channels")
    need(all(width >= 1 for width in r.widths), "widths", "positive numbers")
    need(len(r.depths) == 3 and all(depth in (2, 3) for depth in r.depths), "depths", "three numbers, each 2 or 3")
    need(r.network == "airbench" or r.optimizer != "muon", "optimizer", "sgd for this network")
    need(r.optimizer == "sgd" or r.decay_on == "all", "decay_on", "all for this optimizer")
    need(r.optimizer == "sgd" or not r.nesterov, "nesterov", "false for this optimizer")
    starts = [share for share, _ in r.resolutions]
    need(
        bool(starts) and starts[0] == 0 and starts == sorted(starts) and starts[-1] < 1,
        "resolutions",
        "pairs (share, pixels), the first with share 0, in order",
    )
    later = [share for share, _ in r.hardest]
    need(
        later == sorted(later) and all(0 <= share < 1 for share in later) and all(0 < f <= 1 for _, f in r.hardest),
        "hardest",
        "pairs (share, fraction) in order, 0 <= share < 1, 0 < fraction <= 1",
    )
    low = SIDES[0]
    need(all(low <= side <= r.side for _, side in r.resolutions), "resolutions", f"{low} to {r.side} pixels")
    need(r.resolutions[-1][1] == r.side, "resolutions", f"{r.side} pixels at the end, the size that is tested")


AIRBENCH_STD = (62.985, 62.0925, 66.708)

DEMO = Recipe(
    name="demo",
    summary="the demo's: ResNet-9, batch 256 per process, constant rate 0.1, 20 epochs: 88.5 %",
    translate=2,
    translate_fill=(0, 0, 0),
    cutout=8,
    batch_size=256,
    epochs=20,
    lr=0.1,
    weight_decay=1e-4,
    schedule="steps",
    lr_drop_epochs=(60, 120, 160),
    target=0.88,
)

FFCV = Recipe(
    name="ffcv",
    summary="FFCV's example: ResNet-9, batch 512 per process, triangular rate up to 0.5, 24 epochs: 93.9 % on one "
    "process, 93.2 % on two",
    translate=2,
    translate_fill=(125, 122, 113),
    cutout=4,
    batch_size=512,
    epochs=24,
    lr=0.5,
    weight_decay=5e-4,
    schedule="triangle",
    label_smoothing=0.1,
    test_views="mirror",
    target=0.93,
)

RESNET9 = FFCV.replace(
    name="resnet9",
    summary="the default: ffcv in 20 epochs, its batch of 512 shared by all processes: 93.6 % on any number of them",
    batch_scope="global",
    epochs=20,
    lr_peak_epoch=5,
)

RESNET18 = Recipe(
    name="resnet18",
    summary="ResNet-18 for small images: 30 epochs, batch 256 of all processes, triangular rate up to 0.2: "
    "94.4 % (mean of 2)",
    network="resnet18",
    widths=(64, 128, 256, 512),
    activation="relu",
    head_scale=1.0,
    translate=4,
    padding="reflect",
    batch_size=256,
    batch_scope="global",
    epochs=30,
    lr=0.2,
    weight_decay=5e-4,
    decay_on="weights",
    nesterov=True,
    schedule="triangle",
    lr_peak_epoch=6,
    label_smoothing=0.1,
    test_views="mirror",
    target=0.94,
)

AIRBENCH94 = Recipe(
    name="airbench94",
    summary="94 % in 8 epochs: whitening, Muon, alternating flip, six test views",
    network="airbench",
    widths=(64, 256, 256),
    activation="gelu",
    norm_momentum=0.4,
    head_scale=1 / 256,
    head_init="unit",
    std=AIRBENCH_STD,
    flip="alternating",
    padding="reflect",
    batch_size=2000,
    batch_scope="global",
    epochs=8,
    label_smoothing=0.2,
    loss_sum=True,
    optimizer="muon",
    lr=0.24,
    momentum=0.6,
    weight_decay=0.004,
    schedule="linear",
    test_views="six",
    target=0.94,
)

_OLDER = AIRBENCH94.replace(
    whiten_bias_random=False,
    head_init="default",
    head_scale=1 / 9,
    batch_size=1024,
    optimizer="nesterov",
    lr=11.5,
    momentum=0.85,
    weight_decay=0.0153,
    schedule="warm",
    lr_end_factor=0.07,
    lookahead=True,
)

AIRBENCH94_FAST = AIRBENCH94.replace(
    name="airbench94_fast",
    summary="94 % in less time: smaller batches, low resolution first, then the hardest images",
    norm_momentum=0.4434,
    resolutions=((0.0, 24), (0.4, 32)),
    hardest=((0.5, 0.5),),
    batch_size=1536,
    epochs=8,
    whiten_bias_epochs=1.0,
    label_smoothing=0.09,
    lr=0.205,
    momentum=0.655,
    weight_decay=0.0016,
    bias_lr=0.0573,
    head_lr=0.5415,
    sgd_momentum=0.825,
    muon_decay=0.0016,
    muon_coefficients=(3.4576, -4.7391, 2.0843),
    muon_epsilon=1e-5,
    project="thinning",
    test_share=0.25,
)

AIRBENCH90 = AIRBENCH94.replace(
    name="airbench90",
    summary="90 % at the least cost, for CPUs: narrow and deep, low resolution first, then the hardest images",
    widths=(32, 64, 128),
    depths=(2, 3, 3),
    activation="relu",
    norm_momentum=0.2,
    head_scale=1 / 128,
    whiten_bias_random=False,
    whiten_bias_epochs=0,
    translate=1,
    resolutions=((0.0, 16), (0.3, 24), (0.7, 32)),
    hardest=((0.12, 0.7), (0.4, 0.4)),
    batch_size=500,
    epochs=5.75,
    lr=0.18,
    test_share=0.25,
    target=0.90,
)

#: The recipes by their names.
RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        RESNET9,
        FFCV,
        DEMO,
        RESNET18,
        AIRBENCH94,
        AIRBENCH94_FAST,
        dataclasses.replace(
            _OLDER,
            name="airbench94_sgd",
            summary="94 % with the older optimizer: Nesterov SGD and averaging, 9.9 epochs",
            epochs=9.9,
        ),
        dataclasses.replace(
            _OLDER,
            name="airbench93",
            summary="93 % with half the width of airbench94, 11 epochs",
            widths=(64, 128, 128),
            epochs=11,
            target=0.93,
        ),
        dataclasses.replace(
            _OLDER,
            name="airbench95",
            summary="95 % with wider blocks, 15 epochs",
            widths=(128, 384, 384),
            epochs=15,
            lr=10.0,
            target=0.95,
        ),
        dataclasses.replace(
            _OLDER,
            name="airbench96",
            summary="96 % with deeper residual blocks, cutout, 37 epochs",
            widths=(128, 384, 512),
            depths=(3, 3, 3),
            epochs=37,
            lr=9.0,
            weight_decay=0.012,
            lr_warm_share=0.1,
            lr_end_factor=0.0,
            norm_momentum=0.1,
            translate=4,
            cutout=12,
            cutout_fill=(125, 123, 114),
            target=0.96,
        ),
        AIRBENCH90,
    )
}


def names() -> list[str]:
    """The names of all recipes."""
    return list(RECIPES)


def get(name: str) -> Recipe:
    """The recipe of that name; RecipeError names the nearest."""
    try:
        return RECIPES[name]
    except KeyError:
        hint = suggest(name, RECIPES) or "."
        raise RecipeError(f"no recipe {brief(name)}{hint} There are: {', '.join(RECIPES)}") from None
