"""What to do about a step: decisions about its gaps, and the check that they fit the trace."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Self, TypeAlias, assert_never

from penstock.errors import PlanError, TraceError
from penstock.ir.lineage import Gone, lineage, sources
from penstock.ir.machine import Machine
from penstock.ir.trace import Gap, OpIndex, StorageId, Trace, ValueId

__all__ = [
    "Decision",
    "Place",
    "Plan",
    "Recompute",
    "Residency",
    "Swap",
    "check",
    "sources_of_remakes",
    "wraps",
]


@dataclass(frozen=True, slots=True)
class Swap:
    """Copy out to `tier` and back. Frees when the copy out ends, takes when the copy back starts.

    Triggers are op indices. The copy out may start when op `evict_at` starts, the copy back when
    op `prefetch_at` starts; in between, each waits its turn on its link. `prefetch_at` None: the
    value comes back only if something unforeseen asks for it (a gap that nothing closes). In a
    wrapping gap `prefetch_at` counts in the next step. `fence`: this op waits for the copy out.
    """

    gap: Gap
    tier: str
    evict_at: OpIndex
    prefetch_at: OpIndex | None
    fence: OpIndex | None = None


@dataclass(frozen=True, slots=True)
class Recompute:
    """Drop when the gap opens; run the producer again before op `remake_at`.

    Values with one `remake_at` are remade in one pass: what they share is run once.
    """

    gap: Gap
    remake_at: OpIndex


@dataclass(frozen=True, slots=True)
class Place:
    """Keep a value in `tier`, where ops read and write it directly, with whatever overwrites it.

    It is there from its birth (`evict_at` None) or from a copy out, until a copy back or, with
    `prefetch_at` None, for good. Triggers are op indices, as in `Swap`: from op `evict_at` on ops use
    the tier, from op `prefetch_at` on the device, and each waits for the copy that it depends on.
    What lives from step to step ends the step where it began it: either both are None, or
    `prefetch_at` below `evict_at` counts in the next step. What came back and was not written since
    leaves without a copy: the tier still has one.
    """

    value: ValueId
    tier: str
    evict_at: OpIndex | None = None
    prefetch_at: OpIndex | None = None


Decision: TypeAlias = Swap | Recompute | Place


@dataclass(frozen=True)
class Plan:
    """A set of decisions. What it does not name is kept."""

    decisions: tuple[Decision, ...] = ()
    policy: str = ""  # who made it
    cut_short: bool = False  # a time limit ended the search for a better one: nothing is proven

    @cached_property
    def swaps(self) -> tuple[Swap, ...]:
        return tuple(d for d in self.decisions if isinstance(d, Swap))

    @cached_property
    def recomputes(self) -> tuple[Recompute, ...]:
        return tuple(d for d in self.decisions if isinstance(d, Recompute))

    @cached_property
    def places(self) -> tuple[Place, ...]:
        return tuple(d for d in self.decisions if isinstance(d, Place))

    @cached_property
    def of_gaps(self) -> tuple[Swap | Recompute, ...]:
        """All but the placements."""
        return tuple(d for d in self.decisions if not isinstance(d, Place))

    def plus(self, decisions: Iterable[Decision]) -> Self:
        return replace(self, decisions=(*self.decisions, *decisions))

    def counts(self) -> dict[str, int]:
        """Number of decisions of each sort, e.g. `{"swap": 12, "recompute": 30}`.

        Placements are named only where there are some: no running step has any.
        """
        found = {"swap": len(self.swaps), "recompute": len(self.recomputes)}
        return {**found, "place": len(self.places)} if self.places else found


@dataclass(frozen=True)
class Residency:
    """Which values an op can use when it runs, if `plan` is followed: in memory, or placed."""

    trace: Trace
    plan: Plan
    _away: dict[ValueId, list[tuple[int, int]]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        end = len(self.trace.ops)
        for decision in self.plan.decisions:
            if isinstance(decision, Place):
                continue
            gap = decision.gap
            stretches = self._away.setdefault(gap.value, [])
            back = decision.prefetch_at if isinstance(decision, Swap) else decision.remake_at
            if not gap.wraps:
                stretches.append((gap.start, end if back is None else back))
                continue
            stretches.append((gap.start, end))
            if (first := _first_version(self.trace, gap)) is not None:
                self._away.setdefault(first, []).append((-1, end if back is None else back))

    def holds(self, value: ValueId, op: int) -> bool:
        """Is `value` resident (or on its way in, to be waited for) just before op `op` runs?"""
        it = self.trace.values[value]
        if it.producer is not None and it.producer >= op:
            return False
        if it.freed is not None and it.freed < op:
            return False
        stretches = self._away.get(value)
        return stretches is None or not any(start < op < back for start, back in stretches)

    def away(self, value: ValueId) -> Sequence[tuple[int, int]]:
        """The stretches for which `value` is away: after one op, and until just before another."""
        return self._away.get(value, ())


def check(trace: Trace, plan: Plan, machine: Machine | None = None) -> None:
    """Raise `PlanError` with every fault of `plan`; return nothing if it fits.

    With a `machine`, the tiers that the plan names must exist there, and those in which it places
    values must be within reach of ops.
    """
    faults = list(_shape_faults(trace, plan))
    if machine is not None:
        for tier in sorted({swap.tier for swap in plan.swaps}):
            try:
                machine.tier(tier)
            except TraceError as error:
                faults.append(str(error))
        for tier in sorted({place.tier for place in plan.places}):
            try:
                machine.direct(tier)
            except TraceError as error:
                faults.append(str(error))
    if not faults:
        faults.extend(_overlap_faults(trace, plan))
        faults.extend(_collision_faults(trace, plan))
    if not faults:  # lineage is only meaningful between well-formed gaps
        faults.extend(_lineage_faults(trace, plan))
    if faults:
        raise PlanError(faults)


def sources_of_remakes(trace: Trace, plan: Plan) -> dict[ValueId, list[OpIndex]]:
    """The values that `plan`'s recomputations start from, each with the ops before which they do."""
    residency = Residency(trace, plan)
    found: dict[ValueId, list[OpIndex]] = {}
    for decision in plan.recomputes:
        at = decision.remake_at
        ops = lineage(trace, decision.gap.value, at, residency.holds)
        for value in sources(trace, ops):
            found.setdefault(value, []).append(at)
    return found


