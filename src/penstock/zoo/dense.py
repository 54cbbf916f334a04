"""DenseNet."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from penstock.zoo.layers import conv_norm_relu, head, parts

__all__ = ["densenet"]


def densenet(depths: Sequence[int], growth: int, classes: int) -> nn.Module:
    """DenseNet-BC, 224 pixels, `depths` layers in each of its four blocks: Huang, Liu, van der
    Maaten, Weinberger, "Densely connected convolutional networks", CVPR 2017, arXiv:1608.06993,
    table 1.
    """
    channels = 2 * growth
    stem = [*conv_norm_relu(3, channels, 7, stride=2), nn.MaxPool2d(3, 2, 1)]
    layers: list[nn.Module] = []
    for block, depth in enumerate(depths):
        if block:
            layers += [*_norm_relu_conv(channels, channels // 2, 1), nn.AvgPool2d(2)]
            channels //= 2
        layers += [DenseLayer(channels + index * growth, growth) for index in range(depth)]
        channels += depth * growth
    last = [nn.BatchNorm2d(channels), nn.ReLU(inplace=True), *head(channels, classes)]
    return parts(stem=stem, layers=layers, head=last)


class DenseLayer(nn.Module):
    """Adds `growth` channels, made of all that came before in its block."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_norm_relu_conv(inputs, 4 * growth, 1), *_norm_relu_conv(4 * growth, growth, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1)


def _norm_relu_conv(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    return [
        nn.BatchNorm2d(inputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
    ]
