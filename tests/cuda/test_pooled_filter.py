"""The filter gradient of a convolution right before a norm with its pool: the gradient between the two is not made.

A plan that keeps its tensors makes that gradient, rounded to 16 bits; of the same values the other plans' filter
gradient must be the float64 sum within a few float32 roundings of its terms.
"""

import numpy as np
import pytest
from gpus import needs_gpu
from nn_reference import conv_filter_gradient

from cgxffcv.nn import Conv, Description, Head, Network, Norm

pytestmark = needs_gpu

PRECISIONS = ["float16", "bfloat16"]
UNIT = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
ACTIVATIONS = ["none", "relu", "gelu", "silu"]


@pytest.fixture(autouse=True)
def only_this_kernel(monkeypatch):
    """The forward pass is that of the plan that keeps its tensors, to the last bit."""
    monkeypatch.setenv("CGXFFCV_FUSED", "filter")


def nodes_of(channels, activation="gelu", residual=False, bias=False):
    """The convolution under test is "conv"; after its norm a dense layer passes gradients back."""
    frozen, wide = channels
    nodes = [
        Conv("stem", frozen, 1, 1, 0, frozen=not bias, bias=bias, block=0),
        Conv("conv", wide, block=1),
        Norm("norm", activation, pool=2, block=1),
        Conv("next", wide, 1, 1, 0, block=1),
        Norm("last", "silu", residual="norm" if residual else None, residual_place="before", block=1),
    ]
    return [*nodes, Head(classes=10, block=1)]


def make(nodes, precision, seed=0):
    network = Network(Description("test", tuple(nodes)), backend="cuda", precision=precision, deterministic=True)
    network.initialise(seed)
    rng = np.random.default_rng(seed)
    whole = network.parameter("stem.weight")
    whole[:] = rng.integers(-1, 2, whole.shape)
    weight = network.parameter("conv.weight")
    weight[:] = rng.integers(-2, 3, weight.shape) / 8
    for name in ("norm.bias", "norm.scale", "last.bias"):
        values = network.parameter(name)
        values[:] = rng.normal(1 if name == "norm.scale" else 0, 0.5, values.shape)
    return network


def data(batch, size, seed=1):
    rng = np.random.default_rng(seed)
    return rng.integers(-2, 3, (batch, *size, 3)).astype(np.float32), rng.integers(0, 10, batch)


def gradients_of(network, plan, batch, **options):
    network.gradients[:] = np.nan
    plan.step(*batch, **options)
    return {layer.name: network.gradient(layer.name).copy() for layer in network.layers if layer.trained}


def check(network, size, batch, room=0, reduction="sum"):
    """Against float64 on the tensors of a plan that keeps them; the same bytes twice, whatever was there before."""
    images = data(batch, size)
    kept = network.plan(batch + room, size, keep_all=True)  # the same shapes, so the library sums alike
    kept.step(*images, reduction=reduction)
    x, dy = kept.read(0).astype(np.float64), kept.read(1, True).astype(np.float64)
    factor = 1 if reduction == "sum" else 1 / batch
    expected = conv_filter_gradient(x, dy, 3, 1, 1) * factor
    terms = conv_filter_gradient(np.abs(x), np.abs(dy), 3, 1, 1) * factor
    plan = network.plan(batch + room, size)
    if room:
        filler, labels = data(batch + room, size, seed=7)
        plan.step(1e30 * filler, labels, reduction="sum")  # NaN in all tensors
    first = gradients_of(network, plan, images, reduction=reduction)
    assert np.any(dy != 0) and np.all(np.isfinite(first["conv.weight"]))
    # A GPU's tensor cores truncate sums instead of rounding: the errors of a long sum all point towards zero.
    worst = np.max(np.abs(first["conv.weight"] - expected) - 2**-17 * terms)
    assert worst <= 0, f"exceeds its bound by {worst}, terms up to {terms.max()}"
    if reduction == "sum":
        assert not np.array_equal(first["conv.weight"], rounded(first["conv.weight"], network.precision))
    again = gradients_of(network, plan, images, reduction=reduction)
    assert all(np.array_equal(first[name], again[name], equal_nan=True) for name in first)


def rounded(values, precision):
    """What a gradient that went through the storage type looks like."""
    if precision == "float16":
        return values.astype(np.float16).astype(np.float32)
    return (values.view(np.uint32) & 0xFFFF0000).view(np.float32)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation, precision):
    check(make(nodes_of((24, 32), activation), precision), (7, 9), 3)


