"""A convolution and the pool and statistics of its norm in one kernel: against the kernels one by one, and against
float64 NumPy. Networks with a head keep no intermediate tensors, so that their plans may run passes together."""

import numpy as np
import pytest
from gpus import EMULATED, needs_gpu
from nn_reference import bf16, conv, norm_forward

from cgxffcv.nn import Conv, Description, Head, Network, Norm

pytestmark = needs_gpu

UNIT = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
STORE = {"bfloat16": bf16, "float16": np.float16}
PRECISIONS = list(UNIT)

# images, map, channels; the emulator takes a while for each image
CASES = [
    (1, (2, 2), 64),
    (1, (5, 5), 64),
    (3, (7, 6), 64),
    (2, (4, 9), 128),
    (1, (13, 15), 64),
]
if not EMULATED:
    CASES += [(500, (31, 31), 64), (133, (31, 31), 128), (131, (30, 32), 64), (264, (8, 3), 192), (1, (32, 33), 64)]


def nodes_of(channels, activation="gelu"):
    return [
        Conv("stem", 24, 1, 1, 0),
        Norm("first", "none"),
        Conv("conv", channels, 3, 1, 1),
        Norm("norm", activation, pool=2),
        Head(),
    ]


class Run:
    """A step and an evaluation on random data."""

    def __init__(self, monkeypatch, fused, case, precision, nodes=None, seed=0, **options):
        batch, size, channels = case
        monkeypatch.setenv("CGXFFCV_FUSED", "forward" if fused else "0")
        nodes = nodes or nodes_of(channels)
        rng = np.random.default_rng(seed)
        self.network = network = Network(
            Description("test", tuple(nodes)), backend="cuda", precision=precision, deterministic=True
        )
        network.initialise(seed)
        for layer in network.layers:
            if layer.kind in ("norm_scale", "norm_bias"):
                network.parameter(layer.name)[:] = rng.normal(layer.kind == "norm_scale", 0.5, layer.shape)
        self.images = rng.normal(0.3, 1, (batch, *size, 3)).astype(np.float32)
        self.labels = rng.integers(0, 10, batch)
        self.before = rng.uniform(0.5, 2, network.running.shape).astype(np.float32)
        self.plan = network.plan(batch + 2, size, **options)
        self.plan.step(np.full((batch + 2, *size, 3), np.nan, np.float32), np.zeros(batch + 2, np.int64))
        self.go()

    def go(self):
        network = self.network
        network.gradients[:] = np.nan
        network.running[:] = self.before
        self.plan.take_totals()
        self.plan.step(self.images, self.labels)
        self.loss = self.plan.take_totals()[0]
        self.running = network.running.copy()
        self.gradients = {layer.name: network.gradient(layer.name).copy() for layer in network.layers}
        network.running[:] = self.before
        self.logits = self.plan.evaluate(self.images)

    def results(self):
        return [a.tobytes() for a in (self.running, self.logits, *self.gradients.values())]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_as_one_by_one(case, precision, monkeypatch):
    """Sums in another order can turn a rounding, hence the bounds: of a few values, never of many."""
    fused, apart = (Run(monkeypatch, wish, case, precision) for wish in (True, False))
    unit = UNIT[precision]
    assert np.all(np.isfinite(fused.running)) and np.all(np.isfinite(fused.logits))
    np.testing.assert_allclose(fused.running, apart.running, rtol=2e-2 * unit, atol=2e-2 * unit)
    np.testing.assert_allclose(fused.logits, apart.logits, rtol=0, atol=unit * np.abs(apart.logits).max())
    assert abs(fused.loss - apart.loss) <= unit * abs(apart.loss)
    for name, gradient in apart.gradients.items():
        assert np.all(np.isfinite(fused.gradients[name])) and np.any(gradient), name
        error = np.linalg.norm(fused.gradients[name] - gradient)
        assert error <= 2 * unit * np.linalg.norm(gradient), name


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES[1:5], ids=str)
def test_against_float64(case, precision, monkeypatch):
    """Statistics and outputs from the very tensors that the convolution reads."""
    run = Run(monkeypatch, True, case, precision)
    nodes, store = nodes_of(case[2]), STORE[precision]
    kept = Network(Description("test", tuple(nodes[:2])), backend="cuda", precision=precision)
    for name in ("stem.weight", "first.scale", "first.bias"):
        kept.parameter(name)[:] = run.network.parameter(name)
    plan = kept.plan(case[0], case[1], keep_all=True)
    plan.forward(run.images)
    weight = store(run.network.parameter("conv.weight")).astype(np.float64)
    y = store(conv(plan.read(1).astype(np.float64), weight, 1, 1)).astype(np.float64)
    gamma, beta = (run.network.parameter(f"norm.{name}").astype(np.float64) for name in ("scale", "bias"))
    _, terms = norm_forward(nodes[3], y, gamma, beta, None, store=store)
    keep, unit = nodes[3].keep, UNIT[precision]
    pixels = terms["normal"][..., 0].size
    statistic = run.network._statistic("norm")
    for offset, wanted in (
        (statistic.mean_offset, terms["mean"]),
        (statistic.variance_offset, terms["variance"] * pixels / max(pixels - 1, 1)),
    ):
        places = slice(offset, offset + statistic.channels)
        np.testing.assert_allclose(
            run.running[places],
            run.before[places] * keep + (1 - keep) * wanted,
            rtol=1e-6,
            atol=2e-2 * unit * np.abs(y).max(),
        )


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("batch", [3] if EMULATED else [3, 200])
def test_same_bytes_twice(batch, precision, monkeypatch):
    run = Run(monkeypatch, True, (batch, (6, 7), 64), precision)
    first = run.results()
    run.go()
    assert run.results() == first


