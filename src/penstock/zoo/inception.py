"""The Inception networks: GoogLeNet, Inception-V3, Inception-V4.

A block is written as in the papers' figures, with one text for each of its branches:

    64:1x1           a convolution with 64 outputs
    64:1x1 96:3x3    two in turn
    64:1x3|64:3x1    two side by side, their outputs joined
    max avg          3x3 pooling
    /2               ... at stride 2
    v                ... not padded ("valid"); all else keeps the image's size, but for its stride
"""

import re
from typing import Any

import torch
from torch import Tensor, nn

from penstock.zoo.layers import head, parts

__all__ = ["googlenet", "inception_v3", "inception_v4"]

Block = tuple[str, ...]


def googlenet(classes: int, *, auxiliary: bool = False, norm: bool = True) -> nn.Module:
    """GoogLeNet, 224 pixels: Szegedy, Liu, Jia, Sermanet, Reed, Anguelov, Erhan, Vanhoucke,
    Rabinovich, "Going deeper with convolutions", CVPR 2015, arXiv:1409.4842, table 1.

    With `norm` it is what people train today: batch norm, and 3x3 where the paper has 5x5. Without,
    it is the paper's. `auxiliary` adds the two auxiliary heads.
    """
    large = "3x3" if norm else "5x5"

    def block(one: int, reduce: int, three: int, squeeze: int, five: int, pooled: int) -> Block:
        return (
            f"{one}:1x1",
            f"{reduce}:1x1 {three}:3x3",
            f"{squeeze}:1x1 {five}:{large}",
            f"max {pooled}:1x1",
        )

    def local_norm() -> list[nn.Module]:
        return [] if norm else [nn.LocalResponseNorm(5)]

    def side(inputs: int) -> nn.Module:
        return nn.Sequential(
            nn.AvgPool2d(5, 3),
            _trunk(inputs, "128:1x1", norm=norm)[0],
            nn.Flatten(),
            nn.Linear(128 * 4 * 4, 1024),
            nn.ReLU(inplace=True),
            nn.Dropout(0.7),
            nn.Linear(1024, classes),
        )

    first, early = _trunk(
        3,
        "64:7x7/2 max/2",
        *local_norm(),
        "64:1x1 192:3x3",
        *local_norm(),
        "max/2",
        block(64, 96, 128, 16, 32, 32),
        block(128, 128, 192, 32, 96, 64),
        "max/2",
        block(192, 96, 208, 16, 48, 64),
        norm=norm,
    )
    second, middle = _trunk(
        early,
        block(160, 112, 224, 24, 64, 64),
        block(128, 128, 256, 24, 64, 64),
        block(112, 144, 288, 32, 64, 64),
        norm=norm,
    )
    third, late = _trunk(
        middle,
        block(256, 160, 320, 32, 128, 128),
        "max/2",
        block(256, 160, 320, 32, 128, 128),
        block(384, 192, 384, 48, 128, 128),
        norm=norm,
    )
    main = nn.Sequential(*head(late, classes, dropout=0.4))
    if auxiliary:
        return Headed((first, side(early)), (second, side(middle)), (third, main))
    return parts(trunk=[*first, *second, *third], head=[*main])


def inception_v3(classes: int, *, auxiliary: bool = False) -> nn.Module:
    """Inception-V3, 299 pixels: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, "Rethinking the Inception
    architecture for computer vision", CVPR 2016, arXiv:1512.00567; widths as its authors released
    them. `auxiliary` adds the auxiliary head.
    """

    def wide(pooled: int) -> Block:
        return "64:1x1", "48:1x1 64:5x5", "64:1x1 96:3x3 96:3x3", f"avg {pooled}:1x1"

    def factored(n: int) -> Block:
        return (
            "192:1x1",
            f"{n}:1x1 {n}:1x7 192:7x1",
            f"{n}:1x1 {n}:7x1 {n}:1x7 {n}:7x1 192:1x7",
            "avg 192:1x1",
        )

    split = (
        "320:1x1",
        "384:1x1 384:1x3|384:3x1",
        "448:1x1 384:3x3 384:1x3|384:3x1",
        "avg 192:1x1",
    )
    first, early = _trunk(
        3,
        "32:3x3/2v 32:3x3v 64:3x3 max/2v 80:1x1 192:3x3v max/2v",
        wide(32),
        wide(64),
        wide(64),
        ("384:3x3/2v", "64:1x1 96:3x3 96:3x3/2v", "max/2v"),
        factored(128),
        factored(160),
        factored(160),
        factored(192),
    )
    second, late = _trunk(
        early,
        ("192:1x1 320:3x3/2v", "192:1x1 192:1x7 192:7x1 192:3x3/2v", "max/2v"),
        split,
        split,
    )
    main = nn.Sequential(*head(late, classes, dropout=0.5))
    if auxiliary:
        side = nn.Sequential(
            nn.AvgPool2d(5, 3), _trunk(early, "128:1x1 768:5x5v")[0], *head(768, classes)
        )
        return Headed((first, side), (second, main))
    return parts(trunk=[*first, *second], head=[*main])


