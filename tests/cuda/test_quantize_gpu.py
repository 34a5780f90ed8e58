"""The quantiser on the GPU against the CPU's, byte for byte, many layers in one launch."""

import json

import _cgxffcv
import numpy as np
import pytest
import quant_model as model
from gpus import needs_gpu
from quant_values import specials

from cgxffcv.allreduce import QuantSpec, dequantize, quantize
from cgxffcv.bench import quantize as bench_quantize

pytestmark = needs_gpu

F = np.float32
DTYPES = ("float32", "float16", "bfloat16")
RANDOM = {"seed": 5 << 33 | 7, "call": 3, "rank": 2, "quad": (1 << 32) - 5}


def check(layers, skip=0, repeats=0, random=RANDOM, **options):
    """Asserts that bytes and decoded values of all layers equal the CPU's."""
    spec = QuantSpec(**options)
    x = np.concatenate(layers)
    wires = [quantize(layer, spec, **random) for layer in layers]
    wire, out = np.zeros(sum(w.size for w in wires), np.uint8), np.zeros_like(x)
    sizes = [layer.size for layer in layers]
    times = _cgxffcv.quantize_on_device(x, spec._core, random, sizes, wire, out, skip, repeats)
    keys = {key: value for key, value in random.items() if key != "rank"}
    expected = [dequantize(w, n, spec, **keys) for w, n in zip(wires, sizes, strict=True)]
    np.testing.assert_array_equal(wire, np.concatenate(wires))
    assert out.tobytes() == np.concatenate(expected).tobytes()
    return times


