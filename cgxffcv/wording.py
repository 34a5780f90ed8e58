"""Values and counts as messages show them."""

from __future__ import annotations

from typing import Any

LONGEST = 80
IRREGULAR = {"process": "processes", "batch": "batches", "entry": "entries", "copy": "copies"}


def brief(value: Any) -> str:
    """A value on one line, and not more than fits there."""
    try:
        shown = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    except ValueError:  # a number of more digits than Python converts
        shown = "a number without end"
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 20]}...{shown[-10:]}"


def counted(number: float, noun: str) -> str:
    """1 process, 2 processes, 1,000 images, 2.5 epochs."""
    shown = int(number) if number == int(number) else number
    return f"{shown:,} {noun if number == 1 else IRREGULAR.get(noun, f'{noun}s')}"