def _shape_faults(trace: Trace, plan: Plan) -> Iterator[str]:
    seen: dict[ValueId, list[Gap]] = {}
    for decision in plan.decisions:
        if isinstance(decision, Place):
            yield from _place_faults(trace, decision)
            continue
        gap = decision.gap
        if not 0 <= gap.value < len(trace.values):
            yield f"value {gap.value} does not exist in this trace"
            continue
        name = f"value {gap.value} ({trace.describe(gap.value)})"
        if any(gap.start == other.start for other in seen.get(gap.value, ())):
            yield f"{name} is named twice for ops {_stretch(gap)}"
        seen.setdefault(gap.value, []).append(gap)
        if reason := _misfit(trace, gap):
            yield f"{name}, ops {_stretch(gap)}: {reason}"
            continue
        match decision:
            case Swap():
                yield from (f"{name}: {fault}" for fault in _swap_faults(trace, decision))
            case Recompute():
                yield from (f"{name}: {fault}" for fault in _recompute_faults(decision))
            case _:
                assert_never(decision)


def _misfit(trace: Trace, gap: Gap) -> str | None:
    """Why `gap` is not a stretch in which its value lies idle; None if it is one."""
    uses = trace.uses[gap.value]
    value = trace.values[gap.value]
    if gap.start not in uses:
        return f"op {gap.start} does not use it"
    if gap.wraps:
        first = _first_version(trace, gap)
        if first is None:
            return f"its next use, op {gap.stop}, is not after op {gap.start}"
        if value.freed is not None or uses[-1] != gap.start:
            return f"only its last use in the step may open a gap into the next, not op {gap.start}"
        if (again := next(iter(trace.uses[first]), None)) != gap.stop:
            return f"the next step uses it first at op {again}"
        return None
    later = [use for use in uses if use > gap.start]
    if gap.stop is None:
        return f"op {later[0]} still uses it" if later else None
    if not later:
        return f"nothing uses it after op {gap.start}"
    if later[0] != gap.stop:
        return f"op {later[0]} uses it inside the gap"
    return None


