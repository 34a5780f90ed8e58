"""Exports a trained network: to safetensors with PyTorch's names and layouts, and to ONNX.

Both compute what `Classifier.logits(images, tta=False)` does, in float32. They include the normalisation, so that they
take the same values from 0 to 255.
"""

from __future__ import annotations

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


def _description(classifier: Classifier) -> list[dict[str, Any]]:
    return [{"kind": node.kind, **vars(node)} for node in classifier.network.description.nodes]


def _planes(values: Any) -> np.ndarray:
    return np.array(values, np.float32).reshape(1, -1, 1, 1)


def to_torch(classifier: Classifier, path: str | PathLike[str]) -> None:
    """Writes safetensors for PyTorch, whole or not at all: a tensor for each parameter and buffer under the name that
    it has in interop/torch_network.py (`b1.conv1.weight`, `b1.norm1.running_var`), mean and std (1, 3, 1, 1), and as
    JSON in the metadata `nodes` (what the layers are, in order), `side` and `classes` (names)."""
    state: dict[str, Any] = {"mean": _planes(classifier.recipe.mean), "std": _planes(classifier.recipe.std)}
    for node in classifier.network.description.nodes:
        state |= {f"{node.name}.{name}": value for name, value in _arrays(classifier, node).items()}
    state |= {"nodes": _description(classifier), "side": classifier.recipe.side, "classes": list(classifier.classes)}
    checkpoint.save(path, state)


class _Graph:
    """An ONNX graph under construction: nodes, and constants by name."""

    def __init__(self, helper: Any):
        self.helper, self.nodes, self.constants = helper, [], {}

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with one output, whose name it returns."""
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(self.helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: Any) -> str:
        self.constants[name] = np.asarray(value)
        return name

    def activate(self, kind: str, x: str) -> str:
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

    def pool(self, x: str, side: int) -> str:
        return self.add("MaxPool", x, kernel_shape=[side, side], strides=[side, side])


def _add_norm(graph: _Graph, node: Norm, x: str, values: list[str], outputs: dict[str, str]) -> str:
    if node.pool and node.pool_place == "before":
        x = graph.pool(x, node.pool)
    x = graph.add("BatchNormalization", x, *values[:4], epsilon=node.eps)
    if node.residual is not None and node.residual_place == "before":
        x = graph.add("Add", x, outputs[node.residual])
    x = graph.activate(node.activation, x)
    if node.residual is not None and node.residual_place == "after":
        x = graph.add("Add", x, outputs[node.residual])
    return graph.pool(x, node.pool) if node.pool and node.pool_place == "after" else x


def _add_node(graph: _Graph, classifier: Classifier, node: Node, x: str, outputs: dict[str, str]) -> str:
    arrays = _arrays(classifier, node)
    values = [graph.constant(f"{node.name}.{name}", value) for name, value in arrays.items() if value.ndim]
    if isinstance(node, Norm):
        return _add_norm(graph, node, x, values, outputs)
    if isinstance(node, Conv):
        x = x if node.reads is None else outputs[node.reads]
        padding = [node.padding] * 4
        return graph.activate(node.activation, graph.add("Conv", x, *values, strides=[node.stride] * 2, pads=padding))
    x = graph.add("Flatten", graph.add("GlobalAveragePool" if node.pool == "average" else "GlobalMaxPool", x))
    return graph.add("Gemm", x, *values, transB=1, alpha=node.scale, beta=node.scale)


def _proto(classifier: Classifier) -> Any:
    try:
        import onnx
        from onnx import helper, numpy_helper
    except ImportError:
        raise UserError("--to onnx needs the package onnx: pip install onnx") from None
    graph, outputs, recipe = _Graph(helper), {}, classifier.recipe
    x = graph.add("Transpose", graph.add("Cast", "images", to=onnx.TensorProto.FLOAT), perm=[0, 3, 1, 2])
    x = graph.add("Sub", x, graph.constant("mean", _planes(recipe.mean)))
    x = graph.add("Div", x, graph.constant("std", _planes(recipe.std)))
    for node in classifier.network.description.nodes:
        x = outputs[node.name] = _add_node(graph, classifier, node, x, outputs)
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
