"""Each operator of the CPU backend, forward and backward, against float64 NumPy on the same tensors that it read.

Networks without a head keep all their tensors, so every operator is compared by itself: given the bytes that it was
given, its result must be the float64 result rounded once (bfloat16) or within a few float32 roundings of its sums.
"""

import instruction_sets
import numpy as np
import pytest
from nn_reference import (
    activate,
    bf16,
    conv,
    conv_data_gradient,
    conv_filter_gradient,
    norm_backward,
    norm_forward,
    patches,
    residual_nodes,
    slope,
    winograd_conv,
    winograd_filter_gradient,
    within,
)

import cgxffcv
from cgxffcv.nn import Conv, Description, Network, Norm

pytestmark = pytest.mark.skipif(
    not cgxffcv.build_info()["onednn"], reason="this build has no oneDNN, so no convolutions on the CPU"
)

PRECISIONS = ["float32", "bfloat16"]


def close(name, actual, expected, scale, relative, rounding):
    """|actual - expected| <= relative * scale + rounding * |expected|; the scale is that of the sums' terms."""
    within(name, actual, expected, relative * scale + rounding * np.abs(expected))


def run(nodes, size, batch, precision, seed=0, channels=3, threads=2, convolution="direct"):
    """Makes the network, runs it forward and backward on random data, and returns everything that it computed."""
    height, width = size
    rng = np.random.default_rng(seed)
    network = Network(
        Description("test", tuple(nodes), channels), precision=precision, threads=threads, convolution=convolution
    )
    network.initialise(seed)
    for layer in network.layers:
        if layer.kind == "norm_scale":
            network.parameter(layer.name)[:] = rng.normal(1, 0.5, layer.shape)
        elif layer.kind == "norm_bias" or not layer.trained:
            network.parameter(layer.name)[:] = rng.normal(0, 0.5, layer.shape)
    plan = network.plan(batch + 3, size, keep_all=True)
    network.gradients[:] = np.nan
    poison = np.full((batch + 3, height, width, channels), np.nan, np.float32)
    plan.forward(poison)
    plan.backward(np.full((batch + 3, *plan.shape(len(nodes) - 1)), np.nan, np.float32))
    network.running[:] = rng.uniform(0.5, 2, network.running.shape)
    before = network.running.copy()
    images = rng.normal(0.3, 1, (batch, height, width, channels)).astype(np.float32)
    gradient = rng.normal(0, 1, (batch, *plan.shape(len(nodes) - 1))).astype(np.float32)
    plan.forward(images)
    plan.backward(gradient)
    return network, plan, images, before


def check_stem(network, plan, node, images, precision):
    w = network.parameter(f"{node.name}.weight").astype(np.float64)
    z = conv(images.astype(np.float64), w, node.stride, node.padding)
    if node.bias:
        z += network.parameter(f"{node.name}.bias")
    size = np.abs(patches(images, node.kernel, node.stride, node.padding)).sum((3, 4, 5))[..., None] * np.abs(w).max()
    rounding = 2**-8 if precision == "bfloat16" else 2e-6
    close(node.name, plan.read(0), activate(z, node.activation), size.max(), 1e-6, rounding)
    dz = plan.read(0, True) * slope(z, node.activation)
    terms = np.abs(dz).sum((0, 1, 2))
    if not node.frozen:
        expected = conv_filter_gradient(images.astype(np.float64), dz, node.kernel, node.stride, node.padding)
        close(node.name, network.gradient(f"{node.name}.weight"), expected, terms.max() * 4, 2e-6, 1e-5)
    if node.bias:
        close(node.name, network.gradient(f"{node.name}.bias"), dz.sum((0, 1, 2)), terms.max(), 2e-6, 1e-5)


def skip_gradient(network, plan, nodes, index):
    """The gradient that reaches the output of node `index` through a residual."""
    for i, node in enumerate(nodes):
        if isinstance(node, Norm) and node.residual == nodes[index].name:
            x, residual = plan.read(i - 1).astype(np.float64), plan.read(index).astype(np.float64)
            gamma = network.parameter(f"{node.name}.scale").astype(np.float64)
            _, kept = norm_forward(node, x, gamma, network.parameter(f"{node.name}.bias").astype(np.float64), residual)
            return norm_backward(node, kept, gamma, plan.read(i, True).astype(np.float64))[3]
    return 0.0