def _swap_faults(trace: Trace, swap: Swap) -> Iterator[str]:
    gap, end = swap.gap, len(trace.ops)
    made = trace.values[gap.value].producer
    earliest = 0 if made is None else made + 1
    if not earliest <= swap.evict_at <= end:
        yield f"out at op {swap.evict_at}, but op {made} makes it; the step has {end} ops"
    if gap.stop is None:
        if swap.prefetch_at is not None:
            yield f"back at op {swap.prefetch_at}, but nothing uses it again"
        freed = trace.values[gap.value].freed
        if freed is not None and swap.evict_at > freed:
            yield f"evicted at op {swap.evict_at}, but it is freed after op {freed}"
    elif swap.prefetch_at is None:
        yield f"never brought back, but op {gap.stop} uses it"
    elif not gap.wraps and swap.evict_at >= gap.stop:
        yield f"evicted at op {swap.evict_at}, after its next use at op {gap.stop}"
    elif swap.prefetch_at > gap.stop:
        yield f"brought back at op {swap.prefetch_at}, after its next use at op {gap.stop}"
    elif not gap.wraps and swap.prefetch_at <= max(swap.evict_at, gap.start):
        yield (
            f"out at op {swap.evict_at} and back at op {swap.prefetch_at} leave no time away "
            f"(ops {_stretch(gap)})"
        )
    if swap.fence is not None and not max(swap.evict_at, gap.start + 1) <= swap.fence < end:
        yield (
            f"op {swap.fence} cannot wait for a copy out that starts at op {swap.evict_at} and whose "
            f"bytes op {gap.start} still uses"
        )


def _overlap_faults(trace: Trace, plan: Plan) -> Iterator[str]:
    """Copies out that would start while their value is away."""
    residency = Residency(trace, plan)
    for swap in plan.swaps:
        for start, end in residency.away(swap.gap.value):
            if start < swap.evict_at <= end and start != swap.gap.start:
                yield (
                    f"value {swap.gap.value} ({trace.describe(swap.gap.value)}): out at op "
                    f"{swap.evict_at}, while it is away until op {end}"
                )


def _place_faults(trace: Trace, place: Place) -> Iterator[str]:
    if not 0 <= place.value < len(trace.values):
        yield f"value {place.value} does not exist in this trace"
        return
    value, out, back = trace.values[place.value], place.evict_at, place.prefetch_at
    name, end = f"value {value.id} ({trace.describe(value.id)})", len(trace.ops)
    lasts = trace.lasts(value.storage)
    if out is None:
        if value.id in trace.previous_version:
            yield (
                f"{name}: op {value.producer} writes it over a value on the device; place that one "
                "too, or say at which op it is copied out"
            )
        if lasts and back is not None:
            yield (
                f"{name}: it begins the step in {place.tier} and ends it on the device; say at which "
                "op it is copied out"
            )
    else:
        if not (0 if value.producer is None else value.producer + 1) <= out <= end:
            yield f"{name}: out at op {out}, but op {value.producer} makes it; the step has {end} ops"
        if value.freed is not None and out > value.freed:
            yield f"{name}: out at op {out}, but it is gone after op {value.freed}"
        if lasts and back is None:
            yield (
                f"{name}: it begins the step on the device and ends it in {place.tier}; say at which "
                "op it is copied back"
            )
    if back is None:
        return
    first = out if out is not None else -1 if value.producer is None else value.producer
    dies = trace.values[trace.versions_of[value.storage][-1]].freed
    stop = first if wraps(trace, place) else end if dies is None else dies + 1
    if not 0 <= back < end:
        yield f"{name}: back at op {back}; the step has {end} ops"
    elif back == first or (back < first and not lasts):
        yield f"{name}: out at op {first} and back at op {back} leave no time in {place.tier}"
    elif not any(back <= use < stop for use in _touches(trace, value.id)):
        yield f"{name}: back at op {back}, but no op from there to op {stop} uses it"


