"""A step seen as layers: what each reads, and where its backward begins.

A layer is a run of forward ops of one module around at most one op of a known kind, so that a module
that calls several (`F.relu(F.max_pool2d(x))`) is as many layers. An op of no module is a layer of its
own. The papers call what a layer reads X and what it makes Y.
"""

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

from penstock.ir.policy import Problem
from penstock.ir.trace import Gap, Op, OpIndex, Phase, Trace
from penstock.simulate.least import MOVABLE_FROM

__all__ = [
    "Layer",
    "LayerKind",
    "awaits_backward",
    "feature_inputs",
    "heavy_kinds",
    "kind_of",
    "last_used_in",
    "layers_of",
]


class LayerKind(StrEnum):
    CONVOLUTION = "convolution"
    PRODUCT = "product"  # of matrices; a fully connected layer is one
    ATTENTION = "attention"
    RECURRENT = "recurrent"
    POOL = "pool"
    NORM = "norm"
    ACTIVATION = "activation"
    DROPOUT = "dropout"
    SOFTMAX = "softmax"  # and losses
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Layer:
    """A run of forward ops."""

    first: OpIndex
    last: OpIndex
    kind: LayerKind
    path: str  # of its module; empty: of none
    backward: OpIndex  # where its backward begins
    in_place: bool  # makes nothing that takes bytes
    is_classifier: bool  # of the fully connected layers, or what follows them, that end a pass


def layers_of(trace: Trace) -> tuple[Layer, ...]:
    """The layers of a step, in the order of its forward ops."""
    runs = list(_runs(trace))
    starts = _backward_starts(trace, runs)
    classifiers = _classifiers(trace, runs)
    return tuple(
        Layer(
            run[0].index,
            run[-1].index,
            _kind(run),
            run[0].module,
            starts[number],
            in_place=not any(trace.fresh[op.index] for op in run),
            is_classifier=number in classifiers,
        )
        for number, run in enumerate(runs)
    )


_KINDS = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        (LayerKind.CONVOLUTION, r"conv(?!ert)"),
        (LayerKind.POOL, r"pool"),
        (LayerKind.NORM, r"norm(?!al)"),
        (LayerKind.DROPOUT, r"dropout|bernoulli"),
        (LayerKind.SOFTMAX, r"softmax|loss|entropy"),
        (LayerKind.ATTENTION, r"attention"),
        (LayerKind.RECURRENT, r"rnn|lstm|gru"),
        (LayerKind.PRODUCT, r"mm_?$|mv_?$|matmul|linear$|^v?dot$|^fc"),
        (
            LayerKind.ACTIVATION,
            r"^((leaky_|p|r)?relu6?|c?elu|[gs]elu|silu|mish|tanh|(log_)?sigmoid|hard\w+)_?$",
        ),
    )
)


@cache
def kind_of(name: str) -> LayerKind:
    """The kind of layer that an op of this name is; `OTHER` if it tells none."""
    bare = name.removeprefix("aten.").removeprefix("_")
    return next((kind for kind, pattern in _KINDS if pattern.search(bare)), LayerKind.OTHER)


def heavy_kinds(trace: Trace, layers: Iterable[Layer]) -> frozenset[LayerKind]:
    """The kinds of layer that compute long enough to hide a copy, as convolutions do for vDNN.

    They are products, attention and recurrent cells where a step spends more flops on those.
    """
    products = frozenset({LayerKind.PRODUCT, LayerKind.ATTENTION, LayerKind.RECURRENT})
    flops: Counter[LayerKind] = Counter()
    kinds = set()
    for layer in layers:
        kinds.add(layer.kind)
        flops[layer.kind] += sum(op.flops for op in trace.ops[layer.first : layer.last + 1])
    if LayerKind.CONVOLUTION not in kinds:
        return products
    if flops[LayerKind.CONVOLUTION] < sum(flops[kind] for kind in products):
        return products
    return frozenset({LayerKind.CONVOLUTION})


# -- what a layer reads ---------------------------------------------------------------------------


def awaits_backward(trace: Trace, gap: Gap) -> bool:
    """Does the gap's value wait for backward? Inputs count too, model state does not."""
    return (
        gap.stop is not None
        and not gap.wraps
        and not trace.values[gap.value].kind.is_state
        and trace.ops[gap.start].phase is Phase.FORWARD
        and trace.ops[gap.stop].phase is Phase.BACKWARD
    )


def last_used_in(
    trace: Trace, layers: Sequence[Layer], gaps: Iterable[Gap], *, own: bool
) -> dict[int, list[Gap]]:
    """For each layer, those of `gaps` that await backward and whose value it is the last to use.

    So of several layers that read a value, only the last may send it away. `own`: with what the
    layer itself made.
    """
    number = {op: n for n, it in enumerate(layers) for op in range(it.first, it.last + 1)}
    found: defaultdict[int, list[Gap]] = defaultdict(list)
    for gap in gaps:
        if not awaits_backward(trace, gap):
            continue
        here, made = number[gap.start], trace.values[gap.value].producer
        if own or made is None or number.get(made) != here:
            found[here].append(gap)
    return dict(found)


