"""Small models of many shapes, which calibration trains to learn what ops cost.

Our own; together they call the ops that usual networks call, each with sizes that span two orders of
magnitude, and each optimizer of torch in its three forms.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (its name everywhere)
from torch.optim import SGD, Adam, AdamW, Optimizer

__all__ = ["Loop", "large_loops", "loops", "tiny_loops"]


@dataclass(frozen=True, slots=True)
class Loop:
    """A model with its optimizer, to be trained for a few steps."""

    label: str
    make: Callable[[], nn.Module]  # its forward makes its own batch and returns the loss
    optimizer: Callable[..., Optimizer]
    is_mixed: bool = False  # bfloat16 where autocast says so
    kind: str = "matmul"  # the class of ops that it is about

    def made(self, device: torch.device) -> tuple[nn.Module, Optimizer]:
        """The model, always the same, on `device`."""
        torch.manual_seed(0)
        with device:
            model = self.make()
            return model, self.optimizer(model.parameters())


def loops() -> list[Loop]:
    """Each optimizer of torch in its three forms, over models of different sizes."""
    adamw, adam = partial(AdamW, foreach=False), partial(Adam, foreach=False)
    fused, lists = partial(AdamW, fused=True), partial(AdamW, foreach=True)
    momentum = partial(SGD, lr=0.01, momentum=0.9, foreach=False)
    return [
        Loop("products", partial(_products, _PERCEPTRON), adam),
        *_transformer_loops(
            (128, 8, 128, False, False, adamw),
            (256, 4, 256, True, False, fused),
            (384, 8, 256, False, False, adamw),
            (512, 8, 384, False, False, lists),
            (768, 4, 256, True, False, adamw),
            (1024, 2, 512, False, False, fused),
            (128, 8, 128, False, True, lists),
            (512, 4, 256, False, True, adamw),
        ),
        *_convolution_loops(
            (16, 4, 32, adam),
            (16, 4, 96, adam),
            (32, 8, 64, momentum),
            (32, 16, 96, adam),
            (64, 16, 64, adam),
            (128, 16, 32, momentum),
            (256, 16, 16, fused),
            (24, 4, 160, adam),
            (48, 4, 96, adam),
        ),
        Loop("products of many shapes", partial(_products, _PRODUCTS), adam),
        Loop("filters of many shapes", partial(_filters, _FILTERS), adam, kind="convolution"),
        *(
            Loop(
                f"LSTM, {width} wide, {batch} x {length} tokens",
                partial(_Recurrent, width, batch, length),
                optimizer,
                kind="recurrent",
            )
            for width, batch, length, optimizer in (
                (128, 16, 64, fused),
                (192, 32, 128, adam),
                (256, 48, 128, adam),
                (320, 32, 96, adam),
                (512, 32, 128, lists),
            )
        ),
    ]


def tiny_loops() -> list[Loop]:
    """The same kinds, once, with so little work that one thread does it."""
    lists, fused = partial(AdamW, foreach=True), partial(AdamW, fused=True)
    return [
        *_transformer_loops((64, 2, 8, True, False, lists), (64, 2, 8, False, True, fused)),
        *_convolution_loops((8, 2, 8, partial(SGD, lr=0.01, foreach=False))),
        Loop(
            "LSTM", partial(_Recurrent, 16, 2, 8), partial(AdamW, foreach=False), kind="recurrent"
        ),
    ]


def large_loops() -> list[Loop]:
    """Sizes at which a GPU's kernels are longer than their launch. Some 4 GiB at most."""
    adamw, lists = partial(AdamW, foreach=False), partial(AdamW, foreach=True)
    return [
        *_transformer_loops(
            (1024, 8, 1024, False, False, lists),
            (2048, 8, 512, False, False, adamw),
            (2048, 8, 1024, False, True, lists),
        ),
        *_convolution_loops((64, 32, 128, lists), (128, 32, 64, lists), (512, 32, 16, lists)),
    ]


