"""Is the memory of a layer that is recorded without a GPU what Harmony measured on one? (VLDB 2022)

    python benchmarks/harmony.py [--data DIR] [--only bert_large_seqlen512] [--json FILE]

Harmony's authors measured `torch.cuda.max_memory_allocated` of single layers for many micro-batches, with
PyTorch 1.5: FWD is a forward without gradients, BWD a forward and its backward. Here the same layers are
recorded on fake tensors of a GPU that is not there, and their requests replayed through the model of
CUDA's caching allocator. Up to where another op takes over, a peak is a line in the micro-batch: what
each sample adds and what is there without any are told, too.

The layers are those of their models, without dropout. Three habits of PyTorch 1.5 that later versions
lost are spelled out: softmax kept its input beside its result; split kept its input; matmul copied
factors that were not contiguous even where a view would have done. They are inferred from the measured
bytes; `--as-torch-is` leaves them out, to show their worth.
"""

import argparse
import csv
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from _data import add_option, folder
from _where import where, write
from penstock.record.fake import record_fake
from penstock.simulate.allocators import allocations, cuda


class Softmax(torch.autograd.Function):
    """Over the last dimension, as PyTorch 1.5 had it on a GPU."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        result = torch.softmax(scores, -1)
        ctx.save_for_backward(scores, result)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        _, result = ctx.saved_tensors
        return torch._softmax_backward_data(grad, result, -1, grad.dtype)


class Split(torch.autograd.Function):
    """In three, along the last dimension, as PyTorch 1.5 had it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x)
        return x.chunk(3, -1)

    @staticmethod
    def backward(_: Any, *grads: Tensor) -> Tensor:
        return torch.cat(grads, -1)


@dataclass(frozen=True)
class Ops:
    """What differs between versions of PyTorch."""

    softmax: Callable[[Tensor], Tensor]
    split: Callable[[Tensor], tuple[Tensor, ...]]
    matmul: Callable[[Tensor, Tensor], Tensor]


OLD = Ops(Softmax.apply, Split.apply, lambda a, b: torch.matmul(a.contiguous(), b.contiguous()))
NEW = Ops(lambda x: torch.softmax(x, -1), lambda x: x.chunk(3, -1), torch.matmul)


class WrittenNorm(nn.Module):
    """Layer norm spelled out, as BERT's first implementations for PyTorch had it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        variance = (x - mean).pow(2).mean(-1, keepdim=True)
        normed = (x - mean) / torch.sqrt(variance + 1e-12)
        return self.weight * normed + self.bias


class BertLayer(nn.Module):
    """BERT's encoder layer."""

    def __init__(self, width: int, heads: int, ops: Ops) -> None:
        super().__init__()
        self.heads, self.ops = heads, ops
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.mixed = nn.Linear(width, width)
        self.inner, self.outer = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norms = nn.ModuleList([WrittenNorm(width), WrittenNorm(width)])

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        attended = self.norms[0](self.mixed(self.attended(x, mask)) + x)
        return self.norms[1](self.outer(self.gelu(self.inner(attended))) + attended)

    def attended(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (self.by_head(one(x)) for one in (self.query, self.key, self.value))
        scores = self.ops.matmul(query, key.transpose(-1, -2))
        scores = scores / math.sqrt(query.shape[-1])
        scores = scores + mask
        shares = self.ops.softmax(scores)
        mixed = self.ops.matmul(shares, value).permute(0, 2, 1, 3).contiguous()
        return mixed.view(x.shape)

    def by_head(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).permute(0, 2, 1, 3)

    @staticmethod
    def gelu(x: Tensor) -> Tensor:
        return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


class GptLinear(nn.Module):
    """GPT-2's linear layer: its weight lies the other way round."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.empty(width, out)),
            nn.Parameter(torch.empty(out)),
        )

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], -1)


class GptBlock(nn.Module):
    """GPT-2's block. It makes keys and values for later, which nobody takes."""

    def __init__(self, width: int, heads: int, length: int, ops: Ops) -> None:
        super().__init__()
        self.heads, self.ops = heads, ops
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.all_three, self.mixed = GptLinear(width, 3 * width), GptLinear(width, width)
        self.inner, self.outer = GptLinear(width, 4 * width), GptLinear(4 * width, width)
        self.register_buffer("seen", torch.ones(length, length).tril().view(1, 1, length, length))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norms[0](x)
        attended, _later = self.attended(normed)
        del normed
        x = x + attended
        return x + self.outer(self.gelu(self.inner(self.norms[1](x))))

    def attended(self, x: Tensor) -> tuple[Tensor, Tensor]:
        all_three = self.all_three(x)
        query, key, value = (self.by_head(one) for one in self.ops.split(all_three))
        later = torch.stack((key, value))
        scores = self.ops.matmul(query, key.transpose(-1, -2))
        scores = scores / math.sqrt(query.shape[-1])
        scores = scores * self.seen - 1e4 * (1 - self.seen)
        scores = self.ops.softmax(scores)
        mixed = self.ops.matmul(scores, value)
        del scores
        mixed = mixed.permute(0, 2, 1, 3).contiguous()
        return self.mixed(mixed.view(x.shape)), later

    def by_head(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).permute(0, 2, 1, 3)

    @staticmethod
    def gelu(x: Tensor) -> Tensor:
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3))
        return 0.5 * x * (1 + torch.tanh(inner))


