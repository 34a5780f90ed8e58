"""The norm's passes on a GPU, forward and backward, against float64 NumPy on the same tensors that they read.

Networks without a head keep all their tensors, so every norm is compared by itself: its results must be the float64
results, rounded once to the storage type, within a few float32 roundings of their terms.
"""

import numpy as np
import pytest
from gpus import EMULATED, needs_gpu
from nn_reference import Reference, bf16, conv_data_gradient, norm_backward, norm_forward, residual_nodes, within

from cgxffcv.nn import Conv, Description, Head, Network, Norm

pytestmark = needs_gpu

UNIT = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}  # the largest relative rounding
STORE = {"float32": np.float32, "bfloat16": bf16, "float16": np.float16}
PRECISIONS = list(UNIT)
SMALLEST = 2.0**-24  # float16 has nothing between this and zero
FUNCTION = 2e-6  # of an activation or its slope: absolute error of the kernels' approximations


def network_of(nodes, precision):
    """Deterministic: bytes are compared here."""
    return Network(Description("test", tuple(nodes)), backend="cuda", precision=precision, deterministic=True)


class Run:
    """A network after forward and backward on random data, poisoned before with NaN in every tensor."""

    def __init__(self, nodes, size, batch, precision, seed=0, shift=0.0):
        rng = np.random.default_rng(seed)
        self.nodes, self.precision, self.names = nodes, precision, [node.name for node in nodes]
        self.network = network = network_of(nodes, precision)
        network.initialise(seed)
        for layer in network.layers:
            if layer.kind == "norm_scale":
                network.parameter(layer.name)[:] = rng.normal(1, 0.5, layer.shape)
            elif layer.kind in ("norm_bias", "bias"):
                network.parameter(layer.name)[:] = rng.normal(shift if layer.kind == "bias" else 0, 0.5, layer.shape)
        self.plan = plan = network.plan(batch + 3, size, keep_all=True)
        shape = plan.shape(len(nodes) - 1)
        plan.forward(np.full((batch + 3, *size, 3), np.nan, np.float32))
        plan.backward(np.full((batch + 3, *shape), np.nan, np.float32))
        network.gradients[:] = np.nan
        self.images = rng.normal(0.3, 1, (batch, *size, 3)).astype(np.float32)
        self.gradient = rng.normal(0, 1, (batch, *shape)).astype(np.float32)
        self.before = rng.uniform(0.5, 2, network.running.shape).astype(np.float32)
        self.go()

    def go(self):
        self.network.running[:] = self.before
        self.plan.forward(self.images)
        self.plan.backward(self.gradient)

    def read(self, name, gradient=False):
        return self.plan.read(self.names.index(name), gradient).astype(np.float64)

    def results(self):
        tensors = [self.plan.read(i, gradient) for i in range(len(self.nodes)) for gradient in (False, True)]
        return [t.tobytes() for t in (*tensors, self.network.gradients, self.network.running)]

    def terms(self, node):
        """What the reference takes of a norm: the node, its input, scale, bias, residual."""
        x = self.plan.read(self.names.index(node.name) - 1).astype(np.float64)
        gamma = self.network.parameter(f"{node.name}.scale").astype(np.float64) if node.scale else 1.0
        beta = self.network.parameter(f"{node.name}.bias").astype(np.float64)
        return node, x, gamma, beta, None if node.residual is None else self.read(node.residual)


