"""Optimizers on the GPU against float64 NumPy; recorded steps against the others."""

import _cgxffcv
import numpy as np
import pytest
from gpus import needs_gpu
from optim_reference import close, exactly, in_float16, newton_schulz, reference_step

from cgxffcv.train import Muon, Optimizer, Rate, Sgd

pytestmark = needs_gpu

rng = np.random.default_rng

# Sizes around the multiples of 8 to which matrices are padded, tall ones, vectors; some alike, which share products.
SHAPES = [(24, 5, 3, 3), (33, 7, 3, 3), (33, 7, 3, 3), (40, 6), (1, 5), (7, 1), (129,), (64, 8, 3, 3), (64, 8, 3, 3)]
LONG = [(5000,), (3, 4097), (70, 150)]
RECORD = Muon(0.655, 0.0016, 3, (3.4576, -4.7391, 2.0843), 1e-5)


def make(groups, shapes, seed=0, scale=1.0):
    random = rng(seed)
    values = [(scale * random.standard_normal(s)).astype(np.float32) for s in shapes]
    gradients = [np.zeros(s, np.float32) for s in shapes]
    which = [i % len(groups) for i in range(len(shapes))]
    optimizer = Optimizer(groups, list(zip(values, gradients, which, strict=True)), device="gpu")
    return optimizer, values, gradients, which


def fill(gradients, seed):
    random = rng(seed)
    for g in gradients:
        g[...] = random.standard_normal(g.shape) * 0.1


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd(nesterov):
    groups = [Sgd(0.9, 5e-4, nesterov), Sgd(0.85, 0.0755, nesterov)]
    optimizer, values, gradients, which = make(groups, SHAPES + LONG)
    expected = [v.astype(np.float64) for v in values]
    momenta = [np.zeros(v.shape) for v in values]
    for t in range(6):
        rates = [Rate(0.1 * (1 - t / 6)), Rate(0.05, active=t < 4)]
        fill(gradients, t)
        before = [v.copy() for v in values]
        for i, g in enumerate(gradients):
            expected[i], momenta[i] = reference_step(
                groups[which[i]], expected[i], g.astype(np.float64), momenta[i], rates[which[i]]
            )
        optimizer.step(rates)
        for i, value in enumerate(values):
            if not rates[which[i]].active:
                np.testing.assert_array_equal(value, before[i])
    for value, want in zip(values, expected, strict=True):
        close(value, want, 1e-6)
    close(optimizer.momentum, np.concatenate([m.ravel() for m in momenta]), 1e-6)


def distance(actual, expected, scale):
    return np.linalg.norm(actual - expected) / scale


@pytest.mark.parametrize("project", [False, True])
def test_muon(project):
    """Each step from the GPU's present state: the momenta as float32 gives them, the update within float16's error."""
    groups = [Muon(), RECORD]
    optimizer, values, gradients, which = make(groups, SHAPES + LONG[2:])
    momenta = [np.zeros(v.shape) for v in values]
    for t in range(4):
        rates = [Rate(0.24 * (1 - t / 4), True, project), Rate(0.2, t != 2, t % 2 == 0)]
        fill(gradients, t)
        before = [v.astype(np.float64) for v in values]
        optimizer.step(rates)
        for i, g in enumerate(gradients):
            rate, g = rates[which[i]], g.astype(np.float64)
            exact, momentum = reference_step(groups[which[i]], before[i], g, momenta[i], rate)
            modelled, _ = reference_step(groups[which[i]], before[i], g, momenta[i], rate, in_float16)
            momenta[i] = momentum
            if not rate.active:
                np.testing.assert_array_equal(values[i], before[i])
                continue
            update = rate.rate * np.sqrt(min(g.shape[0], g[0].size))
            assert distance(values[i], exact, update) < 6e-3
            assert distance(values[i], modelled, update) < 2e-3
    close(optimizer.momentum, np.concatenate([m.ravel() for m in momenta]), 1e-6)


