"""The quantiser against the NumPy model, byte for byte, with every instruction set that this processor has."""

import ctypes
import json
from pathlib import Path

import _cgxffcv
import numpy as np
import pytest
import quant_model as model
from quant_checks import RANDOM, check, check_alignment, for_decoding, normal
from quant_values import specials

from cgxffcv.allreduce import QuantSpec, dequantize, quantize

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "quantize.json"
F = np.float32
DTYPES = ("float32", "float16", "bfloat16")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", range(1, 9))
def test_maxmin_bytes(kernels, bits, dtype):
    for bucket, n in ((1, 70), (3, 100), (16, 200), (100, 333), (128, 1000), (1000, 2500), (1024, 5000), (4096, 3000)):
        for rounding in ("nearest", "stochastic"):
            check(normal(n, dtype, bucket), model.complete(bits, bucket, dtype, rounding=rounding), **RANDOM)


@pytest.mark.parametrize("dtype", ("float16", "bfloat16"))
@pytest.mark.parametrize("codec", ("maxmin", "sign", "maxmin_spikes"))
def test_half_metadata_bytes(kernels, dtype, codec):
    for bits in (1,) if codec == "sign" else (1, 2, 4, 7):
        for bucket, n in ((5, 33), (128, 700), (1024, 3000)):
            check(normal(n, dtype, bits), model.complete(bits, bucket, dtype, codec, half_metadata=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_sign_bytes(kernels, dtype):
    for bucket, n in ((1, 40), (31, 100), (33, 500), (128, 700), (1024, 3000)):
        check(normal(n, dtype, bucket), model.complete(1, bucket, dtype, "sign"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_spikes_bytes(kernels, dtype):
    for bits in range(1, 9):
        for bucket, n, spikes in ((1, 9, 1), (4, 30, 4), (64, 200, 3), (1024, 2100, None), (65536, 3000, 256)):
            spec = model.complete(bits, bucket, dtype, "maxmin_spikes", spikes=spikes)
            check(normal(n, dtype, bits), spec)
    spec = model.complete(2, 256, dtype, "maxmin_spikes", "stochastic")
    check(normal(1000, dtype), spec, **RANDOM)
    ties = model.from_float32(np.tile(F([1, -1, 1, 0.5]), 64), dtype)
    check(ties, model.complete(3, 64, dtype, "maxmin_spikes", spikes=7))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codec", ("maxmin", "sign", "maxmin_spikes"))
def test_special_values(kernels, codec, dtype):
    x = model.from_float32(specials(), dtype)
    if dtype == "float32":
        x = specials()  # with their NaN payloads
    for bits in (1,) if codec == "sign" else (1, 2, 3, 4, 5, 8):
        for rounding in ("nearest", "stochastic"):
            for half in (False, True)[: 1 if dtype == "float32" else 2]:
                check(x, model.complete(bits, 32, dtype, codec, rounding, half), **RANDOM)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_alignment_and_nothing_beyond(kernels, dtype):
    for bits in range(1, 9):
        check_alignment(normal(731, dtype, bits), model.complete(bits, 96, dtype), (1, 2, 3, 7, 13))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codec", ("maxmin", "sign", "maxmin_spikes"))
def test_accumulate_and_divide(kernels, codec, dtype):
    """to = round((accumulate + x') / divisor), each operation rounded by itself."""
    n = 777
    for bits in (1,) if codec == "sign" else (1, 3, 4, 6, 8):
        spec = model.complete(bits, 100, codec=codec)
        wire = quantize(normal(n, seed=bits), QuantSpec(**spec))
        values = model.dequantize32(wire.tobytes(), spec, n)
        other = normal(n, seed=99)
        other[5], other[6] = np.nan, np.inf
        for divisor in (1, 2, 3, 7, 8, 1e30, 0.5, 0, np.nan):
            for accumulate in (None, other):
                out = np.empty(n, np.uint16 if dtype == "bfloat16" else dtype)
                dequantize(wire, n, QuantSpec(**spec), out=out, accumulate=accumulate, divisor=divisor)
                total = values if accumulate is None else accumulate + values
                with np.errstate(all="ignore"):
                    quotient = total / F(divisor)
                assert out.tobytes() == model.from_float32(quotient, dtype).tobytes()
        inplace = other.copy()
        dequantize(wire, n, QuantSpec(**spec), out=inplace, accumulate=inplace)
        assert inplace.tobytes() == model.from_float32(other + values, "float32").tobytes()


def test_threads_give_the_same_bytes():
    for bits in (3, 4):
        for bucket in (1, 1000, 1 << 20):
            x = normal(700_001, seed=bits)
            spec = QuantSpec(bits, bucket, rounding="stochastic")
            one, four = (quantize(x, spec, seed=9, threads=t) for t in (1, 4))
            assert one.tobytes() == four.tobytes()
            assert dequantize(one, x.size, spec).tobytes() == dequantize(one, x.size, spec, threads=4).tobytes()


def test_every_half_converts_as_in_numpy(kernels):
    """All 65,536 patterns upwards; downwards all of them and the midpoints between neighbours."""
    halves = np.arange(65536, dtype=np.uint32).astype(np.uint16)
    for dtype, x in (("float16", halves.view(np.float16)), ("bfloat16", halves)):
        exact = model.to_float32(x, dtype)
        with np.errstate(invalid="ignore"):
            mid = ((exact[:-1].astype(np.float64) + exact[1:]) / 2).astype(F)
        every = np.concatenate([exact, mid, np.nextafter(mid, F(np.inf)), np.nextafter(mid, F(-np.inf))])
        spec = QuantSpec(8, 1)
        sent = every[np.isfinite(every) & (np.abs(every) < 2.0**125)]
        out = np.empty(sent.size, np.uint16 if dtype == "bfloat16" else dtype)
        dequantize(quantize(sent, spec), sent.size, spec, out=out)
        assert out.tobytes() == model.from_float32(sent + F(0), dtype).tobytes()
        check(x, model.complete(1, 1, dtype))


def test_caller_with_flush_to_zero_gets_the_same_bytes(kernels):
    """FTZ and DAZ are on in many processes (any library built with -ffast-math sets them)."""
    libm = ctypes.CDLL("libm.so.6")
    saved = ctypes.create_string_buffer(64)
    libm.fegetenv(saved)
    flushing = ctypes.create_string_buffer(saved.raw, 64)
    mxcsr = int.from_bytes(saved.raw[28:32], "little")
    flushing[28:32] = (mxcsr | 0x8040 | 0x6000).to_bytes(4, "little")  # and rounding towards zero
    spec = model.complete(4, 32)
    x = specials()
    expected = model.quantize(x, spec)
    ours, out, back = QuantSpec(**spec), np.empty(len(expected), np.uint8), np.empty(x.size, F)
    libm.fesetenv(flushing)
    try:
        quantize(x, ours, out=out)
        dequantize(out, x.size, ours, out=back)
        during = ctypes.create_string_buffer(64)
        libm.fegetenv(during)
    finally:
        libm.fesetenv(saved)
    assert out.tobytes() == expected
    assert back.tobytes() == model.from_float32(model.dequantize32(expected, spec, x.size), "float32").tobytes()
    assert int.from_bytes(during.raw[28:32], "little") & 0xE040 == 0xE040, "the caller's mode was not restored"


@pytest.mark.parametrize("bits", range(1, 9))
def test_error_bound(bits):
    levels = 2**bits - 1
    for scale in (1e-37, 1e-12, 1.0, 1e30):
        for bucket in (16, 128, 1024):
            x = (normal(8192, seed=bits) + F(0.3)) * F(scale)
            wire = quantize(x, bits=bits, bucket_size=bucket)
            y = dequantize(wire, x.size, QuantSpec(bits, bucket)).astype(np.float64)
            pairs = np.frombuffer(wire[: x.size // bucket * 8].tobytes(), F).reshape(-1, 2).astype(np.float64)
            unit = np.repeat(pairs[:, 0], bucket)
            bound = unit * (0.5 + (levels + 1) * 2.0**-22) + 2.0**-24 * (levels * unit + np.abs(y))
            bound = np.where(unit == 0, levels * 2.0**-126, bound)
            assert (np.abs(x.astype(np.float64) - y) <= bound).all()
            wire = quantize(x, bits=bits, bucket_size=bucket, rounding="stochastic", seed=bits)
            y = dequantize(wire, x.size, QuantSpec(bits, bucket)).astype(np.float64)
            slack = 2.0**-24 * (levels * unit + np.abs(y)) + unit * (levels + 1) * 2.0**-22
            assert (np.abs(x - y) < np.where(unit == 0, levels * 2.0**-126, unit + slack)).all()


@pytest.mark.parametrize(
    ("bucket", "bits", "expected"),
    [
        (128, 8, 3.44e-5),
        (128, 4, 9.95e-3),
        (128, 3, 0.0457),
        (128, 2, 0.251),
        (1024, 8, 5.43e-5),
        (1024, 4, 1.57e-2),
        (1024, 3, 0.0720),
        (1024, 2, 0.40),
    ],
)
def test_error_energy(bucket, bits, expected):
    """Gaussian data: the published energies within 1 %, twice as much when stochastic, whose mean has no bias."""
    x = np.random.default_rng(1).standard_normal(1 << 20).astype(F)
    energy = {}
    for rounding in ("nearest", "stochastic"):
        spec = QuantSpec(bits, bucket, rounding=rounding)
        error = dequantize(quantize(x, spec, seed=11), x.size, spec).astype(np.float64) - x
        energy[rounding] = (error**2).sum() / (x.astype(np.float64) ** 2).sum()
        if rounding == "stochastic":
            assert abs(error.mean()) < 5 * error.std() / np.sqrt(x.size)
    assert energy["nearest"] == pytest.approx(expected, rel=0.01)
    assert energy["stochastic"] == pytest.approx(2 * energy["nearest"], rel=0.03)


def test_stochastic_expectation_and_exact_points():
    """E[x'] = x: the mean over many calls; values on the grid stay exact."""
    x = np.linspace(-1, 1, 64, dtype=F)
    x[0], x[-1] = -1, 1
    spec = QuantSpec(2, 64, rounding="stochastic")
    runs = np.stack([dequantize(quantize(x, spec, call=c), 64, spec) for c in range(4000)]).astype(np.float64)
    unit = 2 / 3
    assert (np.abs(runs.mean(0) - x) < 5 * unit / 2 / np.sqrt(4000)).all()
    points = (np.arange(64) % 4).astype(F)
    assert (dequantize(quantize(points, spec), 64, spec) == points).all()
    assert quantize(x, spec, rank=1).tobytes() != quantize(x, spec, rank=2).tobytes()
    assert quantize(x, spec, seed=1).tobytes() != quantize(x, spec, seed=1 << 32).tobytes()


def test_spikes_tighten_the_range():
    """With outliers the spike codec at 2 bits is far better than maxmin; the spikes are kept to 8 bits."""
    x = normal(1 << 16, seed=8)
    x[:: 1024 // 4] *= 40
    energy = {}
    for codec in ("maxmin", "maxmin_spikes"):
        spec = QuantSpec(2, 1024, codec=codec)
        y = dequantize(quantize(x, spec), x.size, spec)
        energy[codec] = ((y - x).astype(np.float64) ** 2).sum() / (x.astype(np.float64) ** 2).sum()
    assert energy["maxmin_spikes"] < energy["maxmin"] / 10
    spikes = np.abs(x) > 20
    assert (np.abs(y[spikes] - x[spikes]) <= np.abs(x[spikes]) * 2.0**-8).all()


def test_damaged_spike_is_refused():
    spec = QuantSpec(2, 64, codec="maxmin_spikes", spikes=2)
    wire = quantize(normal(64), spec)
    wire[8:10] = (64, 0)
    with pytest.raises(_cgxffcv.CommError, match="spike's index is 64 in a bucket of 64"):
        dequantize(wire, 64, spec)


def test_any_bytes_decode_without_harm(kernels):
    """A peer's bytes can never affect more than values."""
    rng = np.random.default_rng(0)
    for bits in range(1, 9):
        for spec in (QuantSpec(bits, 37), QuantSpec(bits, 37, dtype="float16", half_metadata=True)):
            wire = rng.integers(0, 256, spec.wire_bytes(1000), dtype=np.uint8)
            twin = model.complete(bits, 37, spec.dtype, half_metadata=spec.half_metadata)
            with np.errstate(all="ignore"):
                reference = model.dequantize32(wire.tobytes(), twin, 1000)
            ours = dequantize(wire, 1000, spec, out=np.empty(1000, F))
            assert ours.tobytes() == model.from_float32(reference, "float32").tobytes()


def test_golden_vectors(kernels):
    cases = json.loads(GOLDEN.read_text())
    assert {c["spec"]["bits"] for c in cases} == set(range(1, 9))
    for case in cases:
        spec = QuantSpec(**case["spec"])
        kind = np.uint16 if spec.dtype == "bfloat16" else spec.dtype
        x = np.frombuffer(bytes.fromhex(case["input"]), kind)
        wire = quantize(x, spec, **case["random"])
        assert wire.tobytes().hex() == case["wire"], case["spec"]
        assert dequantize(wire, x.size, spec, **for_decoding(case["random"])).tobytes().hex() == case["output"], case[
            "spec"
        ]
        assert model.quantize(x, case["spec"], **case["random"]).hex() == case["wire"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 0}, "bits must be between 1 and 8, not 0"),
        ({"bits": 9}, "bits must be between 1 and 8, not 9"),
        ({"bucket_size": 0}, "bucket_size must be between 1"),
        ({"codec": "sign"}, "bits must be 1 with the codec sign, not 4"),
        ({"codec": "minmax"}, "codec must be one of 'maxmin', 'sign'"),
        ({"rounding": "up"}, "rounding must be one of"),
        ({"dtype": "float64"}, "dtype must be one of"),
        ({"half_metadata": True}, "16-bit metadata needs"),
        ({"codec": "maxmin_spikes", "spikes": 0}, "spikes must be between 1 and 256"),
        ({"codec": "maxmin_spikes", "bucket_size": 4, "spikes": 5}, "at most bucket_size"),
        ({"codec": "maxmin_spikes", "bucket_size": 1 << 17}, "at most 65536"),
        ({"spikes": 3}, "spikes must be 0 without"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        QuantSpec(**options)


@pytest.mark.parametrize("bits", [True, 4.0, "4"])
def test_bits_that_are_no_whole_numbers_are_refused(bits):
    with pytest.raises(TypeError, match=f"bits must be a whole number, not {bits!r}"):
        QuantSpec(bits)


def test_argument_errors():
    x, spec = normal(100), QuantSpec()
    wire = quantize(x, spec)
    with pytest.raises(ValueError, match="wire must have"):
        dequantize(wire[:-1], 100, spec)
    with pytest.raises(ValueError, match="wire must have"):
        quantize(x, spec, out=np.empty(3, np.uint8))
    with pytest.raises(TypeError, match="C-contiguous"):
        quantize(normal(200)[::2], spec)
    with pytest.raises(ValueError, match="rank must be in 0..65535"):
        quantize(x, spec, rank=1 << 16)
    for name, value in (("seed", -1), ("seed", 1 << 64), ("call", 1 << 32), ("rank", -1), ("quad", -1)):
        with pytest.raises(ValueError, match=f"{name} must be in 0"):
            quantize(x, spec, **{name: value})
    with pytest.raises(ValueError, match="threads"):
        quantize(x, spec, threads=0)
    with pytest.raises(ValueError, match="accumulate must have"):
        dequantize(wire, 100, spec, accumulate=normal(99))
    with pytest.raises(ValueError, match="the dtype of array"):
        quantize(x.astype(np.float64), spec)
    with pytest.raises(ValueError, match="may differ"):
        quantize(x, QuantSpec(dtype="float16", half_metadata=True))


@pytest.mark.parametrize("bits", (1, 4, 7))
def test_empty_and_single(kernels, bits):
    assert quantize(np.empty(0, F), bits=bits).size == 0
    check(F([3.25]), model.complete(bits, 1024))
    assert dequantize(quantize(F([3.25]), bits=bits), 1, QuantSpec(bits))[0] == 3.25


def test_wire_bytes_are_an_eighth():
    spec = QuantSpec(4, 1024)
    assert spec.wire_bytes(1 << 20) == (1 << 19) + 1024 * 8
    assert spec.wire_bytes(3 << 31) == 3 * ((1 << 30) + (1 << 21) * 8)
    for elems in (-1, (1 << 56) + 1):
        with pytest.raises(ValueError, match="elems must be in 0..2\\^56"):
            spec.wire_bytes(elems)
