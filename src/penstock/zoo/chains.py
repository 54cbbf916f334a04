"""Convolutional networks without branches: AlexNet, OverFeat, VGG."""

from collections.abc import Iterable

from torch import nn

from penstock.zoo.layers import parts

__all__ = ["alexnet", "alexnet_2012", "overfeat", "overfeat_accurate", "vgg"]


def alexnet(classes: int) -> nn.Module:
    """AlexNet on one device, 224 pixels: Krizhevsky, "One weird trick for parallelizing
    convolutional neural networks", 2014, arXiv:1404.5997.
    """
    return parts(
        features=[
            *_conv(3, 64, 11, stride=4, padding=2),
            nn.MaxPool2d(3, 2),
            *_conv(64, 192, 5, padding=2),
            nn.MaxPool2d(3, 2),
            *_conv(192, 384, 3, padding=1),
            *_conv(384, 256, 3, padding=1),
            *_conv(256, 256, 3, padding=1),
            nn.MaxPool2d(3, 2),
        ],
        classifier=_classifier(256 * 6 * 6, 4096, 4096, classes, dropout_first=True),
    )


def alexnet_2012(classes: int) -> nn.Module:
    """AlexNet as it won, 227 pixels, its two devices as two groups: Krizhevsky, Sutskever, Hinton,
    "ImageNet classification with deep convolutional neural networks", NIPS 2012.
    """
    return parts(
        features=[
            *_conv(3, 96, 11, stride=4),
            nn.LocalResponseNorm(5, k=2.0),
            nn.MaxPool2d(3, 2),
            *_conv(96, 256, 5, padding=2, groups=2),
            nn.LocalResponseNorm(5, k=2.0),
            nn.MaxPool2d(3, 2),
            *_conv(256, 384, 3, padding=1),
            *_conv(384, 384, 3, padding=1, groups=2),
            *_conv(384, 256, 3, padding=1, groups=2),
            nn.MaxPool2d(3, 2),
        ],
        classifier=_classifier(256 * 6 * 6, 4096, 4096, classes),
    )


def overfeat(classes: int) -> nn.Module:
    """OverFeat's fast model, 231 pixels: Sermanet, Eigen, Zhang, Mathieu, Fergus, LeCun,
    "OverFeat: integrated recognition, localization and detection using convolutional networks",
    ICLR 2014, arXiv:1312.6229, table 1.
    """
    return parts(
        features=[
            *_conv(3, 96, 11, stride=4),
            nn.MaxPool2d(2),
            *_conv(96, 256, 5),
            nn.MaxPool2d(2),
            *_conv(256, 512, 3, padding=1),
            *_conv(512, 1024, 3, padding=1),
            *_conv(1024, 1024, 3, padding=1),
            nn.MaxPool2d(2),
        ],
        classifier=_classifier(1024 * 6 * 6, 3072, 4096, classes),
    )


def overfeat_accurate(classes: int) -> nn.Module:
    """OverFeat's accurate model, 221 pixels: the same paper, table 3."""
    return parts(
        features=[
            *_conv(3, 96, 7, stride=2),
            nn.MaxPool2d(3),
            *_conv(96, 256, 7),
            nn.MaxPool2d(2),
            *_conv(256, 512, 3, padding=1),
            *_conv(512, 512, 3, padding=1),
            *_conv(512, 1024, 3, padding=1),
            *_conv(1024, 1024, 3, padding=1),
            nn.MaxPool2d(3),
        ],
        classifier=_classifier(1024 * 5 * 5, 4096, 4096, classes),
    )


def vgg(depths: Iterable[int], classes: int) -> nn.Module:
    """VGG, 224 pixels, `depths` convolutions in each of its five groups: Simonyan, Zisserman,
    "Very deep convolutional networks for large-scale image recognition", ICLR 2015,
    arXiv:1409.1556, table 1.
    """
    layers: list[nn.Module] = []
    before = 3
    for depth, width in zip(depths, (64, 128, 256, 512, 512), strict=True):
        for _ in range(depth):
            layers += _conv(before, width, 3, padding=1)
            before = width
        layers.append(nn.MaxPool2d(2))
    return parts(features=layers, classifier=_classifier(512 * 7 * 7, 4096, 4096, classes))


def _conv(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int = 0, groups: int = 1
) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups),
        nn.ReLU(inplace=True),
    ]


def _classifier(
    inputs: int, first: int, second: int, classes: int, *, dropout_first: bool = False
) -> list[nn.Module]:
    """Three linear layers; the first two have dropout, before or after them."""
    layers: list[nn.Module] = []
    for before, after in ((inputs, first), (first, second)):
        linear = [nn.Linear(before, after), nn.ReLU(inplace=True)]
        layers += [nn.Dropout(), *linear] if dropout_first else [*linear, nn.Dropout()]
    return [nn.Flatten(), *layers, nn.Linear(second, classes)]