Layer = Callable[[int, Ops], tuple[nn.Module, tuple[Tensor, ...]]]


def bert_large(batch: int, ops: Ops) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return BertLayer(1024, 16, ops), (torch.empty(batch, 512, 1024), torch.empty(batch, 1, 1, 512))


def gpt2_medium(batch: int, ops: Ops) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return GptBlock(1024, 16, 1024, ops), (torch.empty(batch, 1024, 1024),)


def gpt2_b(batch: int, ops: Ops) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return GptBlock(4096, 32, 1024, ops), (torch.empty(batch, 1024, 4096),)


LAYERS: dict[str, tuple[str, Layer, int]] = {  # file: what, the layer, which of the file's layers
    "bert_large_seqlen512": ("BERT-Large encoder layer", bert_large, 24),
    "gpt2_medium": ("GPT-2 medium block", gpt2_medium, 1),
    "gpt2_b_1layer": ("GPT-2 block, 4096 wide", gpt2_b, 1),
}


def predicted(layer: Layer, phase: str, batch: int, ops: Ops = OLD) -> int:
    """Bytes at the peak of one layer's step, as CUDA's allocator would count them."""

    def make() -> Callable[[int], None]:
        module, inputs = layer(batch, ops)

        def forward(_: int) -> None:
            with torch.no_grad():
                module(*inputs)

        def both(_: int) -> None:
            out = module(*inputs)
            out.backward(gradient)
            inputs[0].grad = None
            for parameter in module.parameters():
                parameter.grad = None

        if phase == "FWD":
            return forward
        inputs[0].requires_grad_()
        gradient = torch.empty_like(inputs[0])
        return both

    trace = record_fake(make, "cuda", f"{phase} {batch}")
    return cuda(allocations(trace)).allocated_peak


def measured(path: Path, layer: int) -> dict[tuple[str, int], int]:
    """Bytes by phase and micro-batch."""
    with path.open(newline="") as file:
        return {
            (row["phase"], int(row["ubatch"])): int(row["max_memory_allocated_bytes"])
            for row in csv.DictReader(file)
            if int(row["layer"]) == layer
        }


def line(peaks: dict[int, int]) -> tuple[int, int]:
    """What each sample adds and what is there without any, from micro-batches 1 and 2."""
    each = peaks[2] - peaks[1]
    return each, peaks[1] - each


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_option(parser)
    parser.add_argument("--only", nargs="*", choices=LAYERS)
    parser.add_argument("--batches", nargs="*", type=int, help="default: all that were measured")
    parser.add_argument("--as-torch-is", action="store_true", help="leave out what is spelled out")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    ops = NEW if options.as_torch_is else OLD
    data = folder("harmony", options.data)
    table = Table(
        title="Peaks of single layers: predicted without a GPU, measured by Harmony (bytes)"
    )
    for head in ("layer", "phase", "micro-batch", "predicted", "measured", "off by"):
        table.add_column(head, justify="left" if head in {"layer", "phase"} else "right")
    rows, lines = [], []
    for name in options.only or LAYERS:
        what, layer, number = LAYERS[name]
        truth = measured(data / f"{name}.csv", number)
        for phase in ("FWD", "BWD"):
            known = [batch for of, batch in truth if of == phase]
            batches = [b for b in known if not options.batches or b in {1, 2, *options.batches}]
            guess = {batch: predicted(layer, phase, batch, ops) for batch in batches}
            for batch in batches:
                real, off = truth[phase, batch], guess[batch] - truth[phase, batch]
                rows.append(
                    {
                        "layer": what,
                        "phase": phase,
                        "batch": batch,
                        "predicted": guess[batch],
                        "measured": real,
                    }
                )
                shown = "0" if not off else f"{off:+,} ({off / real:+.2%})"
                table.add_row(what, phase, str(batch), f"{guess[batch]:,}", f"{real:,}", shown)
            ours, theirs = line(guess), line({b: truth[phase, b] for b in (1, 2)})
            lines.append(
                f"{what}, {phase}: each sample {ours[0]:,} (measured {theirs[0]:,}), "
                f"beside them {ours[1]:,} (measured {theirs[1]:,})"
            )
            table.add_section()
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    console.print(table)
    for text in lines:
        console.print(text)
    exact = sum(row["predicted"] == row["measured"] for row in rows)
    console.print(f"{exact} of {len(rows)} peaks equal to the byte")
    if options.json:
        write(options.json, {**where(), "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
