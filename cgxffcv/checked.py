"""Attributes that may be assigned, and are then checked like arguments."""

from __future__ import annotations

from typing import Any


class Checked:
    """A class whose method `_kept_NAME` gets what is assigned to the attribute NAME, also by `__init__`, and returns
    what is kept of it, or raises."""

    def __setattr__(self, name: str, value: Any) -> None:
        kept = getattr(type(self), f"_kept_{name}", None)  # of the type, since a user's __getattr__ may need attributes
        super().__setattr__(name, value if kept is None else kept(self, value))
