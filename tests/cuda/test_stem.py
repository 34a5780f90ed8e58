"""The convolution that reads the images on a GPU, forward and backward, against float64 NumPy: all storage types, every
type, layout and view of the images, shapes with and without kernels of their own."""

import numpy as np
import pytest
from gpus import EMULATED, needs_gpu
from nn_reference import activate, bf16, conv, conv_filter_gradient, slope, within

from cgxffcv.nn import Conv, Description, Head, Network, Norm

pytestmark = needs_gpu

# Rounding to nearest in each storage type; float32: of the sum of products.
UNITS = {"float32": 2e-6, "bfloat16": 2**-8, "float16": 2**-10}

STEMS = {
    "whitening": Conv("stem", 24, 2, 1, 0, bias=True, activation="gelu", frozen=True),
    "resnet9": Conv("stem", 64, 3, 1, 1),
    "trained": Conv("stem", 24, 2, 1, 0, bias=True, activation="gelu"),
    "silu": Conv("stem", 40, 3, 2, 1, bias=True, activation="silu"),
    "relu": Conv("stem", 8, 5, 3, 2, bias=True, activation="relu"),
    "wide": Conv("stem", 136, 1, 1, 0, bias=True),
    "many": Conv("stem", 72, 3, 1, 2, bias=True, bias_init="zero", activation="gelu"),
    "large": Conv("stem", 16, 15, 8, 14, bias=True, activation="silu"),
}


def make(node, channels, precision, seed=0):
    network = Network(Description("test", (node,), channels), backend="cuda", precision=precision)
    network.initialise(seed)
    if node.frozen:
        network.parameter("stem.weight")[:] = np.random.default_rng(seed).normal(0, 0.5, network.layers[-1].shape)
    return network


def check(network, plan, node, images, precision):
    """Checks everything that the kernels wrote, from the output's gradient that they read."""
    images = images.astype(np.float64)
    w = network.parameter("stem.weight").astype(np.float64)
    bias = network.parameter("stem.bias").astype(np.float64) if node.bias else 0.0
    z = conv(images, w, node.stride, node.padding) + bias
    terms = conv(np.abs(images), np.abs(w), node.stride, node.padding) + np.abs(bias)
    expected = activate(z, node.activation)
    # Sums of up to 900 products round by 2^-24 each time; the activation functions are good to 1.2e-6.
    inner = 1e-6 * terms + 2e-6
    within("output", plan.read(0), expected, inner + UNITS[precision] * np.abs(expected) + 1e-7)
    dy = plan.read(0, True).astype(np.float64)
    steep = slope(z, node.activation)
    if node.activation == "relu":  # where the sign depends on rounding, either slope will do
        steep = np.where(np.abs(z) < inner, 0.5, steep)
    unsure = np.abs(dy) * (inner + 3e-6 + (np.abs(z) < inner) * 0.5 * (node.activation == "relu"))
    dz = dy * steep
    if node.bias:
        bound = unsure.sum((0, 1, 2)) + 1e-6 * np.abs(dz).sum((0, 1, 2))
        within("bias", network.gradient("stem.bias"), dz.sum((0, 1, 2)), bound)
    if not node.frozen:
        gradient = conv_filter_gradient(images, dz, node.kernel, node.stride, node.padding)
        x = np.abs(images)
        bound = conv_filter_gradient(x, unsure + 1e-6 * np.abs(dz), node.kernel, node.stride, node.padding)
        within("weights", network.gradient("stem.weight"), gradient, bound + 1e-12)


@pytest.mark.parametrize("precision", UNITS)
@pytest.mark.parametrize("stem", STEMS)
def test_stem(stem, precision):
    node = STEMS[stem]
    cases = [(3, (13, 9), 5), (1, (8, 17), 1), (4, (7, 7), 3), (3, (33, 32), 2)]
    for channels, size, batch in cases[:1] if EMULATED and precision == "bfloat16" else cases:
        rng = np.random.default_rng(batch)
        network = make(node, channels, precision)
        plan = network.plan(batch + 2, size, keep_all=True)
        shape = plan.shape(0)
        poison = np.full((batch + 2, *size, channels), np.nan, np.float32)
        plan.forward(poison)
        plan.backward(np.full((batch + 2, *shape), np.nan, np.float32))
        images = rng.normal(0.3, 1, (batch, *size, channels)).astype(np.float32)
        plan.forward(images)
        network.gradients[:] = np.nan
        plan.backward(rng.normal(0, 1, (batch, *shape)).astype(np.float32))
        check(network, plan, node, images, precision)


@pytest.mark.parametrize(
    ("stem", "precision", "size"),
    [
        ("resnet9", "float32", (3, 301)),
        ("resnet9", "float16", (3, 301)),
        ("resnet9", "float16", (21, 60)),
        ("trained", "float16", (150, 66)),
        ("whitening", "float16", (3, 601)),
    ],
)
def test_several_tiles(stem, precision, size):
    node = STEMS[stem]
    network = make(node, 3, precision)
    plan = network.plan(1, size, keep_all=True)
    rng = np.random.default_rng(0)
    images = rng.normal(0, 1, (1, *size, 3)).astype(np.float32)
    plan.forward(images)
    plan.backward(rng.normal(0, 1, (1, *plan.shape(0))).astype(np.float32))
    check(network, plan, node, images, precision)