def check_conv(network, plan, node, index, nodes, precision):
    narrow = precision == "bfloat16"
    rounding = 2**-8 if narrow else 2e-6
    x = plan.read(index - 1).astype(np.float64)
    w = network.parameter(f"{node.name}.weight").astype(np.float64)
    w = bf16(w) if narrow else w
    size = np.abs(patches(x, node.kernel, node.stride, node.padding)).sum((3, 4, 5)).max() * np.abs(w).max()
    close(node.name, plan.read(index), conv(x, w, node.stride, node.padding), size, 1e-6, rounding)
    dy = plan.read(index, True).astype(np.float64)
    expected = conv_data_gradient(dy, w, x.shape, node.stride, node.padding)
    skip = skip_gradient(network, plan, nodes, index - 1)
    size = conv_data_gradient(np.abs(dy), np.abs(w), x.shape, node.stride, node.padding).max()
    # With a skip: both addends are rounded, as the skip's own gradient was, then the sum is.
    bound = 1e-6 * size + (np.abs(expected) + 2 * np.abs(skip) if np.ndim(skip) else 0.0) * rounding
    close(node.name, plan.read(index - 1, True), expected + skip, bound, 1.0, rounding)
    expected = conv_filter_gradient(x, dy, node.kernel, node.stride, node.padding)
    size = conv_filter_gradient(np.abs(x), np.abs(dy), node.kernel, node.stride, node.padding).max()
    close(node.name, network.gradient(f"{node.name}.weight"), expected, size, 2e-6, 1e-5)


def check_norm(network, plan, node, index, nodes, before, precision):
    rounding = 2**-8 if precision == "bfloat16" else 3e-6
    x = plan.read(index - 1).astype(np.float64)
    residual = None
    if node.residual is not None:
        residual = plan.read([n.name for n in nodes].index(node.residual)).astype(np.float64)
    gamma = network.parameter(f"{node.name}.scale").astype(np.float64) if node.scale else 1.0
    beta = network.parameter(f"{node.name}.bias").astype(np.float64)
    store = bf16 if precision == "bfloat16" else np.float32
    out, kept = norm_forward(node, x, gamma, beta, residual, store=store)
    twice = 2 if node.pool_place == "after" else 1  # the reference has rounded there too
    close(node.name, plan.read(index), out, np.abs(out).max(), 2e-6, twice * rounding)
    pixels = kept["normal"][..., 0].size
    statistic = network._statistic(node.name)
    mean = before[statistic.mean_offset :][: statistic.channels] * node.keep + (1 - node.keep) * kept["mean"]
    unbiased = kept["variance"] * (pixels / max(pixels - 1, 1))
    variance = before[statistic.variance_offset :][: statistic.channels] * node.keep + (1 - node.keep) * unbiased
    close(node.name, network.running_mean(node.name), mean, np.abs(x).max(), 1e-6, 1e-6)
    close(node.name, network.running_variance(node.name), variance, unbiased.max(), 1e-6, 1e-6)
    dout = plan.read(index, True).astype(np.float64)
    dx, dscale, dbias, _ = norm_backward(node, kept, gamma, dout)
    terms = np.abs(dout).sum((0, 1, 2)).max() * 2
    # The sum of two gradients is used as it is, but read here rounded: the roundings add up at random.
    added = precision == "bfloat16" and any(isinstance(n, Norm) and n.residual == node.name for n in nodes)
    inner = 2**-8 * 5 / np.sqrt(dout[..., 0].size) if added else 2e-6
    close(node.name, network.gradient(f"{node.name}.bias"), dbias, terms, inner, 1e-5)
    if node.scale:
        close(node.name, network.gradient(f"{node.name}.scale"), dscale, terms * 3, 2 * inner, 1e-5)
    # dz is stored in the storage type before the statistics' part is taken off: one more rounding of its own size.
    size = (np.abs(gamma) * kept["deviation"]).max() * np.abs(dout).max() * 1.2
    inner = 2**-8 if precision == "bfloat16" else 3e-6
    close(node.name, plan.read(index - 1, True), dx, size, inner, rounding)


