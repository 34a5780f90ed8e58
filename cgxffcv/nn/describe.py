"""Descriptions of networks. The first node reads the images, every other one the node before it, unless it names
another.

The output of a node is used once or twice: read by one convolution, or by two, or read by one and added by a norm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from cgxffcv.lengths import taken
from cgxffcv.wording import brief

__all__ = ["Conv", "Description", "Head", "Node", "Norm", "airbench", "resnet18", "resnet9"]


@dataclass(frozen=True)
class Conv:
    """A convolution with square kernels.

    `bias`, `activation` and `frozen` filters (set from outside, never trained) only where it reads the images: anywhere
    else a norm follows and provides both. Initialisation of the filters: "uniform" within 1/sqrt(fan in), or
    "identity": the same, then the first min(in, out) filters pass on their channel. The bias starts "uniform" or at
    "zero". `reads`: the name of an earlier norm whose output it reads; None: the node before it.
    """

    kind: ClassVar[str] = "conv"
    name: str
    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    block: int = 0
    init: str = "uniform"
    bias: bool = False
    bias_init: str = "uniform"
    activation: str = "none"
    frozen: bool = False
    reads: str | None = None


@dataclass(frozen=True)
class Norm:
    """Batch norm together with what surrounds it, in one operator.

    `pool`: a max pool of that window and stride (2 or 3; odd sizes are floored) "before" the norm or "after" the
    activation. `residual`: the name of an earlier norm whose output is added, "before" or "after" the activation.
    `scale`: whether a scale is trained (otherwise it is 1); a bias always is. `keep`: running = keep * running + (1 -
    keep) * batch.
    """

    kind: ClassVar[str] = "norm"
    name: str
    activation: str = "relu"
    pool: int = 0
    pool_place: str = "before"
    residual: str | None = None
    residual_place: str = "after"
    scale: bool = True
    eps: float = 1e-5
    keep: float = 0.9
    block: int = 0


@dataclass(frozen=True)
class Head:
    """Global pool ("max" or "average"), linear layer, output times `scale`; its loss is softmax cross entropy.

    `init`: "uniform" within 1/sqrt(fan in), or "unit": rescaled to standard deviation 1. `bias`: whether the linear
    layer has one, which starts uniform within 1/sqrt(fan in).
    """

    kind: ClassVar[str] = "head"
    name: str = "head"
    classes: int = 10
    scale: float = 1.0
    init: str = "uniform"
    block: int = 0
    pool: str = "max"
    bias: bool = False


Node = Conv | Norm | Head


@dataclass(frozen=True)
class Description:
    """A network: its name, the channels of its images, its nodes."""

    name: str
    nodes: tuple[Node, ...]
    image_channels: int = 3

    def core(self) -> list[dict[str, Any]]:
        """The nodes as the C core takes them; ValueError if a node that is read or added is not an earlier one."""
        names = [node.name for node in self.nodes]
        return [_core_node(node, names[:i]) for i, node in enumerate(self.nodes)]

    def channels_read(self) -> dict[str, int]:
        """The channels that each node reads, by its name."""
        return {node.name: channels for node, (channels, _) in zip(self.nodes, self._read(1 << 12), strict=True)}

    def _read(self, size: int) -> Iterator[tuple[int, int]]:
        """What each node reads of images of size x size pixels: channels, and pixels of a side."""
        outputs, last = {}, (self.image_channels, size)
        for node in self.nodes:
            channels, pixels = outputs[node.reads] if isinstance(node, Conv) and node.reads is not None else last
            yield channels, pixels
            if isinstance(node, Conv):
                last = node.channels, (pixels + 2 * node.padding - node.kernel) // node.stride + 1
            elif isinstance(node, Norm):
                last = channels, pixels // (node.pool or 1)
            outputs[node.name] = last

    def _products(self, size: int) -> Iterator[tuple[Node, int]]:
        """The nodes, each with its multiply-adds for one image of size x size pixels."""
        for node, (channels, pixels) in zip(self.nodes, self._read(size), strict=True):
            if isinstance(node, Conv):
                side = (pixels + 2 * node.padding - node.kernel) // node.stride + 1
                yield node, side**2 * node.channels * channels * node.kernel**2
            else:
                yield node, node.classes * channels if isinstance(node, Head) else 0

    def flops(self, size: int, first_block: int = 0) -> tuple[float, float]:
        """Operations (a multiplication and an addition are two) of one image in the convolutions and the linear layer:
        forward, and forward and backward with the blocks below `first_block` frozen."""
        forward = step = 0.0
        below = False  # something below is trained, so that the gradient must pass
        for node, products in self._products(size):
            trained = node.block >= first_block
            weights = trained and not (isinstance(node, Conv) and node.frozen)
            forward += 2.0 * products
            step += 2.0 * products * (1 + below + weights)
            below = below or weights or (trained and isinstance(node, Conv) and node.bias)
        return forward, step


def _core_node(node: Node, earlier: list[str]) -> dict[str, Any]:
    fields = {"kind": node.kind, **vars(node)}
    if isinstance(node, Norm):
        fields["residual"] = -1 if node.residual is None else _index(node, "residual", earlier)
    elif isinstance(node, Conv):
        fields["reads"] = 0 if node.reads is None else _index(node, "reads", earlier[1:], 1)
    else:
        fields |= {"head_pool": fields.pop("pool"), "bias_init": "uniform"}
    return fields


def _index(node: Node, what: str, earlier: list[str], first: int = 0) -> int:
    """The number of the node that `what` of `node` names, among the earlier ones from number `first` on."""
    name = getattr(node, what)
    if name not in earlier:
        raise ValueError(f"node {node.name!r}: {what} names {name!r}, which is not an earlier norm")
    return earlier.index(name) + first


def resnet9(classes: int = 10, keep: float = 0.9) -> Description:
    """The network of FFCV's CIFAR-10 example: 2,274,880 parameters, 0.583 GFLOP forward per image of 32 x 32.

    With more than 128 classes its last convolution also has more channels: as many as there are classes, in steps of
    64, and at most 512.
    """
    nodes: list[Node] = []

    def add(index: int, channels: int, kernel: int = 3, stride: int = 1, padding: int = 1, **norm) -> None:
        nodes.append(Conv(f"conv{index}", channels, kernel, stride, padding, block=index))
        nodes.append(Norm(f"norm{index}", block=index, keep=keep, **norm))

    add(1, 64)
    add(2, 128, kernel=5, stride=2, padding=2)
    add(3, 128)
    add(4, 128, residual="norm2")
    add(5, 256, pool=2, pool_place="after")
    add(6, 256)
    add(7, 256, residual="norm5")
    add(8, min(max(128, -(-classes // 64) * 64), 512), padding=0)
    nodes.append(Head("head", classes, scale=0.2, block=8))
    return Description("resnet9", tuple(nodes))


def resnet18(
    classes: int = 10,
    *,
    widths: Sequence[int] = (64, 128, 256, 512),
    activation: str = "relu",
    keep: float = 0.9,
    head_scale: float = 1.0,
) -> Description:
    """ResNet-18 (He et al., arXiv 1512.03385) for small images: 11,173,962 parameters with 10 classes.

    The first convolution is 3 x 3 with stride 1 and no pool follows it, so that an image of 32 x 32 pixels reaches the
    head as 4 x 4. Four stages of two basic blocks, with `widths` channels; the first block of stages 2 to 4 halves the
    side. The head averages over the map, and its linear layer has a bias; `head_scale` is a factor of its output.
    ValueError unless there are four widths.
    """
    four = f"widths must be four numbers of channels, not {brief(widths)}"
    widths = taken(widths, 4, four)
    if len(widths) != 4:
        raise ValueError(four)
    first = Norm("norm1", activation, block=1, keep=keep)
    nodes: list[Node] = [Conv("conv1", widths[0], block=1), first]
    channels, block = widths[0], 1
    for stage, width in enumerate(widths, start=1):
        for index in (1, 2):
            stride = 2 if stage > 1 and index == 1 else 1
            block += 1
            norm = replace(first, name=f"s{stage}b{index}", block=block)
            nodes += _basic_block(nodes[-1].name, width, stride, stride > 1 or width != channels, norm)
            channels = width
    nodes.append(Head("head", classes, scale=head_scale, block=block, pool="average", bias=True))
    return Description("resnet18", tuple(nodes))


def _basic_block(x: str, width: int, stride: int, projected: bool, norm: Norm) -> Iterator[Node]:
    """Two convolutions with norms, to whose output the shortcut is added before the last activation: x itself, or,
    `projected`, a 1 x 1 convolution of it with a norm. `norm`: the block's norms, with its name."""
    name, block = norm.name, norm.block
    shortcut = f"{name}.shortcut_norm" if projected else x
    if projected:
        yield Conv(f"{name}.shortcut", width, 1, stride, 0, block=block)
        yield replace(norm, name=shortcut, activation="none")
    yield Conv(f"{name}.conv1", width, 3, stride, block=block, reads=x if projected else None)
    yield replace(norm, name=f"{name}.norm1")
    yield Conv(f"{name}.conv2", width, block=block)
    yield replace(norm, name=f"{name}.norm2", residual=shortcut, residual_place="before")