def small(*stem, **options):
    return (
        Conv("stem", *stem, **options),
        Conv("conv", 8),
        Norm("norm", "silu", pool=2, scale=False),
        Head("head", 10),
    )


SMALL = small(8, 3, 1, 1, bias=True, activation="gelu")
# Both kinds of products, in float32 and by halves on the tensor cores: precision, network.
BOTH = {
    "float32": ("float32", SMALL),
    "float16": ("float16", SMALL),
    "whitening": ("float16", small(24, 2, 1, 0, bias=True, activation="gelu")),
    "resnet9": ("float16", small(64, 3, 1, 1)),
}


def variants(raw, mean, std):
    """The same images in every type and layout: (name, images, options of the call, what they mean in float32)."""
    floats = ((raw - np.float32(mean)) * (np.float32(1) / np.float32(std))).astype(np.float32)
    halves = (floats.view(np.uint32) >> 16).astype(np.uint16)
    cut = (halves.astype(np.uint32) << 16).view(np.float32)
    normalise = {"mean": mean, "std": std}
    for name, images, options, meaning in [
        ("uint8", raw, normalise, floats),
        ("float32", floats, {}, floats),
        ("bfloat16", halves, {}, cut),
    ]:
        yield name, images, options, meaning
        yield f"{name}, planar", np.ascontiguousarray(images.transpose(0, 3, 1, 2)), options, meaning


@pytest.mark.parametrize("kind", BOTH)
def test_types_and_layouts_of_images(kind):
    """Every way to pass the same images gives the same bytes; with and without a float32 copy of them."""
    rng = np.random.default_rng(6)
    raw, labels = rng.integers(0, 256, (5, 9, 12, 3), dtype=np.uint8), np.arange(5)
    mean, std = (125.0, 123.0, 114.0), (51.5, 50.75, 51.25)
    precision, nodes = BOTH[kind]
    network = Network(Description("test", nodes), backend="cuda", precision=precision, deterministic=True)
    network.initialise(1)
    plans = [network.plan(6, (9, 12), keep_all=keep) for keep in (False, True)]
    for name, images, options, meaning in variants(raw, mean, std):
        results = []
        for plan in plans:
            for given, more in ((images, options), (meaning, {})):
                network.running[:] = 1
                plan.step(given, labels, **more)
                results.append((network.gradients.tobytes(), network.running.tobytes()))
                assert np.isfinite(network.gradients).all()
        assert all(result == results[0] for result in results), name
        plans[1].step(images, labels, **options)
        border = nodes[0].padding
        padded = np.pad(meaning, ((0, 0), (border, border), (border, border), (0, 0)))
        assert np.array_equal(plans[1].read(-1), padded), name


@pytest.mark.parametrize(("mirror", "dy", "dx"), [(True, 0, 0), (False, -1, -1), (True, 1, 1), (False, 2, -4)])
@pytest.mark.parametrize("kind", ["float16", "whitening", "resnet9"])
def test_views(mirror, dy, dx, kind):
    rng = np.random.default_rng(7)
    network = Network(Description("test", BOTH[kind][1]), backend="cuda", precision="float16", deterministic=True)
    network.initialise(1)
    plan = network.plan(3, (9, 12), training=False)
    raw, mean, std = rng.integers(0, 256, (3, 9, 12, 3), dtype=np.uint8), (125.0, 123.0, 114.0), (51.5, 50.75, 51.25)
    for name, images, options, meaning in variants(raw, mean, std):
        padded = np.pad(meaning, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
        view = padded[:, 4 + dy : 13 + dy, 4 + dx : 16 + dx]
        expected = plan.evaluate(np.ascontiguousarray(view[:, :, ::-1] if mirror else view))
        actual = plan.evaluate(images, mirror=mirror, shift_y=dy, shift_x=dx, **options)
        assert actual.tobytes() == expected.tobytes(), name
        assert not np.array_equal(plan.evaluate(images, **options), expected), name


def test_stored_gradients_are_rounded_once():
    """plan.read returns what was written: the bytes of the storage type."""
    network = make(STEMS["wide"], 3, "bfloat16")
    plan = network.plan(2, 5, keep_all=True)
    rng = np.random.default_rng(0)
    plan.forward(rng.normal(0, 1, (2, 5, 5, 3)).astype(np.float32))
    given = rng.normal(0, 1, (2, *plan.shape(0))).astype(np.float32)
    plan.backward(given)
    assert np.array_equal(plan.read(0, True), bf16(given))
    assert np.array_equal(plan.read(0), bf16(plan.read(0)))


def test_channels_not_a_multiple_of_eight_are_refused():
    with pytest.raises(ValueError, match='"stem" has 20 channels; on a GPU'):
        make(Conv("stem", 20, 3, 1, 1), 3, "float32").plan(2, 8)