def check_all(nodes, size, batch, precision, **options):
    network, plan, images, before = run(nodes, size, batch, precision, **options)
    for index, node in enumerate(nodes):
        if index == 0:
            check_stem(network, plan, node, images, precision)
        elif isinstance(node, Conv):
            check_conv(network, plan, node, index, nodes, precision)
        else:
            check_norm(network, plan, node, index, nodes, before, precision)
    return network


def tile_of(shape, convolution):
    """The tile that the C core takes for a map of this size."""
    multiplications = {tile: -(-shape[1] // tile) * -(-shape[2] // tile) * (tile + 2) ** 2 for tile in (2, 4)}
    return 4 if convolution == "winograd4" and multiplications[4] < multiplications[2] else 2


def near(name, actual, expected, rounding):
    """Equal except for the stored result's rounding and for transformed values that float32 rounds the other way."""
    error = np.sqrt(np.mean((actual - expected) ** 2) / np.mean(expected**2))
    assert error < rounding, f"{name}: relative error {error}"
    close(name, actual, expected, np.abs(expected).max(), 6e-3, 2**-8)


@pytest.mark.parametrize("convolution", ["winograd2", "winograd4"])
@pytest.mark.parametrize("batch", [1, 13])
@pytest.mark.parametrize(
    ("channels_in", "channels", "padding", "size"),
    [
        (24, 64, 1, (31, 31)),
        (64, 128, 1, (15, 9)),
        (128, 72, 1, (7, 7)),
        (48, 64, 1, (3, 3)),
        (16, 24, 0, (6, 5)),
        (40, 8, 2, (9, 13)),
        (8, 80, 1, (1, 1)),
        (32, 48, 1, (10, 4)),
    ],
)
def test_minimal_filtering(channels_in, channels, padding, size, batch, convolution):
    """Against the same algorithm in float64, its transformed values rounded to bfloat16."""
    if not cgxffcv.build_info()["cpu"]["avx512_bf16"]:
        pytest.skip("this processor has no bfloat16 products of AVX-512")
    nodes = [Conv("stem", channels_in, 1, 1, 0), Conv("conv", channels, 3, 1, padding)]
    network, plan, _, _ = run(nodes, size, batch, "bfloat16", convolution=convolution)
    x, dy = plan.read(0).astype(np.float64), plan.read(1, True).astype(np.float64)
    w = network.parameter("conv.weight").astype(np.float64)
    near("output", plan.read(1), winograd_conv(x, w, tile_of(dy.shape, convolution), padding), 3e-3)
    turned = np.ascontiguousarray(w[:, ::-1, ::-1].transpose(3, 1, 2, 0))
    expected = winograd_conv(dy, turned, tile_of(x.shape, convolution), 2 - padding)
    near("input gradient", plan.read(0, True), expected, 3e-3)
    expected = winograd_filter_gradient(x, dy, tile_of(dy.shape, convolution), padding)
    near("filter gradient", network.gradient("conv.weight"), expected, 3e-4)
    # and how far the algorithm is from the truth
    truth, bound = conv(x, w, 1, padding), 6e-3 if convolution == "winograd2" else 2e-2
    assert np.linalg.norm(plan.read(1) - truth) < bound * np.linalg.norm(truth)
    truth = conv_filter_gradient(x, dy, 3, 1, padding)
    assert np.linalg.norm(network.gradient("conv.weight") - truth) < bound * np.linalg.norm(truth)


STEMS = {
    "whitening": Conv("stem", 24, 2, 1, 0, bias=True, activation="gelu", frozen=True),
    "plain": Conv("stem", 16, 3, 1, 1),
    "silu": Conv("stem", 33, 3, 2, 1, bias=True, activation="silu"),
    "relu": Conv("stem", 5, 5, 3, 2, bias=True, activation="relu"),
    "wide": Conv("stem", 64, 1, 1, 0, bias=True),
    "many": Conv("stem", 40, 3, 1, 2, bias=True, bias_init="zero", activation="gelu"),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("batch", [1, 19])
@pytest.mark.parametrize("stem", STEMS)
def test_stem(stem, batch, precision):
    for channels, size in [(3, (13, 9)), (1, (8, 17)), (4, (7, 7))]:
        check_all([STEMS[stem]], size, batch, precision, channels=channels)


def test_stems_on_other_instruction_sets():
    """Vectors of 8 and 4 floats, where most processors of the tests have 16."""
    instruction_sets.pass_on(["scalar", "avx2"], "test_stem and float32", __file__)


CONVS = [
    (24, 64, 3, 1, 1, (13, 11)),
    (64, 32, 3, 1, 1, (7, 7)),
    (16, 128, 3, 1, 1, (3, 3)),
    (128, 16, 3, 1, 0, (6, 5)),
    (64, 48, 5, 2, 2, (16, 16)),
    (32, 32, 1, 1, 0, (5, 8)),
    (5, 7, 3, 1, 1, (9, 6)),
    (40, 24, 3, 2, 1, (10, 7)),
]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("batch", [1, 70])
@pytest.mark.parametrize("case", CONVS, ids=lambda c: "x".join(map(str, c[:5])))
def test_conv(case, batch, precision):
    channels_in, channels, kernel, stride, padding, size = case
    check_all(
        [Conv("stem", channels_in, 1, 1, 0), Conv("conv", channels, kernel, stride, padding)], size, batch, precision
    )


NORMS = {
    "airbench": {"activation": "gelu", "pool": 2, "scale": False, "eps": 1e-12},
    "pool3": {"activation": "silu", "pool": 3},
    "plain": {"activation": "none"},
    "relu": {"activation": "relu"},
    "after": {"activation": "relu", "pool": 2, "pool_place": "after"},
    "after3": {"activation": "gelu", "pool": 3, "pool_place": "after"},
    "silu": {"activation": "silu", "scale": False},
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("batch", [1, 37])
@pytest.mark.parametrize("norm", NORMS)
def test_norm(norm, batch, precision):
    for channels, size in [(32, (7, 7)), (24, (9, 6)), (3, (5, 8)), (80, (6, 6))]:
        check_all([Conv("stem", channels, 3, 1, 1), Norm("norm", **NORMS[norm])], size, batch, precision)


def test_norm_of_one_pixel_has_no_deviation():
    network = check_all([Conv("stem", 16, 1, 1, 0), Norm("norm", eps=0.5, activation="none")], (1, 1), 1, "float32")
    assert np.allclose(network.gradient("stem.weight"), 0, atol=1e-6)


def test_norm_far_from_zero_keeps_its_digits():
    """Mean 1000 deviations from zero: sums of squares would lose all digits of the variance."""
    nodes = [Conv("stem", 16, 1, 1, 0, bias=True), Conv("conv", 16, 1, 1, 0), Norm("norm", activation="none")]
    rng = np.random.default_rng(5)
    network = Network(Description("test", tuple(nodes)), precision="float32", threads=1)
    network.initialise(0)
    network.parameter("stem.bias")[:] = 3000
    plan = network.plan(50, 9, keep_all=True)
    plan.forward(rng.normal(0, 1, (50, 9, 9, 3)).astype(np.float32))
    x = plan.read(1).astype(np.float64)
    variance = x.var((0, 1, 2)) * (50 * 81 / (50 * 81 - 1))
    assert np.median(np.abs(x.mean((0, 1, 2))) / np.sqrt(variance)) > 1000
    assert np.allclose(network.running_variance("norm"), 0.9 + 0.1 * variance, rtol=1e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("pool", [0, 2])
def test_residual(place, pool, precision):
    nodes = residual_nodes(place, pool, "relu")
    check_all(nodes, (9, 10), 21, precision)
