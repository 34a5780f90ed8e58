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


def check_alignment(x, spec, shifts, divisor=1, **random):
    """Odd addresses for every buffer; the bytes around the output stay as they were."""
    ours, expected = QuantSpec(**spec), model.quantize(x, spec, **random)
    decoded = model.dequantize32(expected, spec, x.size, **for_decoding(random))
    reference = model.from_float32(decoded / np.float32(divisor), spec["dtype"]).tobytes()
    for shift in shifts:
        before, behind, end = b"\xa5" * shift, b"\xa5" * (64 - shift), shift + len(expected)
        odd = np.frombuffer(bytearray(before + x.tobytes()), x.dtype, x.size, shift)
        room = np.full(len(expected) + 64, 0xA5, np.uint8)
        quantize(odd, ours, out=room[shift:end], **random)
        assert room.tobytes() == before + expected + behind
        back = np.full(x.nbytes + 64, 0xA5, np.uint8)
        view = np.frombuffer(back, x.dtype, x.size, shift)
        dequantize(room[shift:end], x.size, ours, out=view, divisor=divisor, **for_decoding(random))
        assert back.tobytes() == before + reference + behind


def energy(error, x):
    """||error||^2 / ||x||^2."""
    return float((error.astype(np.float64) ** 2).sum() / (x.astype(np.float64) ** 2).sum())
