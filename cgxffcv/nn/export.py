"""Exports a trained network: to safetensors with PyTorch's names and layouts, and to ONNX.

Both compute what `Classifier.logits(images, tta=False)` does, in float32. They include the normalisation, so that they
take the same values from 0 to 255.
"""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from typing import Any

import numpy as np

from cgxffcv import checkpoint, files
from cgxffcv.errors import UserError
from cgxffcv.nn.classifier import Classifier
from cgxffcv.nn.describe import Conv, Head, Node, Norm

__all__ = ["to_onnx", "to_torch"]

OPSET, IR_VERSION = 17, 8  # of ONNX 1.12 (2022), which onnxruntime reads since 1.13


def _arrays(classifier: Classifier, node: Node) -> dict[str, np.ndarray]:
    """A node's values with the names and layouts of PyTorch's layers: filters (out, in, row, column)."""
    network, name = classifier.network, node.name
    if isinstance(node, Head):
        weights = network.parameter(f"{name}.weight").copy()
    elif isinstance(node, Conv):
        weights = np.ascontiguousarray(network.parameter(f"{name}.weight").transpose(0, 3, 1, 2))
    if not isinstance(node, Norm):
        return {"weight": weights} | ({"bias": network.parameter(f"{name}.bias").copy()} if node.bias else {})
    bias = network.parameter(f"{name}.bias").copy()
    return {
        "weight": network.parameter(f"{name}.scale").copy() if node.scale else np.ones_like(bias),
        "bias": bias,
        "running_mean": network.running_mean(name).copy(),
        "running_var": network.running_variance(name).copy(),
        "num_batches_tracked": np.array(0, np.int64),
    }


def _planes(values: Any) -> np.ndarray:
    return np.array(values, np.float32).reshape(1, -1, 1, 1)


def _follow(nodes: Iterable[Node], graph: Any, x: str) -> str:
    """Adds to a graph what the nodes compute from `x`, and returns the name of the result."""
    outputs: dict[str | None, str] = {}
    for node in nodes:
        if isinstance(node, Norm):
            x = _follow_norm(node, graph, x, outputs)
        elif isinstance(node, Conv):
            x = graph.activate(node, graph.conv(node, outputs[node.reads] if node.reads else x))
        else:
            x = graph.head(node, x)
        outputs[node.name] = x
    return x


def _follow_norm(node: Norm, graph: Any, x: str, outputs: dict[str | None, str]) -> str:
    if node.pool and node.pool_place == "before":
        x = graph.pool(node, x)
    x = graph.norm(node, x)
    if node.residual and node.residual_place == "before":
        x = graph.sum(node, x, outputs[node.residual])
    x = graph.activate(node, x)
    if node.residual and node.residual_place == "after":
        x = graph.sum(node, x, outputs[node.residual])
    return graph.pool(node, x) if node.pool and node.pool_place == "after" else x


class _Modules:
    """PyTorch's modules, each with what it reads: the node's name is that of the module with its values, and of its
    other modules the beginning."""

    ACTIVATIONS = {"relu": "ReLU", "gelu": "GELU", "silu": "SiLU"}

    def __init__(self, channels: dict[str, int]):
        self.channels = channels  # that each node reads
        self.modules: dict[str, tuple[str, dict[str, Any]]] = {}
        self.reads: dict[str, list[str]] = {}

    def add(self, name: str, kind: str, *reads: str, **settings: Any) -> str:
        parent = name.rpartition(".")[0]
        if parent:
            self.modules.setdefault(parent, ("Module", {}))
        self.modules[name], self.reads[name] = (kind, settings), list(reads)
        return name

    def conv(self, node: Conv, x: str) -> str:
        settings = {"kernel_size": node.kernel, "stride": node.stride, "padding": node.padding, "bias": node.bias}
        channels = {"in_channels": self.channels[node.name], "out_channels": node.channels}
        return self.add(node.name, "Conv2d", x, **channels, **settings)

    def norm(self, node: Norm, x: str) -> str:
        momentum = round(1 - node.keep, 12)  # 0.1, not 0.09999999999999998
        settings = {"num_features": self.channels[node.name], "eps": node.eps, "momentum": momentum}
        return self.add(node.name, "BatchNorm2d", x, **settings)

    def activate(self, node: Conv | Norm, x: str) -> str:
        kind = self.ACTIVATIONS.get(node.activation)
        return self.add(f"{node.name}_activation", kind, x) if kind else x

    def pool(self, node: Norm, x: str) -> str:
        return self.add(f"{node.name}_pool", "MaxPool2d", x, kernel_size=node.pool)

    def sum(self, node: Norm, x: str, other: str) -> str:
        return self.add(f"{node.name}_sum", "Identity", x, other)

    def head(self, node: Head, x: str) -> str:
        kind = "AdaptiveAvgPool2d" if node.pool == "average" else "AdaptiveMaxPool2d"
        x = self.add(f"{node.name}_flatten", "Flatten", self.add(f"{node.name}_pool", kind, x, output_size=1))
        channels = {"in_features": self.channels[node.name], "out_features": node.classes}
        return self.add(node.name, "Linear", x, **channels, bias=node.bias)

    def steps(self) -> list[tuple[str, list[str], list[str]]]:
        """In order: a module, the outputs whose sum it reads, and those of them that no later module reads."""
        last = {x: name for name, reads in self.reads.items() for x in reads}
        return [(name, reads, [x for x in reads if last[x] == name]) for name, reads in self.reads.items()]


