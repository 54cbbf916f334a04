"""Residual networks: ResNet at any depth, wide ResNet, ResNets for small images."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from penstock.zoo.layers import conv_norm, conv_norm_relu, shortcut

__all__ = ["BasicBlock", "Bottleneck", "resnet"]


class BasicBlock(nn.Module):
    """3x3, 3x3, and a shortcut around them."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, widen: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *conv_norm_relu(inputs, width * widen, 3, stride=stride),
            *conv_norm(width * widen, width, 3),
        )
        self.shortcut = shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(self.body(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 on `widen` times the width, 1x1, and a shortcut around them.

    The 3x3 has the stride, as in every implementation since fb.resnet.torch; in the paper the first
    1x1 has it.
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, widen: int = 1) -> None:
        super().__init__()
        inner, outputs = width * widen, width * self.expansion
        self.body = nn.Sequential(
            *conv_norm_relu(inputs, inner, 1),
            *conv_norm_relu(inner, inner, 3, stride=stride),
            *conv_norm(inner, outputs, 1),
        )
        self.shortcut = shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(self.body(x) + self.shortcut(x))


def resnet(
    block: type[BasicBlock | Bottleneck], depths: Sequence[int], classes: int, *, widen: int = 1
) -> nn.Module:
    """ResNet, 224 pixels, `depths` blocks in each of its four stages: He, Zhang, Ren, Sun, "Deep
    residual learning for image recognition", CVPR 2016, arXiv:1512.03385, table 1.

    With `widen`, the wide ResNet of Zagoruyko, Komodakis, "Wide residual networks", BMVC 2016,
    arXiv:1605.07146, section 3.4: the inner convolutions are that many times as wide.
    """
    blocks, outputs = _stages(block, 64, (64, 128, 256, 512), depths, widen)
    return nn.Sequential(
        *conv_norm_relu(3, 64, 7, stride=2),
        nn.MaxPool2d(3, 2, 1),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(outputs, classes),
    )


def _stages(
    block: type[BasicBlock | Bottleneck],
    inputs: int,
    widths: Sequence[int],
    depths: Sequence[int],
    widen: int,
) -> tuple[list[nn.Module], int]:
    """Stages of blocks, and how many channels come out; all stages but the first halve the image."""
    blocks: list[nn.Module] = []
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for index in range(depth):
            blocks.append(block(inputs, width, 2 if stage and not index else 1, widen))
            inputs = width * block.expansion
    return blocks, inputs
