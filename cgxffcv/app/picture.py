"""The curves of runs as a picture; matplotlib is needed for it alone."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from cgxffcv.app.runs import RunRecord
from cgxffcv.app.svg import COLOURS
from cgxffcv.errors import UserError

__all__ = ["write"]

PANELS = (
    ("accuracy", "test_accuracy", "train_accuracy"),
    ("loss", "test_loss", "train_loss"),
    ("images a second", "images_per_second", None),
)


def write(runs: Sequence[RunRecord], path: str) -> None:
    """UserError without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("--png needs matplotlib: pip install matplotlib")
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(PANELS), figsize=(15, 4.2), layout="constrained")
    for axes, (title, main, beside) in zip(panels, PANELS, strict=True):
        for run, colour in zip(runs, COLOURS * len(runs), strict=False):
            axes.plot(
                *zip(*run.curve(main), strict=True) if run.curve(main) else ([], []), color=colour, label=run.name
            )
            if beside and run.curve(beside):
                axes.plot(*zip(*run.curve(beside), strict=True), "--", color=colour, linewidth=1)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    panels[0].legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
