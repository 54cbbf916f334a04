"""The networks of the literature by name, at the sizes of their papers.

Depths are part of the name, and any depth that a family's rule allows will do: `resnet1001`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from penstock.errors import UsageError, nearest
from penstock.zoo import chains, residual

__all__ = ["build", "image_size", "names"]


@dataclass(frozen=True, slots=True)
class Classic:
    """A network of the literature: how it is built for so many classes, what it reads."""

    make: Callable[[int], nn.Module]
    pixels: int = 224
    classes: int = 1000


def names() -> tuple[str, ...]:
    """Every network that has a name of its own. `build` takes other depths too."""
    return tuple(_CLASSICS)


def build(name: str, classes: int | None = None) -> nn.Module:
    """The network called `name`, for so many classes: `None` for as many as in its paper.

    Raises `UsageError` if there is none.
    """
    classic = _find(name)
    return classic.make(classic.classes if classes is None else classes)


def image_size(name: str) -> int:
    """Pixels along each side of the images that the network called `name` is made for."""
    return _find(name).pixels


def _find(name: str) -> Classic:
    if name not in _CLASSICS:
        raise UsageError(
            f"no network is called {name!r}{nearest(name, names())}; "
            f"there are: {', '.join(names())}"
        )
    return _CLASSICS[name]


def _vgg(*depths: int) -> Classic:
    return Classic(lambda classes: chains.vgg(depths, classes))


def _resnet(block: type[residual.BasicBlock | residual.Bottleneck], *depths: int) -> Classic:
    return Classic(lambda classes: residual.resnet(block, depths, classes))


_CLASSICS = {
    "alexnet": Classic(chains.alexnet),
    "alexnet_grouped": Classic(chains.alexnet_grouped, 227),
    "overfeat": Classic(chains.overfeat, 231),
    "overfeat_accurate": Classic(chains.overfeat_accurate, 221),
    "vgg11": _vgg(1, 1, 2, 2, 2),
    "vgg13": _vgg(2, 2, 2, 2, 2),
    "vgg16": _vgg(2, 2, 3, 3, 3),
    "vgg19": _vgg(2, 2, 4, 4, 4),
    "resnet18": _resnet(residual.BasicBlock, 2, 2, 2, 2),
    "resnet34": _resnet(residual.BasicBlock, 3, 4, 6, 3),
    "resnet50": _resnet(residual.Bottleneck, 3, 4, 6, 3),
    "resnet101": _resnet(residual.Bottleneck, 3, 4, 23, 3),
    "resnet152": _resnet(residual.Bottleneck, 3, 8, 36, 3),
}
