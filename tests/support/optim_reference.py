"""One step of each optimizer in float64, and in the storage types of the GPU."""

import numpy as np

from cgxffcv.train import Sgd


def exactly(x):
    return x


def in_float16(x):
    """Rounded to float32, as sums are, and then to float16."""
    return np.asarray(x, np.float32).astype(np.float16).astype(np.float64)


def newton_schulz(u, coefficients, iterations, epsilon, stored=exactly):
    """``stored`` rounds what is kept in memory between two products."""
    a, b, c = coefficients
    x = stored(u / (np.linalg.norm(u) + epsilon))
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(iterations):
        square = stored(x @ x.T)
        poly = stored(b * square + c * square @ square)
        x = stored(a * x + poly @ x)
    return x.T if tall else x


def reference_step(group, p, g, v, rate, stored=exactly):
    """One step; returns the new parameter and momentum."""
    if not rate.active:
        return p, v
    if isinstance(group, Sgd):
        g = g + group.decay * p
        v = group.momentum * v + g
        return p - rate.rate * (g + group.momentum * v if group.nesterov else v), v
    v = group.momentum * v + g
    u = (g + group.momentum * v).reshape(p.shape[0], -1)
    rows = p.shape[0]
    if rate.project:
        p = p * np.sqrt(rows) / np.linalg.norm(p)
    ns = newton_schulz(u, group.coefficients, group.iterations, group.epsilon, stored).reshape(p.shape)
    return (p - rate.rate * ns) * (1 - rate.rate * group.decay), v


def close(actual, expected, relative):
    """Asserts that no element is further off than this part of the largest."""
    scale = np.abs(expected).max() if expected.size else 1
    np.testing.assert_allclose(actual, expected, rtol=0, atol=relative * scale)
