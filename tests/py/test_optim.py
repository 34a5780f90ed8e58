"""Optimizers and whitening against float64 NumPy."""

import os
import subprocess
import sys

import numpy as np
import pytest
from optim_reference import close, reference_step

from cgxffcv.train import Muon, Optimizer, Rate, Sgd, patch_moments, whitening_filters

rng = np.random.default_rng


SHAPES = [(64, 24, 3, 3), (33, 7, 3, 3), (256, 64, 3, 3), (40, 6), (1, 5), (7, 1), (128,)]


def run(groups, shapes, steps, threads, rates, seed=0):
    random = rng(seed)
    values = [random.standard_normal(s).astype(np.float32) for s in shapes]
    expected = [v.astype(np.float64) for v in values]
    momenta = [np.zeros(s) for s in shapes]
    gradients = [np.zeros(s, np.float32) for s in shapes]
    which = [i % len(groups) for i in range(len(shapes))]
    optimizer = Optimizer(groups, list(zip(values, gradients, which, strict=True)), threads=threads)
    for t in range(steps):
        for i, g in enumerate(gradients):
            g[...] = random.standard_normal(g.shape) * 0.1
            expected[i], momenta[i] = reference_step(
                groups[which[i]], expected[i], g.astype(np.float64), momenta[i], rates(t)[which[i]]
            )
        optimizer.step(rates(t))
    return values, expected, optimizer.momentum.copy(), np.concatenate([m.ravel() for m in momenta])


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_sgd(nesterov, threads):
    groups = [Sgd(0.9, 5e-4, nesterov), Sgd(0.85, 0.0755, nesterov)]
    values, expected, momentum, momenta = run(
        groups, SHAPES, 8, threads, lambda t: [Rate(0.1 * (1 - t / 8)), Rate(0.05, active=t < 5)]
    )
    for value, want in zip(values, expected, strict=True):
        close(value, want, 1e-6)
    close(momentum, momenta, 1e-6)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("project", [False, True])
def test_muon(threads, project):
    groups = [Muon(), Muon(0.655, 0.0016, 3, (3.4576, -4.7391, 2.0843), 1e-5)]
    values, expected, momentum, momenta = run(
        groups, SHAPES, 5, threads, lambda t: [Rate(0.24 * (1 - t / 5), True, project), Rate(0.2, t != 2, t % 2 == 0)]
    )
    for value, want in zip(values, expected, strict=True):
        close(value, want, 2e-5)
    close(momentum, momenta, 1e-6)


@pytest.mark.parametrize("iterations", [(1, 4), (3, 2)])
def test_each_muon_group_has_its_own_number_of_iterations(iterations):
    groups = [Muon(iterations=n) for n in iterations]
    values, expected, _, _ = run(groups, SHAPES, 2, 2, lambda t: [Rate(0.2), Rate(0.1)])
    for value, want in zip(values, expected, strict=True):
        close(value, want, 2e-5)


def test_muon_makes_the_update_nearly_orthogonal():
    w = np.zeros((32, 300), np.float32)
    g = rng(3).standard_normal(w.shape).astype(np.float32)
    Optimizer([Muon(iterations=6)], [(w, g, 0)]).step([Rate(1.0)])
    singular = np.linalg.svd(w.astype(np.float64), compute_uv=False)
    assert 0.5 < singular.min() <= singular.max() < 1.3


def test_muon_of_a_zero_gradient_moves_nothing():
    w = rng(0).standard_normal((8, 20)).astype(np.float32)
    before = w.copy()
    Optimizer([Muon()], [(w, np.zeros_like(w), 0)]).step([Rate(0.2)])
    np.testing.assert_array_equal(w, before)


def test_threads_do_not_change_a_bit():
    groups = [Muon(), Sgd(0.9, 1e-3)]
    runs = [run(groups, SHAPES, 3, threads, lambda t: [Rate(0.2, True, True), Rate(0.1)]) for threads in (1, 2, 5)]
    for values, _, momentum, _ in runs[1:]:
        assert momentum.tobytes() == runs[0][2].tobytes()
        assert all(a.tobytes() == b.tobytes() for a, b in zip(values, runs[0][0], strict=True))


