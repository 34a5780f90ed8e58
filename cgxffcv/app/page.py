"""A self-contained page about one or more runs: no scripts, no other files, no network."""

from __future__ import annotations

import base64
import html
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from cgxffcv import __version__
from cgxffcv.app import svg
from cgxffcv.app.config import show
from cgxffcv.app.mistakes import Mistake, Verdicts
from cgxffcv.app.runs import RunRecord
from cgxffcv.app.svg import COLOURS, Curve, colours
from cgxffcv.sheet import png
from cgxffcv.wording import counted, duration, size

__all__ = ["page"]

MOST_CELLS = 20  # up to this many classes a confusion matrix shows every cell
MOST_PAIRS = 15
MOST_LETTERS = 24  # of a class's name beside the cells

STYLE = """
:root { color-scheme: light dark; --line: #8883; --soft: #8881; --dim: #6b7280; --card: #fff; --back: #f5f6f8; }
@media (prefers-color-scheme: dark) { :root { --card: #1b1e24; --back: #111318; --dim: #9aa3b0; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0; background: var(--back); }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 2px; } h2 { font-size: 18px; margin: 0 0 10px; }
p.about { color: var(--dim); margin: 0 0 22px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 18px 20px;
  margin: 0 0 18px; overflow-x: auto; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 18px; }
.two section { margin: 0; } .two { margin-bottom: 18px; }
.runs { display: grid; grid-template-columns: repeat(auto-fit, minmax(250px, 1fr)); gap: 18px; margin-bottom: 18px; }
.runs section { margin: 0; border-top: 4px solid var(--colour); }
.big { font-size: 34px; font-weight: 650; line-height: 1.1; } .dim { color: var(--dim); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 10px 3px 0; text-align: left; vertical-align: top; font-weight: 400; } th { color: var(--dim); }
table.lines td, table.lines th { border-top: 1px solid var(--line); padding: 5px 14px 5px 0; }
table.lines td, code { overflow-wrap: anywhere; }
svg { width: 100%; height: auto; display: block; } svg text { font: 12px system-ui, sans-serif; fill: var(--dim); }
svg.bar { height: 22px; border-radius: 6px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13px; margin: 6px 0 0; }
.legend i { display: inline-block; width: 18px; height: 0; border-top: 3px solid; margin-right: 7px;
  vertical-align: middle; }
.legend i.dashed { border-top-style: dashed; } .legend i.square { height: 11px; width: 11px; border: 0; }
.matrix td { width: 44px; min-width: 34px; height: 30px; text-align: center; padding: 0;
  border: 1px solid var(--card); }
.matrix th { padding: 2px 8px; font-size: 13px; text-align: right; white-space: nowrap; }
.matrix thead th { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; padding: 8px 2px; }
.wrong { display: grid; grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); gap: 14px; }
figure { margin: 0; } figure img { width: 100%; image-rendering: pixelated; border-radius: 6px; display: block; }
figcaption { font-size: 12.5px; line-height: 1.35; margin-top: 5px; }
h1, h2, p, figcaption { overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--dim); }
"""


def _e(value: Any) -> str:
    return html.escape(str(value))


def _section(title: str, body: str) -> str:
    return f"<section><h2>{_e(title)}</h2>{body}</section>" if body else ""


def _rows(pairs: Sequence[tuple[str, str]]) -> str:
    return "<table>" + "".join(f"<tr><th>{_e(a)}</th><td>{_e(b)}</td></tr>" for a, b in pairs) + "</table>"


def _cards(runs: Sequence[RunRecord]) -> str:
    cards = []
    for run, colour in zip(runs, colours(len(runs)), strict=True):
        (_, accuracy), *rest = run.summary()
        value, _, best = accuracy.partition(" ")
        cards.append(
            f'<section style="--colour:{colour}"><h2>{_e(run.name)}</h2><div class="big">{_e(value)}</div>'
            f'<div class="dim">test accuracy {_e(best)}</div>{_rows(rest)}</section>'
        )
    return f'<div class="runs">{"".join(cards)}</div>'


def _legend(entries: Sequence[tuple[str, str, str]]) -> str:
    """A legend of (name, colour, class)."""
    items = "".join(
        f'<span><i class="{kind}" style="{"background" if kind == "square" else "border-color"}:{colour}"></i>'
        f"{_e(name)}</span>"
        for name, colour, kind in entries
    )
    return f'<div class="legend">{items}</div>'