# channels in and out, images: windows of a strip missing, one strip, two, three; one row of windows; cut windows
CASES = [
    ((8, 16), (2, 2)),
    ((8, 16), (3, 5)),
    ((16, 48), (4, 17)),
    ((24, 64), (6, 16)),
    ((24, 80), (5, 18)),
    ((24, 16), (4, 37)),
    ((16, 128), (9, 8)),
    ((24, 64), (31, 31)),
]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES, ids=lambda c: "x".join(map(str, (*c[0], *c[1]))))
def test_shapes(case, precision):
    channels, size = case
    check(make(nodes_of(channels), precision), size, 1 if size == (31, 31) else 2)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("batch", [1, 131, 135, 266])
def test_batches(batch, precision):
    """Fewer images than blocks, not a multiple of them, three for some."""
    check(make(nodes_of((8, 16)), precision), (4, 4), batch, room=2, reduction="mean" if batch == 131 else "sum")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_residual_hands_on_the_gradient_before_the_activation(precision):
    check(make(nodes_of((24, 32), residual=True), precision), (6, 7), 3, room=1)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_as_the_passes_apart(precision, monkeypatch):
    """Also in the steps that need the gradient in between, for the convolution before: the filter's is the same."""
    results = {}
    for fused in ("0", "filter", "1"):
        monkeypatch.setenv("CGXFFCV_FUSED", fused)
        network = make(nodes_of((24, 32), bias=True), precision)
        plan, images = network.plan(5, (9, 8)), data(4, (9, 8))
        for first_block in (0, 1, 0):
            found = gradients_of(network, plan, images, first_block=first_block)
            assert np.isnan(found["stem.bias"]).all() == (first_block == 1)
            results.setdefault((fused, first_block), found)
            for name, values in results[fused, first_block].items():
                assert np.array_equal(values, found[name], equal_nan=True), name
    unit = UNIT[precision]
    for first_block in (0, 1):
        apart, together = results["0", first_block], results["filter", first_block]
        for name in apart.keys() - {"stem.weight"}:
            if name == "stem.bias" and first_block == 1:
                continue
            size = np.abs(apart[name]).max()
            assert np.abs(apart[name] - together[name]).max() <= 2 * unit * size, name
    filters = [results["filter", first_block]["conv.weight"] for first_block in (0, 1)]
    assert np.array_equal(*filters)
    assert not np.array_equal(results["0", 1]["conv.weight"], filters[1])


def test_no_plan_is_sought_for_what_is_not_run(monkeypatch):
    """The record of plans names the kernel; it has cuDNN's plan if cuDNN computes the gradient."""
    texts = []
    for fused in ("filter", "0"):
        monkeypatch.setenv("CGXFFCV_FUSED", fused)
        plan = make(nodes_of((8, 16)), "float16").plan(2, (4, 4))
        texts.append([text for name, node, text in plan.algorithms if (name, node) == ("conv filter gradient", 1)])
    assert texts[0] == ["fused with its norm's gradient"]
    assert len(texts[1]) == 1 and texts[1] != texts[0]


@pytest.mark.parametrize("kind", ["kernel", "padding", "stride", "pool", "place", "float32", "channels"])
def test_what_has_no_such_kernel(kind):
    """Other shapes are computed the usual way: their gradients were rounded to the storage type."""
    conv = {"kernel": (1, 1, 0), "padding": (3, 1, 0), "stride": (3, 2, 1)}.get(kind, (3, 1, 1))
    nodes = nodes_of((32 if kind == "channels" else 8, 16))
    nodes[1] = Conv("conv", 16, *conv, block=1)
    if kind in ("pool", "place"):
        pool, place = (3, "before") if kind == "pool" else (2, "after")
        nodes[2] = Norm("norm", "gelu", pool=pool, pool_place=place, block=1)
    precision = "float32" if kind == "float32" else "float16"
    network = make(nodes, precision)
    found = gradients_of(network, network.plan(3, (8, 8)), data(3, (8, 8)), reduction="sum")["conv.weight"]
    assert np.all(np.isfinite(found)) and found.any()
    narrow = np.array_equal(found, rounded(found, "float16"))
    assert narrow == (precision == "float16")
