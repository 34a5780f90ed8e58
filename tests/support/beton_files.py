"""Random data sets for the tests of the .beton format, in the model's terms and in the package's."""

import json

import beton_model as model
import numpy as np

from cgxffcv.fields import BytesField, FloatField, IntField, JSONField, NDArrayField, RGBImageField, TorchTensorField

DTYPES = sorted(model.ITEM_BYTES)
KINDS = sorted(model.TYPES)


def random_fields(rng, count):
    """`count` fields of random kinds and names (some of 16 bytes)."""
    fields = []
    for i in range(count):
        kind = KINDS[rng.integers(len(KINDS))]
        name = f"{i}" + "".join(chr(rng.integers(0x20, 0x7F)) for _ in range(rng.integers(0, 15)))
        if rng.random() < 0.2:
            name = name.ljust(16, "x")
        argument = None
        if kind in ("array", "tensor"):
            shape = tuple(int(side) for side in rng.integers(1, 5, rng.integers(1, 5)))
            argument = (DTYPES[rng.integers(len(DTYPES))], shape)
        fields.append((kind, name, argument))
    return fields


def random_value(rng, kind, argument, empties=True):
    if kind == "int":
        return int(rng.integers(-(1 << 63), (1 << 63) - 1))
    if kind == "float":
        return float(rng.choice([rng.normal(), 0.0, -0.0, np.inf, -np.inf, 1e-310]))
    if kind == "image":
        width, height = (int(side) for side in rng.integers(1, 12, 2))
        return "raw", width, height, rng.bytes(width * height * 3)
    if kind == "bytes":
        return rng.bytes(int(rng.integers(0 if empties else 1, 40)))
    if kind == "json":
        return json.dumps({"x": int(rng.integers(1000)), "t": "é" * int(rng.integers(4))}).encode()
    dtype, shape = argument
    if dtype == "|b1":
        return rng.integers(0, 2, int(np.prod(shape)), np.uint8).tobytes()
    return rng.bytes(model.ITEM_BYTES[dtype] * int(np.prod(shape)))


def random_samples(rng, fields, count, empties=True):
    return [tuple(random_value(rng, kind, argument, empties) for kind, _, argument in fields) for _ in range(count)]


def package_fields(fields):
    """The same fields as the package's classes."""
    made = {}
    for kind, name, argument in fields:
        if kind in ("array", "tensor"):
            made[name] = (NDArrayField if kind == "array" else TorchTensorField)(np.dtype(argument[0]), argument[1])
        else:
            made[name] = {
                "int": IntField,
                "float": FloatField,
                "image": lambda: RGBImageField("given"),
                "bytes": BytesField,
                "json": JSONField,
            }[kind]()
    return made


def package_value(kind, argument, value):
    if kind == "image":
        mode, width, height, data = value
        return np.frombuffer(data, np.uint8).reshape(height, width, 3) if mode == "raw" else data
    if kind == "json":
        return json.loads(value)
    if kind in ("array", "tensor"):
        return np.frombuffer(value, argument[0]).reshape(argument[1])
    return value


def package_samples(fields, samples):
    """The same samples as a data set for DatasetWriter."""
    pairs = [zip(fields, sample, strict=True) for sample in samples]
    return [tuple(package_value(kind, argument, value) for (kind, _, argument), value in pair) for pair in pairs]


def same(left, right):
    """Equal bit for bit, NaN included."""
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        left, right = np.asarray(left), np.asarray(right)
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    if isinstance(left, float) and isinstance(right, float):
        return np.float64(left).tobytes() == np.float64(right).tobytes()
    return type(left) is type(right) and left == right
