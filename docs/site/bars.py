"""Draws the bars of docs/why-fast.md into docs/bars/: python docs/site/bars.py

Every figure is in docs/BENCHMARKS.md or docs/PERFORMANCE.md with exactly these digits; tests/py/test_site.py checks it.
"""

from __future__ import annotations

import html
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "bars"
# file: the unit, and the figure of each bar; our own bars have names that begin with "ours"
CHARTS = {
    "training": ("seconds", {"usual PyTorch code": "70.6", "ours": "8.2"}),
    "convolutions": (
        "ms per image",
        {"direct (oneDNN)": "0.79", "ours, tiles of 2": "0.50", "ours, tiles of 4": "0.361"},
    ),
    "loader": ("images per second", {"copying the bytes": "4,490,770", "ours, everything": "2,903,565"}),
    "photographs": ("µs per image", {"libjpeg-turbo": "327", "ours": "259"}),
    "nvlink": ("µs", {"NCCL float32": "250.1", "NCCL bfloat16": "138.9", "ours, 4 bits": "85.5"}),
    "bus": ("µs", {"NCCL float32": "963.5", "NCCL bfloat16": "524.6", "ours, 4 bits": "186.0"}),
    "sockets": ("ms per step", {"plain sums": "193.5", "ours, 4 bits": "44.1", "no sums at all": "26.1"}),
}
OURS, OTHERS = "#2f6fde", "#9a9a9a"
WIDTH, ROW, LEFT, LONGEST = 620, 30, 150, 270


def number(figure: str) -> float:
    return float(figure.replace(",", ""))


def draw(unit: str, bars: dict[str, str]) -> str:
    """An SVG file with a bar for each figure, on a white background, so that it is legible on any page."""
    height, most = ROW * len(bars) + 12, max(map(number, bars.values()))
    parts = [f'<rect width="{WIDTH}" height="{height}" rx="4" fill="#ffffff"/>']
    for row, (name, figure) in enumerate(bars.items()):
        y, length = 6 + ROW * row, number(figure) / most * LONGEST
        colour = OURS if name.startswith("ours") else OTHERS
        parts += [
            f'<text x="{LEFT - 10}" y="{y + 20}" text-anchor="end">{html.escape(name)}</text>',
            f'<rect x="{LEFT}" y="{y + 4}" width="{length:.1f}" height="{ROW - 8}" fill="{colour}"/>',
            f'<text x="{LEFT + length + 8:.1f}" y="{y + 20}">{figure} {unit}</text>',
        ]
    style = 'font-family="sans-serif" font-size="13" fill="#222222"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" {style}>'
    return "\n".join([head, *parts, "</svg>", ""])


if __name__ == "__main__":
    for file, (unit, bars) in CHARTS.items():
        (FOLDER / f"{file}.svg").write_text(draw(unit, bars))
