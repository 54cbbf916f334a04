"""What several convolutional networks are made of."""

from torch import nn

__all__ = ["conv_norm", "conv_norm_relu", "shortcut"]


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: int | tuple[int, int],
    *,
    stride: int = 1,
    padding: int | None = None,
    groups: int = 1,
    eps: float = 1e-5,
) -> list[nn.Module]:
    """A convolution and its batch norm. Without `padding`, as much as keeps the image's size."""
    high, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
    around = (high // 2, wide // 2) if padding is None else padding
    return [
        nn.Conv2d(inputs, outputs, (high, wide), stride, around, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=eps),
    ]


def conv_norm_relu(
    inputs: int,
    outputs: int,
    kernel: int | tuple[int, int],
    *,
    stride: int = 1,
    padding: int | None = None,
    groups: int = 1,
    eps: float = 1e-5,
) -> list[nn.Module]:
    """A convolution, its batch norm, and a ReLU in place."""
    layers = conv_norm(
        inputs, outputs, kernel, stride=stride, padding=padding, groups=groups, eps=eps
    )
    return [*layers, nn.ReLU(inplace=True)]


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """What leads around a residual block: nothing, or a projection where the shapes differ."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(*conv_norm(inputs, outputs, 1, stride=stride))