def wraps(trace: Trace, place: Place) -> bool:
    """Does the value come back in the next step?"""
    return (
        place.evict_at is not None
        and place.prefetch_at is not None
        and place.prefetch_at <= place.evict_at
        and trace.lasts(trace.values[place.value].storage)
    )


def _touches(trace: Trace, value: ValueId) -> Iterator[OpIndex]:
    """The ops that read or write the value's storage."""
    for version in trace.versions_of[trace.values[value].storage]:
        yield from trace.uses[version]


def _collision_faults(trace: Trace, plan: Plan) -> Iterator[str]:
    """Placements of a storage that is meanwhile away, or placed already."""
    placed = {trace.values[place.value].storage for place in plan.places}
    engaged: defaultdict[StorageId, list[tuple[int, int, Decision]]] = defaultdict(list)
    for decision in plan.decisions if placed else ():
        value = decision.value if isinstance(decision, Place) else decision.gap.value
        if (storage := trace.values[value].storage) in placed:
            engaged[storage] += [
                (start, stop, decision) for start, stop in _engaged(trace, decision)
            ]
    for storage, found in engaged.items():
        found.sort(key=lambda one: one[:2])
        for (start, stop, one), (again, until, other) in pairwise(found):
            if again <= stop and (isinstance(one, Place) or isinstance(other, Place)):
                value = trace.versions_of[storage][0]
                yield (
                    f"value {value} ({trace.describe(value)}): {_whereabouts(one)} for ops "
                    f"{start}..{stop}, but {_whereabouts(other)} for ops {again}..{until}"
                )


def _engaged(trace: Trace, decision: Decision) -> list[tuple[int, int]]:
    """From which op to which, both included, a decision has to do with its value's bytes.

    Op -1 stands for what came before the step.
    """
    end = len(trace.ops)
    match decision:
        case Swap():
            start, back, around = decision.evict_at, decision.prefetch_at, decision.gap.wraps
        case Recompute():
            start, back, around = decision.gap.start, decision.remake_at, False
        case Place():
            made = trace.values[decision.value].producer
            birth = OpIndex(-1) if made is None else made
            start = birth if decision.evict_at is None else decision.evict_at
            back, around = decision.prefetch_at, wraps(trace, decision)
        case _:
            assert_never(decision)
    last = end if back is None else back
    return [(start, end), (-1, last)] if around else [(start, last)]


def _whereabouts(decision: Decision) -> str:
    match decision:
        case Swap(tier=tier):
            return f"swapped to {tier}"
        case Recompute():
            return "dropped"
        case Place(tier=tier):
            return f"placed in {tier}"
        case _:
            assert_never(decision)


def _recompute_faults(decision: Recompute) -> Iterator[str]:
    gap, at = decision.gap, decision.remake_at
    if gap.wraps:
        yield "cannot be remade in the next step: its lineage belongs to this one"
    elif gap.stop is None:
        yield "nothing uses it again, so there is nothing to remake it for; swap it, or keep it"
    elif not gap.start < at <= gap.stop:
        yield f"remade at op {at}, outside ops {_stretch(gap)}"


def _lineage_faults(trace: Trace, plan: Plan) -> Iterator[str]:
    residency = Residency(trace, plan)
    for decision in plan.recomputes:
        gap, at = decision.gap, decision.remake_at
        try:
            lineage(trace, gap.value, at, residency.holds)
        except Gone as gone:
            yield (
                f"value {gap.value} ({trace.describe(gap.value)}) cannot be recomputed "
                f"at op {at}: {gone}"
            )


def _first_version(trace: Trace, gap: Gap) -> ValueId | None:
    """The value as which the storage begins the step; None if it does not."""
    first = trace.versions_of[trace.values[gap.value].storage][0]
    return first if trace.values[first].producer is None else None


def _stretch(gap: Gap) -> str:
    return f"{gap.start}..{'end' if gap.stop is None else gap.stop}"
