"""Networks: described as a list of nodes, made and run by the C core.

    from cgxffcv import nn

    network = nn.Network(nn.airbench((64, 128, 128)))
    network.initialise(seed=0)
    plan = network.plan(batch=500, size=32)
    plan.step(images, labels, label_smoothing=0.2, reduction="sum")   # gradients are in network.gradients
    logits = plan.evaluate(images)

A trained one, from its checkpoint alone:

    classes = nn.load("runs/cifar/best.safetensors").predict(images)   # uint8 (n, 32, 32, 3) -> int64 (n,)
"""

from cgxffcv.nn.classifier import Classifier, load
from cgxffcv.nn.describe import Conv, Description, Head, Norm, airbench, resnet9, resnet18
from cgxffcv.nn.network import Layer, Network, Statistic

__all__ = [
    "Classifier",
    "Conv",
    "Description",
    "Head",
    "Layer",
    "Network",
    "Norm",
    "Statistic",
    "airbench",
    "load",
    "resnet18",
    "resnet9",
]