CHILD = """
import numpy as np, sys
from cgxffcv.train import Muon, Optimizer, Rate
random = np.random.default_rng(1)
w = random.standard_normal((70, 150)).astype(np.float32)
g = random.standard_normal((70, 150)).astype(np.float32)
optimizer = Optimizer([Muon()], [(w, g, 0)], threads=2)
for _ in range(2):
    optimizer.step([Rate(0.2, True, True)])
sys.stdout.buffer.write(w.tobytes())
"""


def test_narrower_instructions_agree():
    results = []
    for cpu in ("scalar", "avx2", "avx512"):
        done = subprocess.run(
            [sys.executable, "-c", CHILD], env={**os.environ, "CGXFFCV_CPU": cpu}, capture_output=True, check=True
        )
        results.append(np.frombuffer(done.stdout, np.float32))
    for other in results[1:]:
        close(other, results[0], 5e-6)


def test_gradients_finite():
    w, g = np.zeros((300, 300), np.float32), np.ones((300, 300), np.float32)
    optimizer = Optimizer([Sgd()], [(w, g, 0)], threads=2)
    g[0, 0] = np.finfo(np.float32).max
    assert optimizer.gradients_finite()
    for bad in (np.nan, np.inf, -np.inf):
        for place in (0, 12345, g.size - 1):
            g[...] = 1
            g.reshape(-1)[place] = bad
            assert not optimizer.gradients_finite()


def test_gradients_finite_of_active_groups():
    good, bad = np.ones(9, np.float32), np.full(9, np.inf, np.float32)
    optimizer = Optimizer([Sgd(), Sgd()], [(good.copy(), good, 0), (good.copy(), bad, 1)])
    assert optimizer.gradients_finite([Rate(0.1), Rate(0.1, False)])
    assert not optimizer.gradients_finite([Rate(0.1, False), Rate(0.1)])


def test_pull():
    w = np.zeros(4, np.float32)
    optimizer = Optimizer([Sgd()], [(w, w.copy(), 0)], threads=2)
    slow, value = (rng(i).standard_normal((7, 5001)).astype(np.float32) for i in range(2))
    want = 0.75 * slow.astype(np.float64) + 0.25 * value
    optimizer.pull(slow, value, 0.75)
    np.testing.assert_allclose(value, want, rtol=0, atol=1e-6)
    assert slow.tobytes() == value.tobytes()
    with pytest.raises(ValueError, match="slow has 35007 elements, but value has 4"):
        optimizer.pull(value, w, 0.5)


def test_the_gpu_only_parts_are_refused():
    w = np.zeros(4, np.float32)
    optimizer = Optimizer([Sgd()], [(w, w.copy(), 0)])
    with pytest.raises(ValueError, match="optimizers on a GPU"):
        optimizer.load_rates([[Rate(0.1)]])
    with pytest.raises(ValueError, match="optimizers on a GPU"):
        optimizer.step_scheduled(0)
    with pytest.raises(ValueError, match="device must be 'cpu' or 'gpu', not 'tpu'"):
        Optimizer([Sgd()], [(w, w.copy(), 0)], device="tpu")


def test_step_flops_counts_the_products():
    w = np.zeros((16, 40), np.float32)
    flops = Optimizer([Muon(iterations=2)], [(w, w.copy(), 0)]).step_flops
    assert flops == 2 * (16 * 17 * 40 + 16 * 16 * 17 + 2 * 16 * 16 * 40)
    assert Optimizer([Sgd()], [(w, w.copy(), 0)]).step_flops == 0


@pytest.mark.parametrize(
    "groups, message",
    [
        ([Sgd(momentum=1.0)], "momentum must be in"),
        ([Sgd(momentum=float("nan"))], "momentum must be in"),
        ([Sgd(decay=-1)], "weight decay must be"),
        ([Sgd(decay=np.inf)], "weight decay must be"),
        ([Sgd(decay=np.nan)], "weight decay must be"),
        ([Muon(iterations=0)], "iterations must be 1 to 20"),
        ([], "1 to 16 optimizer groups"),
    ],
)
def test_bad_groups(groups, message):
    w = np.zeros((4, 4), np.float32)
    with pytest.raises(ValueError, match=message):
        Optimizer(groups, [(w, w.copy(), 0)])


def test_momentum_may_be_none():
    w = np.zeros((4, 4), np.float32)
    Optimizer([Sgd(momentum=0.0), Muon(momentum=0.0)], [(w, w.copy(), 0), (w.copy(), w.copy(), 1)])


