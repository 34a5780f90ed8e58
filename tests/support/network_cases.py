"""Tests of whole networks that hold on every backend: the modules that import them run them on BACKEND."""

import numpy as np
import pytest
from nn_reference import Reference, cross_entropy

from cgxffcv import nn

BACKEND = "cpu"  # the tests of other backends run the same functions with theirs


def tiny_resnet():
    """resnet9's shape with few channels: stride, residuals after the activation, a pool after it, no padding."""
    full = nn.resnet9()
    few = {64: 8, 128: 16, 256: 24}
    nodes = []
    for node in full.nodes:
        if isinstance(node, nn.Conv):
            node = nn.Conv(node.name, few[node.channels], node.kernel, node.stride, node.padding, node.block)
        nodes.append(node)
    return nn.Description("tiny", tuple(nodes))


NETWORKS = {
    "airbench": lambda: nn.airbench((8, 16, 24)),
    "deep": lambda: nn.airbench((8, 16, 24), activation="silu", deep_blocks=True),
    "resnet9": tiny_resnet,
}


def make(description, precision="float32", threads=2, seed=0, convolution="auto", deterministic=True):
    """Tests that compare bytes need deterministic networks; the others take what is fastest."""
    network = nn.Network(
        description,
        backend=BACKEND,
        precision=precision,
        threads=threads,
        convolution=convolution,
        deterministic=deterministic,
    )
    network.initialise(seed)
    rng = np.random.default_rng(seed + 1)
    for layer in network.layers:
        if not layer.trained:
            network.parameter(layer.name)[:] = rng.normal(0, 0.5, layer.shape)
        elif layer.kind in ("norm_scale", "norm_bias"):
            network.parameter(layer.name)[:] += rng.normal(0, 0.2, layer.shape)
    return network


def batch(count, size, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, (count, size, size, 3)).astype(np.float32), rng.integers(0, 10, count)


def relative(actual, expected):
    return np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-12)


def check_step(network, plan, images, labels, smoothing, reduction="mean"):
    """Makes a step and compares its totals and gradients with those of the reference, which is returned."""
    reference = Reference(network)
    plan.step(images, labels, label_smoothing=smoothing, reduction=reduction)
    loss, hits, gradients = reference.step(images.astype(np.float64), labels, smoothing, reduction)
    assert plan.take_totals() == (pytest.approx(loss, rel=1e-5), hits, len(labels))
    for layer in network.layers:
        if layer.trained:
            assert relative(network.gradient(layer.name), gradients[layer.name]) < 2e-4, layer.name
    return reference


def step_and_reference(network, count):
    """The loss and all gradients of a step on that many images, and those of the reference."""
    images, labels = batch(count, 32)
    plan = network.plan(count, 32)
    plan.step(images, labels, label_smoothing=0.2)
    loss, _, gradients = Reference(network).step(images.astype(np.float64), labels, 0.2, "mean")
    trained = [layer.name for layer in network.layers if layer.trained]
    actual = np.concatenate([network.gradient(name).ravel() for name in trained])
    return plan.take_totals()[0], actual, loss, np.concatenate([gradients[name].ravel() for name in trained])


def bytes_of_steps(network, count, most):
    """All that two steps and an evaluation on that many images give."""
    images, labels = batch(count, 32)
    plan = network.plan(most, 32)
    for _ in range(2):
        plan.step(images, labels, label_smoothing=0.1)
    logits = plan.evaluate(images)
    return network.gradients.tobytes(), network.running.tobytes(), logits.tobytes(), plan.take_totals()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", NETWORKS)
def test_step_equals_the_reference(name, reduction):
    network = make(NETWORKS[name](), deterministic=False)
    images, labels = batch(37, 32)
    plan = network.plan(50, 32)
    network.gradients[:] = np.nan
    reference = check_step(network, plan, images, labels, 0.2, reduction)
    assert plan.take_totals() == (0.0, 0, 0)
    for item in network.statistics:
        mean, variance = reference.running[item.name]
        assert np.allclose(network.running_mean(item.name), mean, rtol=1e-4, atol=1e-5 * np.abs(mean).max())
        assert np.allclose(network.running_variance(item.name), variance, rtol=1e-4)


