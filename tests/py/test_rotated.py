"""The codec "rotated" against the NumPy model, byte for byte, against float64, and with the errors that it promises."""

import math

import numpy as np
import pytest
import quant_model as model
from quant_checks import RANDOM, check, check_alignment, energy, normal

from cgxffcv.allreduce import QuantSpec, dequantize, quantize

F = np.float32
DTYPES = ("float32", "float16", "bfloat16")
SCALES = ("mse", "unbiased")


def rotated(bits, bucket=1024, dtype="float32", scale="unbiased"):
    return model.complete(bits, bucket, dtype, "rotated", scale=scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", range(1, 5))
def test_bytes(kernels, bits, dtype):
    """Every bucket size, whole and short last buckets of every length class."""
    for bucket, n in (
        (64, 1),
        (64, 96),
        (64, 97),
        (128, 1000),
        (256, 800),
        (512, 1025),
        (1024, 5000),
        (2048, 4099),
        (4096, 4096),
        (4096, 6100),
    ):
        for scale in SCALES:
            check(normal(n, dtype, bucket), rotated(bits, bucket, dtype, scale), **RANDOM)


def specials():
    """Buckets of 64 elements, each difficult in its own way."""
    base = np.random.default_rng(3).standard_normal(64).astype(F)
    rows = [base * F(s) for s in (1e-45, 1e-38, 1e-30, 1e-25, 1e-22, 1e-20, 1e-12, 1e12, 1e17)]
    limit = F(2.0**60)
    for value in (np.nan, -np.nan, np.inf, -np.inf, limit, -limit, np.nextafter(limit, F(0)), 3e38):
        row = base.copy()
        row[17] = value
        rows.append(row)
    payload = base.copy()
    payload.view(np.uint32)[3] = 0xFF800001
    one = np.zeros(64, F)
    one[5] = -2.5
    rows += [payload, one, np.zeros(64, F), -np.zeros(64, F), np.full(64, 1.5, F), np.full(64, -(2.0**-149), F)]
    rows += [np.full(64, np.nextafter(limit, F(0)), F), np.arange(64, dtype=F), base * F(2.0**-74), base * F(2.0**-76)]
    bits = np.random.default_rng(4).integers(0, 2**32, (40, 64), dtype=np.uint32)
    rows += list((bits & np.uint32(0xDDFFFFFF)).view(F)) + list(bits[:10].view(F))
    return np.concatenate(rows)


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values(kernels, dtype):
    x = specials() if dtype == "float32" else model.from_float32(specials(), dtype)
    for bits in range(1, 5):
        for scale in SCALES:
            check(x, rotated(bits, 64, dtype, scale), **RANDOM)


def test_a_bucket_that_is_no_number_is_none_anywhere():
    """And the next bucket is not affected."""
    for value in (np.nan, np.inf, -np.inf, 2.0**60):
        x = normal(2048)
        x[1000] = value
        spec = QuantSpec(3, codec="rotated")
        out = dequantize(quantize(x, spec), x.size, spec)
        assert np.isnan(out[:1024]).all() and np.isfinite(out[1024:]).all()


def test_long_rows_overflow_to_nan_alone(kernels):
    """Squares of elements just below the limit overflow in a long bucket: NaN, never a wrong finite number."""
    check(np.full(4096, 2.0**59.9, F), rotated(2, 4096))
    check(normal(4096, scale=2.0**57), rotated(2, 4096))


def test_any_alignment_and_nothing_beyond(kernels):
    for bits in range(1, 5):
        check_alignment(normal(731, seed=bits), rotated(bits, 128), (1, 2, 3, 7), divisor=3, **RANDOM)


def test_threads_give_the_same_bytes():
    x, spec = normal(300_001), QuantSpec(3, 256, codec="rotated")
    one, four = (quantize(x, spec, seed=9, threads=t) for t in (1, 4))
    assert one.tobytes() == four.tobytes()
    outs = [dequantize(one, x.size, spec, seed=9, threads=t) for t in (1, 4)]
    assert outs[0].tobytes() == outs[1].tobytes()


def test_any_bytes_decode_without_harm(kernels):
    rng = np.random.default_rng(0)
    for bits in range(1, 5):
        spec = QuantSpec(bits, 64, codec="rotated")
        wire = rng.integers(0, 256, spec.wire_bytes(1000), dtype=np.uint8)
        with np.errstate(all="ignore"):
            reference = model.dequantize32(wire.tobytes(), rotated(bits, 64), 1000)
        assert dequantize(wire, 1000, spec).tobytes() == model.from_float32(reference, "float32").tobytes()


def lloyd_max(bits):
    """The levels of a unit Gaussian above zero, by iteration in float64: thresholds in the middle of neighbouring
    levels, levels at the mean of what lies between two thresholds."""
    levels = [3 * (k + 0.5) / 2 ** (bits - 1) for k in range(2 ** (bits - 1))]
    for _ in range(2000):
        edges = [0.0, *((a + b) / 2 for a, b in zip(levels, levels[1:], strict=False)), math.inf]
        density = [math.exp(-e * e / 2) / math.sqrt(2 * math.pi) for e in edges]
        tail = [math.erfc(e / math.sqrt(2)) / 2 for e in edges]
        pairs = zip(density, density[1:], tail, tail[1:], strict=False)
        levels = [(d0 - d1) / (t0 - t1) for d0, d1, t0, t1 in pairs]
    return levels


@pytest.mark.parametrize("bits", range(1, 5))
def test_levels_are_those_of_a_gaussian(bits):
    assert np.array(lloyd_max(bits), F).tobytes() == np.array(model.LEVELS[bits], F).tobytes()


def hadamard64(rows):
    """Rows of a power of two in float64, by the matrix."""
    matrix = np.ones((1, 1))
    while len(matrix) < rows.shape[1]:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return rows @ matrix / math.sqrt(rows.shape[1])


@pytest.mark.parametrize("bits", range(1, 5))
def test_decoded_as_in_float64(bits):
    """The nearest level of each value, the scale from the wire, rotated back: all in float64 by the matrix."""
    size, count = 256, 64
    x = normal(size * count, seed=bits)
    spec = QuantSpec(bits, size, codec="rotated", scale="mse")
    wire = quantize(x, spec, seed=4)
    turned = np.stack([model.signs(size, b * size // 4, 4, 0) for b in range(count)])
    flip = np.where(turned, -1.0, 1.0)
    y = hadamard64(x.reshape(count, size).astype(np.float64) * flip)
    rms = np.sqrt((y**2).mean(1, keepdims=True))
    scale = np.frombuffer(wire[: 4 * count].tobytes(), F).reshape(-1, 1)
    np.testing.assert_allclose(scale, rms, rtol=2.0**-20)
    levels = model.levels_of(bits).astype(np.float64)
    distances = np.abs(y[..., None] / rms[..., None] - levels)
    codes = model.unpack(np.frombuffer(wire[4 * count :].tobytes(), np.uint8), bits, x.size).reshape(count, size)
    chosen = np.take_along_axis(distances, codes[..., None], 2)[..., 0]
    assert (chosen <= distances.min(2) + 2.0**-19).all()
    expected = hadamard64(levels[codes] * scale) * flip
    out = dequantize(wire, x.size, spec, seed=4).reshape(count, size)
    assert (np.abs(out - expected) <= 2.0**-20 * np.abs(levels).max() * scale).all()


DRAWS = {
    "Gaussian": lambda rng, n: rng.standard_normal(n),
    "Laplace": lambda rng, n: rng.laplace(size=n),
    "Student": lambda rng, n: rng.standard_t(3, n),
}


@pytest.mark.parametrize("data", DRAWS)
@pytest.mark.parametrize(("bits", "expected"), [(4, 0.0095), (3, 0.0345), (2, 0.1175), (1, 0.363)])
def test_error_energy(bits, expected, data):
    """The same on all data, while max-min suffers from outliers; unbiased costs the share by which mse shrinks. Rows of
    Student's distribution that are a single outlier, and weigh most, become rows of two values, which suit few levels a
    little better."""
    close = 0.05 if data == "Student" else 0.03
    x = DRAWS[data](np.random.default_rng(1), 512 * 1024).astype(F)
    found = {}
    for scale in SCALES:
        spec = QuantSpec(bits, codec="rotated", scale=scale)
        found[scale] = energy(dequantize(quantize(x, spec, seed=11), x.size, spec, seed=11) - x, x)
    plain = QuantSpec(bits)
    assert found["mse"] == pytest.approx(expected, rel=close)
    assert found["unbiased"] == pytest.approx(expected / (1 - expected), rel=1.5 * close)
    assert found["unbiased"] < energy(dequantize(quantize(x, plain), x.size, plain) - x, x)


@pytest.mark.parametrize("bits", (1, 3))
def test_unbiased_is_right_in_the_mean(bits):
    """The energy of the mean's error falls with the number of runs, each with different signs, to a thousandth of a
    run's and below; with mse the mean stays below x."""
    x, runs = np.random.default_rng(2).standard_t(3, 2048).astype(F), 300
    left = {}
    for scale in SCALES:
        spec = QuantSpec(bits, 1024, codec="rotated", scale=scale)
        total = sum(dequantize(quantize(x, spec, call=c), x.size, spec, call=c).astype(np.float64) for c in range(runs))
        left[scale] = total / runs - x
    loss = {1: 0.571, 3: 0.0358}[bits]
    assert energy(left["unbiased"], x) < loss * (1.1 / runs + 0.001)
    short = 1 + (left["mse"] @ x) / (x.astype(np.float64) @ x)
    assert short == pytest.approx(1 / (1 + loss), rel=0.01)


def test_signs_differ_by_run_and_seed_and_not_by_rank():
    x, spec = normal(1024), QuantSpec(2, codec="rotated")
    first = quantize(x, spec, seed=1, call=1)
    assert quantize(x, spec, seed=1, call=1, rank=7).tobytes() == first.tobytes()
    for other in ({"seed": 2}, {"call": 2}, {"quad": 1}, {"seed": 1 | 1 << 32}):
        assert quantize(x, spec, **{"seed": 1, "call": 1, **other}).tobytes() != first.tobytes()


def test_wire_bytes():
    spec = QuantSpec(3, 1024, codec="rotated")
    assert spec.wire_bytes(1 << 20) == 4 * 1024 + (3 << 17)
    assert spec.wire_bytes(1) == 16 + 16  # 32 codes of 3 bits
    assert spec.wire_bytes(1025) == 16 + 384 + 16
    assert spec.wire_bytes(1024 + 513) == 16 + 384 + 384


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 5}, "bits must be between 1 and 4 with the codec rotated, not 5"),
        ({"bucket_size": 1000}, "power of two from 64 to 4096 with the codec rotated, not 1000"),
        ({"bucket_size": 32}, "power of two from 64"),
        ({"bucket_size": 8192}, "power of two from 64"),
        ({"rounding": "stochastic"}, "rounding must be nearest"),
        ({"dtype": "float16", "half_metadata": True}, "no 16-bit metadata"),
        ({"spikes": 3}, "spikes must be 0"),
        ({"scale": "rms"}, "scale must be one of 'auto', 'mse', 'unbiased'"),
        ({"codec": "maxmin", "scale": "mse"}, "scale must be auto without the codec rotated"),
        ({"codec": "maxmin_spikes", "scale": "unbiased"}, "scale must be auto without"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        QuantSpec(**{"codec": "rotated", **options})


def test_sums_of_elements_are_refused():
    spec = QuantSpec(4, codec="rotated")
    wire = quantize(normal(1024), spec)
    with pytest.raises(ValueError, match="accumulate cannot be used with the codec rotated"):
        dequantize(wire, 1024, spec, accumulate=normal(1024))
