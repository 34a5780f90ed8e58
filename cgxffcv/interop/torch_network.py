"""A network written by `cgxffcv export CHECKPOINT --to torch OUT.safetensors`, in PyTorch and without cgxffcv: copy
this file, which needs only torch and safetensors.

    python torch_network.py OUT.safetensors IMAGES.npy      # uint8 (n, side, side, 3): prints the class of each
"""

import json
import sys

import numpy as np
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F

ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}


class Network(nn.Module):
    """Images (n, 3, side, side) of values 0..255 to logits (n, classes)."""

    def __init__(self, path):
        super().__init__()
        with safe_open(path, "pt") as file:
            about, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.nodes, self.classes = json.loads(about["nodes"]), json.loads(about["classes"])
        self.register_buffer("mean", torch.empty(1, 3, 1, 1))
        self.register_buffer("std", torch.empty(1, 3, 1, 1))
        channels, last = {None: 3}, None
        for node in self.nodes:
            read = channels[node.get("reads") or last]
            self._place(node["name"], self._layer(node, read))
            last = node["name"]
            channels[last] = node.get("channels", read)
        self.load_state_dict(tensors)

    def _layer(self, node, channels):
        if node["kind"] == "conv":
            sizes = (node["kernel"], node["stride"], node["padding"])
            return nn.Conv2d(channels, node["channels"], *sizes, bias=node["bias"])
        if node["kind"] == "norm":
            return nn.BatchNorm2d(channels, node["eps"], momentum=1 - node["keep"])
        return nn.Linear(channels, node["classes"], bias=node["bias"])

    def _place(self, name, layer):
        """b1.conv1 becomes layer conv1 of module b1."""
        parent, _, last = name.rpartition(".")
        if parent and not hasattr(self, parent):
            self.add_module(parent, nn.Module())
        self.get_submodule(parent).add_module(last, layer)

    def forward(self, images):
        x, outputs = (images.float() - self.mean) / self.std, {}
        *before, head = self.nodes
        for node in before:
            layer, pool = self.get_submodule(node["name"]), node.get("pool")
            if pool and node["pool_place"] == "before":
                x = F.max_pool2d(x, pool)
            x = layer(outputs[node["reads"]] if node.get("reads") else x)
            added = outputs[node["residual"]] if node.get("residual") else None
            if added is not None and node["residual_place"] == "before":
                x = x + added
            x = ACTIVATIONS[node["activation"]](x)
            if added is not None and node["residual_place"] == "after":
                x = x + added
            outputs[node["name"]] = x = F.max_pool2d(x, pool) if pool and node["pool_place"] == "after" else x
        x = x.mean((2, 3)) if head["pool"] == "average" else x.amax((2, 3))
        return self.get_submodule(head["name"])(x) * head["scale"]


if __name__ == "__main__":
    network = Network(sys.argv[1]).eval()
    images = torch.from_numpy(np.load(sys.argv[2])).permute(0, 3, 1, 2)
    with torch.no_grad():
        for number in network(images).argmax(1).tolist():
            print(network.classes[number])
