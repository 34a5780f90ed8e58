"""More than 2^31 elements: by hand (pytest -m long), 15 GB of memory, a minute."""

import numpy as np
import pytest
import quant_model as model
from thread_ranks import all_good, run_ranks

from cgxffcv import allreduce as ar
from cgxffcv.allreduce import QuantSpec, dequantize, quantize

ELEMS = (1 << 31) + 12_345


def sample(elems, seed):
    return model.from_float32(np.random.default_rng(seed).standard_normal(elems).astype(np.float32), "bfloat16")


@pytest.mark.long
def test_quantizer_beyond_2_to_31():
    """The last buckets are those of the model, at their place after 2^31 elements."""
    x = np.zeros(ELEMS, np.uint16)
    tail = 12_345 + 4096
    x[-tail:] = sample(tail, 1)
    spec = QuantSpec(5, 1024, "bfloat16")
    wire = quantize(x, spec)
    expected = model.quantize(x[-tail:], model.complete(5, 1024, "bfloat16"))
    buckets = -(-tail // 1024)
    pairs = -(-ELEMS // 1024) * 8
    assert wire[pairs - 8 * buckets : pairs].tobytes() == expected[: 8 * buckets]
    codes = -(-tail * 5 // 8)
    end = (pairs + 15) // 16 * 16 + -(-ELEMS * 5 // 8)
    metadata = (8 * buckets + 15) // 16 * 16
    assert wire[end - codes : end].tobytes() == expected[metadata : metadata + codes]
    x[:] = 7
    dequantize(wire, ELEMS, spec, out=x)
    reference = model.dequantize32(expected, model.complete(5, 1024, "bfloat16"), tail)
    assert x[-tail:].tobytes() == model.from_float32(reference, "bfloat16").tobytes()
    assert not x[:-tail].any()


@pytest.mark.long
def test_allreduce_beyond_2_to_31():
    def work(world, rank):
        plan = ar.AllreducePlan(world, [ELEMS], dtype="uint8", op="sum")
        x = np.full(ELEMS, rank + 1, np.uint8)
        x[-1] = 100 + rank
        plan.run(x)
        return bool((x[:-1] == 3).all()), int(x[-1]), plan.wire_bytes

    for good, last, sent in all_good(run_ranks(2, work)):
        assert good and last == 201 and sent >= ELEMS
