"""What ops cost on a machine on which they never ran: a roofline for each op, or class of ops.

Idea      An op takes its launch, and then the longer of its arithmetic and its traffic. Rates are
          what calibration measured of that very op; else of its class; else the machine's peak
          rates times what kernels of that class usually reach. Where calibration saw sizes near an
          op's, the roofline is put right by how far it was off there.
Assumes   That ops of one name differ only in flops and bytes. Odd shapes reach less; calibrate with
          steps like yours. The host's time counts beside that of ops on a CPU;
          a GPU works off a queue, and waits for the host only where that is empty.
Inferred  The usual shares below: from public benchmarks of cuBLAS, cuDNN and attention kernels,
          rounded. They are meant for ranking machines; calibrate for truth.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from penstock.ir.machine import Device, Faults, Machine, Rate, Sample
from penstock.ir.trace import Op, StorageId, Trace, Value
from penstock.simulate.allocators import allocations, cpu, least_reserved
from penstock.simulate.faults import in_ops, while_freeing
from penstock.simulate.fit import not_negative
from penstock.simulate.queue import idle_before

__all__ = [
    "Corrected",
    "class_of",
    "fitted",
    "host_key",
    "keys_of",
    "priced",
    "rate_of",
]

_CLASSES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("attention", ("scaled_dot_product", "flash_attention", "efficient_attention")),
    ("convolution", ("conv",)),
    ("recurrent", ("rnn", "lstm", "gru")),
    ("pointwise", ("upsample", "gamma")),  # ahead of matmul: bilinear, lgamma
    ("matmul", ("mm", "addmv", "matmul", "linear", "bilinear", "dot", "einsum")),
    ("norm", ("norm", "softmax")),
    ("lookup", ("embedding", "index", "gather", "scatter", "nll_loss", "topk", "sort")),
    ("optimizer", ("_foreach", "_fused")),
)
_OTHER = "pointwise"  # fills fresh memory
_IN_PLACE = "pointwise in place"  # does not
_LAYERS = {"convolution", "recurrent"}
"""Classes of ops that are whole layers."""
_WHOLE = {"mv": "matmul", "addr": "matmul", "addr_": "matmul", "ger": "matmul"}
"""Names too short to be looked for in others."""

_SHARES = {  # of peak arithmetic, of peak bandwidth
    "matmul": (0.75, 0.8),
    "convolution": (0.55, 0.7),
    "attention": (0.5, 0.7),
    "recurrent": (0.3, 0.5),
    "norm": (1.0, 0.7),
    "lookup": (1.0, 0.4),
    "optimizer": (1.0, 0.85),
    "pointwise": (1.0, 0.85),
    "pointwise in place": (1.0, 0.85),
}
_RIDGES = 33
"""Places that are tried for the ridge of a roofline."""
_LAUNCH = 4e-6
"""Seconds that a GPU kernel takes at least, from one launch to the next."""
_LEAST = 1e-9
"""Seconds that count as none."""
_NEAR = 0.35
"""How near another size is, in factors of e: the width of a normal weight."""
_ROOFLINE = 0.1
"""The weight of the roofline itself beside that of a measured size."""


def priced(trace: Trace, machine: Machine) -> Trace:
    """The trace with the times that its ops would take on `machine`, and their workspaces.

    Its slack is what the device's allocator must hold beyond them at the peak of the plain step, and what
    the process takes beside its tensors. What was measured stays: only a trace without any time is priced.
    """
    if trace.seconds:
        return trace
    device = machine.device
    kinds = [(op.name, op.dtype) for op in trace.ops]
    one_of_each = dict(zip(kinds, trace.ops, strict=True))
    rates = {kind: Corrected(rate_of(device, op)) for kind, op in one_of_each.items()}
    costs = [
        rates[kind].cost(op.flops, op.moved) for kind, op in zip(kinds, trace.ops, strict=True)
    ]
    trace = replace(trace, values=_values_held(trace, [cost.unwritten for cost in costs]))
    phases = [host_key(op) for op in trace.ops]
    paces = {phase: Corrected(device.costs.get(phase, Rate())) for phase in set(phases)}
    hosts = [
        paces[phase].cost(0, freed).seconds
        for phase, freed in zip(phases, trace.columns.freed_before.tolist(), strict=True)
    ]
    if trace.device == "cuda":
        hosts = idle_before([op.name for op in trace.ops], hosts, [cost.seconds for cost in costs])
    found = replace(
        trace,
        ops=tuple(
            replace(
                op,
                seconds=cost.seconds,
                host_seconds=host,
                workspace=op.workspace or cost.workspace,
            )
            for op, cost, host in zip(trace.ops, costs, hosts, strict=True)
        ),
    )
    if device.costs_are_calm:
        found = _with_faults(found, device.faults)
    requests = allocations(found)
    held = least_reserved(requests) if trace.device == "cuda" else cpu(requests).reserved_peak
    return replace(found, slack=max(0, held - found.peak) + _overhead(trace, device))


def _with_faults(trace: Trace, faults: Faults) -> Trace:
    """With what memory costs that comes from the system anew, as a trace that was measured has it."""
    ops = zip(trace.ops, in_ops(trace, faults), while_freeing(trace, faults), strict=True)
    return replace(
        trace,
        ops=tuple(
            replace(op, seconds=op.seconds + float(run), host_seconds=op.host_seconds + float(host))
            for op, run, host in ops
        ),
    )


def _values_held(trace: Trace, shares: Sequence[float]) -> tuple[Value, ...]:
    """Its values, less what nobody writes: of what an op gives out a share, of the largest first."""
    unwritten: dict[StorageId, int] = {}
    for share, made in zip(shares, trace.fresh, strict=True):
        values = [trace.values[value] for value in made]
        left = int(share * sum(value.allocated for value in values))
        for value in sorted(values, key=lambda one: -one.allocated):
            unwritten[value.storage] = min(left, value.allocated)
            left -= unwritten[value.storage]
    return tuple(
        replace(value, nbytes=value.allocated - without, unwritten=without)
        if (without := unwritten.get(value.storage, 0))
        else value
        for value in trace.values
    )


def _overhead(trace: Trace, device: Device) -> int:
    """Bytes that the process takes beside its tensors: what any training takes, and these kernels.

    Threads, their buffers and most code are the same for all kinds of kernels: the largest counts. But
    what is kept for products and norms grows with these, which are small beside layers of other kinds.
    """
    flops: defaultdict[str, int] = defaultdict(int)
    for op in trace.ops:
        flops[class_of(op.name)] += op.flops
    most = max(flops, key=flops.__getitem__, default=_OTHER)
    kinds = {most} if most in _LAYERS else set(flops)
    kept = max((device.costs[kind].library for kind in kinds if kind in device.costs), default=0)
    return device.overhead + int(kept)


class Price(NamedTuple):
    """What an op costs."""

    seconds: float
    workspace: int  # bytes
    unwritten: float  # share of what it gives out


class Corrected:
    """A rate, put right by what was seen of sizes near: fast caches, huge pages, small matrices.

    Measured over predicted seconds, as logarithms, and what it does with memory are averaged with
    weights by nearness. Beyond the sizes that were seen, those at the edge count.
    """

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._known: dict[tuple[int, int], Price] = {}
        flops, moved, seconds, workspace, unwritten = np.array(rate.seen, float).reshape(-1, 5).T
        predicted = [rate.seconds(one.flops, one.moved) for one in rate.seen]
        self._sizes = _logarithms(flops, moved)
        self._off = np.log(np.maximum(seconds, _LEAST) / np.maximum(predicted, _LEAST))
        self._scratch = workspace / np.maximum(moved, 1) - rate.workspace
        self._unwritten = unwritten - rate.unwritten

    def cost(self, flops: int, moved: int) -> Price:
        """Of an op of that size."""
        size = flops, moved
        if size not in self._known:
            self._known[size] = self._cost(flops, moved)
        return self._known[size]

    def _cost(self, flops: int, moved: int) -> Price:
        rate = self._rate
        off, scratch, unwritten = 0.0, rate.workspace, rate.unwritten
        if rate.seen:
            sizes = self._sizes
            here = np.clip(_logarithms(flops, moved), sizes.min(axis=0), sizes.max(axis=0))
            weights = np.exp(-(((sizes - here) / _NEAR) ** 2).sum(axis=1) / 2)
            weights /= weights.sum() + _ROOFLINE
            off = float(weights @ self._off)
            scratch += float(weights @ self._scratch)
            unwritten += float(weights @ self._unwritten)
        seconds = rate.seconds(flops, moved) * math.exp(off)
        return Price(seconds, int(max(0.0, scratch) * moved), min(max(0.0, unwritten), 1.0))


def _logarithms(*columns: ArrayLike) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.log(np.maximum(np.stack(columns, axis=-1), 1.0))
    return found


def rate_of(device: Device, op: Op) -> Rate:
    """The rates of an op on a device: measured ones, as special as there are, or usual ones."""
    for key in keys_of(op):
        if key in device.costs:
            return device.costs[key]
    arithmetic, traffic = _SHARES[class_of(op.name)]
    peak = device.flops.get(op.dtype) or device.flops.get("float32", 0.0)
    return Rate(_LAUNCH, arithmetic * peak, traffic * device.bandwidth)


def keys_of(op: Op) -> tuple[str, ...]:
    """What the rates of an op are called, the most special first."""
    kind = class_of(op.name)
    return f"{op.name} {op.dtype}", op.name, f"{kind} {op.dtype}", kind


def class_of(name: str) -> str:
    """The class of an op by its name: `matmul`, `convolution`, `pointwise` ..."""
    bare = name.partition(".")[2]
    if bare in _WHOLE:
        return _WHOLE[bare]
    found = next((kind for kind, parts in _CLASSES if any(p in bare for p in parts)), _OTHER)
    return _IN_PLACE if found == _OTHER and bare.endswith("_") else found


def host_key(op: Op) -> str:
    """What calibration calls the host's time before an op of this phase."""
    return f"host {op.phase.value}"


