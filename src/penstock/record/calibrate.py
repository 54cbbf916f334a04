"""Measure this machine: what each op costs on it, by training small models of many shapes.

What it learns is written into the machine, so that `simulate.roofline` can price steps that were
never run. The models are our own; together they call the ops that usual networks call, each with
sizes that span two orders of magnitude.
"""

import gc
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (its name everywhere)
from torch.optim import SGD, Adam, AdamW, Optimizer

from penstock.dispatch.clock import Clock
from penstock.dispatch.resident import CpuMeter, CudaMeter, live_tensor_bytes
from penstock.ir.machine import Machine, Rate, Sample
from penstock.ir.trace import Op, Phase, Trace
from penstock.record.measure import stopwatch_for
from penstock.record.step import Recorder
from penstock.simulate.roofline import fitted, freed_before, host_key, keys_of

__all__ = ["calibrated"]

_WARM_UP, _REPEATS = 2, 5
_PASSES = 2
"""How often each model is trained, with the others between. The faster time counts: others may use the
machine, and an op is never faster than it can be."""
_TELLING = 4
"""An op has rates of its own if it was seen with sizes that differ by this factor at least."""
_FEW = 3
"""Different sizes that it needs for that."""

Keyed: TypeAlias = tuple[str, Sample]
"""An op that ran, and a name under which its cost is looked up."""


def calibrated(
    machine: Machine,
    device: torch.device,
    meter: CpuMeter | CudaMeter,
    told: Callable[[str, int, int], None] = lambda label, done, of: None,
) -> Machine:
    """`machine` with the cost of its ops. Takes two minutes or three on a CPU.

    `told(label, done, of)` hears of each model before it is trained.
    """
    loops = [*_loops(), *(_large_loops() if device.type == "cuda" else ())]
    passes: list[list[Keyed]] = []
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        overhead, libraries = _kept(loops, device, meter)
        for number in range(_PASSES):
            passes.append([])
            for done, loop in enumerate(loops, number * len(loops)):
                told(loop.label, done, _PASSES * len(loops))
                passes[-1] += _measured(loop, device, meter)
    samples: defaultdict[str, list[Sample]] = defaultdict(list)
    for same in zip(*passes, strict=True):
        key, sample = min(same, key=lambda one: one[1].seconds)
        samples[key].append(sample)
    costs = {key: fitted(seen) for key, seen in samples.items() if _tells(key, seen)}
    costs |= {kind: replace(costs[kind], library=nbytes) for kind, nbytes in libraries.items()}
    rates = {
        dtype: _best(samples, f"matmul {dtype}")
        for dtype in ("float32", "bfloat16")
        if f"matmul {dtype}" in samples
    }
    bandwidth = costs.get("pointwise in place float32", Rate()).bandwidth
    device_now = replace(
        machine.device,
        bandwidth=bandwidth,
        flops=rates,
        costs=costs,
        overhead=overhead,
    )
    return replace(machine, device=device_now)


def _kept(
    loops: Sequence["_Loop"], device: torch.device, meter: CpuMeter | CudaMeter
) -> tuple[int, dict[str, int]]:
    """Bytes that a process takes beside its tensors once it multiplies, and what other kinds add."""
    added: dict[str, int] = {}
    for loop in loops:
        if loop.kind in added:
            continue
        model, optimizer = _made(loop, device)
        gc.collect()
        base = meter.used() - live_tensor_bytes(device)
        for _ in range(_WARM_UP + 1):
            model().backward()
            optimizer.step()
        gc.collect()
        added[loop.kind] = max(0, meter.used() - live_tensor_bytes(device) - base)
        del model, optimizer
    return added.pop("matmul"), added


def _tells(key: str, seen: Sequence[Sample]) -> bool:
    """Were there enough sizes to tell a launch from a rate?"""
    if not key.startswith("aten."):
        return True
    sizes = {one.moved for one in seen}
    return len(sizes) >= _FEW and max(sizes) >= _TELLING * max(1, min(sizes))


def _best(samples: dict[str, list[Sample]], key: str) -> float:
    """The highest rate of arithmetic that was seen, per second."""
    return max(one.flops / one.seconds for one in samples[key] if one.seconds)


def _measured(loop: "_Loop", device: torch.device, meter: CpuMeter | CudaMeter) -> Iterator[Keyed]:
    """All that one loop tells: of its ops, and of the host before each."""
    traces = _steps(loop, device, meter)
    yield from _samples(traces)
    yield from _queued(loop, device, traces[0]) if device.type == "cuda" else _hosts(traces)


def _samples(traces: Sequence[Trace]) -> Iterator[Keyed]:
    """Each op of a step by the names under which it is looked up, with its median over the steps."""
    for ops in zip(*(trace.ops for trace in traces), strict=True):
        op: Op = ops[0]
        sample = Sample(
            op.flops,
            op.moved,
            median(one.seconds for one in ops),
            int(median(one.workspace for one in ops)),
        )
        for key in keys_of(op):
            yield key, sample


def _hosts(traces: Sequence[Trace]) -> Iterator[Keyed]:
    """The host's time before each op, by phase."""
    steps = zip(*(trace.ops for trace in traces), strict=True)
    for ops, freed in zip(steps, freed_before(traces[0]), strict=True):
        yield host_key(ops[0]), Sample(0, freed, median(one.host_seconds for one in ops))