def _curves(runs: Sequence[RunRecord]) -> str:
    """Accuracy and loss in tests and training, the learning rate, the speed."""
    several = len(runs) > 1
    coloured = list(zip(runs, colours(len(runs)), strict=True))

    def pair(test: str, train: str, faint: str | None = None) -> list[Curve]:
        out = []
        for run, colour in coloured:
            name = f"{run.name}, " if several else ""
            out.append(Curve(f"{name}test", run.curve(test), colour))
            out.append(Curve(f"{name}training", run.curve(train), colour, dashed=True))
            if faint is not None:
                out.append(Curve("steps", _by_epoch(run, faint), colour, faint=True))
        return out

    def steps(key: str) -> list[Curve]:
        return [Curve(run.name, _by_epoch(run, key), colour, faint=False) for run, colour in coloured]

    keys = _legend([(run.name, colour, "") for run, colour in coloured] if several else [])
    kinds = _legend([("test", "currentColor", ""), ("training, augmented images", "currentColor", "dashed")])
    accuracy = pair("test_accuracy", "train_accuracy")
    parts = [
        ("Accuracy", svg.chart(accuracy, "epoch", "accuracy", percent=True), kinds + keys),
        ("Loss", svg.chart(pair("test_loss", "train_loss", "loss"), "epoch", "loss"), kinds + keys),
        ("Learning rate", svg.chart(steps("rate"), "epoch", "rate", whole=True), keys),
        (
            "Speed",
            svg.chart(
                [Curve(run.name, run.curve("images_per_second"), colour) for run, colour in coloured],
                "epoch",
                "images per second",
                from_zero=True,
            ),
            keys,
        ),
    ]
    return (
        f'<div class="two">{"".join(_section(title, drawn and drawn + below) for title, drawn, below in parts)}</div>'
    )


def _by_epoch(run: RunRecord, key: str) -> list[tuple[float, float]]:
    """A value of the steps over the epochs that they belong to: the first epoch ends at 1."""
    lengths: dict[int, int] = {}
    for step in run.steps:
        lengths[step["epoch"]] = lengths.get(step["epoch"], 0) + 1
    seen: dict[int, int] = {}
    points = []
    for step in run.steps:
        epoch = step["epoch"]
        seen[epoch] = seen.get(epoch, 0) + 1
        if isinstance(step.get(key), int | float) and not step.get("skipped"):
            points.append((epoch + seen[epoch] / lengths[epoch], float(step[key])))
    return points


def _times(runs: Sequence[RunRecord]) -> str:
    out = []
    for run in runs:
        parts = list(run.shares().items())
        total = sum(value for _, value in parts) or 1.0
        shown = [f"{duration(value)}, {value / total:.0%}" for _, value in parts]
        legend = [
            (f"{name}: {text}", colour, "square")
            for (name, _), text, colour in zip(parts, shown, COLOURS, strict=False)
        ]
        title = f"<p>{_e(run.name)}: {_e(duration(run.seconds))}</p>" if len(runs) > 1 else ""
        out.append(title + svg.shares(parts, shown) + _legend(legend))
    return "".join(out)


def _wire(runs: Sequence[RunRecord]) -> str:
    rows = []
    for run in runs:
        if run.wire_bytes and run.steps:
            bits = run.setting("compression.bits")
            how = (
                f"{bits} bits per value, {run.setting('compression.algorithm')}"
                if bits not in (None, 32)
                else "uncompressed"
            )
            a_step = f"{size(run.wire_bytes_a_step)} per step on rank 0"
            cells = (run.name, counted(run.ranks, "process"), how, size(run.wire_bytes), a_step)
            rows.append("<tr>" + "".join(f"<td>{_e(cell)}</td>" for cell in cells) + "</tr>")
    return f'<table class="lines">{"".join(rows)}</table>' if rows else ""


def _differences(runs: Sequence[RunRecord]) -> str:
    settings = [run.settings() for run in runs]
    keys = sorted(set().union(*settings))
    if len(runs) == 1:
        cells = "".join(f"<tr><th>{_e(key)}</th><td>{_e(_value(settings[0][key]))}</td></tr>" for key in keys)
        return f'<details><summary>all {len(keys)} values</summary><table class="lines">{cells}</table></details>'
    other = [key for key in keys if any(values.get(key) != settings[0].get(key) for values in settings)]
    if not other:
        return "<p>None: these runs have the same configuration.</p>"
    head = "<tr><th></th>" + "".join(f"<th>{_e(run.name)}</th>" for run in runs) + "</tr>"
    lines = "".join(
        f"<tr><th>{_e(key)}</th>" + "".join(f"<td>{_e(_value(values.get(key)))}</td>" for values in settings) + "</tr>"
        for key in other
    )
    return f'<table class="lines">{head}{lines}</table>'


def _value(value: Any) -> str:
    def tuples(item: Any) -> Any:
        return tuple(map(tuples, item)) if isinstance(item, list) else item

    return show(tuples(value))


