"""Whole networks on the CPU: against the float64 reference, which is itself checked by finite differences; freezing,
views, sizes, determinism, and what is refused."""

import numpy as np
import pytest
from network_cases import *  # noqa: F403 (its tests, which are collected here)
from network_cases import (
    NETWORKS,
    batch,
    bytes_of_steps,
    check_step,
    make,
    shared_outputs,
    step_and_reference,
)
from nn_reference import Reference, cross_entropy

import cgxffcv
from cgxffcv import nn

pytestmark = pytest.mark.skipif(
    not cgxffcv.build_info()["onednn"], reason="this build has no oneDNN, so no convolutions on the CPU"
)


@pytest.mark.parametrize("name", [*NETWORKS, "shared"])
def test_reference_by_finite_differences(name):
    network = make(shared_outputs("before") if name == "shared" else NETWORKS[name]())
    images, labels = batch(3, 24)
    reference = Reference(network)
    _, _, gradients = reference.step(images.astype(np.float64), labels, 0.2, "mean")
    rng = np.random.default_rng(1)
    for layer in network.layers:
        values = reference.parameters[layer.name]
        direction = rng.normal(0, 1, values.shape)
        step, losses = 1e-7, []
        for sign in (1, -1):
            reference.parameters[layer.name] = values + sign * step * direction
            logits = reference.forward(images.astype(np.float64))[0][-1]
            losses.append(cross_entropy(logits, labels, 0.2, "sum")[0] / len(labels))
        reference.parameters[layer.name] = values
        slope = (losses[0] - losses[1]) / (2 * step)
        assert slope == pytest.approx((gradients[layer.name] * direction).sum(), rel=2e-4, abs=1e-7), layer.name


@pytest.mark.needs_bfloat16
@pytest.mark.parametrize(("convolution", "least"), [("direct", 0.95), ("winograd2", 0.95), ("winograd4", 0.9)])
@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_step_stays_near_the_reference(name, convolution, least):
    network = make(NETWORKS[name](), "bfloat16", convolution=convolution)
    total, actual, loss, expected = step_and_reference(network, 64)
    assert total == pytest.approx(loss, rel=0.02)
    assert actual @ expected > least * np.linalg.norm(actual) * np.linalg.norm(expected)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_same_bytes_for_any_number_of_threads(name, precision):
    results = [bytes_of_steps(make(NETWORKS[name](), precision, threads), 45, 50) for threads in (1, 2, 3, 1)]
    assert all(result == results[0] for result in results)


def test_sizes_of_the_published_networks():
    counts = {"resnet9": 2_274_880, "airbench": 1_971_640}  # the latter with 288 frozen
    for description in (nn.resnet9(), nn.airbench()):
        network = nn.Network(description, threads=1)
        filters = [layer.elems for layer in network.layers if layer.kind in ("filters", "linear")]
        total = sum(layer.elems for layer in network.layers)
        if description.name == "resnet9":
            assert sum(filters) == counts["resnet9"] - 2 * (64 + 128 * 3 + 256 * 3 + 128)
            assert total == counts["resnet9"]
        else:
            assert total == counts["airbench"]
    for description, products in ((nn.resnet18(), 555.4e6), (nn.airbench(), 118.15e6), (nn.resnet9(), 291.5e6)):
        assert description.flops(32)[0] == pytest.approx(2 * products, rel=2e-3 if products == 291.5e6 else 1e-3)


def test_resnet18_is_that_of_the_paper():
    """Its parameters counted from the shapes of its 20 convolutions, 20 norms and linear layer."""
    network = nn.Network(nn.resnet18(), threads=1)
    wide = [64, 64, 64, 64, 64, 128, 128, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512]  # conv1 and the blocks'
    expected = sum(9 * a * b for a, b in zip([3, *wide[:-1]], wide, strict=True)) + 2 * sum(wide)
    expected += sum(a * b + 2 * b for a, b in ((64, 128), (128, 256), (256, 512))) + 512 * 10 + 10
    assert sum(layer.elems for layer in network.layers) == expected == 11_173_962
    assert network.plan(1, 32, training=False).shape(39) == (4, 4, 512)
    assert network.plan(1, 16, training=False).shape(39) == (2, 2, 512)
    strides = [node.stride for node in nn.resnet18().nodes if isinstance(node, nn.Conv)]
    assert sorted(strides) == [1] * 14 + [2] * 6


def test_resnet18_with_its_own_activation():
    """ReLU: on few values, none of which is within rounding of 0, where the slope jumps."""
    network = make(nn.resnet18(100, widths=(8, 16, 16, 24)))
    images, _ = batch(4, 16)
    labels = np.array([3, 99, 0, 50])
    check_step(network, network.plan(4, 16), images, labels, 0.1)


def branches(*more):
    """Two norms, then `more`."""
    return nn.Description("x", (nn.Conv("conv", 8), nn.Norm("a"), nn.Conv("conv2", 8), nn.Norm("b"), *more))