def _transformer_loops(
    *sizes: tuple[int, int, int, bool, bool, Callable[..., Optimizer]],
) -> Iterator[Loop]:
    """By width, sequences, their length, `gated`, `is_mixed` and optimizer."""
    for width, batch, length, gated, mixed, optimizer in sizes:
        yield Loop(
            f"transformer, {width} wide, {batch} x {length} tokens{', bfloat16' * mixed}",
            partial(_Transformer, width, batch, length, gated=gated),
            optimizer,
            mixed,
            kind="norm",
        )


def _convolution_loops(*sizes: tuple[int, int, int, Callable[..., Optimizer]]) -> Iterator[Loop]:
    """By channels, images, their pixels a side and optimizer."""
    for channels, batch, pixels, optimizer in sizes:
        yield Loop(
            f"convolutions, {channels} channels, {batch} x {pixels}x{pixels} pixels",
            partial(_Convolutions, channels, batch, pixels),
            optimizer,
            kind="convolution",
        )


_VOCABULARY = 1024
_PERCEPTRON = ((2048, 1024, 1024), (2048, 1024, 1024), (2048, 1024, 10))
_PRODUCTS = (
    *((2048, 1024, 1), (4096, 1024, 10), (8192, 384, 10), (512, 4096, 10), (64, 2048, 10)),
    *((16, 2048, 2048), (16, 8192, 512), (64, 4096, 1024), (128, 512, 512), (8192, 64, 256)),
    *((8192, 128, 128), (256, 256, 256), (512, 512, 512), (1024, 1024, 1024), (4096, 256, 1024)),
    *((2048, 512, 2048), (1024, 2048, 1024), (2048, 2048, 512), (2048, 1536, 3072)),
)
"""Rows, columns and columns of the result."""
_FILTERS = (
    *((3, 64, 7, 2, 1, 16, 112), (64, 64, 3, 1, 64, 8, 56), (64, 24, 1, 1, 1, 8, 56)),
    *((24, 24, 3, 1, 1, 4, 160), (24, 48, 3, 1, 1, 4, 80), (48, 48, 3, 1, 1, 4, 80)),
    *((32, 32, 3, 1, 1, 8, 112), (40, 40, 3, 1, 1, 8, 56), (80, 80, 3, 1, 1, 16, 14)),
    *((96, 96, 3, 2, 1, 8, 32), (48, 48, 5, 1, 1, 8, 28), (40, 80, 1, 1, 1, 8, 56)),
    *((24, 3, 1, 1, 1, 4, 160), (128, 256, 3, 2, 1, 8, 28), (512, 512, 3, 1, 1, 8, 7)),
    *((256, 64, 1, 1, 1, 16, 28), (64, 256, 1, 1, 1, 16, 28), (192, 192, 3, 1, 1, 8, 14)),
    *((16, 16, 3, 1, 1, 4, 160),),
)
"""Channels in and out, pixels of a filter's side, stride, groups; images and pixels of their side."""


def _products(shapes: Sequence[tuple[int, int, int]]) -> nn.Module:
    """Matrices that are multiplied: thin ones and square ones, with a bias and without."""
    return _Apart(
        (nn.Linear(inner, outer, bias=outer % 3 != 0) for _, inner, outer in shapes),
        (torch.randn(rows, inner) for rows, inner, _ in shapes),
    )


def _filters(shapes: Sequence[tuple[int, int, int, int, int, int, int]]) -> nn.Module:
    """Convolutions with strides, groups, odd numbers of channels."""
    return _Apart(
        (
            nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups)
            for before, after, kernel, stride, groups, *_ in shapes
        ),
        (torch.randn(images, channels, side, side) for channels, *_, images, side in shapes),
    )


class _Apart(nn.Module):
    """Layers side by side, each with an input of its own."""

    def __init__(self, layers: Iterable[nn.Module], inputs: Iterable[Tensor]) -> None:
        super().__init__()
        self.layers, self.inputs = nn.ModuleList(layers), list(inputs)
        self.scale = nn.Parameter(torch.ones(()))  # so that inputs have gradients

    def forward(self) -> Tensor:
        pairs = zip(self.layers, self.inputs, strict=True)
        return torch.stack([layer(self.scale * x).mean() for layer, x in pairs]).sum()


