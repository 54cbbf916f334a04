"""Residual networks: ResNet at any depth, wide ResNet, pre-activation ResNet, SENet, MobileNetV2."""

from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from penstock.zoo.layers import conv_norm, conv_norm_relu, head, parts

__all__ = ["BasicBlock", "Bottleneck", "mobilenet_v2", "preresnet", "resnet", "senet"]


def resnet(
    block: Callable[[int, int, int], "BasicBlock | Bottleneck"], depths: Sequence[int], classes: int
) -> nn.Module:
    """ResNet, 224 pixels, `depths` blocks in each of its four stages: He, Zhang, Ren, Sun, "Deep
    residual learning for image recognition", CVPR 2016, arXiv:1512.03385, table 1.

    With widened bottlenecks the wide ResNet of Zagoruyko, Komodakis, "Wide residual networks", BMVC
    2016, arXiv:1605.07146.
    """
    blocks: list[nn.Module] = []
    inputs = 64
    for stride, width in _blocks((64, 128, 256, 512), depths):
        blocks.append(made := block(inputs, width, stride))
        inputs = width * made.expansion
    return parts(
        stem=[*conv_norm_relu(3, 64, 7, stride=2), nn.MaxPool2d(3, 2, 1)],
        blocks=blocks,
        head=head(inputs, classes),
    )


def preresnet(depths: Sequence[int], classes: int) -> nn.Module:
    """ResNet for small images (32 pixels), its blocks turned round, `depths` in each of its three
    stages: He, Zhang, Ren, Sun, "Identity mappings in deep residual networks", ECCV 2016,
    arXiv:1603.05027, for 9n + 2 layers: n in each stage.
    """
    blocks: list[nn.Module] = []
    inputs = 16
    for stride, width in _blocks((16, 32, 64), depths):
        blocks.append(PreBottleneck(inputs, width, stride))
        inputs = 4 * width
    return parts(
        stem=[nn.Conv2d(3, 16, 3, padding=1, bias=False)],
        blocks=blocks,
        head=[nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), *head(inputs, classes)],
    )


def senet(depths: Sequence[int], classes: int) -> nn.Module:
    """SENet, 224 pixels; SENet-154 has `depths` 3, 8, 36, 3: Hu, Shen, Sun, "Squeeze-and-excitation
    networks", CVPR 2018, arXiv:1709.01507, appendix "Details of SENet-154".
    """
    blocks: list[nn.Module] = []
    inputs = 128
    for stride, width in _blocks((64, 128, 256, 512), depths):
        blocks.append(Squeezed(inputs, width, stride, kernel=3 if blocks else 1))
        inputs = 4 * width
    return parts(
        stem=[
            *conv_norm_relu(3, 64, 3, stride=2),
            *conv_norm_relu(64, 64, 3),
            *conv_norm_relu(64, 128, 3),
            nn.MaxPool2d(3, 2, 1),
        ],
        blocks=blocks,
        head=head(inputs, classes, dropout=0.2),
    )


def mobilenet_v2(classes: int) -> nn.Module:
    """MobileNetV2, 224 pixels: Sandler, Howard, Zhu, Zhmoginov, Chen, "MobileNetV2: inverted
    residuals and linear bottlenecks", CVPR 2018, arXiv:1801.04381, table 2.
    """
    stages = (  # times as wide inside, outputs, blocks, stride of the first
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    blocks: list[nn.Module] = []
    inputs = 32
    for expansion, outputs, depth, stride in stages:
        for index in range(depth):
            blocks.append(Inverted(inputs, outputs, 1 if index else stride, expansion))
            inputs = outputs
    return parts(
        stem=[*conv_norm(3, 32, 3, stride=2), nn.ReLU6(inplace=True)],
        blocks=blocks,
        head=[
            *conv_norm(inputs, 1280, 1),
            nn.ReLU6(inplace=True),
            *head(1280, classes, dropout=0.2),
        ],
    )


class BasicBlock(nn.Module):
    """3x3, 3x3, and a shortcut around them."""

    expansion: ClassVar = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *conv_norm_relu(inputs, width, 3, stride=stride),
            *conv_norm(width, width, 3),
        )
        self.shortcut = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(self.body(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1, and a shortcut around them; all but the last output `widen` times as wide.

    The 3x3 has the stride, as in its authors' later models; in the paper the first 1x1 has it.
    """

    expansion: ClassVar = 4

    def __init__(self, inputs: int, width: int, stride: int, widen: int = 1) -> None:
        super().__init__()
        inner, outputs = width * widen, width * self.expansion
        self.body = nn.Sequential(
            *conv_norm_relu(inputs, inner, 1),
            *conv_norm_relu(inner, inner, 3, stride=stride),
            *conv_norm(inner, outputs, 1),
        )
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(self.body(x) + self.shortcut(x))


class PreBottleneck(nn.Module):
    """A bottleneck whose norms and ReLUs come before its convolutions; nothing follows the sum."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(inplace=True))
        self.body = nn.Sequential(
            *conv_norm_relu(inputs, width, 1),
            *conv_norm_relu(width, width, 3, stride=stride),
            nn.Conv2d(width, 4 * width, 1, bias=False),
        )
        same = stride == 1 and inputs == 4 * width
        self.project = None if same else nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        out: Tensor = self.body(y) + (x if self.project is None else self.project(y))
        return out


class Squeezed(nn.Module):
    """A bottleneck of 64 groups whose channels are weighed by what is in the whole image."""

    def __init__(self, inputs: int, width: int, stride: int, kernel: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.body = nn.Sequential(
            *conv_norm_relu(inputs, 2 * width, 1),
            *conv_norm_relu(2 * width, 4 * width, 3, stride=stride, groups=64),
            *conv_norm(4 * width, outputs, 1),
        )
        self.weigh = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(outputs, outputs // 16, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs // 16, outputs, 1),
            nn.Sigmoid(),
        )
        self.shortcut = _shortcut(inputs, outputs, stride, kernel)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return torch.relu_(y * self.weigh(y) + self.shortcut(x))


class Inverted(nn.Module):
    """Wide inside, narrow outside: 1x1, 3x3 of each channel alone, 1x1 without ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        widened = [] if expansion == 1 else [*conv_norm(inputs, inner, 1), nn.ReLU6(inplace=True)]
        self.body = nn.Sequential(
            *widened,
            *conv_norm(inner, inner, 3, stride=stride, groups=inner),
            nn.ReLU6(inplace=True),
            *conv_norm(inner, outputs, 1),
        )
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x) if self.is_residual else self.body(x)
        return out


def _blocks(widths: Sequence[int], depths: Sequence[int]) -> Iterable[tuple[int, int]]:
    """Stride and width of each block: every stage but the first halves the image as it begins."""
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for index in range(depth):
            yield (2 if stage and not index else 1), width


def _shortcut(inputs: int, outputs: int, stride: int, kernel: int = 1) -> nn.Module:
    """What leads around a block: nothing, or a projection where the shapes differ."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(*conv_norm(inputs, outputs, kernel, stride=stride))