def feature_inputs(
    problem: Problem, layers: Sequence[Layer], smallest: int
) -> dict[int, list[Gap]]:
    """By layer that extracts features, its inputs X that may be sent away when it is the last."""
    gaps = problem.free_gaps(smallest)
    found = last_used_in(problem.trace, layers, gaps, own=False)
    return {n: found[n] for n in sorted(found) if not layers[n].is_classifier}


# -- layers of ops --------------------------------------------------------------------------------


def _runs(trace: Trace) -> Iterator[list[Op]]:
    run: list[Op] = []
    for op in trace.ops:
        if op.phase is not Phase.FORWARD:
            continue
        if run and not _continues(run, op):
            yield run
            run = []
        run.append(op)
    if run:
        yield run


def _continues(run: Sequence[Op], op: Op) -> bool:
    """Does `op` belong to the layer of `run`, which ends just before it?"""
    if not op.module or op.module != run[-1].module or op.index != run[-1].index + 1:
        return False
    return LayerKind.OTHER in (kind_of(op.name), _kind(run))


def _kind(run: Iterable[Op]) -> LayerKind:
    kinds = (kind_of(op.name) for op in run)
    return next((kind for kind in kinds if kind is not LayerKind.OTHER), LayerKind.OTHER)


_ENDINGS = {LayerKind.PRODUCT, LayerKind.ACTIVATION, LayerKind.DROPOUT, LayerKind.SOFTMAX}
_COPIES = re.compile(r"copy|clone|pad")


def _classifiers(trace: Trace, runs: Sequence[Sequence[Op]]) -> set[int]:
    """The layers that end a pass: fully connected ones and what acts on their results; if there are
    none, the last layer before the loss.
    """
    turns = [op.index for op in trace.ops if op.phase is Phase.BACKWARD]
    found: set[int] = set()
    is_ending, has_last, passes = True, False, -1
    for number in reversed(range(len(runs))):
        run, kind = runs[number], _kind(runs[number])
        before = bisect_right(turns, run[0].index)  # a pass ends where backward begins
        if before != passes:
            is_ending, has_last, passes = True, False, before
        if not is_ending:
            continue
        is_ending = kind in _ENDINGS or _is_aside(trace, run)
        if is_ending or not has_last:
            found.add(number)
        has_last = has_last or kind is LayerKind.PRODUCT
    return found


def _is_aside(trace: Trace, run: Sequence[Op]) -> bool:
    """Does a run of no known kind only copy, or make nothing worth speaking of?"""
    if _kind(run) is not LayerKind.OTHER:
        return False
    made = max((trace.values[v].nbytes for op in run for v in op.writes), default=0)
    return made < MOVABLE_FROM or all(_COPIES.search(op.name) for op in run)


def _backward_starts(trace: Trace, runs: Sequence[Sequence[Op]]) -> list[OpIndex]:
    """For each run of forward ops, the first backward op that is of the same layer.

    It is of the same module and uses what the layer used. Where several layers used that (the op has
    no module), it is of one of its own kind, and of the latest that is not at it yet. A layer of whose
    backward nothing is seen begins it together with the layer before.
    """
    users: defaultdict[int, dict[int, None]] = defaultdict(dict)
    for number, run in enumerate(runs):
        for op in run:
            for value in (*op.reads, *op.writes):
                if not trace.values[value].kind.is_state:
                    users[value][number] = None
    kinds = [_kind(run) for run in runs]
    seen: dict[int, OpIndex] = {}
    last = trace.last_index
    for op in trace.ops:
        if op.phase is not Phase.BACKWARD:
            continue
        last = op.index
        shared: Counter[int] = Counter()
        for value in op.reads:
            shared.update(n for n in users.get(value, ()) if _may_be_of(op, runs[n]))
        if shared:
            kind = kind_of(op.name)
            same = {n for n in shared if kind is kinds[n] is not LayerKind.OTHER}
            it = max(shared, key=lambda n: (shared[n], n in same, n not in seen, n))
            seen.setdefault(it, op.index)
    starts: list[OpIndex] = []
    for number, run in enumerate(runs):
        before = starts[-1] if starts else last
        starts.append(seen.get(number, before if before > run[-1].index else last))
    return starts


def _may_be_of(op: Op, run: Sequence[Op]) -> bool:
    """May a backward op be of the layer of `run`?"""
    is_same = op.module == run[0].module or not (op.module and run[0].module)
    return is_same and run[-1].index < op.index
