"""Pictures of what benchmarks have measured; matplotlib is needed only for them."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cgxffcv.app.usage import Parser
from cgxffcv.errors import UsageError, UserError

COLOURS = ("#d95f02", "#7f7f7f", "#1f77b4", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#17becf")
MARKS = "^so*vDPX"


def add_chart(parser: Parser, text: str) -> None:
    """The option --chart FILE.png of a benchmark."""
    parser.add_argument("--chart", metavar="FILE.png", help=f"{text} (needs matplotlib)")


def check(name: str, chart: str | None, *others: str | None) -> None:
    """Refuses a chart, and other files, that could not be written once everything has been measured."""
    if chart and importlib.util.find_spec("matplotlib") is None:
        raise UserError("--chart needs matplotlib: pip install matplotlib")
    for path in filter(None, (chart, *others)):
        if not Path(path).resolve().parent.is_dir():
            raise UsageError(f"bench {name}: {path}: its folder does not exist")


@contextlib.contextmanager
def axes(path: str, title: str) -> Iterator[Any]:
    """The axes of a picture that is saved when the context ends."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, drawn = pyplot.subplots(figsize=(7.5, 4.5), layout="constrained")
    drawn.set_title(title)
    yield drawn
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
