"""The network of a recipe."""

from __future__ import annotations

from cgxffcv.nn.describe import Description, airbench, resnet9, resnet18
from cgxffcv.recipes import Recipe

__all__ = ["describe"]


def describe(recipe: Recipe) -> Description:
    """The description of the recipe's network."""
    keep = 1.0 - recipe.norm_momentum
    if recipe.network == "resnet9":
        return resnet9(recipe.classes, keep=keep)
    if recipe.network == "resnet18":
        return resnet18(
            recipe.classes,
            widths=recipe.widths,
            activation=recipe.activation,
            keep=keep,
            head_scale=recipe.head_scale,
        )
    return airbench(
        recipe.widths,
        classes=recipe.classes,
        activation=recipe.activation,
        stem_activation=recipe.activation,
        deep_blocks=[depth == 3 for depth in recipe.depths],
        keep=keep,
        head_scale=recipe.head_scale,
        head_init="unit" if recipe.head_init == "unit" else "uniform",
        bias_init="uniform" if recipe.whiten_bias_random else "zero",
    )