def _machine(runs: Sequence[RunRecord]) -> str:
    parts = []
    for run in runs:
        found = run.start.get("machine")
        if isinstance(found, dict):
            rows = [
                (name, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
                for name, value in found.items()
                if value
            ]
            title = f"<p>{_e(run.name)}</p>" if len(runs) > 1 else ""
            parts.append(title + _rows([*rows, ("cgxffcv", str(run.start.get("version")))]))
    return "".join(parts)


def _short(name: str) -> str:
    return name if len(name) <= MOST_LETTERS else name[: MOST_LETTERS - 1] + "…"


def _confusion(verdicts: Verdicts) -> str:
    matrix, classes = verdicts.confusion, verdicts.classes
    if len(classes) > MOST_CELLS:
        return _pairs(verdicts)
    names = [f'<th title="{_e(name)}">{_e(_short(name))}</th>' for name in classes]
    head = f"<thead><tr><th></th>{''.join(names)}</tr></thead>"
    lines = []
    for label, row in enumerate(matrix):
        total = max(int(row.sum()), 1)
        cells = []
        for taken, count in enumerate(row):
            colour = "47,111,222" if taken == label else "224,102,59"
            share = count / total
            tone = f"rgba({colour},{min(share if taken == label else share * 3, 1) * 0.85:.2f})"
            title = f"{count:,} of {total:,} images of {classes[label]} were taken for {classes[taken]}"
            text = f"{count:,}" if count else ""
            cells.append(f'<td style="background:{tone}" title="{_e(title)}">{text}</td>')
        lines.append(f"<tr>{names[label]}{''.join(cells)}<th>{row[label] / total:.1%}</th></tr>")
    about = (
        "<p class='dim'>Rows: what the images are; columns: what they were taken for; at the end: the share that is "
    )
    about += "right.</p>"
    return f'{about}<table class="matrix">{head}<tbody>{"".join(lines)}</tbody></table>'


def _pairs(verdicts: Verdicts) -> str:
    others = verdicts.confusion.copy()
    np.fill_diagonal(others, 0)
    order = np.argsort(-others, axis=None, kind="stable")[:MOST_PAIRS]
    rows = []
    for label, taken in zip(*np.unravel_index(order, others.shape), strict=True):
        if others[label, taken]:
            rows.append((f"{others[label, taken]:,}", f"{verdicts.classes[label]} taken for {verdicts.classes[taken]}"))
    about = f"<p class='dim'>The most frequent mistakes among {counted(len(verdicts.classes), 'class')}.</p>"
    return about + _rows(rows)


def _figure(mistake: Mistake, classes: Sequence[str]) -> str:
    data = base64.b64encode(png(np.ascontiguousarray(mistake.image))).decode()
    caption = f"<b>{_e(classes[mistake.taken_for])}</b> {mistake.probability:.1%}<br>is {_e(classes[mistake.label])}"
    title = f"image {mistake.number} of the test set"
    shown = f'<img alt="{title}" src="data:image/png;base64,{data}">'
    return f'<figure title="{title}">{shown}<figcaption>{caption}</figcaption></figure>'


def _judged(run: RunRecord, verdicts: Verdicts | None, problem: str | None, alone: bool) -> str:
    of = "" if alone else f", {run.name}"
    if verdicts is None:
        return _section(f"Mistakes{of}", f"<p class='dim'>Not shown: {_e(problem)}</p>") if problem else ""
    figures = "".join(_figure(mistake, verdicts.classes) for mistake in verdicts.worst)
    wrong = f'<div class="wrong">{figures}</div>' if figures else "<p>There are none.</p>"
    title = f"Confusions of {verdicts.checkpoint}{of}: accuracy {verdicts.accuracy:.2%} on "
    if verdicts.judged < verdicts.images:
        title += f"{verdicts.judged:,} plain images spread over the {verdicts.images:,} of the test set"
    else:
        title += "the plain images"
    return _section(title, _confusion(verdicts)) + _section(f"Most confidently wrong{of}", wrong)


def page(runs: Sequence[RunRecord], verdicts: Verdicts | None = None, problem: str | None = None) -> str:
    """The HTML text. verdicts: of the first run's network; problem: why there are none."""
    names = ", ".join(run.name for run in runs)
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime(runs[0].start.get("time", 0)))
    body = [
        f"<h1>{_e(names)}</h1><p class='about'>{counted(len(runs), 'run')}, started {began}; written by cgxffcv "
        f"{_e(__version__)}</p>",
        _cards(runs),
        _curves(runs),
        _section("Where the time went", _times(runs)),
        _section("Bytes on the wire", _wire(runs)),
        _judged(runs[0], verdicts, problem, len(runs) == 1),
        _section("What differs" if len(runs) > 1 else "Configuration", _differences(runs)),
        _section("The machine", _machine(runs)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{_e(names)}</title><style>{STYLE}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )
