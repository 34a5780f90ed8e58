"""Networks in plain NumPy and float64, written from the formulas, to compare the C core with.

Every function works on channels-last arrays (n, h, w, c); filters are (out, kernel, kernel, in).
"""

from __future__ import annotations

import math

import numpy as np

from cgxffcv.nn import Conv, Norm

SQRT_HALF = math.sqrt(0.5)
erf = np.vectorize(math.erf, otypes=[np.float64])


def within(name, actual, expected, bound):
    """Asserts that no element is farther from what is expected than its bound."""
    assert np.all(np.isfinite(actual)), name
    error = np.abs(actual - expected)
    worst = np.max(error - bound)
    assert worst <= 0, f"{name}: exceeds its bound by {worst}; largest error {error.max()}"


def bf16(x: np.ndarray) -> np.ndarray:
    """Rounded to the nearest bfloat16, ties to even."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32)
    return rounded.view(np.float32).astype(np.float64)


def patches(x: np.ndarray, kernel: int, stride: int, padding: int) -> np.ndarray:
    """(n, oh, ow, kernel, kernel, c)"""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    view = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), (1, 2))[:, ::stride, ::stride]
    return np.moveaxis(view, 3, 5)


def conv(x, w, stride, padding):
    return np.tensordot(patches(x, w.shape[1], stride, padding), w, ((3, 4, 5), (1, 2, 3)))


def conv_filter_gradient(x, dy, kernel, stride, padding):
    return np.tensordot(dy, patches(x, kernel, stride, padding), ((0, 1, 2), (0, 1, 2)))


def conv_data_gradient(dy, w, shape, stride, padding):
    n, h, wide, c = shape
    padded = np.zeros((n, h + 2 * padding, wide + 2 * padding, c))
    for ky in range(w.shape[1]):
        for kx in range(w.shape[2]):
            rows = slice(ky, ky + stride * dy.shape[1], stride)
            columns = slice(kx, kx + stride * dy.shape[2], stride)
            padded[:, rows, columns] += dy @ w[:, ky, kx]
    return padded[:, padding : padding + h, padding : padding + wide]


def windows(x, pool):
    n, h, w, c = x.shape
    cut = x[:, : h // pool * pool, : w // pool * pool]
    cut = cut.reshape(n, h // pool, pool, w // pool, pool, c).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(n, h // pool, w // pool, pool * pool, c)


def max_pool(x, pool):
    return windows(x, pool).max(3)


def max_pool_gradient(x, dy, pool):
    n, h, w, c = x.shape
    first = windows(x, pool).argmax(3)
    spread = np.where(np.arange(pool * pool)[:, None] == first[:, :, :, None, :], dy[:, :, :, None, :], 0.0)
    spread = spread.reshape(n, h // pool, w // pool, pool, pool, c).transpose(0, 1, 3, 2, 4, 5)
    out = np.zeros_like(x)
    out[:, : h // pool * pool, : w // pool * pool] = spread.reshape(n, h // pool * pool, w // pool * pool, c)
    return out


def activate(z, name):
    if name == "relu":
        return np.maximum(z, 0)
    if name == "gelu":
        return z * 0.5 * (1 + erf(z * SQRT_HALF))
    if name == "silu":
        return z / (1 + np.exp(-z))
    return z


def slope(z, name):
    if name == "relu":
        return (z > 0).astype(np.float64)
    if name == "gelu":
        return 0.5 * (1 + erf(z * SQRT_HALF)) + z * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    if name == "silu":
        s = 1 / (1 + np.exp(-z))
        return s * (1 + z * (1 - s))
    return np.ones_like(z)


def norm_forward(node: Norm, x, gamma, beta, residual=None, mean=None, variance=None, store=lambda y: y):
    """The output, and what the backward pass needs; with batch statistics unless others are given. `store` rounds what
    a pool after the activation chooses from."""
    saved = max_pool(x, node.pool) if node.pool and node.pool_place == "before" else x
    if mean is None:
        mean, variance = saved.mean((0, 1, 2)), saved.var((0, 1, 2))
    deviation = 1 / np.sqrt(variance + node.eps)
    normal = (saved - mean) * deviation
    z = normal * gamma + beta
    if residual is not None and node.residual_place == "before":
        z = z + residual
    y = activate(z, node.activation)
    if node.pool and node.pool_place == "after":
        y = store(y)
    out = max_pool(y, node.pool) if node.pool and node.pool_place == "after" else y
    if residual is not None and node.residual_place == "after":
        out = out + residual
    return out, {"x": x, "z": z, "y": y, "normal": normal, "deviation": deviation, "mean": mean, "variance": variance}


def norm_backward(node: Norm, kept, gamma, dout):
    """Gradients of the convolution's output, the scale, the bias, and of what the residual added."""
    dy = max_pool_gradient(kept["y"], dout, node.pool) if node.pool and node.pool_place == "after" else dout
    dz = dy * slope(kept["z"], node.activation)
    normal, pixels = kept["normal"], kept["normal"][..., 0].size
    dbias, dscale = dz.sum((0, 1, 2)), (dz * normal).sum((0, 1, 2))
    dx = gamma * kept["deviation"] * (dz - dbias / pixels - normal * dscale / pixels)
    if node.pool and node.pool_place == "before":
        dx = max_pool_gradient(kept["x"], dx, node.pool)
    return dx, dscale, dbias, (dz if node.residual_place == "before" else dout)