def _queued(loop: "_Loop", device: torch.device, trace: Trace) -> Iterator[Keyed]:
    """The host's time for an op of each phase when it only asks for it: the recorder would take its share.

    Each phase begins on an idle device, whose queue then has room for all of the phase.
    """
    model, optimizer = _made(loop, device)
    seconds: defaultdict[Phase, list[float]] = defaultdict(list)

    def timed(phase: Phase, run: Callable[[], Any]) -> Any:
        torch.cuda.synchronize(device)
        begun = time.perf_counter()
        result = run()
        seconds[phase].append(time.perf_counter() - begun)
        return result

    for _ in range(_WARM_UP + _REPEATS):
        with torch.autocast(device.type, torch.bfloat16, enabled=loop.is_mixed):
            loss = timed(Phase.FORWARD, model)
        timed(Phase.BACKWARD, loss.backward)
        del loss
        timed(Phase.OPTIMIZER, optimizer.step)
        optimizer.zero_grad()
    for phase, taken in seconds.items():
        ops = [op for op in trace.ops if op.phase is phase]
        if ops:
            yield host_key(ops[0]), Sample(0, 0, median(taken[_WARM_UP:]) / len(ops))


def _made(loop: "_Loop", device: torch.device) -> tuple[nn.Module, Optimizer]:
    torch.manual_seed(0)
    with device:
        model = loop.make()
        return model, loop.optimizer(model.parameters())


def _steps(loop: "_Loop", device: torch.device, meter: CpuMeter | CudaMeter) -> list[Trace]:
    """The traces of a few steps of one loop."""
    model, optimizer = _made(loop, device)
    recorder = Recorder(device, stopwatch_for(device, meter))
    traces = []
    recorder.open()
    try:
        with Clock(recorder.run):
            for _ in range(_WARM_UP + _REPEATS):
                recorder.begin()
                with torch.autocast(device.type, torch.bfloat16, enabled=loop.is_mixed):
                    loss = model()
                loss.backward()
                del loss
                recorder.optimizer_begins(optimizer)
                optimizer.step()
                recorder.optimizer_ends(optimizer)
                optimizer.zero_grad()
                traces.append(recorder.end().trace)
    finally:
        recorder.close()
    return traces[_WARM_UP:]


# -- what is trained ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Loop:
    label: str
    make: Callable[[], nn.Module]  # its forward makes its own batch and returns the loss
    optimizer: Callable[..., Optimizer]
    is_mixed: bool = False  # bfloat16 where autocast says so
    kind: str = "matmul"  # the class of ops that it is about


def _loops() -> list[_Loop]:
    """Each optimizer of torch in its three forms, over models of different sizes.

    The first of a kind says what memory its kernels keep beside those of the kinds before.
    """
    adamw, adam = partial(AdamW, foreach=False), partial(Adam, foreach=False)
    fused, lists = partial(AdamW, fused=True), partial(AdamW, foreach=True)
    momentum = partial(SGD, lr=0.01, momentum=0.9, foreach=False)
    return [
        _Loop("products", partial(_Products, _PERCEPTRON), adam),
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
        _Loop("products of many shapes", partial(_Products, _PRODUCTS), adam),
        _Loop("filters of many shapes", partial(_Filters, _FILTERS), adam, kind="convolution"),
        *(
            _Loop(
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


def _large_loops() -> list[_Loop]:
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
) -> Iterator[_Loop]:
    """By width, sequences, their length, `gated`, `is_mixed` and optimizer."""
    for width, batch, length, gated, mixed, optimizer in sizes:
        yield _Loop(
            f"transformer, {width} wide, {batch} x {length} tokens{', bfloat16' * mixed}",
            partial(_Transformer, width, batch, length, gated=gated),
            optimizer,
            mixed,
            kind="norm",
        )


def _convolution_loops(*sizes: tuple[int, int, int, Callable[..., Optimizer]]) -> Iterator[_Loop]:
    """By channels, images, their pixels a side and optimizer."""
    for channels, batch, pixels, optimizer in sizes:
        yield _Loop(
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


class _Products(nn.Module):
    """Matrices that are multiplied, each with an input of its own: thin ones and square ones."""

    def __init__(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))  # so that inputs have gradients
        self.inputs = [torch.randn(rows, inner) for rows, inner, _ in shapes]
        self.layers = nn.ModuleList(
            nn.Linear(inner, outer, bias=outer % 3 != 0) for _, inner, outer in shapes
        )

    def forward(self) -> Tensor:
        return _summed(self.layers, self.inputs, self.scale)


class _Filters(nn.Module):
    """Convolutions, each with images of its own: strides, groups, odd numbers of channels."""

    def __init__(self, shapes: Sequence[tuple[int, int, int, int, int, int, int]]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.inputs = [torch.randn(images, c, side, side) for c, *_, images, side in shapes]
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups)
            for before, after, kernel, stride, groups, *_ in shapes
        )

    def forward(self) -> Tensor:
        return _summed(self.layers, self.inputs, self.scale)


def _summed(layers: nn.ModuleList, inputs: Sequence[Tensor], scale: Tensor) -> Tensor:
    means = [layer(scale * x).mean() for layer, x in zip(layers, inputs, strict=True)]
    return torch.stack(means).sum()


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
