"""FFCV's module of this name."""

from cgxffcv.transforms import Convert, ToDevice, ToTensor, ToTorchImage, View

__all__ = ["Convert", "ToDevice", "ToTensor", "ToTorchImage", "View"]