def head_forward(x, w, scale, pool="max", bias=0.0):
    n, h, wide, c = x.shape
    flat = x.reshape(n, h * wide, c)
    pooled = flat.mean(1) if pool == "average" else flat.max(1)
    return pooled, scale * (pooled @ w.T + bias)


def head_backward(x, w, scale, pooled, dlogits, pool="max"):
    n, h, wide, c = x.shape
    dpooled = scale * dlogits @ w
    if pool == "average":
        spread = np.broadcast_to(dpooled[:, None, None, :] / (h * wide), x.shape)
        return spread.copy(), scale * dlogits.T @ pooled
    first = x.reshape(n, h * wide, c).argmax(1)
    dx = np.where(np.arange(h * wide)[:, None] == first[:, None, :], dpooled[:, None, :], 0.0)
    return dx.reshape(x.shape), scale * dlogits.T @ pooled


def cross_entropy(logits, labels, smoothing, reduction):
    """Summed loss, hits, gradient of the (mean or summed) loss."""
    classes = logits.shape[1]
    target = np.full(logits.shape, smoothing / classes)
    target[np.arange(len(labels)), labels] += 1 - smoothing
    shifted = logits - logits.max(1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    gradient = np.exp(log_softmax) - target
    if reduction == "mean":
        gradient = gradient / len(labels)
    return -(target * log_softmax).sum(), int((logits.argmax(1) == labels).sum()), gradient


class Reference:
    """A described network with the parameters of a `cgxffcv.nn.Network`."""

    def __init__(self, network):
        self.nodes = network.description.nodes
        self.names = [node.name for node in self.nodes]
        self.parameters = {layer.name: network.parameter(layer.name).astype(np.float64) for layer in network.layers}
        self.running = {
            s.name: (
                network.running_mean(s.name).astype(np.float64),
                network.running_variance(s.name).astype(np.float64),
            )
            for s in network.statistics
        }

    def gamma(self, node):
        return self.parameters.get(f"{node.name}.scale", 1.0)

    def forward(self, images, training=True):
        """Outputs of all nodes (of the head: logits) and what the backward pass needs."""
        outputs, kept, x = [], [], images
        for node in self.nodes:
            if isinstance(node, Conv):
                x = x if node.reads is None else outputs[self.names.index(node.reads)]
                z = conv(x, self.parameters[f"{node.name}.weight"], node.stride, node.padding)
                z = z + self.parameters.get(f"{node.name}.bias", 0.0)
                kept.append({"x": x, "z": z})
                x = activate(z, node.activation)
            elif isinstance(node, Norm):
                residual = None if node.residual is None else outputs[self.names.index(node.residual)]
                mean, variance = (None, None) if training else self.running[node.name]
                beta = self.parameters[f"{node.name}.bias"]
                x, state = norm_forward(node, x, self.gamma(node), beta, residual, mean, variance)
                kept.append(state)
                if training:
                    self.update(node, state)
            else:
                w, bias = self.parameters[f"{node.name}.weight"], self.parameters.get(f"{node.name}.bias", 0.0)
                pooled, logits = head_forward(x, w, node.scale, node.pool, bias)
                kept.append({"x": x, "pooled": pooled})
                x = logits
            outputs.append(x)
        return outputs, kept

    def update(self, node, state):
        pixels = state["normal"][..., 0].size
        unbiased = state["variance"] * pixels / max(pixels - 1, 1)
        mean, variance = self.running[node.name]
        keep = node.keep
        self.running[node.name] = (
            keep * mean + (1 - keep) * state["mean"],
            keep * variance + (1 - keep) * unbiased,
        )

    def backward(self, kept, dout):
        """Gradients of all parameters by layer name, and of all node outputs (index -1: the images)."""
        gradients, of_outputs = {}, {len(self.nodes) - 1: dout}

        def reach(source, gradient):
            of_outputs[source] = of_outputs.get(source, 0) + gradient

        for i in range(len(self.nodes) - 1, -1, -1):
            node, state, dout = self.nodes[i], kept[i], of_outputs[i]
            if isinstance(node, Conv):
                w, x = self.parameters[f"{node.name}.weight"], state["x"]
                dz = dout * slope(state["z"], node.activation)
                gradients[f"{node.name}.weight"] = conv_filter_gradient(x, dz, node.kernel, node.stride, node.padding)
                gradients[f"{node.name}.bias"] = dz.sum((0, 1, 2))
                source = i - 1 if node.reads is None else self.names.index(node.reads)
                reach(source, conv_data_gradient(dz, w, x.shape, node.stride, node.padding))
            elif isinstance(node, Norm):
                dx, dscale, dbias, skip = norm_backward(node, state, self.gamma(node), dout)
                gradients[f"{node.name}.scale"], gradients[f"{node.name}.bias"] = dscale, dbias
                reach(i - 1, dx)
                if node.residual is not None:
                    reach(self.names.index(node.residual), skip)
            else:
                w = self.parameters[f"{node.name}.weight"]
                dx, gradients[f"{node.name}.weight"] = head_backward(
                    state["x"], w, node.scale, state["pooled"], dout, node.pool
                )
                gradients[f"{node.name}.bias"] = node.scale * dout.sum(0)
                reach(i - 1, dx)
        return gradients, of_outputs

    def step(self, images, labels, smoothing, reduction):
        """(summed loss, hits, gradients)"""
        outputs, kept = self.forward(images)
        loss, hits, dlogits = cross_entropy(outputs[-1], labels, smoothing, reduction)
        return loss, hits, self.backward(kept, dlogits)[0]


def toom_cook(tile: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A^T, G, B^T of minimal filtering with 3 taps, by solving for the interpolation at the points."""
    points = [0, 1, -1] if tile == 2 else [0, 0.75, -0.75, 1.5, -1.5]
    size = tile + 2

    def evaluate(count):
        at = np.array([[float(p) ** k for k in range(count)] for p in points] + [[0.0] * count])
        at[-1, -1] = 1
        return at

    a, g, b = evaluate(tile), evaluate(3), np.linalg.inv(evaluate(size)).T
    # As the C core scales them: the last coefficient of each row of B^T is +-1, G has the divisors; signs are free.
    for i in range(size):
        divisor = 1 / b[i, size - 1 if i == size - 1 else max(np.flatnonzero(b[i]))]
        b[i] *= divisor
        g[i] /= divisor
    return a.T, g, b


def winograd_tiles(x, tile, padding, rows, columns):
    """(n, rows, columns, tile + 2, tile + 2, c): overlapping input tiles."""
    n, h, w, c = x.shape
    below, right = rows * tile + 2 - h - padding, columns * tile + 2 - w - padding
    x = np.pad(x, ((0, 0), (padding, max(below, 0)), (padding, max(right, 0)), (0, 0)))
    view = np.lib.stride_tricks.sliding_window_view(x, (tile + 2, tile + 2), (1, 2))
    return np.moveaxis(view[:, : rows * tile : tile, : columns * tile : tile], 3, 5)


def winograd_conv(x, w, tile, padding):
    """A 3 x 3 convolution whose transformed inputs and filters are rounded to bfloat16; else exact."""
    at, g, bt = toom_cook(tile)
    height, width = x.shape[1] + 2 * padding - 2, x.shape[2] + 2 * padding - 2
    rows, columns = -(-height // tile), -(-width // tile)
    tiles = winograd_tiles(x, tile, padding, rows, columns)
    values = bf16(np.einsum("ia,nrsabc,jb->nrsijc", bt, tiles, bt, optimize=True))
    filters = bf16(np.einsum("ia,oabc,jb->oijc", g, w, g, optimize=True))
    products = np.einsum("nrsijc,oijc->nrsijo", values, filters, optimize=True)
    out = np.einsum("ai,nrsijo,bj->nrasbo", at, products, at, optimize=True)
    return out.reshape(len(x), rows * tile, columns * tile, -1)[:, :height, :width]


def winograd_filter_gradient(x, dy, tile, padding):
    at, g, bt = toom_cook(tile)
    n, height, width, c = dy.shape
    rows, columns = -(-height // tile), -(-width // tile)
    values = bf16(
        np.einsum("ia,nrsabc,jb->nrsijc", bt, winograd_tiles(x, tile, padding, rows, columns), bt, optimize=True)
    )
    padded = np.pad(dy, ((0, 0), (0, rows * tile - height), (0, columns * tile - width), (0, 0)))
    padded = padded.reshape(n, rows, tile, columns, tile, c)
    gradients = bf16(np.einsum("ai,nrasbo,bj->nrsijo", at, padded, at, optimize=True))
    sums = np.einsum("nrsijo,nrsijc->oijc", gradients, values, optimize=True)
    return np.einsum("ia,oijc,jb->oabc", g, sums, g, optimize=True)


def residual_nodes(place, pool, activation):
    """A residual after a pool, and one after a residual; the last norm's activation is given."""
    return [
        Conv("stem", 16, 3, 1, 1),
        Norm("a", "relu", pool=pool, pool_place="after" if place == "after" else "before"),
        Conv("conv1", 32),
        Norm("b", "relu"),
        Conv("conv2", 16),
        Norm("c", "silu", residual="a", residual_place=place),
        Conv("conv3", 16),
        Norm("d", activation, residual="c", residual_place=place),
        Conv("conv4", 8),
    ]
