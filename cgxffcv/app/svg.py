"""Charts as SVG text, for a page or a notebook: curves, and bars of shares."""

from __future__ import annotations

import colorsys
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["COLOURS", "Curve", "Figure", "chart", "colours", "shares", "ticks"]

COLOURS = ("#2f6fde", "#e0663b", "#2a9d6f", "#9055c7", "#b8900f", "#d6437e", "#3aa0c4", "#7a7a7a")
WIDTH, HEIGHT = 560, 320
LEFT, RIGHT, TOP, BOTTOM = 76, 18, 22, 46
MOST_MARKS, MOST_POINTS = 40, 600
GREY = "#99999988"
GOLDEN = (5**0.5 - 1) / 2  # steps of this size around the circle of hues never meet


@dataclass(frozen=True)
class Curve:
    """(x, y) points, drawn in a colour; `dashed` alongside the main ones, `faint` behind them."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    dashed: bool = False
    faint: bool = False


def colours(count: int) -> list[str]:
    """As many colours, no two the same: COLOURS, then others."""
    more = (colorsys.hls_to_rgb(GOLDEN * number % 1, 0.45, 0.6) for number in range(count - len(COLOURS)))
    return [*COLOURS[:count], *("#" + bytes(round(255 * part) for part in parts).hex() for parts in more)]


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from at most `low` to at least `high`."""
    if not high - low > 1e-9 * max(abs(low), abs(high)):  # all the same, but for rounding
        high = low + (abs(low) or 1.0)
    rough = (high - low) / most
    exponent = math.floor(math.log10(rough))
    power = 10.0**exponent
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, max(12, 3 - exponent)) for number in range(first, last + 1)]


def _shown(value: float, percent: bool) -> str:
    if percent:
        return f"{value * 100:.10g} %"
    return f"{value:,.10g}" if abs(value) < 1e5 else f"{value / 1000:,.10g} k"


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of neighbours, if there are more points than a line can show."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    together = -(-len(finite) // MOST_POINTS)
    if together <= 1:
        return finite
    groups = [finite[at : at + together] for at in range(0, len(finite), together)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


class _Frame:
    """Maps values to positions."""

    def __init__(self, curves: Sequence[Sequence[tuple[float, float]]], whole: bool, from_zero: bool):
        xs = [x for points in curves for x, _ in points]
        ys = [y for points in curves for _, y in points] + [0.0] * from_zero
        self.x_ticks = [t for t in ticks(min(xs), max(xs), 8) if not whole or t == int(t)]
        self.y_ticks = ticks(min(ys), max(ys))
        self.x0, self.x1 = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1
        self.y0, self.y1 = self.y_ticks[0], self.y_ticks[-1]

    def x(self, value: float) -> float:
        return LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM)


def _text(x: float, y: float, text: str, anchor: str = "middle", turn: str = "") -> str:
    around = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turn else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{around}>{html.escape(text)}</text>'


def _axes(frame: _Frame, x_label: str, y_label: str, percent: bool) -> list[str]:
    out = []
    for value in frame.y_ticks:
        y = frame.y(value)
        out.append(
            f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="{GREY}" stroke-width="0.6"/>'
        )
        out.append(_text(LEFT - 8, y + 4, _shown(value, percent), "end"))
    for value in frame.x_ticks:
        if frame.x0 <= value <= frame.x1:
            out.append(_text(frame.x(value), HEIGHT - BOTTOM + 18, _shown(value, False)))
    out.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_label))
    return [*out, _text(12, (TOP + HEIGHT - BOTTOM) / 2, y_label, turn="left")]


def _line(frame: _Frame, curve: Curve, points: list[tuple[float, float]], percent: bool) -> str:
    places = [(frame.x(x), frame.y(y)) for x, y in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    style = ' stroke-dasharray="5 4"' if curve.dashed else ""
    width, opacity = (1, 0.35) if curve.faint else (2, 1)
    out = f'<polyline points="{path}" fill="none" stroke="{curve.colour}" stroke-width="{width}" '
    out += f'stroke-opacity="{opacity}" stroke-linejoin="round"{style}/>'
    if curve.faint or curve.dashed or len(points) > MOST_MARKS:
        return out
    for (x, y), (px, py) in zip(points, places, strict=True):
        title = html.escape(f"{curve.name}: {_shown(round(y, 5), percent)} at {x:g}")
        out += f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{curve.colour}"><title>{title}</title></circle>'
    return out


def chart(
    curves: Sequence[Curve],
    x_label: str,
    y_label: str,
    percent: bool = False,
    whole: bool = True,
    from_zero: bool = False,
) -> str:
    """An SVG element with these curves; empty without points. percent: y is a share; whole: ticks of x are whole
    numbers; from_zero: y starts at 0."""
    drawn = [(curve, points) for curve in curves if (points := _thinned(curve.points))]
    if not drawn:
        return ""
    frame = _Frame([points for _, points in drawn], whole, from_zero)
    parts = _axes(frame, x_label, y_label, percent)
    drawn.sort(key=lambda item: not item[0].faint)
    parts += [_line(frame, curve, points, percent) for curve, points in drawn]
    label = html.escape(f"{y_label} by {x_label}")
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{label}">'
    return head + "".join(parts) + "</svg>"


class Figure:
    """A chart and the names of its curves, which a notebook shows by itself; the arguments are those of `chart`."""

    def __init__(self, curves: Sequence[Curve], x_label: str, y_label: str, **options: bool) -> None:
        self.curves = tuple(curves)
        self.svg = chart(self.curves, x_label, y_label, **options)

    def _repr_html_(self) -> str:
        together = "display: inline-block; margin-left: 18px"
        names = "".join(
            f'<span style="{together}"><span style="color: {curve.colour}">&#9644;</span> '
            f"{html.escape(curve.name)}</span>"
            for curve in self.curves
        )
        style = f"max-width: {WIDTH}px; font: 12px sans-serif; fill: currentColor"
        return f'<div style="{style}">{self.svg}<div>{names}</div></div>'


def shares(parts: Sequence[tuple[str, float]], shown: Sequence[str]) -> str:
    """A bar divided into `parts`, names with their values; `shown`: the text for each."""
    total = sum(value for _, value in parts)
    if not total > 0:
        return ""
    at, out = 0.0, []
    for (name, value), text, colour in zip(parts, shown, COLOURS, strict=False):
        width = value / total * 1000
        title = html.escape(f"{name}: {text}")
        out.append(
            f'<rect x="{at:.1f}" y="0" width="{width:.1f}" height="26" fill="{colour}"><title>{title}</title></rect>'
        )
        at += width
    return (
        '<svg viewBox="0 0 1000 26" preserveAspectRatio="none" class="bar" xmlns="http://www.w3.org/2000/svg">'
        + "".join(out)
        + "</svg>"
    )