# -- calibration --------------------------------------------------------------------------------


def fitted(samples: Sequence[Sample]) -> Rate:
    """The roofline that fits best, and what it was fitted to: the median of each size.

    The least sum of squared relative errors. Arithmetic bounds the ops above some intensity (flops for
    each byte), traffic those below: try where the ridge may lie, and fit the two sides together.
    """
    samples = _by_size(samples)
    flops = np.array([one.flops for one in samples], float)
    moved = np.array([one.moved for one in samples], float)
    seconds = np.array([max(one.seconds, _LEAST) for one in samples])
    intensity = flops / np.maximum(moved, 1.0)
    ridges = np.unique(np.quantile(intensity, np.linspace(0, 1, _RIDGES), method="nearest"))
    best, least = Rate(float(np.median(seconds))), np.inf
    for ridge in (*ridges, np.inf):
        is_arithmetic = intensity >= max(ridge, 1e-300)
        columns = np.stack(
            [np.ones(len(seconds)), flops * is_arithmetic, moved * ~is_arithmetic], axis=1
        )
        launch, per_flop, per_byte = not_negative(columns / seconds[:, None], np.ones(len(seconds)))
        seen = launch + np.maximum(flops * per_flop, moved * per_byte)
        error = float(((seen / seconds - 1) ** 2).sum())
        if error < least:
            least = error
            best = Rate(launch, _rate(per_flop), _rate(per_byte))
    scratch = [one.workspace / one.moved for one in samples if one.moved]
    return replace(
        best,
        workspace=float(np.median(scratch)) if scratch else 0.0,
        unwritten=float(np.median([one.unwritten for one in samples])),
        seen=tuple(samples),
    )


def _by_size(samples: Sequence[Sample]) -> list[Sample]:
    """One for each size: its medians."""
    sizes: dict[tuple[float, float], list[Sample]] = {}
    for one in samples:
        sizes.setdefault((one.flops, one.moved), []).append(one)
    return [
        Sample(
            *size,
            float(np.median([one.seconds for one in those])),
            int(np.median([one.workspace for one in those])),
            float(np.median([one.unwritten for one in those])),
        )
        for size, those in sizes.items()
    ]


def _rate(per_unit: float) -> float:
    return 1 / per_unit if per_unit > 0 else 0.0
