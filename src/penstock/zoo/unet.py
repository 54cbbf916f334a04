"""U-Net."""

import torch
from torch import Tensor, nn

__all__ = ["UNet", "outputs"]


class UNet(nn.Module):
    """U-Net, 572 pixels in and 388 out: Ronneberger, Fischer, Brox, "U-Net: convolutional networks
    for biomedical image segmentation", MICCAI 2015, arXiv:1505.04597, figure 1.

    It reads three channels where the paper reads one.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = (64, 128, 256, 512, 1024)
        self.down = nn.ModuleList(
            _double(before, after) for before, after in zip((3, *widths), widths, strict=False)
        )
        self.drop = nn.Dropout()
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in widths[-2::-1])
        self.join = nn.ModuleList(_double(2 * w, w) for w in widths[-2::-1])
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(nn.functional.max_pool2d(x, 2) if level else x)
            skips.append(x)
        x = self.drop(skips.pop())
        for up, join in zip(self.up, self.join, strict=True):
            x = up(x)
            x = join(torch.cat([_middle(skips.pop(), x.shape[-1]), x], 1))
        out: Tensor = self.head(x)
        return out


def outputs(pixels: int) -> int:
    """Pixels along each side that come out of so many; 0 or less: none do."""
    side = pixels - 4
    for _ in range(4):
        side = side // 2 - 4
    for _ in range(4):
        side = side * 2 - 4
    return side


def _double(inputs: int, outputs: int) -> nn.Module:
    """Two convolutions without padding: the image loses four pixels each way."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3),
        nn.ReLU(inplace=True),
    )


def _middle(x: Tensor, pixels: int) -> Tensor:
    """The middle of an image."""
    edge = (x.shape[-1] - pixels) // 2
    return x[..., edge : edge + pixels, edge : edge + pixels]
