"""Writes quantize.json next to this file from the NumPy model: run only when docs/WIRE.md changes.

PYTHONPATH=tests/support python tests/golden/make_quantize.py
"""

import json
from pathlib import Path

import numpy as np
import quant_model as model

HERE = Path(__file__).resolve().parent


def cases():
    x = np.random.default_rng(2718).standard_normal(37).astype(np.float32)
    x[20:24] = [0, -0.0, 1e-40, 5]
    x[24:32] = np.nan
    for bits in range(1, 9):
        for dtype in ("float32", "float16", "bfloat16"):
            yield x, model.complete(bits, 8, dtype)
        yield x, model.complete(bits, 16, rounding="stochastic")
        yield x, model.complete(bits, 20, "bfloat16", half_metadata=True)
        yield x, model.complete(bits, 16, codec="maxmin_spikes", spikes=2)
    for dtype in ("float32", "float16", "bfloat16"):
        yield x, model.complete(1, 12, dtype, "sign", half_metadata=dtype == "float16")
    long = np.random.default_rng(577).standard_normal(200).astype(np.float32)
    long[150] = np.inf
    for bits in range(1, 5):
        for scale, dtype in (("mse", "float32"), ("unbiased", "bfloat16")):
            yield long, model.complete(bits, 64, dtype, "rotated", scale=scale)


def main():
    out = []
    for x, spec in cases():
        draws = spec["rounding"] == "stochastic" or spec["codec"] == "rotated"
        random = {"seed": 123456789012345, "call": 7, "rank": 3, "quad": 11} if draws else {}
        typed = model.from_float32(x, spec["dtype"])
        wire = model.quantize(typed, spec, **random)
        again = {key: value for key, value in random.items() if key != "rank"}
        decoded = model.from_float32(model.dequantize32(wire, spec, x.size, **again), spec["dtype"])
        out.append(
            {
                "spec": spec,
                "random": random,
                "input": typed.tobytes().hex(),
                "wire": wire.hex(),
                "output": decoded.tobytes().hex(),
            }
        )
    lines = ",\n".join(json.dumps(case) for case in out)
    (HERE / "quantize.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
