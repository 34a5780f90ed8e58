"""How a training's convolutions are computed: what a run records of the plans that it used."""

from __future__ import annotations

from typing import Any

__all__ = ["describe_algorithms"]

FIELDS = ("layer", "pass", "side", "images", "test", "algorithm", "source", "milliseconds", "workspace_bytes")


def describe_algorithms(core: Any, device: str) -> dict[str, Any]:
    """Describes the plans that a `_cgxffcv.Trainer` has made so far, in JSON's types; see `Trainer.algorithms`."""
    library, cache, note = core.library() or ("", "", "")
    plans = [dict(zip(FIELDS, plan, strict=True)) for plan in core.algorithms()]
    return {"device": device, "library": library, "cache": cache, "note": note, "plans": plans}