def airbench(
    widths: Sequence[int] = (64, 256, 256),
    *,
    classes: int = 10,
    activation: str = "gelu",
    stem_activation: str = "gelu",
    deep_blocks: bool | Sequence[bool] = False,
    keep: float | None = None,
    head_scale: float | None = None,
    head_init: str = "unit",
    bias_init: str = "uniform",
) -> Description:
    """The family of airbench (arXiv 2404.00498) by the widths of its three blocks.

    Block 0 is the whitening convolution (3 -> 24, 2 x 2, frozen filters, trained bias) with `stem_activation`; each
    block is conv, max pool 2, norm, activation, conv, norm, activation. `deep_blocks`, one for all or one for each,
    adds a third convolution whose norm adds the first one's output before the activation (airbench96). Norms have a
    bias but no scale, eps 1e-12, and keep 0.6 of the running statistics (0.9 with deep blocks). `head_scale` is
    1 / the last width unless given.
    """
    three = f"widths must be three numbers of channels, not {brief(widths)}"
    widths = taken(widths, 3, three)
    if len(widths) != 3:
        raise ValueError(three)
    three = f"deep_blocks must be true, false, or three of these, not {brief(deep_blocks)}"
    deep = [deep_blocks] * 3 if isinstance(deep_blocks, bool) else taken(deep_blocks, 3, three)
    if len(deep) != 3:
        raise ValueError(three)
    kept = (0.9 if any(deep) else 0.6) if keep is None else keep
    nodes: list[Node] = [
        Conv("whiten", 24, 2, 1, 0, frozen=True, bias=True, bias_init=bias_init, activation=stem_activation, block=0)
    ]
    for block, width in enumerate(widths, start=1):
        for index in range(1, 4 if deep[block - 1] else 3):
            nodes.append(Conv(f"b{block}.conv{index}", width, block=block, init="identity"))
            norm = Norm(f"b{block}.norm{index}", activation, scale=False, eps=1e-12, keep=kept, block=block)
            if index == 1:
                norm = replace(norm, pool=2)
            if index == 3:
                norm = replace(norm, residual=f"b{block}.norm1", residual_place="before")
            nodes.append(norm)
    scale = 1.0 / widths[-1] if head_scale is None else head_scale
    nodes.append(Head("head", classes, scale=scale, init=head_init, block=3))
    if not math.isfinite(scale):
        raise ValueError(f"head_scale must be finite, not {head_scale}")
    return Description("airbench-" + "-".join(map(str, widths)), tuple(nodes))
