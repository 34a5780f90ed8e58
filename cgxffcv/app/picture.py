"""The curves of runs as a picture; matplotlib is needed only for this."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from typing import Any

from cgxffcv import files
from cgxffcv.app.runs import RunRecord
from cgxffcv.app.svg import colours
from cgxffcv.errors import UserError

__all__ = ["write"]

PANELS = (
    ("accuracy", "test_accuracy", "train_accuracy"),
    ("loss", "test_loss", "train_loss"),
    ("images per second", "images_per_second", None),
)


def write(runs: Sequence[RunRecord], path: str) -> None:
    """Writes the picture, a PNG, to `path`. UserError without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("--png needs matplotlib: pip install matplotlib")
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot, ticker

    figure, panels = pyplot.subplots(1, len(PANELS), figsize=(15, 4.2), layout="constrained")
    for axes, (title, main, beside) in zip(panels, PANELS, strict=True):
        for run, colour in zip(runs, colours(len(runs)), strict=True):
            _draw(axes, run.curve(main), color=colour, label=run.name)
            if beside:
                _draw(axes, run.curve(beside), "--", color=colour, linewidth=1)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    panels[0].plot([], [], color="black", label="test")
    panels[0].plot([], [], "--", color="black", linewidth=1, label="training, augmented images")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=8)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=150, format="png")  # not to the path, whose ending would choose the format
    pyplot.close(figure)
    files.write(path, [drawn.getvalue()])


def _draw(axes: Any, points: Sequence[tuple[float, float]], *how: str, **look: Any) -> None:
    xs, ys = zip(*points, strict=True) if points else ((), ())
    axes.plot(xs, ys, *how, marker="o" if len(points) == 1 else None, **look)  # one point makes no line
