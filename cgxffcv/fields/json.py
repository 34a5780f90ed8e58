"""Anything that JSON can say."""

from __future__ import annotations

import json
from typing import Any

from cgxffcv.fields.base import Field, Spec, spec


class JSONField(Field):
    """A value that json.dumps takes, stored as its text and one NUL."""

    def describe(self, name: str) -> Spec:
        return spec("json", name)

    def convert(self, value: Any) -> bytes:
        return json.dumps(value).encode("ascii") + b"\0"
