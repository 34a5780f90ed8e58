"""Convolutions on the GPU against float64 NumPy on the same tensors that they read, and the cache of their plans.

Networks without a head keep all their tensors: from the bytes that it was given, each pass must produce the float64
result, rounded once to the storage type, within a few float32 roundings of its sums.
"""

import stat
from pathlib import Path

import _cgxffcv
import numpy as np
import pytest
from checkout import run_python
from gpus import EMULATED, needs_gpu
from nn_reference import bf16, conv, conv_data_gradient, conv_filter_gradient, patches

from cgxffcv.nn import Conv, Description, Head, Network, Norm

pytestmark = needs_gpu

DEVICE = next(iter(_cgxffcv.devices()), {"name": "", "compute_capability": (0, 0)})
HOPPER = tuple(DEVICE["compute_capability"]) == (9, 0)

PRECISIONS = ["float32", "bfloat16", "float16"]
ROUNDING = {"float32": 2e-6, "bfloat16": 2**-8, "float16": 2**-11}


def half(x):
    return np.asarray(x).astype(np.float16).astype(np.float64)


NARROW = {"float32": np.float64, "bfloat16": bf16, "float16": half}


def near(name, actual, expected, scale, precision):
    """Within 2^-20 of the sums' terms, and one rounding to the storage type, which may be subnormal."""
    assert actual.shape == expected.shape, name
    assert np.all(np.isfinite(actual)), name
    tiny = 2**-25 if precision == "float16" else 0.0
    bound = 2**-20 * scale + ROUNDING[precision] * np.abs(expected) + tiny
    worst = np.max(np.abs(actual - expected) - bound)
    assert worst <= 0, f"{name}: exceeds its bound by {worst}, largest error {np.max(np.abs(actual - expected))}"


def make(nodes, precision, seed, channels=3, **options):
    network = Network(Description("test", tuple(nodes), channels), backend="cuda", precision=precision, **options)
    network.initialise(seed)
    return network


def run(plan, nodes, batch, size, seed, factor=1.0):
    """Forward and backward on fresh random data."""
    rng = np.random.default_rng(seed)
    images = rng.normal(0.3, 1, (batch, *size, 3)).astype(np.float32)
    gradient = (factor * rng.normal(0, 1, (batch, *plan.shape(len(nodes) - 1)))).astype(np.float32)
    plan.forward(images)
    plan.backward(gradient)


def check(network, plan, nodes, precision):
    """All passes of every convolution after the first, which reads the images with separate kernels."""
    for index, node in enumerate(nodes):
        if index == 0 or not isinstance(node, Conv):
            continue
        x = plan.read(index - 1).astype(np.float64)
        dy = plan.read(index, True).astype(np.float64)
        w = NARROW[precision](network.parameter(f"{node.name}.weight"))
        assert np.any(x != 0) and np.any(dy != 0)
        size = np.abs(patches(x, node.kernel, node.stride, node.padding)).sum((3, 4, 5)).max() * np.abs(w).max()
        near(f"{node.name} forward", plan.read(index), conv(x, w, node.stride, node.padding), size, precision)
        expected = conv_data_gradient(dy, w, x.shape, node.stride, node.padding)
        size = conv_data_gradient(np.abs(dy), np.abs(w), x.shape, node.stride, node.padding).max()
        near(f"{node.name} data", plan.read(index - 1, True), expected, size, precision)
        expected = conv_filter_gradient(x, dy, node.kernel, node.stride, node.padding)
        size = conv_filter_gradient(np.abs(x), np.abs(dy), node.kernel, node.stride, node.padding).max()
        near(f"{node.name} filter", network.gradient(f"{node.name}.weight"), expected, size, precision)