class _Transformer(nn.Module):
    """Two blocks: one with LayerNorm, GELU and dropout, one with the other usual choices."""

    tokens: Tensor

    def __init__(self, width: int, batch: int, length: int, *, gated: bool) -> None:
        super().__init__()
        self.register_buffer("tokens", torch.randint(0, _VOCABULARY, (batch, length)))
        self.embed = nn.Embedding(_VOCABULARY, width)
        self.blocks = nn.Sequential(_Block(width, gated=gated), _Block(width, gated=not gated))
        self.head = nn.Linear(width, _VOCABULARY, bias=False)

    def forward(self) -> Tensor:
        logits = self.head(self.blocks(self.embed(self.tokens)))
        return F.cross_entropy(logits.float().flatten(0, 1), self.tokens.flatten())


class _Block(nn.Module):
    def __init__(self, width: int, *, gated: bool) -> None:
        super().__init__()
        self.heads, self.gated = width // 64, gated
        self.norms = nn.ModuleList((nn.LayerNorm(width), nn.LayerNorm(width)))
        self.attend = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.gate = nn.Linear(width, 4 * width)
        self.up = nn.Linear(width, 4 * width) if gated else None
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        parts = self.attend(self.norms[0](x)).chunk(3, dim=-1)
        shape = (batch, length, self.heads, 64)
        query, key, value = (part.reshape(shape).transpose(1, 2) for part in parts)
        # With dropout there is no fused kernel on a CPU: products and a softmax of their own.
        dropped = 0.1 if self.gated else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropped, is_causal=True)
        x = x + F.dropout(self.mix(mixed.transpose(1, 2).reshape(x.shape)), 0.1)
        h = self.norms[1](x) if not self.gated else _rms(x)
        wide = self.gate(h)
        out: Tensor
        if self.up is not None:
            out = x + self.down(F.silu(wide) * self.up(h))
        else:
            out = x + F.dropout(self.down(F.gelu(wide)), 0.1) + 0.1 * torch.tanh(x)
        return out


def _rms(x: Tensor) -> Tensor:
    scale: Tensor = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    return x * scale


class _Convolutions(nn.Module):
    """Residual blocks with batch norm, pooling, a transposed convolution and a skip connection."""

    images: Tensor
    classes: Tensor

    def __init__(self, channels: int, batch: int, pixels: int) -> None:
        super().__init__()
        self.register_buffer("images", torch.randn(batch, 3, pixels, pixels))
        self.register_buffer("classes", torch.randint(0, 10, (batch,)))
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.first = nn.BatchNorm2d(channels)
        self.wide = nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False)
        self.second = nn.BatchNorm2d(2 * channels)
        self.narrow = nn.Conv2d(2 * channels, channels, 1, bias=False)
        self.up = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.join = nn.Conv2d(2 * channels, channels, 3, padding=1)
        self.head = nn.Linear(channels, 10)

    def forward(self) -> Tensor:
        x = F.relu(self.first(self.stem(self.images)), inplace=True)
        h = F.relu(self.second(self.wide(F.max_pool2d(x, 2))))
        h = F.leaky_relu(self.up(self.narrow(h)), 0.2)
        h = F.relu(self.join(torch.cat((x, h), dim=1)), inplace=True) + x
        h = F.adaptive_avg_pool2d(h, 1).flatten(1)
        return F.cross_entropy(self.head(h), self.classes)


class _Recurrent(nn.Module):
    tokens: Tensor

    def __init__(self, width: int, batch: int, length: int) -> None:
        super().__init__()
        self.register_buffer("tokens", torch.randint(0, _VOCABULARY, (batch, length)))
        self.embed = nn.Embedding(_VOCABULARY, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, _VOCABULARY)

    def forward(self) -> Tensor:
        h, _ = self.lstm(self.embed(self.tokens))
        return F.cross_entropy(self.head(h).flatten(0, 1), self.tokens.flatten())
