"""What several convolutional networks are made of."""

from collections import OrderedDict

from torch import nn

__all__ = ["conv_norm", "conv_norm_relu", "head", "parts"]


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
) -> list[nn.Module]:
    """A convolution padded to keep the image's size (but for its stride), and its batch norm."""
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]


def conv_norm_relu(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """The same, and a ReLU in place."""
    layers = conv_norm(inputs, outputs, kernel, stride=stride, groups=groups)
    return [*layers, nn.ReLU(inplace=True)]


def head(inputs: int, classes: int, dropout: float = 0.0) -> list[nn.Module]:
    """The mean over the image, dropout if there is any, and one linear layer."""
    drop = [nn.Dropout(dropout)] if dropout else []
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), *drop, nn.Linear(inputs, classes)]


def parts(**layers: list[nn.Module]) -> nn.Module:
    """Layers in turn, in parts whose names reports show."""
    return nn.Sequential(OrderedDict((name, nn.Sequential(*part)) for name, part in layers.items()))