def test_muon_projects_exactly():
    """With nothing to add, the weights come out at the norm sqrt(rows)."""
    optimizer, values, _, _ = make([Muon()], [(24, 45), (45, 24), (33, 63)])
    want = [v * np.sqrt(v.shape[0]) / np.linalg.norm(v.astype(np.float64)) for v in values]
    optimizer.step([Rate(0.2, True, True)])
    for value, expected in zip(values, want, strict=True):
        close(value, expected, 2e-7)


def test_muon_of_a_zero_gradient_moves_nothing():
    optimizer, values, _, _ = make([Muon()], [(24, 45), (64, 72)])
    before = [v.copy() for v in values]
    optimizer.step([Rate(0.2)])
    for value, old in zip(values, before, strict=True):
        np.testing.assert_array_equal(value, old)


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_iterations(iterations):
    """From zero weights: the update alone, of odd and even numbers of iterations."""
    group = Muon(iterations=iterations)
    optimizer, values, gradients, _ = make([group], [(24, 45), (45, 24)], scale=0.0)
    fill(gradients, 9)
    optimizer.step([Rate(1.0)])
    for value, g in zip(values, gradients, strict=True):
        u = g.astype(np.float64) * (1 + group.momentum)
        for stored, limit in ((exactly, 6e-3), (in_float16, 3e-3)):
            want = -newton_schulz(u, group.coefficients, iterations, group.epsilon, stored)
            assert distance(value, want, np.linalg.norm(want)) < limit


def test_gradients_finite():
    optimizer, _, gradients, _ = make([Sgd(), Muon()], SHAPES + LONG)
    fill(gradients, 0)
    gradients[0][0] = np.finfo(np.float32).max
    assert optimizer.gradients_finite()
    for bad in (np.nan, np.inf, -np.inf):
        for tensor, place in ((0, 0), (1, -1), (-3, 4999), (-1, 4096), (-2, 12290)):
            old = gradients[tensor].reshape(-1)[place]
            gradients[tensor].reshape(-1)[place] = bad
            assert not optimizer.gradients_finite()
            group = tensor % len(gradients) % 2
            assert not optimizer.gradients_finite([Rate(0.1, group == 0), Rate(0.1, group == 1)])
            assert optimizer.gradients_finite([Rate(0.1, group == 1), Rate(0.1, group == 0)])
            gradients[tensor].reshape(-1)[place] = old
    assert optimizer.gradients_finite()


def bytes_of(optimizer, values):
    return [v.tobytes() for v in values] + [optimizer.momentum.tobytes()]


GROUPS = [Sgd(0.85, 0.07, True), Muon(), RECORD]
TABLE = [
    [Rate(0.3 * (1 - t / 6), t < 4), Rate(0.24 * (1 - t / 6), t > 1, t % 2 == 0), Rate(0.2, t != 3, True)]
    for t in range(6)
]


def run(scheduled):
    optimizer, values, gradients, _ = make(GROUPS, SHAPES + LONG)
    if scheduled:
        optimizer.load_rates(TABLE)
    for t, rates in enumerate(TABLE):
        fill(gradients, t)
        if scheduled:
            assert not optimizer.step_scheduled(t)
        else:
            optimizer.step(rates)
    return bytes_of(optimizer, values)


def test_scheduled_steps_are_steps_and_the_same_every_time():
    plain = run(False)
    assert run(False) == plain
    assert run(True) == plain
    assert run(True) == plain


def test_enabled_groups():
    """A group outside the recorded work stays as it is; the others are not affected."""
    results = []
    for enabled in ([True, False, True], [True, True, True], [False, True, True]):
        optimizer, values, gradients, which = make(GROUPS, SHAPES)
        before = [v.copy() for v in values]
        optimizer.load_rates(TABLE)
        fill(gradients, 0)
        assert not optimizer.step_scheduled(2, enabled)
        for value, old, group in zip(values, before, which, strict=True):
            assert np.array_equal(value, old) != enabled[group]
        results.append(values)
    for a, b, group in zip(results[0], results[1], which, strict=True):
        assert group == 1 or a.tobytes() == b.tobytes()


