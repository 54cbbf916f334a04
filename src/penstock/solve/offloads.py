"""Layers' inputs sent away and called back, and single swaps fitted into their gaps."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from penstock.ir.plan import Plan, Swap
from penstock.ir.policy import Problem
from penstock.ir.trace import Gap, OpIndex, StorageId
from penstock.solve.best import Outcome, outcome
from penstock.solve.layers import Layer, LayerKind
from penstock.solve.tiers import shelved

__all__ = ["first_to_fit", "named_storages", "offloads", "swap_within"]


def offloads(
    problem: Problem,
    layers: Sequence[Layer],
    inputs: Mapping[int, list[Gap]],
    heavy: Collection[LayerKind],
    *,
    fenced: bool,
) -> list[Swap]:
    """VDNN's swaps: `inputs` leave while their layer computes and come back by `_fetched`.

    `fenced`: what follows the layer waits until they are gone.
    """
    due = {n: min(gap.stop for gap in gaps if gap.stop) for n, gaps in inputs.items()}
    fetched = _fetched(layers, due, heavy)
    named = named_storages(problem)
    swaps = (
        swap_within(
            problem,
            gap,
            named,
            evict_at=layers[n].first,
            prefetch_at=fetched[n],
            fence=_end(layers, n) if fenced else None,
        )
        for n, gaps in inputs.items()
        for gap in gaps
    )
    return shelved(problem, swaps)


def _fetched(
    layers: Sequence[Layer], due: Mapping[int, OpIndex], heavy: Collection[LayerKind]
) -> dict[int, OpIndex]:
    """For each layer of `due`, the op at which its inputs start on their way back.

    When a layer's backward begins, it calls for the nearest layer upstream whose inputs are away; it
    looks no further than the next heavy one, whose own it may still call for (findPrefetchLayer).
    Inputs for which nobody called come when they are due.
    """
    found: dict[int, OpIndex] = {}
    for current in sorted(range(len(layers)), key=lambda n: (layers[n].backward, -n)):
        begins = layers[current].backward
        if len(found) == len(due):
            break
        if layers[current].kind is LayerKind.SOFTMAX or _is_inside(layers[current]):
            continue
        for n in reversed(range(current)):
            if n not in found and due.get(n, -1) > begins:
                found[n] = begins
                break
            if layers[n].kind in heavy:
                break
    return {n: found.get(n, when) for n, when in due.items()}


def _is_inside(layer: Layer) -> bool:
    """Is it an activation that works inside the layer before it?"""
    return layer.in_place and layer.kind is LayerKind.ACTIVATION


def _end(layers: Sequence[Layer], number: int) -> OpIndex:
    """The op that follows a layer and the activation inside it."""
    end = layers[number].last + 1
    following = layers[number + 1] if number + 1 < len(layers) else None
    if following is not None and following.first == end and _is_inside(following):
        end = following.last + 1
    return OpIndex(end)


def named_storages(problem: Problem) -> set[StorageId]:
    """The storages about which something is decided already."""
    values = problem.trace.values
    return {values[decision.gap.value].storage for decision in problem.given.of_gaps}


def swap_within(
    problem: Problem,
    gap: Gap,
    named: Collection[StorageId],
    *,
    evict_at: int,
    prefetch_at: int,
    fence: int | None = None,
) -> Swap:
    """A swap to the first tier whose triggers are as near to those wanted as the gap allows.

    The copy out may start while the value is still in use, unless another decision is about the same
    storage (it is among `named`): that one may have it away just then.
    """
    trace = problem.trace
    value = trace.values[gap.value]
    soonest = 0 if value.producer is None else value.producer + 1
    out = max(evict_at, gap.start + 1 if value.storage in named else soonest)
    if gap.stop is not None:
        out = min(out, gap.stop - 1)
    opens = max(out, gap.start + 1)
    back = None if gap.stop is None else OpIndex(min(max(prefetch_at, opens + 1), gap.stop))
    tier = problem.machine.tiers[0].name
    if fence is None:
        return Swap(gap, tier, OpIndex(out), back)
    held = max(opens, fence if gap.stop is None else min(fence, gap.stop))
    # A step may end before there is an op to wait.
    return Swap(gap, tier, OpIndex(out), back, OpIndex(held) if held < len(trace.ops) else None)


def first_to_fit(problem: Problem, plans: Iterable[Plan]) -> Plan:
    """The first of `plans` that fits the budget; if none does, the one that lacks least."""
    tried: list[Outcome] = []
    for plan in plans:
        tried.append(outcome(problem, plan))
        if not tried[-1].shortfall:
            return plan
    return min(tried, key=lambda found: found.rank).plan