REFUSED = [
    (lambda: nn.Network(nn.Description("x", ())), "1 to 64 nodes, not 0"),
    (lambda: nn.Network(nn.Description("x", (nn.Norm("n"),))), "first node must be a convolution"),
    (lambda: nn.Network(nn.Description("x", (nn.Conv("a", 8), nn.Conv("b", 8), nn.Conv("c", 8)))), "put a norm"),
    (lambda: nn.Network(nn.Description("x", (nn.Conv("a", 8), nn.Head()))), "must read a norm"),
    (lambda: nn.Network(nn.Description("x", (nn.Conv("a", 8), nn.Norm("a")))), "two nodes have the name"),
    (
        lambda: nn.Network(nn.Description("x", (nn.Conv("a", 8, bias=True), nn.Norm("b")))),
        "neither bias nor activation",
    ),
    (lambda: nn.Network(nn.Description("x", (nn.Conv("a", 0), nn.Norm("b")))), "output channels is 0"),
    (lambda: nn.Network(nn.Description("x", (nn.Conv("a", 8, padding=3), nn.Norm("b")))), "the padding is 3"),
    (lambda: nn.Network(nn.Description("x", (nn.Conv("a", 8),), image_channels=5)), "1..4 channels"),
    (lambda: nn.Network(nn.Description("x", (nn.Conv("a", 8, block=1), nn.Norm("b")))), "the block is 0"),
    (lambda: nn.Network(nn.Description("x", (nn.Conv("a" * 40, 8), nn.Norm("b")))), "longer than 31"),
    (lambda: nn.Network(nn.Description("x", (nn.Conv("a", 8), nn.Norm("b", "tanh")))), "must be one of"),
    (lambda: nn.Network(nn.Description("x", (nn.Conv("a", 8), nn.Norm("b", residual="z")))), "not an earlier norm"),
    (lambda: nn.Network(nn.Description("x", (nn.Conv("a", 8), nn.Norm("b", residual="a")))), "only a norm's"),
    (lambda: nn.Network(nn.Description("x", (nn.Conv("a", 8), nn.Norm("b", pool=5)))), "window is 5"),
    (lambda: nn.Network(nn.Description("x", (nn.Conv("a", 8), nn.Norm("b", keep=1.0)))), "keep is 1"),
    (lambda: nn.Network(nn.airbench(), precision="half"), "precision must be one of"),
    (lambda: nn.Network(nn.airbench(), precision="float16"), "not in float16"),
    (lambda: nn.Network(nn.airbench(), backend="tpu"), "backend must be one of"),
    (lambda: nn.Network(nn.airbench(), convolution="fft"), "convolution must be one of"),
    (lambda: nn.Network(nn.airbench(), threads=-1), "threads is -1"),
    (lambda: nn.airbench((1, 2)), "three numbers"),
    (lambda: nn.resnet18(widths=(1, 2, 3)), "four numbers"),
    (lambda: nn.Network(branches(nn.Conv("c", 8, reads="z"), nn.Norm("d"))), "reads names 'z'"),
    (lambda: nn.Network(branches(nn.Conv("c", 8, reads="conv"), nn.Norm("d"))), "'conv', which is no"),
    (lambda: nn.Network(branches(nn.Conv("c", 8, reads="conv2"), nn.Norm("d"))), 'convolution "conv2": put'),
    (lambda: nn.Network(branches(nn.Conv("c", 8, reads="a"), nn.Norm("d"))), 'uses the output of node "b"'),
    (
        lambda: nn.Network(
            branches(
                nn.Conv("c", 8, reads="a"),
                nn.Norm("d", residual="b"),
                nn.Conv("e", 8, reads="a"),
                nn.Norm("f", residual="d"),
            )
        ),
        'node "a" is used 3 times; at most twice is allowed',
    ),
    (lambda: make(NETWORKS["airbench"]()).plan(0, 32), "the batch is 0"),
    (lambda: make(NETWORKS["airbench"]()).plan(4, 8), "too small"),
    (lambda: make(NETWORKS["resnet9"]()).plan(4, (32, 9000)), "1..4096"),
]


@pytest.mark.parametrize(("action", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_refused_networks(action, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        action()


def test_cuda_is_named_when_missing():
    if cgxffcv.build_info()["cuda"]:
        pytest.skip("this build has CUDA")
    with pytest.raises(cgxffcv.NotBuiltError, match="CUDA"):
        nn.Network(nn.airbench(), backend="cuda")


def test_one_that_could_not_be_made_can_still_be_shown():
    """As a debugger or a traceback with values does."""
    with pytest.raises(ValueError) as caught:
        nn.Network(nn.Description("half", ()), threads=1)
    frame = next(t.locals["self"] for t in caught.traceback if isinstance(t.locals.get("self"), nn.Network))
    assert repr(frame) == "<Network half: could not be made>"