def to_torch(classifier: Classifier, path: str | PathLike[str]) -> None:
    """Writes safetensors for PyTorch, whole or not at all: a tensor for each parameter and buffer under the name that
    it has in interop/torch_network.py (`b1.conv1.weight`, `b1.norm1.running_var`), mean and std (1, 3, 1, 1), and as
    JSON in the metadata what that module is made of: `modules` (the name, class and arguments of each), `steps` (the
    order in which they are called: a module's name, the names of those whose outputs are added and given to it, or
    `images`, and which of these are then no longer needed) and `scale`, a factor of the last output; also `side` and
    `classes` (names)."""
    description, recipe = classifier.network.description, classifier.recipe
    state: dict[str, Any] = {"mean": _planes(recipe.mean), "std": _planes(recipe.std)}
    for node in description.nodes:
        state |= {f"{node.name}.{name}": value for name, value in _arrays(classifier, node).items()}
    made = _Modules(description.channels_read())
    _follow(description.nodes, made, "images")
    state |= {"modules": [(name, *module) for name, module in made.modules.items()], "steps": made.steps()}
    state |= {"scale": description.nodes[-1].scale, "side": recipe.side, "classes": list(classifier.classes)}
    checkpoint.save(path, state)


class _Graph:
    """An ONNX graph under construction: nodes, and constants by name."""

    def __init__(self, classifier: Classifier, helper: Any):
        self.classifier, self.helper, self.nodes, self.constants = classifier, helper, [], {}

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with one output, whose name it returns."""
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(self.helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: Any) -> str:
        self.constants[name] = np.asarray(value)
        return name

    def values(self, node: Node) -> list[str]:
        arrays = _arrays(self.classifier, node)
        return [self.constant(f"{node.name}.{name}", value) for name, value in arrays.items() if value.ndim]

    def conv(self, node: Conv, x: str) -> str:
        return self.add("Conv", x, *self.values(node), strides=[node.stride] * 2, pads=[node.padding] * 4)

    def norm(self, node: Norm, x: str) -> str:
        return self.add("BatchNormalization", x, *self.values(node), epsilon=node.eps)

    def activate(self, node: Conv | Norm, x: str) -> str:
        kind = node.activation
        if kind == "relu":
            return self.add("Relu", x)
        if kind == "silu":
            return self.add("Mul", x, self.add("Sigmoid", x))
        if kind == "none":
            return x
        root, one, half = (
            self.constant(name, np.float32(value)) for name, value in (("root2", 2**0.5), ("one", 1), ("half", 0.5))
        )
        above = self.add("Add", self.add("Erf", self.add("Div", x, root)), one)  # exact GELU: x (1 + erf(x/sqrt 2)) / 2
        return self.add("Mul", self.add("Mul", x, half), above)

    def pool(self, node: Norm, x: str) -> str:
        return self.add("MaxPool", x, kernel_shape=[node.pool] * 2, strides=[node.pool] * 2)

    def sum(self, node: Norm, x: str, other: str) -> str:
        return self.add("Add", x, other)

    def head(self, node: Head, x: str) -> str:
        x = self.add("Flatten", self.add("GlobalAveragePool" if node.pool == "average" else "GlobalMaxPool", x))
        return self.add("Gemm", x, *self.values(node), transB=1, alpha=node.scale, beta=node.scale)


def _proto(classifier: Classifier) -> Any:
    try:
        import onnx
        from onnx import helper, numpy_helper
    except ImportError:
        raise UserError("--to onnx needs the package onnx: pip install onnx") from None
    graph, recipe = _Graph(classifier, helper), classifier.recipe
    x = graph.add("Transpose", graph.add("Cast", "images", to=onnx.TensorProto.FLOAT), perm=[0, 3, 1, 2])
    x = graph.add("Sub", x, graph.constant("mean", _planes(recipe.mean)))
    x = graph.add("Div", x, graph.constant("std", _planes(recipe.std)))
    x = _follow(classifier.network.description.nodes, graph, x)
    graph.nodes.append(helper.make_node("Identity", [x], ["logits"]))
    shape = ["n", recipe.side, recipe.side, 3]
    made = helper.make_graph(
        graph.nodes,
        classifier.network.description.name,
        [helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["n", recipe.classes])],
        [numpy_helper.from_array(value, name) for name, value in graph.constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="cgxffcv")
    model.ir_version = IR_VERSION
    helper.set_model_props(model, {"classes": "\n".join(classifier.classes)})
    onnx.checker.check_model(model)
    return model


def to_onnx(classifier: Classifier, path: str | PathLike[str]) -> None:
    """Writes an ONNX model (opset 17), whole or not at all: `images`, uint8 (n, side, side, 3), to `logits`, float32
    (n, classes); the names of the classes, one per line, are its property "classes". UserError without the package
    onnx."""
    files.write(path, [_proto(classifier).SerializeToString()])