def test_more_images_than_blocks(monkeypatch):
    """Each block takes several images: the next one is loaded while it works on one."""
    case = (135, (2, 3), 64)
    fused, apart = (Run(monkeypatch, wish, case, "float16") for wish in (True, False))
    np.testing.assert_allclose(fused.running, apart.running, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(fused.logits, apart.logits, rtol=0, atol=2**-10 * np.abs(apart.logits).max())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_first_of_equal_ones(precision, monkeypatch):
    """Small whole numbers, so that no sum is rounded and many are equal: if a gradient went to another of these than
    with separate kernels, it would differ at once."""
    nodes = [Conv("stem", 24, 1, 1, 0), Conv("conv", 64), Norm("norm", "none", pool=2), Head()]
    runs = []
    for fused in (True, False):
        run = Run(monkeypatch, fused, (2, (6, 8), 64), precision, nodes)
        rng = np.random.default_rng(5)
        run.network.parameter("conv.weight")[:] = rng.integers(-1, 2, (64, 3, 3, 24))
        run.network.parameter("stem.weight")[:] = np.eye(3)[np.arange(24) % 3].reshape(24, 1, 1, 3)
        run.images[:] = rng.integers(0, 2, run.images.shape)
        run.go()
        runs.append(run)
    np.testing.assert_allclose(runs[0].running, runs[1].running, rtol=1e-6)
    for name, gradient in runs[1].gradients.items():
        error = np.linalg.norm(runs[0].gradients[name] - gradient)
        assert error <= 2 * UNIT[precision] * np.linalg.norm(gradient), name


def forward_of(run):
    """How the convolution runs, in training and evaluation."""
    return {text for name, node, text in run.plan.algorithms if (name, node) == ("conv forward", 2)}


def test_only_where_it_fits(monkeypatch):
    """Other shapes, other precisions and plans that keep all tensors still run separate kernels."""
    together = {"fused with its norm's pool"}
    assert forward_of(Run(monkeypatch, True, (1, (4, 4), 64), "float16")) == together
    for fused, channels, precision in [(False, 64, "float16"), (True, 64, "float32"), (True, 72, "float16")]:
        assert not forward_of(Run(monkeypatch, fused, (1, (4, 4), channels), precision)) & together
    kept = Run(monkeypatch, True, (1, (4, 4), 64), "float16", keep_all=True)
    assert len(forward_of(kept)) == 2 and np.any(kept.plan.read(2))  # evaluation keeps nothing
