"""Checkpoints of untrained networks, for tests of what is made of them."""

import numpy as np

from cgxffcv import nn, recipes
from cgxffcv.nn.classifier import Classifier
from cgxffcv.nn.recipe import describe

NARROW = {"widths": (8, 16, 24), "head_scale": 1 / 24}
CASES = {
    "resnet9": recipes.get("resnet9").fitted(20, 7),
    "resnet18": recipes.get("resnet18").replace(widths=(8, 16, 24, 32), head_scale=0.5).fitted(20, 7),
    "airbench94": recipes.get("airbench94").replace(**NARROW),
    "airbench96": recipes.get("airbench96").replace(**NARROW).fitted(48, 3, (100.0, 90.0, 80.0), (50.0, 40.0, 30.0)),
    "silu": recipes.get("airbench94").replace(**NARROW, activation="silu"),
}


def classifier(name):
    """A network with random values, also in its norms' statistics."""
    recipe = CASES[name]
    network = nn.Network(describe(recipe), precision="float32", threads=2)
    network.initialise(3)
    draws = np.random.default_rng(1)
    for layer in network.layers:
        if layer.kind.startswith("norm") or not layer.trained:
            network.parameter(layer.name)[...] = draws.uniform(0.5, 1.5, layer.shape)
    for statistic in network.statistics:
        network.running_mean(statistic.name)[...] = draws.normal(0, 0.3, statistic.channels)
        network.running_variance(statistic.name)[...] = draws.uniform(0.5, 2, statistic.channels)
    return Classifier(network, recipe)


def images(name, count=5):
    side = CASES[name].side
    return np.random.default_rng(2).integers(0, 256, (count, side, side, 3)).astype(np.uint8)