def check_norm(run, node):
    unit = UNIT[run.precision]
    args = run.terms(node)
    out, kept = norm_forward(*args, store=STORE[run.precision])
    x, gamma, normal = args[1], args[2], kept["normal"]
    far = 1 + (np.abs(kept["mean"]) * kept["deviation"]).max()  # deviations between zero and the mean
    arithmetic = 4e-7 * (np.abs(normal * gamma).max() * far + np.abs(args[3]).max() + np.abs(out).max())
    # A pool after the activation chooses among rounded values; here the reference rounds as well.
    rounding = (2 if node.pool_place == "after" else 1) * unit
    within(node.name, run.read(node.name), out, rounding * np.abs(out) + arithmetic + FUNCTION + SMALLEST)
    check_running(run, node, x, kept)
    dout = run.read(node.name, True)
    dx, dscale, dbias, _ = norm_backward(node, kept, gamma, dout)
    terms = np.abs(dout).sum((0, 1, 2)).max() * 1.2
    slopes = FUNCTION + 1e-7 * far * np.abs(gamma).max()  # their error: the function's, and of the mean in float32
    within(node.name, run.network.gradient(f"{node.name}.bias"), dbias, slopes * terms + 1e-6 * np.abs(dbias))
    if node.scale:
        bound = slopes * terms * np.abs(normal).max() + 1e-6 * np.abs(dscale)
        within(node.name, run.network.gradient(f"{node.name}.scale"), dscale, bound)
    # If a residual passes on the gradient before the activation, it has been rounded.
    size = (np.abs(gamma) * kept["deviation"]).max() * np.abs(dout).max() * 1.2
    inner = (unit if node.residual_place == "before" else 0) + 2 * slopes
    actual = run.plan.read(run.names.index(node.name) - 1, True)
    within(node.name, actual, dx, unit * np.abs(dx) + inner * size + SMALLEST)
    if node.pool and node.pool_place == "before":
        rows, columns = (n // node.pool * node.pool for n in x.shape[1:3])
        assert not actual[:, rows:].any() and not actual[:, :, columns:].any()
        assert np.count_nonzero(actual) <= actual.size // node.pool**2


def check_running(run, node, x, kept):
    pixels = kept["normal"][..., 0].size
    statistic = run.network._statistic(node.name)
    places = slice(statistic.mean_offset, statistic.mean_offset + statistic.channels)
    mean = run.before[places] * node.keep + (1 - node.keep) * kept["mean"]
    within(node.name, run.network.running_mean(node.name), mean, 5e-7 * np.abs(x).max() + 1e-7)
    places = slice(statistic.variance_offset, statistic.variance_offset + statistic.channels)
    unbiased = kept["variance"] * (pixels / max(pixels - 1, 1))
    variance = run.before[places] * node.keep + (1 - node.keep) * unbiased
    within(node.name, run.network.running_variance(node.name), variance, 1e-6 * variance)


def check_all(nodes, size, batch, precision, **options):
    run = Run(nodes, size, batch, precision, **options)
    for node in nodes:
        if isinstance(node, Norm):
            check_norm(run, node)
    first = run.results()
    run.go()
    assert run.results() == first, "the same step gave other bytes"
    return run


POOLS = [(0, "before"), (2, "before"), (3, "before"), (2, "after"), (3, "after")]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("pool", POOLS, ids=lambda p: f"{p[1]}{p[0]}")
@pytest.mark.parametrize("activation", ["none", "relu", "gelu", "silu"])
def test_every_kernel(activation, pool, precision):
    for channels, size, batch, scale in [(24, (9, 8), 7, True), (8, (6, 5), 1, False)]:
        norm = Norm("norm", activation, pool=pool[0], pool_place=pool[1], scale=scale, eps=1e-12)
        check_all([Conv("stem", channels, 3, 1, 1), norm], size, batch, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("pool", POOLS[:2] + POOLS[3:4], ids=lambda p: f"{p[1]}{p[0]}")
@pytest.mark.parametrize("channels", [16, 40, 64, 96, 128, 256, 264, 512])
def test_channel_counts(channels, pool, precision):
    nodes = [Conv("stem", channels, 1, 1, 0), Norm("norm", "silu", pool=pool[0], pool_place=pool[1])]
    check_all(nodes, (7, 7), 9, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("pool", POOLS[:2] + POOLS[3:4], ids=lambda p: f"{p[1]}{p[0]}")
def test_blocks_that_take_many_turns(pool, precision):
    """More chunks than blocks, in every kernel."""
    if EMULATED and (precision != "float32" or pool[1] == "after"):
        pytest.skip("takes half a minute without a GPU; the loops are those of the others")
    nodes = [Conv("stem", 512, 1, 1, 0), Norm("norm", "relu", pool=pool[0], pool_place=pool[1])]
    check_all(nodes, (18, 17), 14 if EMULATED else 50, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_pixel_has_no_deviation(precision):
    nodes = [Conv("stem", 16, 1, 1, 0), Norm("norm", eps=0.5, activation="none")]
    run = check_all(nodes, (1, 1), 1, precision)
    assert np.abs(run.plan.read(0, True)).max() < 1e-6


@pytest.mark.parametrize(("precision", "far"), [("float32", 1000), ("float16", 30), ("bfloat16", 8)])
@pytest.mark.parametrize("pool", [0, 2])
def test_far_from_zero(pool, precision, far):
    """Many standard deviations from zero: sums of squares would lose the digits of the variance."""
    nodes = [Conv("stem", 16, 1, 1, 0, bias=True), Conv("conv", 16, 1, 1, 0), Norm("norm", "gelu", pool=pool)]
    run = check_all(nodes, (12, 11), 40, precision, shift=far)
    x = run.read("conv")
    assert np.median(np.abs(x.mean((0, 1, 2))) / x.std((0, 1, 2))) > far / 2


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("special", [np.inf, np.nan])
def test_largest_of_equal_ones_is_the_first(precision, special):
    """The gradient goes to the first maximum of a window; values that are not finite show in the output."""
    nodes = [Conv("stem", 8, 1, 1, 0), Norm("norm", "none", pool=2)]
    network = Network(Description("test", tuple(nodes)), backend="cuda", precision=precision)
    network.initialise(0)
    network.parameter("stem.weight")[:] = 1
    plan = network.plan(4, 6, keep_all=True)
    images = np.random.default_rng(1).integers(0, 3, (4, 6, 6, 3)).astype(np.float32)
    plan.forward(images)
    plan.backward(np.random.default_rng(2).normal(0, 1, (4, 3, 3, 8)).astype(np.float32))
    x, dx = plan.read(0), plan.read(0, True)

    def windows(maps):
        return maps.reshape(4, 3, 2, 3, 2, 8).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 4)

    first = windows(x).argmax(1)
    assert np.all((windows(dx) != 0) == (np.arange(4) == first[:, None]))
    images[0, 0, 0] = special
    plan.forward(images)
    assert not np.isfinite(plan.read(1)).all()  # never hidden


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("pool", [0, 2])
def test_residual(place, pool, precision):
    nodes = residual_nodes(place, pool, "gelu")
    run = check_all(nodes, (9, 10), 21, precision)
    for name, adder in [("a", "c"), ("c", "d")]:
        check_sum(run, name, nodes[run.names.index(adder)])


def check_sum(run, name, adder):
    """The gradient that reaches a norm: that of the convolution after it plus that of the residual, all rounded."""
    unit, index = UNIT[run.precision], run.names.index(name)
    behind = run.nodes[index + 1]
    weight = STORE[run.precision](run.network.parameter(f"{behind.name}.weight")).astype(np.float64)
    dy = run.read(behind.name, True)
    through = conv_data_gradient(dy, weight, run.read(name).shape, behind.stride, behind.padding)
    _, kept = norm_forward(*run.terms(adder), store=STORE[run.precision])
    skip = norm_backward(adder, kept, run.terms(adder)[2], run.read(adder.name, True))[3]
    size = conv_data_gradient(np.abs(dy), np.abs(weight), through.shape, behind.stride, behind.padding).max()
    bound = unit * (np.abs(through) + np.abs(skip) + np.abs(through + skip)) + 2 * FUNCTION * size + SMALLEST
    within(f"{name} + {adder.name}", run.read(name, True), through + skip, bound)


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("pool", [0, 2])
def test_shared_memory_gives_the_same_gradients(place, pool):
    """A plan that reuses the memory of tensors, and one that keeps them all; the same step twice."""
    nodes = [
        Conv("stem", 8, 3, 1, 1),
        Norm("a", "gelu", pool=pool),
        Conv("conv1", 16),
        Norm("b", "silu"),
        Conv("conv2", 8),
        Norm("c", "relu", residual="a", residual_place=place),
        Conv("conv3", 24),
        Norm("d", "gelu", pool=2, pool_place="after"),
        Conv("conv4", 8),
        Norm("e", "gelu"),
        Head(),
    ]
    rng = np.random.default_rng(3)
    images, labels = rng.normal(0, 1, (5, 11, 12, 3)).astype(np.float32), rng.integers(0, 10, 5)
    network = network_of(nodes, "float16")
    network.initialise(4)
    steps = []
    for keep_all in (True, False, False):
        network.gradients[:] = np.nan
        network.plan(6, (11, 12), keep_all=keep_all).step(images, labels)
        gradients = [network.gradient(layer.name) for layer in network.layers]
        assert all(np.isfinite(g).all() and g.any() for g in gradients)
        steps.append([g.tobytes() for g in gradients])
    assert steps[0] == steps[1] == steps[2]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("pool", POOLS, ids=lambda p: f"{p[1]}{p[0]}")
@pytest.mark.parametrize("activation", ["none", "relu", "gelu", "silu"])
def test_evaluation(activation, pool, precision):
    """With running statistics: pool, norm and activation in one pass; logits are the largest outputs."""
    kind = {"activation": activation, "pool": pool[0], "pool_place": pool[1]}
    nodes = [Conv("stem", 24, 1, 1, 0), Norm("norm", eps=1e-3, **kind), Head(classes=24)]
    rng = np.random.default_rng(6)
    network = Network(Description("test", tuple(nodes)), backend="cuda", precision=precision)
    network.initialise(7)
    network.running[:] = rng.uniform(0.3, 2, network.running.shape)
    network.parameter("norm.scale")[:] = rng.normal(0, 1, 24)
    network.parameter("norm.bias")[:] = rng.normal(0, 1, 24)
    network.parameter("head.weight")[:] = np.eye(24)
    images = rng.normal(0, 1, (4, 11, 7, 3)).astype(np.float32)
    kept = Network(Description("test", tuple(nodes[:1])), backend="cuda", precision=precision)
    kept.parameter("stem.weight")[:] = network.parameter("stem.weight")
    plan = kept.plan(4, (11, 7), keep_all=True)
    plan.forward(images)
    x = plan.read(0).astype(np.float64)
    statistics = [network.running_mean("norm"), network.running_variance("norm")]
    gamma, beta = (network.parameter(f"norm.{name}").astype(np.float64) for name in ("scale", "bias"))
    out, _ = norm_forward(
        nodes[1], x, gamma, beta, None, *(s.astype(np.float64) for s in statistics), store=STORE[precision]
    )
    expected = out.max((1, 2))
    rounding = (2 if pool[1] == "after" else 1) * UNIT[precision]
    bound = rounding * np.abs(expected) + FUNCTION + 1e-6 * np.abs(out).max() + SMALLEST
    within("norm", network.plan(4, (11, 7)).evaluate(images), expected, bound)


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("pool", [0, 2])
def test_evaluation_of_residuals(place, pool):
    nodes = [
        Conv("stem", 16, 1, 1, 0),
        Norm("a", "relu", pool=pool),
        Conv("conv", 16, 3, 1, 1),
        Norm("b", "none", residual="a", residual_place=place),
        Conv("last", 16, 3, 1, 1),
        Norm("c", "silu", residual="b", residual_place=place),
        Head(),
    ]
    network = Network(Description("test", tuple(nodes)), backend="cuda", precision="float32")
    network.initialise(8)
    network.running[:] = np.random.default_rng(9).uniform(0.3, 2, network.running.shape)
    images = np.random.default_rng(10).normal(0, 1, (3, 9, 8, 3)).astype(np.float32)
    expected = Reference(network).forward(images.astype(np.float64), training=False)[0][-1]
    within("logits", network.plan(3, (9, 8)).evaluate(images), expected, 2e-5 * np.abs(expected).max())
