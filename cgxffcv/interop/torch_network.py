"""What `cgxffcv export RUN OUT.safetensors --to torch` wrote, in PyTorch and without cgxffcv: a file to copy."""

import json

from safetensors import safe_open
from torch import nn


class Network(nn.Module):
    """From images (n, 3, side, side) of values 0 to 255 to logits (n, classes). For fine-tuning, call train() first."""

    def __init__(self, path):
        super().__init__()
        with safe_open(path, "pt") as file:
            self.about = {name: json.loads(text) for name, text in file.metadata().items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        self.register_buffer("mean", tensors["mean"])
        self.register_buffer("std", tensors["std"])
        for name, kind, settings in self.about["modules"]:
            parent, _, last = name.rpartition(".")
            self.get_submodule(parent).add_module(last, vars(nn)[kind](**settings))
        self.load_state_dict(tensors)
        self.eval()

    def forward(self, images):
        values = {"images": (images.to(self.mean) - self.mean) / self.std}
        for name, (first, *others), done in self.about["steps"]:
            values[name] = self.get_submodule(name)(sum((values[x] for x in others), values[first]))
            values = {x: value for x, value in values.items() if x not in done}
        return values[name] * self.about["scale"]