def normal(n, dtype, seed=0):
    return model.from_float32(np.random.default_rng(seed).standard_normal(n).astype(F), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", range(1, 9))
def test_maxmin(bits, dtype):
    """Short buckets that begin anywhere in a byte, one of more than one piece, a short last one."""
    for bucket, sizes, skip in ((5, (33, 0, 9), 1), (128, (300,), 3), (1024, (1500,), 0), (2500, (2700,), 1)):
        for rounding in ("nearest", "stochastic") if bits in (1, 3, 4) else ("nearest",):
            layers = [normal(n, dtype, n) for n in sizes]
            check(layers, skip, bits=bits, bucket_size=bucket, dtype=dtype, rounding=rounding)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bucket", (64, 128, 256, 512, 1024))
def test_whole_pieces(bucket, dtype):
    """They have separate kernels: in several layers, which begin at any element, with a remainder and without."""
    for bits, sizes, skip in ((4, (3100, 0, 1024, 700), 0), (2, (2048,), 1), (8, (1025, 2047), 3)):
        check([normal(n, dtype, n) for n in sizes], skip, bits=bits, bucket_size=bucket, dtype=dtype)
    for rounding in ("nearest", "stochastic"):
        special = np.repeat(specials().reshape(-1, 32), bucket // 32, axis=0).ravel()  # a bucket for each difficulty
        options = {"bucket_size": bucket, "rounding": rounding}
        check([model.from_float32(special, dtype)], bits=4, dtype=dtype, **options)
        check([np.zeros(1024, special.dtype), special], bits=2, **options)


@pytest.mark.parametrize("bits", range(1, 9))
def test_whole_pieces_of_any_width(bits):
    for bucket, sizes in ((64, (1024,)), (1024, (1030, 2048))):
        for rounding in ("nearest", "stochastic"):
            check([normal(n, "float32", n) for n in sizes], 2, bits=bits, bucket_size=bucket, rounding=rounding)


@pytest.mark.parametrize("bucket", (2048, 4096, 8192, 16384))
def test_buckets_of_several_pieces(bucket):
    """Up to 8, which the warps of a block share; whole ones, a short last one, and those of bad numbers."""
    for bits, dtype, rounding in ((4, "float32", "nearest"), (3, "bfloat16", "stochastic")):
        layers = [normal(n, dtype, n) for n in (2 * bucket + 700, 100, 9 * 1024)]
        check(layers, 1, bits=bits, bucket_size=bucket, dtype=dtype, rounding=rounding)
    special = np.tile(normal(bucket, "float32", 1), (5, 1))
    special[0, 5], special[1, bucket - 1], special[2, 1030], special[3] = np.nan, np.inf, 1e4, -0.0
    check([special.ravel()], bits=4, bucket_size=bucket)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sign(dtype):
    for bucket, n in ((1, 20), (33, 150), (128, 300), (1024, 1500), (2500, 2700)):
        check([normal(n, dtype, bucket)], bits=1, bucket_size=bucket, dtype=dtype, codec="sign")


@pytest.mark.parametrize("dtype", DTYPES)
def test_spikes(dtype):
    for bits, bucket, n, spikes in (
        (1, 1, 9, 1),
        (3, 4, 30, 4),
        (7, 64, 200, 3),
        (2, 1024, 1500, None),
        (8, 2500, 2600, 40),
    ):
        options = {"bucket_size": bucket, "dtype": dtype, "codec": "maxmin_spikes", "spikes": spikes}
        check([normal(n, dtype, bits)], bits=bits, **options)
    ties = model.from_float32(np.tile(F([1, -1, 1, 0.5]), 64), dtype)
    check([ties], bits=3, bucket_size=64, dtype=dtype, codec="maxmin_spikes", rounding="stochastic", spikes=7)


@pytest.mark.parametrize("bits", range(1, 5))
def test_rotated(bits):
    """Buckets of one piece and of several, whole ones and padded ones; both scales in every type."""
    for number, (bucket, sizes) in enumerate(
        ((64, (1, 0, 96)), (128, (161,)), (512, (700,)), (1024, (1025,)), (2048, (2048, 1100)), (4096, (2100, 3)))
    ):
        for dtype in DTYPES if number % 3 == 0 else DTYPES[:1]:
            scale = ("mse", "unbiased")[(number + bits) % 2]
            options = {"bits": bits, "bucket_size": bucket, "dtype": dtype, "codec": "rotated", "scale": scale}
            check([normal(n, dtype, n) for n in sizes], number % 2, **options)


@pytest.mark.parametrize("bucket", (64, 128, 256, 512))
@pytest.mark.parametrize("scale", ("mse", "unbiased"))
def test_rotated_special_values(bucket, scale):
    """Each difficulty has a bucket of its own, between others of the same piece."""
    special = np.repeat(specials().reshape(-1, 32), bucket // 32, axis=0).ravel()
    for bits in (1, 4):
        check([special], bits=bits, bucket_size=bucket, codec="rotated", scale=scale)


def test_rotated_values_at_the_limit():
    for bits in (1, 4):
        check([np.full(4096, 2.0**59.9, F), np.zeros(70, F)], bits=bits, bucket_size=4096, codec="rotated")


@pytest.mark.parametrize("bucket", (2048, 4096))
@pytest.mark.parametrize("dtype", DTYPES)
def test_rotated_buckets_of_several_pieces(bucket, dtype):
    """A warp has each piece: bad numbers in one concern all, and warps without a piece disturb nobody."""
    special = np.tile(normal(bucket, "float32", 1), (5, 1))
    special[0, 1030], special[1, bucket - 1], special[2, 5], special[3] = np.nan, 2.0**60, -(2.0**59), -0.0
    layers = [special.ravel(), normal(3 * bucket + 700, "float32", 2), np.zeros(bucket, F)]
    if dtype != "float32":
        layers = [model.from_float32(np.clip(layer, -6e4, 6e4), dtype) for layer in layers]
    for bits, scale in ((1, "mse"), (2, "unbiased"), (4, "unbiased")):
        check(layers, 1, bits=bits, bucket_size=bucket, dtype=dtype, codec="rotated", scale=scale)


@pytest.mark.parametrize("codec", ("maxmin", "sign", "maxmin_spikes"))
@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values(dtype, codec):
    x = specials() if dtype == "float32" else model.from_float32(specials(), dtype)
    for bits in (1,) if codec == "sign" else (3, 8):
        for half in (False, True)[: 1 if dtype == "float32" else 2]:
            check([x], bits=bits, bucket_size=32, dtype=dtype, codec=codec, half_metadata=half)


@pytest.mark.parametrize("codec", ("sign", "maxmin_spikes", "rotated"))
@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values_of_whole_pieces(dtype, codec):
    """Buckets of 1,024 go in a straight line: one for each difficulty, between others."""
    special = np.repeat(specials().reshape(-1, 32), 32, axis=0).ravel()
    bits = 1 if codec == "sign" else 3
    for rounding in ("nearest", "stochastic") if codec == "maxmin_spikes" else ("nearest",):
        check(
            [model.from_float32(special, dtype)],
            bits=bits,
            bucket_size=1024,
            dtype=dtype,
            codec=codec,
            rounding=rounding,
        )


@pytest.mark.parametrize("codec, bits", (("sign", 1), ("maxmin_spikes", 5), ("rotated", 3)))
@pytest.mark.parametrize("bucket", (64, 128, 256, 512, 4096))
def test_whole_pieces_of_other_codecs(bucket, codec, bits):
    """Several buckets in a piece, or several pieces in a bucket, at any element, with a remainder behind them."""
    for dtype in DTYPES[:2]:
        layers = [normal(n, dtype, n) for n in (bucket + 1100, 1024)]
        check(layers, 1, bits=bits, bucket_size=bucket, dtype=dtype, codec=codec)


@pytest.mark.parametrize("bucket, spikes", ((1024, 8), (1024, 256), (1024, 33), (100, 5), (2500, 40)))
def test_spikes_among_equals(bucket, spikes):
    """Where the least spike has equals, neighbours in the last bit, or nothing but zeros below it."""
    x = normal(bucket, "float32", 2)
    coarse, fine = np.round(x * 2) / 2, np.float32(1) + np.arange(bucket, dtype=F) * F(2.0**-23)
    few = np.where(np.arange(bucket) % (bucket // 3) == 7, x, F(0))
    cluster = np.where(np.arange(bucket) % 2 == 0, fine[::-1], F(1e-30) * x)
    rows = [coarse, fine, -fine[::-1], few, cluster, np.zeros(bucket), np.full(bucket, -0.0), np.full(bucket, 1e-45)]
    layer = np.concatenate(rows).astype(F)
    for dtype in DTYPES:
        options = {"bucket_size": bucket, "dtype": dtype, "codec": "maxmin_spikes", "spikes": spikes}
        check([model.from_float32(layer, dtype)], 1, bits=3, **options)
    normals = np.concatenate([normal(bucket, "bfloat16", seed) for seed in range(20)])
    check([normals], bits=2, bucket_size=bucket, dtype="bfloat16", codec="maxmin_spikes", spikes=spikes)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="the layers have 9 elements"):
        _cgxffcv.quantize_on_device(
            np.zeros(9, F), QuantSpec()._core, RANDOM, [9], np.zeros(3, np.uint8), np.zeros(9, F), 0, 0
        )


def test_the_benchmark_says_what_a_launch_moves_and_takes(tmp_path, capsys):
    path = tmp_path / "rows.json"
    words = ["--device", "gpu", "--size", "64K", "--bits", "4", "7", "--codec", "rotated", "--rounds", "1"]
    assert bench_quantize.main([*words, "--json", str(path)]) == 0
    (row,) = json.loads(path.read_text())["rows"]  # rotated has no 7 bits
    wire = QuantSpec(4, 1024, codec="rotated").wire_bytes(16384)
    assert row["bits"] == 4 and row["bytes"] == 65536 + wire
    for way in ("quantise", "dequantise"):
        assert row[f"{way}_gbps"] == pytest.approx(row["bytes"] / row[f"{way}_us"] / 1e3)
    assert len(capsys.readouterr().out.splitlines()) == 3