def shared_outputs(place):
    """Outputs that are read twice, that are only added, that are added before they are read, and all of this in a
    row."""
    nodes = [nn.Conv("conv1", 8), nn.Norm("a", "silu")]

    def add(index, name, reads=None, residual=None, activation="silu"):
        nodes.append(nn.Conv(f"conv{index}", 8, reads=reads))
        nodes.append(nn.Norm(name, activation, residual=residual, residual_place=place))

    add(2, "b", activation="none")
    add(3, "c", reads="a")
    add(4, "d", residual="b")
    add(5, "e")
    add(6, "f", reads="d", residual="e")
    add(7, "g", residual="f")
    add(8, "h")
    add(9, "i", reads="g", residual="h")
    add(10, "j", reads="h")
    add(11, "k", reads="i", residual="j")
    nodes.append(nn.Head(pool="average", bias=True, scale=0.3))
    return nn.Description("shared", tuple(nodes))


@pytest.mark.parametrize("keep_all", [False, True])
@pytest.mark.parametrize("place", ["before", "after"])
def test_outputs_of_several_users(place, keep_all):
    network = make(shared_outputs(place), deterministic=False)
    images, labels = batch(9, 8)
    reference = Reference(network)
    plan = network.plan(12, 8, keep_all=keep_all)
    plan.step(images, labels, label_smoothing=0.1)
    outputs, kept = reference.forward(images.astype(np.float64))
    loss, _, dlogits = cross_entropy(outputs[-1], labels, 0.1, "mean")
    gradients, of_outputs = reference.backward(kept, dlogits)
    assert plan.take_totals()[0] == pytest.approx(loss, rel=1e-5)
    for layer in network.layers:
        assert relative(network.gradient(layer.name), gradients[layer.name]) < 2e-4, layer.name
    for i, node in enumerate(network.description.nodes[:-1] if keep_all else ()):
        # a GPU's are those of the summed loss
        factor = 1 if BACKEND == "cpu" else len(labels)
        assert relative(plan.read(i, True), factor * of_outputs[i]) < 2e-4, node.name
    logits = plan.evaluate(images)
    expected = reference.forward(images.astype(np.float64), training=False)[0][-1]
    assert np.allclose(logits, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def tiny_resnet18():
    """Among so many activations some are so near 0 that rounding decides their slope, if it has a jump there."""
    return nn.resnet18(widths=(8, 16, 16, 24), activation="silu", head_scale=0.7)


def test_resnet18():
    """Steps with all blocks, with some of them frozen, and the evaluation."""
    network = make(tiny_resnet18())
    images, labels = batch(5, 16)
    plan = network.plan(6, 16)
    reference = check_step(network, plan, images, labels, 0.1)
    trained = [layer for layer in network.layers if layer.trained]
    expected = reference.forward(images.astype(np.float64), training=False)[0][-1]
    assert np.allclose(plan.evaluate(images), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    everything = network.gradients.copy()
    for first in (1, 4, 5):
        network.gradients[:] = np.nan
        plan.step(images, labels, label_smoothing=0.1, first_block=first)
        for layer in trained:
            part = slice(layer.offset, layer.offset + layer.elems)
            wanted = everything[part] if layer.block >= first else np.full(layer.elems, np.nan)
            assert np.array_equal(network.gradients[part], wanted, equal_nan=True), layer.name


def test_gaps_between_layers_stay_zero():
    network = make(nn.airbench((8, 16, 24)))
    images, labels = batch(9, 32)
    network.plan(9, 32).step(images, labels)
    inside = np.zeros(network.parameters.shape, bool)
    for layer in network.layers:
        inside[layer.offset : layer.offset + layer.elems] = True
    assert not network.parameters[~inside].any()
    assert not network.gradients[~inside[: network.gradients.size]].any()
    assert not inside.all()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_nothing_is_left_of_an_earlier_batch(precision):
    images, labels = batch(21, 32)
    fresh, poisoned = (make(NETWORKS["deep"](), precision) for _ in range(2))
    plans = [network.plan(40, 32) for network in (fresh, poisoned)]
    poison, more = batch(40, 32, 5)
    poison[:] = np.nan
    plans[1].step(poison, more)
    plans[1].evaluate(poison)
    assert np.isnan(plans[1].take_totals()[0])
    poisoned.running[:] = fresh.running
    for plan in plans:
        plan.step(images, labels)
    assert np.isfinite(fresh.gradients).all()
    assert fresh.gradients.tobytes() == poisoned.gradients.tobytes()
    assert fresh.running.tobytes() == poisoned.running.tobytes()
    assert plans[0].evaluate(images).tobytes() == plans[1].evaluate(images).tobytes()


@pytest.mark.parametrize("name", NETWORKS)
def test_frozen_blocks(name):
    network = make(NETWORKS[name]())
    images, labels = batch(20, 32)
    plan = network.plan(20, 32)
    plan.step(images, labels)
    everything = network.gradients.copy()
    blocks = sorted({layer.block for layer in network.layers})
    for first in [*blocks, blocks[-1] + 1]:
        network.gradients[:] = np.nan
        plan.step(images, labels, first_block=first)
        end = network.gradient_elems(first)
        trained = [layer for layer in network.layers if layer.trained]
        assert end % 16 == 0
        assert all(layer.offset + layer.elems <= end for layer in trained if layer.block >= first)
        for layer in trained:
            part = slice(layer.offset, layer.offset + layer.elems)
            if layer.block >= first:
                assert np.array_equal(network.gradients[part], everything[part]), layer.name
            else:
                assert layer.offset >= end
                # the head, which has no parameters before it, is never skipped
                assert np.isnan(network.gradients[part]).all() or layer.kind == "linear", layer.name


@pytest.mark.parametrize("size", [20, 24, 28, 32, (33, 26)])
def test_other_sizes_share_the_parameters(size):
    network = make(NETWORKS["airbench"](), deterministic=False)
    height, width = (size, size) if isinstance(size, int) else size
    rng = np.random.default_rng(3)
    images = rng.normal(0, 1, (11, height, width, 3)).astype(np.float32)
    labels = rng.integers(0, 10, 11)
    check_step(network, network.plan(11, size), images, labels, 0.0, "sum")


@pytest.mark.parametrize("name", NETWORKS)
def test_evaluation_uses_the_running_statistics(name):
    network = make(NETWORKS[name](), deterministic=False)
    rng = np.random.default_rng(4)
    network.running[:] = rng.uniform(0.5, 1.5, network.running.shape)
    images, _ = batch(33, 32)
    plan = network.plan(33, 32, training=False)
    for count in (33, 1, 8, 32):
        expected = Reference(network).forward(images[:count].astype(np.float64), training=False)[0][-1]
        logits = plan.evaluate(images[:count])
        assert logits.shape == (count, 10)
        assert np.allclose(logits, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("mirror", "dy", "dx"), [(True, 0, 0), (False, -1, -1), (True, 1, 1), (False, 2, -4)])
def test_views(mirror, dy, dx):
    network = make(NETWORKS["airbench"]())
    images, _ = batch(5, 32)
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
    view = padded[:, 4 + dy : 36 + dy, 4 + dx : 36 + dx]
    view = np.ascontiguousarray(view[:, :, ::-1] if mirror else view)
    plan = network.plan(5, 32, training=False)
    expected = plan.evaluate(view)
    assert plan.evaluate(images, mirror=mirror, shift_y=dy, shift_x=dx).tobytes() == expected.tobytes()
    assert not np.array_equal(plan.evaluate(images), expected)


def test_types_and_layouts_of_images():
    network = make(NETWORKS["airbench"]())
    plan = network.plan(6, 32)
    rng = np.random.default_rng(6)
    raw, labels = rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8), np.arange(6)
    mean, std = (125.0, 123.0, 114.0), (51.5, 50.75, 51.25)
    planar = np.ascontiguousarray(raw.transpose(0, 3, 1, 2))

    def gradients(images, **options):
        plan.step(images, labels, **options)
        return network.gradients.copy()

    floats = ((raw - np.float32(mean)) / np.float32(std)).astype(np.float32)
    expected = gradients(floats)
    assert gradients(np.ascontiguousarray(floats.transpose(0, 3, 1, 2))).tobytes() == expected.tobytes()
    bytes_in = gradients(raw, mean=mean, std=std)
    assert relative(bytes_in, expected) < 1e-4
    assert gradients(planar, mean=mean, std=std).tobytes() == bytes_in.tobytes()
    halves = (floats.view(np.uint32) >> 16).astype(np.uint16)
    cut = (halves.astype(np.uint32) << 16).view(np.float32)
    assert gradients(halves).tobytes() == gradients(cut).tobytes()


def test_initial_values():
    network = nn.Network(nn.airbench((32, 48, 24)), backend=BACKEND, precision="float32", threads=1)
    network.parameters[:] = 7
    network.initialise(3)
    conv = network.parameter("b1.conv1.weight")  # (32, 3, 3, 24)
    identity = np.zeros((24, 3, 3, 24))
    identity[np.arange(24), 1, 1, np.arange(24)] = 1
    assert np.array_equal(conv[:24], identity)
    bound = 1 / np.sqrt(9 * 24)
    assert np.abs(conv[24:]).max() <= bound
    assert conv[24:].std() == pytest.approx(bound / np.sqrt(3), rel=0.05)
    head = network.parameter("head.weight")
    assert head.std(ddof=1) == pytest.approx(1, rel=1e-5)
    assert np.abs(network.parameter("whiten.bias")).max() <= 1 / np.sqrt(12)
    assert not network.parameter("b2.norm2.bias").any()
    assert (network.parameter("whiten.weight") == 7).all()
    assert (network.running_variance("b3.norm1") == 1).all()
    first = network.parameters.copy()
    network.initialise(4)
    assert not np.array_equal(first, network.parameters)
    network.initialise(3)
    assert np.array_equal(first, network.parameters)
    deep = nn.airbench((32, 48, 24), deep_blocks=True)
    other = nn.Network(deep, backend=BACKEND, precision="float32", threads=1)
    other.initialise(3)
    assert np.array_equal(other.parameter("b2.conv1.weight"), network.parameter("b2.conv1.weight"))


def test_loss_of_extreme_logits():
    """A softmax that would overflow, and labels that are predicted with certainty."""
    description = nn.Description(
        "extreme", (nn.Conv("conv", 8, 1, 1, 0), nn.Norm("norm", "none"), nn.Head("head", 10, scale=500.0))
    )
    network = make(description)
    images, labels = batch(30, 5)
    reference = Reference(network)
    plan = network.plan(30, 5)
    plan.step(images, labels, label_smoothing=0.1)
    outputs, _ = reference.forward(images.astype(np.float64))
    assert np.abs(outputs[-1]).max() > 200
    loss, hits, _ = cross_entropy(outputs[-1], labels, 0.1, "mean")
    total, correct, _ = plan.take_totals()
    assert total == pytest.approx(loss, rel=1e-5)
    assert correct == hits
    assert np.isfinite(network.gradients).all()


def test_residual_of_another_shape_is_refused():
    nodes = (nn.Conv("a", 8), nn.Norm("b"), nn.Conv("c", 16), nn.Norm("d", residual="b"))
    with pytest.raises(ValueError, match="16 channels, but adds"):
        nn.Network(nn.Description("x", nodes), backend=BACKEND)
    nodes = (nn.Conv("a", 8), nn.Norm("b"), nn.Conv("c", 8, stride=2), nn.Norm("d", residual="b"))
    with pytest.raises(ValueError, match="maps of 4 x 4"):
        nn.Network(nn.Description("x", nodes), backend=BACKEND).plan(2, 8)


def test_refused_batches():
    network = make(NETWORKS["airbench"]())
    plan = network.plan(8, 32)
    images, labels = batch(8, 32)
    before = network.gradients.copy()
    for action, words in [
        (lambda: plan.step(images, labels + 10), "not within 0..9"),
        (lambda: plan.step(images, labels - 10), "not within 0..9"),
        (lambda: plan.step(images, labels[:5]), "8 images, but 5 labels"),
        (lambda: plan.step(images[:0], labels[:0]), "batch of 0"),
        (lambda: plan.step(*batch(9, 32)), "batch of 9"),
        (lambda: plan.step(*batch(8, 31)), "this plan takes"),
        (lambda: plan.step(images, labels, label_smoothing=1.5), "label_smoothing is 1.5"),
        (lambda: plan.step(images, labels, reduction="max"), "reduction must be"),
        (lambda: plan.step(images.astype(np.uint8), labels), "need mean and std"),
        (lambda: plan.step(images.astype(np.uint8), labels, mean=(1, 2, 3), std=(1, 0, 1)), "must be positive"),
        (lambda: plan.step(images.astype(np.uint8), labels, mean=(1, 2), std=(1, 1, 1)), "3 expected"),
        (lambda: plan.evaluate(images, shift_x=5), "within -4..4"),
        (lambda: plan.forward(images), "keep_all"),
        (lambda: plan.read(0), "keep_all"),
        (lambda: network.plan(8, 32, training=False).step(images, labels), "evaluation only"),
    ]:
        with pytest.raises(ValueError, match=words):
            action()
    with pytest.raises(TypeError, match="images must be"):
        plan.step(images.astype(np.float64), labels)
    with pytest.raises(TypeError, match="labels must be"):
        plan.step(images, labels.astype(np.int32))
    assert np.array_equal(before, network.gradients)
    plan.step(images, labels)


def test_views_outlive_the_network():
    network = make(NETWORKS["airbench"]())
    parameters = network.parameters
    expected = parameters.copy()
    del network
    assert np.array_equal(parameters, expected)
