"""The networks of the literature by name, at the sizes of their papers.

Families take the depths of their papers, and any other that their rule allows:

- `vgg116`: 16 + 5n layers, n more convolutions in each of VGG-16's groups (Rhu, Gimelshein,
  Clemons, Zulfiqar, Keckler, "vDNN", MICRO 2016, arXiv:1602.08124).
- `resnet1001`: 3n + 2 layers, n of at least 45 bottlenecks, 6, 32, n - 44 and 6 in the four stages
  (Wang, Ye, Zhao, Wu, Li, Song, Xu, Kraska, "SuperNeurons", PPoPP 2018, arXiv:1801.04380).
- `preresnet1001`: 9n + 2 layers, for images of 32 pixels (`residual.preresnet` says whose).
- `wide_resnet152_2`: that ResNet's blocks twice as wide inside, or any other number of times.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from penstock.errors import UsageError, nearest
from penstock.zoo import chains, dense, inception, residual, translate, unet

__all__ = ["batch", "build", "image_size", "loss", "names", "reads_images"]


@dataclass(frozen=True, slots=True)
class Classic:
    """A network of the literature: how it is built for so many classes, what it reads and says."""

    make: Callable[[int], nn.Module]
    pixels: int | None = 224
    """Along each side of its images; `None` if it reads sequences."""
    classes: int = 1000
    """As many as in the paper; of a network that reads sequences, the target's tokens."""
    outputs: Callable[[int], int] | None = None
    """Pixels along each side of what it says, if that is a class for each pixel, by those it reads."""


def names() -> tuple[str, ...]:
    """Every network that has a name of its own. `build` takes other depths too."""
    return tuple(_CLASSICS)


def build(name: str, classes: int | None = None) -> nn.Module:
    """The network called `name`, for so many classes: `None` for as many as in its paper.

    Raises `UsageError` if there is none of that name or depth.
    """
    classic = _find(name)
    return classic.make(_classes(name, classic, classes))


def image_size(name: str) -> int:
    """Pixels along each side of the images that the network called `name` is made for.

    Raises `UsageError` if it reads sequences.
    """
    pixels = _find(name).pixels
    if pixels is None:
        raise UsageError(f"{name} reads sequences, not images: it has no image size")
    return pixels


def reads_images(name: str) -> bool:
    """Whether it reads images. Else it reads a source and a target sequence."""
    return _find(name).pixels is not None


