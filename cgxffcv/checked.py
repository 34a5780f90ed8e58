"""Attributes that may be assigned, and are then checked like arguments."""

from __future__ import annotations

from typing import Any


class Checked:
    """A class whose method `_check_NAME` gets what is assigned to the attribute NAME, also by `__init__`, and returns
    what is kept, or raises."""

    def __setattr__(self, name: str, value: Any) -> None:
        check = getattr(self, f"_check_{name}", None)
        super().__setattr__(name, value if check is None else check(value))