def inception_v4(classes: int) -> nn.Module:
    """Inception-V4, 299 pixels: Szegedy, Ioffe, Vanhoucke, Alemi, "Inception-v4, Inception-ResNet
    and the impact of residual connections on learning", AAAI 2017, arXiv:1602.07261, figures 3 to 9.
    """
    grid_35 = "96:1x1", "64:1x1 96:3x3", "64:1x1 96:3x3 96:3x3", "avg 96:1x1"
    grid_17 = (
        "384:1x1",
        "192:1x1 224:1x7 256:7x1",
        "192:1x1 192:7x1 224:1x7 224:7x1 256:1x7",
        "avg 128:1x1",
    )
    grid_8 = (
        "256:1x1",
        "384:1x1 256:1x3|256:3x1",
        "384:1x1 448:3x1 512:1x3 256:1x3|256:3x1",
        "avg 256:1x1",
    )
    trunk, outputs = _trunk(
        3,
        "32:3x3/2v 32:3x3v 64:3x3",
        ("max/2v", "96:3x3/2v"),
        ("64:1x1 96:3x3v", "64:1x1 64:1x7 64:7x1 96:3x3v"),
        ("192:3x3/2v", "max/2v"),
        *4 * (grid_35,),
        ("384:3x3/2v", "192:1x1 224:3x3 256:3x3/2v", "max/2v"),
        *7 * (grid_17,),
        ("192:1x1 192:3x3/2v", "256:1x1 256:1x7 320:7x1 320:3x3/2v", "max/2v"),
        *3 * (grid_8,),
    )
    return parts(trunk=[*trunk], head=head(outputs, classes, dropout=0.2))


class Headed(nn.Module):
    """Stages, each with a head of its own; the last one's output comes first."""

    def __init__(self, *stages: tuple[nn.Module, nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stage for stage, _ in stages)
        self.heads = nn.ModuleList(head for _, head in stages)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outputs: list[Tensor] = []
        for stage, head_ in zip(self.stages, self.heads, strict=True):
            x = stage(x)
            outputs.append(head_(x))
        return outputs[-1], *outputs[:-1]


class Branches(nn.Module):
    """Branches side by side, their outputs joined."""

    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def _trunk(
    inputs: int, *parts: str | Block | nn.Module, norm: bool = True
) -> tuple[nn.Sequential, int]:
    """Parts in turn, and how many channels come out: a branch, a block, or any other layer."""
    layers: list[nn.Module] = []
    for part in parts:
        if isinstance(part, nn.Module):
            layers.append(part)
            continue
        if isinstance(part, str):
            layer, inputs = _branch(inputs, part, norm=norm)
        else:
            made = [_branch(inputs, branch, norm=norm) for branch in part]
            layer, inputs = Branches([one for one, _ in made]), sum(width for _, width in made)
        layers.append(layer)
    return nn.Sequential(*layers), inputs


_WORD = re.compile(r"(?:(max|avg)|(\d+):(\d+)x(\d+))(/2)?(v)?")


def _branch(inputs: int, text: str, *, norm: bool) -> tuple[nn.Module, int]:
    """What `text` says, as layers, and how many channels come out."""
    layers: list[nn.Module] = []
    for word in text.split():
        ways = word.split("|")
        if len(ways) > 1:
            layer, inputs = _trunk(inputs, tuple(ways), norm=norm)
            layers += layer
            continue
        found = _WORD.fullmatch(word)
        assert found, word
        pool, width, high, wide, strided, valid = found.groups()
        stride = 2 if strided else 1
        if pool:
            kind: Any = nn.MaxPool2d if pool == "max" else nn.AvgPool2d
            layers.append(kind(3, stride, 0 if valid else 1))
            continue
        kernel = int(high), int(wide)
        padding = (0, 0) if valid else (kernel[0] // 2, kernel[1] // 2)
        layers.append(nn.Conv2d(inputs, int(width), kernel, stride, padding, bias=not norm))
        layers += [nn.BatchNorm2d(int(width))] if norm else []
        layers.append(nn.ReLU(inplace=True))
        inputs = int(width)
    return nn.Sequential(*layers), inputs
