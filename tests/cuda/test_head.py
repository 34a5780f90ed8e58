"""The head on a GPU, loss and gradients, against float64 NumPy on the tensors that it read."""

import numpy as np
import pytest
from gpus import needs_gpu
from nn_reference import bf16, cross_entropy, head_backward, head_forward

from cgxffcv.nn import Conv, Description, Head, Network, Norm

pytestmark = needs_gpu

STORE = {"float32": np.float32, "bfloat16": bf16, "float16": np.float16}
UNITS = {"float32": 1e-6, "bfloat16": 2**-8, "float16": 2**-11}
# channels, classes, size of the maps, images
SHAPES = [(8, 1, (1, 1), 1), (16, 10, (3, 3), 70), (264, 10, (2, 5), 3), (24, 33, (6, 1), 9), (64, 1000, (2, 2), 5)]


def run(channels, classes, size, count, precision, reduction, smoothing=0.2, scale=0.7, **head):
    rng = np.random.default_rng(channels + count)
    nodes = (Conv("conv", channels, 1, 1, 0), Norm("norm", "relu"), Head("head", classes, scale=scale, **head))
    network = Network(Description("test", nodes), backend="cuda", precision=precision)
    network.initialise(channels)
    plan = network.plan(count + 2, size, keep_all=True)
    poison = np.full((count + 2, *size, 3), np.nan, np.float32)
    plan.step(poison, np.zeros(count + 2, np.int64))
    plan.take_totals()
    network.initialise(channels)
    network.gradients[:] = np.nan
    images = rng.normal(0, 1, (count, *size, 3)).astype(np.float32)
    labels = rng.integers(0, classes, count)
    plan.step(images, labels, label_smoothing=smoothing, reduction=reduction)
    return network, plan, images, labels


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("precision", UNITS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape[:2])))
def test_head(shape, precision, reduction):
    channels, classes, size, count = shape
    network, plan, _, labels = run(channels, classes, size, count, precision, reduction)
    x, w = plan.read(1).astype(np.float64), network.parameter("head.weight").astype(np.float64)
    pooled, logits = head_forward(x, w, 0.7)
    loss, hits, dlogits = cross_entropy(logits, labels, 0.2, "sum")
    total, correct, images = plan.take_totals()
    assert total == pytest.approx(loss, rel=2e-6, abs=1e-6)
    assert (correct, images) == (hits, count)
    # logits are off by float32 roundings of their terms, probabilities by as much relatively
    inner = 1e-6 * (1 + (0.7 * np.abs(pooled) @ np.abs(w).T).max())
    dx, dw = head_backward(x, w, 0.7, pooled, dlogits)
    factor = 1 / count if reduction == "mean" else 1
    bound = inner * 0.7 * np.abs(pooled).sum(0).max() + 1e-6 * np.abs(dw)
    assert np.all(np.abs(network.gradient("head.weight") - factor * dw) <= factor * bound)
    got = plan.read(1, True)
    assert np.array_equal(got != 0, (dx != 0) & (got != 0))
    bound = inner * 0.7 * np.abs(w).sum(0).max() + UNITS[precision] * np.abs(dx) + 2**-24
    assert np.all(np.abs(got - dx) <= bound)
    assert np.array_equal(got, STORE[precision](got))


@pytest.mark.parametrize("precision", UNITS)
@pytest.mark.parametrize("shape", SHAPES[1:4], ids=lambda shape: "x".join(map(str, shape[:2])))
def test_average_and_bias(shape, precision):
    """Averages instead of maxima: every pixel's gradient is its share."""
    channels, classes, size, count = shape
    network, plan, images, labels = run(channels, classes, size, count, precision, "mean", pool="average", bias=True)
    x, w, b = (
        plan.read(1).astype(np.float64),
        *(network.parameter(f"head.{n}").astype(float) for n in ("weight", "bias")),
    )
    pooled, logits = head_forward(x, w, 0.7, "average", b)
    loss, hits, dlogits = cross_entropy(logits, labels, 0.2, "sum")
    total, correct, _ = plan.take_totals()
    assert (total, correct) == (pytest.approx(loss, rel=2e-6), hits)
    inner = 2e-6 * (1 + (0.7 * (np.abs(pooled) @ np.abs(w).T + np.abs(b))).max())
    dx, dw = head_backward(x, w, 0.7, pooled, dlogits, "average")
    bound = inner * 0.7 * np.abs(pooled).sum(0).max() + 1e-6 * np.abs(dw)
    assert np.all(np.abs(count * network.gradient("head.weight") - dw) <= bound)
    assert np.allclose(count * network.gradient("head.bias"), 0.7 * dlogits.sum(0), rtol=1e-5, atol=inner * count)
    bound = inner * 0.7 * np.abs(w).sum(0).max() + UNITS[precision] * np.abs(dx) + 2**-24
    assert np.all(np.abs(plan.read(1, True) - dx) <= bound)
    means, variances = (getattr(plan.read(0).astype(float), what)((0, 1, 2)) for what in ("mean", "var"))
    network.running_mean("norm")[:], network.running_variance("norm")[:] = means, variances
    assert np.allclose(plan.evaluate(images), logits, rtol=0, atol=8 * UNITS[precision] * np.abs(logits).max())


def test_the_first_of_equal_maxima_counts():
    """A constant image: all pixels of a map are equal, and so are all logits."""
    nodes = (Conv("conv", 8, 1, 1, 0), Norm("norm", "none"), Head("head", 10))
    network = Network(Description("test", nodes), backend="cuda", precision="float32")
    network.initialise(0)
    network.parameter("norm.bias")[:] = 1
    network.parameter("head.weight")[:] = 0.25
    plan = network.plan(4, (3, 2), keep_all=True)
    plan.step(np.full((4, 3, 2, 3), 0.5, np.float32), np.array([0, 0, 3, 9]))
    assert plan.take_totals()[1] == 2
    assert np.array_equal(plan.read(1), np.ones((4, 3, 2, 8), np.float32))
    gradient = plan.read(1, True)
    assert not gradient[:, 1:].any()
    assert not gradient[:, 0, 1:].any()


def test_totals_add_up_until_they_are_taken():
    network, plan, images, labels = run(16, 10, (3, 3), 20, "float16", "mean")
    first = plan.take_totals()
    parts = []
    for _ in range(3):
        network.running[:] = 1
        plan.step(images, labels, label_smoothing=0.2)
        parts.append(first)
    total, correct, count = plan.take_totals()
    assert total == pytest.approx(3 * first[0], rel=1e-12)
    assert (correct, count) == (3 * first[1], 60)
    assert plan.take_totals() == (0.0, 0, 0)


def test_evaluation():
    for precision, shape in [("float32", SHAPES[3]), ("float16", SHAPES[2])]:
        channels, classes, size, count = shape
        network, plan, images, _ = run(channels, classes, size, count, precision, "sum")
        # With the batch's own statistics as the running ones both see the same maps, to a rounding.
        x = plan.read(0).astype(np.float64)
        network.running_mean("norm")[:] = x.mean((0, 1, 2))
        network.running_variance("norm")[:] = x.var((0, 1, 2))
        _, expected = head_forward(plan.read(1).astype(np.float64), network.parameter("head.weight"), 0.7)
        assert np.allclose(plan.evaluate(images), expected, rtol=0, atol=8 * UNITS[precision] * np.abs(expected).max())
