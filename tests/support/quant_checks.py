"""Shared by the tests of the quantiser: data, and the comparison with the NumPy model."""

import numpy as np
import quant_model as model

from cgxffcv.allreduce import QuantSpec, dequantize, quantize

RANDOM = {"seed": 5 << 33 | 7, "call": 3, "rank": 2, "quad": (1 << 32) - 5}


def for_decoding(random):
    """The keys of random numbers that decoding also needs."""
    return {key: value for key, value in random.items() if key != "rank"}


def normal(n, dtype="float32", seed=0, scale=1.0):
    x = np.random.default_rng(seed).standard_normal(n).astype(np.float32)
    return model.from_float32(x * np.float32(scale), dtype)


def check(x, spec, **random):
    """Asserts that bytes and decoded values equal the model's."""
    ours = QuantSpec(**spec)
    expected = model.quantize(x, spec, **random)
    wire = quantize(x, ours, **random)
    assert wire.tobytes() == expected
    decoded = dequantize(wire, x.size, ours, **for_decoding(random))
    reference = model.dequantize32(expected, spec, x.size, **for_decoding(random))
    assert decoded.tobytes() == model.from_float32(reference, spec["dtype"]).tobytes()


def energy(error, x):
    """||error||^2 / ||x||^2."""
    return float((error.astype(np.float64) ** 2).sum() / (x.astype(np.float64) ** 2).sum())