# channels in and out, kernel, stride, padding, images
CASES = [
    (24, 64, 3, 1, 1, (13, 11)),
    (64, 32, 3, 1, 1, (7, 7)),
    (16, 40, 3, 1, 1, (3, 3)),
    (128, 16, 3, 1, 0, (6, 5)),
    (64, 48, 5, 2, 2, (16, 16)),
    (32, 32, 1, 1, 0, (5, 8)),
    (8, 8, 3, 1, 2, (9, 6)),
    (40, 24, 3, 2, 1, (10, 7)),
    (24, 16, 2, 1, 0, (9, 12)),
    (16, 24, 2, 2, 1, (7, 10)),
    (8, 72, 5, 1, 1, (6, 7)),
    (56, 8, 3, 2, 2, (11, 8)),
    (8, 16, 3, 1, 0, (3, 3)),
]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("deterministic", [False, True], ids=["free", "fixed"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: "x".join(map(str, c[:5])))
def test_conv(case, deterministic, precision):
    """A whole batch, then smaller ones after a batch of NaN: nothing of the images that they lack may show."""
    channels_in, channels, kernel, stride, padding, size = case
    nodes = [Conv("stem", channels_in, 1, 1, 0), Conv("conv", channels, kernel, stride, padding)]
    network = make(nodes, precision, seed=kernel, deterministic=deterministic)
    plan = network.plan(9, size, keep_all=True)
    run(plan, nodes, 9, size, seed=1)
    check(network, plan, nodes, precision)
    for batch in (6, 1):
        plan.forward(np.full((9, *size, 3), np.nan, np.float32))
        plan.backward(np.full((9, *plan.shape(1)), np.nan, np.float32))
        network.gradients[:] = np.nan
        run(plan, nodes, batch, size, seed=batch)
        check(network, plan, nodes, precision)


# channels in and out, map: forward, data gradient or both are convolutions to 64 channels
NARROW_CASES = [(64, 64, (9, 15)), (128, 64, (15, 15)), (64, 128, (15, 15)), (64, 192, (12, 11)), (64, 64, (1, 11))]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", NARROW_CASES, ids=str)
def test_channels_as_rows(case, precision, monkeypatch):
    """More images than the blocks take at once, an odd number; the same bytes again; one after a batch of NaN."""
    channels_in, channels, size = case
    nodes = [Conv("stem", channels_in, 1, 1, 0), Conv("conv", channels)]
    batch = 3 if EMULATED else 267
    monkeypatch.setenv("CGXFFCV_FUSED", "1")
    network = make(nodes, precision, seed=channels)
    plan = network.plan(batch, size, keep_all=True)
    found = {name for name, node, text in plan.algorithms if node == 1 and "wgmma" in text}
    wanted = {"conv forward"} if channels == 64 else set()
    wanted |= {"conv data gradient"} if channels_in == 64 else set()
    assert found == (wanted if HOPPER else set())
    seen = set()
    for _ in range(2):
        run(plan, nodes, batch, size, seed=1)
        seen.add((plan.read(1).tobytes(), plan.read(0, True).tobytes()))
    assert len(seen) == 1
    check(network, plan, nodes, precision)
    plan.forward(np.full((batch, *size, 3), np.nan, np.float32))
    plan.backward(np.full((batch, *plan.shape(1)), np.nan, np.float32))
    run(plan, nodes, 1, size, seed=2)
    check(network, plan, nodes, precision)


def test_channels_as_rows_can_be_turned_off(monkeypatch):
    for wish, found in (("narrow", HOPPER), ("forward", False), ("0", False)):
        monkeypatch.setenv("CGXFFCV_FUSED", wish)
        network = make([Conv("stem", 64, 1, 1, 0), Conv("conv", 64)], "float16", seed=0)
        assert any("wgmma" in text for _, _, text in network.plan(2, 15).algorithms) == found


@pytest.mark.parametrize("wish", ["2", "forwards", "no narrow", "forward filter"])
def test_fusions_that_do_not_exist_are_refused(wish, monkeypatch):
    monkeypatch.setenv("CGXFFCV_FUSED", wish)
    known = "one or more of forward,filter,narrow,1,0"
    with pytest.raises(ValueError, match=f"CGXFFCV_FUSED='{wish}': {known} is expected"):
        make([Conv("stem", 8, 1, 1, 0)], "float16", seed=0).plan(2, 15)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_several_convolutions(precision):
    """Their filters follow one another in the flat buffers; the values change between two calls."""
    nodes = [
        Conv("stem", 8, 3, 1, 1),
        Conv("a", 24),
        Norm("na"),
        Conv("b", 40, 2, 1, 0),
        Norm("nb"),
        Conv("c", 8, 3, 2, 1),
        Norm("nc"),
    ]
    network = make(nodes, precision, seed=3)
    plan = network.plan(5, (8, 9), keep_all=True)
    for seed in range(3):
        network.initialise(seed)
        run(plan, nodes, 5, (8, 9), seed)
        check(network, plan, nodes, precision)


def test_small_gradients_round_as_float16_does():
    """In the range where the storage type has only subnormal numbers."""
    nodes = [Conv("stem", 8, 1, 1, 0), Conv("conv", 16)]
    network = make(nodes, "float16", seed=0)
    plan = network.plan(2, 6, keep_all=True)
    run(plan, nodes, 2, (6, 6), seed=4, factor=2**-18)
    assert 0 < np.abs(plan.read(0, True)).max() < 2**-14
    check(network, plan, nodes, "float16")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_fixed_algorithms_give_the_same_bytes(precision):
    nodes = [Conv("stem", 24, 3, 1, 1), Conv("conv", 64)]
    network = make(nodes, precision, seed=1, deterministic=True)
    plan = network.plan(70, 12, keep_all=True)
    seen = set()
    for _ in range(3):
        run(plan, nodes, 70, (12, 12), seed=5)
        seen.add((network.gradients.tobytes(), plan.read(1).tobytes(), plan.read(0, True).tobytes()))
    assert len(seen) == 1


def test_frozen_blocks_keep_their_gradients():
    nodes = [
        Conv("stem", 8, 3, 1, 1, block=0),
        Norm("n0", block=0),
        Conv("a", 16, block=1),
        Norm("n1", block=1),
        Conv("b", 8, block=2),
    ]
    network = make(nodes, "float32", seed=2)
    plan = network.plan(4, 6, keep_all=True)
    rng = np.random.default_rng(0)
    plan.forward(rng.normal(0, 1, (4, 6, 6, 3)).astype(np.float32))
    network.gradients[:] = 7
    plan.backward(rng.normal(0, 1, (4, *plan.shape(4))).astype(np.float32), first_block=2)
    assert np.all(network.gradient("a.weight") == 7)
    x, dy = plan.read(3).astype(np.float64), plan.read(4, True).astype(np.float64)
    expected = conv_filter_gradient(x, dy, 3, 1, 1)
    near("b filter", network.gradient("b.weight"), expected, np.abs(expected).max(), "float32")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradient_of_the_mean_is_the_sums_divided(precision):
    """By a power of two, so to the last bit."""
    nodes = [Conv("stem", 8, 3, 1, 1), Norm("n0"), Conv("conv", 16), Norm("n1"), Head(classes=10)]
    network = make(nodes, precision, seed=0, deterministic=True)
    plan = network.plan(8, 8)
    rng = np.random.default_rng(1)
    images, labels = rng.normal(0, 1, (8, 8, 8, 3)).astype(np.float32), rng.integers(0, 10, 8)
    plan.step(images, labels, reduction="sum")
    summed = network.gradient("conv.weight").copy()
    plan.step(images, labels, reduction="mean")
    assert np.any(summed != 0)
    np.testing.assert_array_equal(network.gradient("conv.weight") * 8, summed)


# ---- the cache of plans ---------------------------------------------------------------------------------------------

SCRIPT = """
import sys
from cgxffcv.nn import Conv, Description, Network
nodes = (Conv("stem", 8, 1, 1, 0), Conv("conv", 16))
network = Network(Description("test", nodes), backend="cuda", precision="float16")
for pass_, node, text in network.plan(6, 8).algorithms:
    print(pass_, node, text, sep="|")
"""


@pytest.fixture
def plans_of():
    """What a new process searches for or finds with this cache directory."""

    def call(directory):
        done = run_python("-c", SCRIPT, cwd=Path(__file__).parent, CGXFFCV_CACHE=directory)
        return [line.split("|") for line in done.stdout.splitlines()]

    return call


def chosen(lines):
    """The choices, without how they were found."""
    return [(pass_, node, text.rsplit(", ", 1)[0]) for pass_, node, text in lines]


def the_file(directory):
    (path,) = directory.iterdir()
    return path


def test_second_process_remembers(plans_of, tmp_path):
    cache = tmp_path / "deep" / "cache"
    first = plans_of(cache)
    passes = ["conv forward", "conv filter gradient", "conv data gradient"]
    assert [line[0] for line in first] == passes and any("fastest of" in line[2] for line in first), first
    written = the_file(cache).read_bytes()
    second = plans_of(cache)
    assert all(line[2].endswith("remembered") for line in second), second
    assert chosen(second) == chosen(first)
    assert the_file(cache).read_bytes() == written


@pytest.mark.parametrize("damage", ["cut", "bits", "empty", "foreign"])
def test_damaged_file_is_made_again(plans_of, tmp_path, damage):
    plans_of(tmp_path)
    path = the_file(tmp_path)
    good = path.read_bytes()
    path.write_bytes(
        {
            "cut": good[:-30],
            "bits": good.replace(b"engine", b"engime"),
            "empty": b"",
            "foreign": b"\x7fELF" + bytes(5000),
        }[damage]
    )
    assert any("fastest of" in line[2] for line in plans_of(tmp_path))
    assert path.read_bytes().count(b"engine") == good.count(b"engine")
    assert all(line[2].endswith("remembered") for line in plans_of(tmp_path))


@pytest.mark.parametrize(
    "value", ["engine 99999999 knobs 0 ns 1", "engine 0 knobs 44", "engine -1 knobs 0 ns 1", "gibberish", "engine 1 "]
)
def test_wrong_plans_are_searched_again(plans_of, tmp_path, value):
    """Files with the right checksum that name what the library does not have."""
    plans_of(tmp_path)
    path = the_file(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)[:-1]
    lines[2:] = [line.split(b"\t")[0] + b"\t" + value.encode() + b"\n" for line in lines[2:]]
    text = b"".join(lines)
    path.write_bytes(text + f"end {xxh64(text):016x}\n".encode())
    again = plans_of(tmp_path)
    assert any("fastest of" in line[2] for line in again)
    assert value.encode() + b"\n" not in path.read_bytes()
    assert all(line[2].endswith("remembered") for line in plans_of(tmp_path))


def test_unwritable_directory_does(plans_of, tmp_path):
    place = tmp_path / "file"
    place.write_text("no directory")
    assert any("fastest of" in line[2] for line in plans_of(place / "cache"))
    assert place.read_text() == "no directory" and stat.S_ISREG(place.stat().st_mode)


def xxh64(data: bytes) -> int:
    """XXH64 with seed 0, from its published specification."""
    primes = [0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5]
    mask = (1 << 64) - 1

    def turn(x, by):
        return ((x << by) | (x >> (64 - by))) & mask

    def mix(lane, word):
        return turn((lane + word * primes[1]) & mask, 31) * primes[0] & mask

    def word(at, size):
        return int.from_bytes(data[at : at + size], "little")

    at, h = 0, primes[4]
    if len(data) >= 32:
        lanes = [(primes[0] + primes[1]) & mask, primes[1], 0, -primes[0] & mask]
        while at + 32 <= len(data):
            lanes = [mix(lane, word(at + 8 * i, 8)) for i, lane in enumerate(lanes)]
            at += 32
        h = sum(turn(lane, by) for lane, by in zip(lanes, (1, 7, 12, 18), strict=True)) & mask
        for lane in lanes:
            h = ((h ^ mix(0, lane)) * primes[0] + primes[3]) & mask
    h = (h + len(data)) & mask
    while at + 8 <= len(data):
        h = (turn(h ^ mix(0, word(at, 8)), 27) * primes[0] + primes[3]) & mask
        at += 8
    if at + 4 <= len(data):
        h = (turn(h ^ word(at, 4) * primes[0] & mask, 23) * primes[1] + primes[2]) & mask
        at += 4
    for byte in data[at:]:
        h = turn(h ^ byte * primes[4] & mask, 11) * primes[0] & mask
    h = (h ^ h >> 33) * primes[1] & mask
    h = (h ^ h >> 29) * primes[2] & mask
    return h ^ h >> 32