def test_skipped_steps():
    optimizer, values, gradients, _ = make(GROUPS, SHAPES)
    optimizer.load_rates(TABLE)
    fill(gradients, 0)
    assert not optimizer.step_scheduled(0)
    state = bytes_of(optimizer, values)
    assert optimizer.step_scheduled(1, skip=True)
    assert bytes_of(optimizer, values) == state
    for tensor in range(3):
        old = gradients[tensor].reshape(-1)[3]
        gradients[tensor].reshape(-1)[3] = np.nan
        active = TABLE[1][tensor % 3].active
        if active:
            assert optimizer.step_scheduled(1)
            assert bytes_of(optimizer, values) == state
        gradients[tensor].reshape(-1)[3] = old
    # What a skipped step leaves in scratch memory has no later effect.
    assert not optimizer.step_scheduled(2)
    again, others, gradients, _ = make(GROUPS, SHAPES)
    fill(gradients, 0)
    again.step(TABLE[0])
    again.step(TABLE[2])
    assert bytes_of(again, others) == bytes_of(optimizer, values)


def test_a_gradient_that_is_not_finite_in_a_group_that_rests():
    optimizer, values, gradients, which = make(GROUPS, SHAPES)
    optimizer.load_rates(TABLE)
    fill(gradients, 0)
    gradients[1][...] = np.inf  # Muon's first group, at rest in step 0
    before = [v.copy() for v in values]
    assert not optimizer.step_scheduled(0)
    for value, old, group in zip(values, before, which, strict=True):
        assert np.array_equal(value, old) == (group == 1) and np.isfinite(value).all()


def test_a_step_outside_the_table_touches_nothing():
    optimizer, values, gradients, _ = make(GROUPS, SHAPES)
    fill(gradients, 0)
    with pytest.raises(ValueError, match="call load_rates first"):
        optimizer.step_scheduled(0)
    optimizer.load_rates(TABLE)
    state = bytes_of(optimizer, values)
    for step in (-1, len(TABLE)):
        assert not optimizer.step_scheduled(step)
        assert bytes_of(optimizer, values) == state


def test_rates_must_be_finite():
    optimizer, _, _, _ = make(GROUPS[:1], SHAPES[:1])
    with pytest.raises(ValueError, match="must be finite, not inf"):
        optimizer.load_rates([[Rate(0.1)], [Rate(float("inf"))]])
    with pytest.raises(ValueError, match="1 to 2147483647 steps, not 0"):
        optimizer.load_rates([])
    with pytest.raises(ValueError, match="must be finite, not nan"):
        optimizer.step([Rate(float("nan"))])
    with pytest.raises(ValueError, match="one for each group: 1 expected, not 2"):
        optimizer.step_scheduled(0, [True, False])


def test_pull():
    optimizer, _, _, _ = make([Sgd()], SHAPES[:1])
    slow, value = (rng(i).standard_normal((7, 1001)).astype(np.float32) for i in range(2))
    want = 0.75 * slow.astype(np.float64) + 0.25 * value
    optimizer.pull(slow, value, 0.75)
    np.testing.assert_allclose(value, want, rtol=0, atol=1e-6)
    assert slow.tobytes() == value.tobytes()


def test_the_matrices_of_a_record_run():
    """Real sizes, once: the largest share one batch."""
    if "emulat" in _cgxffcv.devices()[0]["name"].lower():
        pytest.skip("too much arithmetic for the emulator")
    shapes = [(64, 216), (64, 576), (256, 576), (256, 2304), (256, 2304), (256, 2304)]
    optimizer, values, gradients, _ = make([Muon()], shapes)
    fill(gradients, 1)
    before = [v.astype(np.float64) for v in values]
    optimizer.step([Rate(0.24, True, True)])
    for value, old, g in zip(values, before, gradients, strict=True):
        want, _ = reference_step(Muon(), old, g.astype(np.float64), np.zeros(g.shape), Rate(0.24, True, True))
        assert distance(value, want, 0.24 * np.sqrt(g.shape[0])) < 2e-3