def test_bad_arrays_and_rates():
    w = np.zeros((4, 4), np.float32)
    with pytest.raises(TypeError, match="value must be an array of float32"):
        Optimizer([Sgd()], [(w.astype(np.float64), w.copy(), 0)])
    with pytest.raises(TypeError, match="gradient must be a C-contiguous"):
        Optimizer([Sgd()], [(w, np.zeros((8, 8), np.float32)[::2, ::2], 0)])
    with pytest.raises(ValueError, match="16 elements, but its gradient has 8"):
        Optimizer([Sgd()], [(w, np.zeros(8, np.float32), 0)])
    with pytest.raises(ValueError, match="group must be 0 to 0, not 1"):
        Optimizer([Sgd()], [(w, w.copy(), 1)])
    with pytest.raises(ValueError, match="at least one group and one tensor"):
        Optimizer([Sgd()], [])
    optimizer = Optimizer([Sgd()], [(w, w.copy(), 0)])
    with pytest.raises(ValueError, match="rates, one for each group: 1 expected, not 0"):
        optimizer.step([])
    with pytest.raises(ValueError, match="must be finite, not nan"):
        optimizer.step([Rate(float("nan"))])


def patches_of(images):
    n, c, h, w = images.shape
    windows = np.lib.stride_tricks.sliding_window_view(images, (2, 2), axis=(2, 3))
    return windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, c * 4)


@pytest.mark.parametrize("shape", [(200, 3, 32, 32), (3, 3, 5, 9), (1, 3, 2, 2)])
def test_patch_moments(shape):
    images = rng(0).standard_normal(shape).astype(np.float32) + 0.3
    patches = patches_of(images.astype(np.float64))
    want = patches.T @ patches / len(patches)
    got = patch_moments(images)
    np.testing.assert_allclose(got, want, rtol=0, atol=3e-6 * np.abs(want).max())
    assert patch_moments(images, threads=3).tobytes() == got.tobytes()


def test_whitening_filters_whiten():
    random = rng(5)
    smooth = np.cumsum(random.standard_normal((500, 3, 10, 10)), axis=3).astype(np.float32)
    moments = patch_moments(smooth)
    filters = whitening_filters(moments, epsilon=5e-4).reshape(24, 12).astype(np.float64)
    values, vectors = np.linalg.eigh(moments)
    values, vectors = values[::-1], vectors[:, ::-1].T
    np.testing.assert_array_equal(filters[12:], -filters[:12])
    for filter_, value, vector in zip(filters, values, vectors, strict=False):
        sign = np.sign(vector[np.abs(vector).argmax()])
        np.testing.assert_allclose(
            filter_, sign * vector / np.sqrt(value + 5e-4), rtol=0, atol=1e-6 * np.abs(filter_).max()
        )
    white = filters[:12] @ moments @ filters[:12].T
    np.testing.assert_allclose(white, np.diag(values / (values + 5e-4)), rtol=0, atol=1e-6)


def test_whitening_of_degenerate_patches():
    flat = whitening_filters(np.zeros((12, 12)))
    assert np.isfinite(flat).all()
    ones = patch_moments(np.ones((4, 3, 6, 6), np.float32))
    filters = whitening_filters(ones).reshape(24, 12)
    np.testing.assert_allclose(np.abs(filters[0]), 1 / np.sqrt(12 * (12 + 5e-4)), rtol=1e-6)
    grey = rng(6).standard_normal((50, 1, 8, 8)).astype(np.float32).repeat(3, axis=1)
    filters = whitening_filters(patch_moments(grey)).reshape(24, 12)
    for number in range(12):  # 8 directions are empty: the other 4 take their places
        np.testing.assert_array_equal(filters[number], filters[number % 4])
    assert np.abs(filters[:4] @ patch_moments(grey) @ filters[:4].T - np.eye(4)).max() < 1e-3
    with pytest.raises(ValueError, match="not finite"):
        whitening_filters(np.full((12, 12), np.nan))
    with pytest.raises(ValueError, match="3 channels"):
        patch_moments(np.zeros((2, 1, 4, 4), np.float32))
    with pytest.raises(ValueError, match="must be positive"):
        whitening_filters(-np.eye(12))