def batch(
    name: str,
    size: int,
    *,
    classes: int | None = None,
    pixels: int | None = None,
    length: int = 64,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Random examples: what the network called `name` is called with, and what it should say.

    Images have `pixels` along each side, `None` for as many as in its paper; sequences have
    `length` tokens.
    """
    classic = _find(name)
    classes = _classes(name, classic, classes)
    pixels = pixels or classic.pixels
    if classic.pixels is None or pixels is None:
        source, target = torch.randint(0, classes, (2, size, length + 1)).unbind()
        return (source[:, 1:], target[:, :-1]), target[:, 1:]
    sides = (classic.outputs(pixels),) * 2 if classic.outputs else ()
    if min(sides, default=1) < 1:
        raise UsageError(
            f"{name}: nothing is left of images of {pixels} pixels; it was made for {classic.pixels}"
        )
    images = torch.randn(size, 3, pixels, pixels)
    return (images,), torch.randint(0, classes, (size, *sides))


def loss(output: Tensor | tuple[Tensor, ...], target: Tensor) -> Tensor:
    """Cross entropy; that of auxiliary heads counts 0.3 times (GoogLeNet, section 5)."""
    main, *auxiliary = output if isinstance(output, tuple) else (output,)
    if main.dim() == 3:  # (batch, length, tokens)
        return cross_entropy(main.flatten(0, 1), target.flatten())
    total = cross_entropy(main, target)
    for one in auxiliary:
        total = total + 0.3 * cross_entropy(one, target)
    return total


def _classes(name: str, classic: Classic, classes: int | None) -> int:
    if classes is None:
        return classic.classes
    if classes < 1:
        raise UsageError(f"{name}: {classes} classes make no sense; it needs 1 or more")
    return classes


def _find(name: str) -> Classic:
    if name in _CLASSICS:
        return _CLASSICS[name]
    for family, find in _FAMILIES.items():
        if found := re.fullmatch(family, name):
            return find(*map(int, found.groups()))
    raise UsageError(
        f"no network is called {name!r}{nearest(name.lower(), names())}; "
        f"there are: {', '.join(names())}, and other depths of vgg, resnet, preresnet, wide_resnet"
    )


# -- depths -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rule:
    """The depths that a family of networks has: those of its papers, then every so many layers."""

    known: dict[int, tuple[int, ...]]
    """Blocks in each stage."""
    first: int
    step: int
    stages: Callable[[int], tuple[int, ...]]
    """Blocks in each stage of depth `first` + n * `step`."""

    def of(self, name: str, depth: int) -> tuple[int, ...]:
        """Blocks in each stage at this depth. Raises `UsageError` if the network has no such."""
        if depth in self.known:
            return self.known[depth]
        steps, rest = divmod(depth - self.first, self.step)
        if rest == 0 and steps >= 0:
            return self.stages(steps)
        above = self.first + max(steps + 1, 0) * self.step
        near = min(
            (*self.known, above, max(above - self.step, self.first)), key=lambda d: abs(d - depth)
        )
        known = "".join(f"{one}, " for one in self.known)
        raise UsageError(
            f"no {name} has {depth} layers; depths are {known}{self.first}, "
            f"{self.first + self.step} and so on; the nearest is {near}"
        )


_VGG = Rule(
    {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)},
    first=21,
    step=5,
    stages=lambda n: (3 + n, 3 + n, 4 + n, 4 + n, 4 + n),
)
# 200 layers: "Identity mappings in deep residual networks", table 5; the others: `residual.resnet`.
_BASIC = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_BOTTLENECK = Rule(
    {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)},
    first=137,
    step=3,
    stages=lambda n: (6, 32, 1 + n, 6),
)
_RESNET = replace(_BOTTLENECK, known=_BASIC | _BOTTLENECK.known)
_PRERESNET = Rule({}, first=11, step=9, stages=lambda n: 3 * (1 + n,))


def _vgg(depth: int) -> Classic:
    return Classic(partial(chains.vgg, _VGG.of("vgg", depth)))


def _resnet(depth: int) -> Classic:
    stages = _RESNET.of("resnet", depth)
    block = residual.BasicBlock if depth in _BASIC else residual.Bottleneck
    return Classic(partial(residual.resnet, block, stages))


def _wide_resnet(depth: int, times: int) -> Classic:
    block = partial(residual.Bottleneck, widen=times)
    return Classic(partial(residual.resnet, block, _BOTTLENECK.of("wide_resnet", depth)))


def _preresnet(depth: int) -> Classic:
    stages = _PRERESNET.of("preresnet", depth)
    return Classic(partial(residual.preresnet, stages), pixels=32, classes=10)


def _densenet(growth: int, *depths: int) -> Classic:
    return Classic(partial(dense.densenet, depths, growth))


_FAMILIES: dict[str, Callable[..., Classic]] = {
    r"vgg(\d{1,5})": _vgg,
    r"resnet(\d{1,5})": _resnet,
    r"preresnet(\d{1,5})": _preresnet,
    r"wide_resnet(\d{1,5})_([1-9]\d?)": _wide_resnet,
}

_CLASSICS = {
    "alexnet": Classic(chains.alexnet),
    "alexnet_2012": Classic(chains.alexnet_2012, 227),
    "overfeat": Classic(chains.overfeat, 231),
    "overfeat_accurate": Classic(chains.overfeat_accurate, 221),
    **{f"vgg{depth}": _vgg(depth) for depth in _VGG.known},
    "googlenet": Classic(inception.googlenet),
    "googlenet_aux": Classic(partial(inception.googlenet, auxiliary=True)),
    "googlenet_2014": Classic(partial(inception.googlenet, norm=False)),
    "googlenet_2014_aux": Classic(partial(inception.googlenet, auxiliary=True, norm=False)),
    "inception_v3": Classic(inception.inception_v3, 299),
    "inception_v3_aux": Classic(partial(inception.inception_v3, auxiliary=True), 299),
    "inception_v4": Classic(inception.inception_v4, 299),
    **{f"resnet{depth}": _resnet(depth) for depth in (*_RESNET.known, 1001)},
    **{f"preresnet{depth}": _preresnet(depth) for depth in (164, 1001)},
    **{f"wide_resnet{depth}_2": _wide_resnet(depth, 2) for depth in (50, 101, 152)},
    "densenet121": _densenet(32, 6, 12, 24, 16),
    "densenet161": _densenet(48, 6, 12, 36, 24),
    "densenet169": _densenet(32, 6, 12, 32, 32),
    "densenet201": _densenet(32, 6, 12, 48, 32),
    "densenet264": _densenet(32, 6, 12, 64, 48),
    "senet154": Classic(partial(residual.senet, (3, 8, 36, 3))),
    "mobilenet_v2": Classic(residual.mobilenet_v2),
    "unet": Classic(unet.UNet, 572, classes=2, outputs=unet.outputs),
    "seq2seq": Classic(translate.Seq2Seq, None, classes=80_000),
    "seq2seq_attention": Classic(translate.AttentiveSeq2Seq, None, classes=30_000),
    "transformer": Classic(translate.Transformer, None, classes=37_000),
}
