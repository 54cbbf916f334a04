"""What to do about a step: decisions about its gaps, and the check that they fit the trace."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self, TypeAlias, assert_never

from penstock.errors import PlanError, TraceError
from penstock.ir.lineage import Gone, lineage, sources
from penstock.ir.machine import Machine
from penstock.ir.trace import Gap, OpIndex, Trace, ValueId

__all__ = ["Decision", "Plan", "Recompute", "Residency", "Swap", "check", "sources_of_remakes"]


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


Decision: TypeAlias = Swap | Recompute


@dataclass(frozen=True)
class Plan:
    """A set of decisions. What it does not name is kept."""

    decisions: tuple[Decision, ...] = ()
    policy: str = ""  # who made it

    @cached_property
    def swaps(self) -> tuple[Swap, ...]:
        return tuple(d for d in self.decisions if isinstance(d, Swap))

    @cached_property
    def recomputes(self) -> tuple[Recompute, ...]:
        return tuple(d for d in self.decisions if isinstance(d, Recompute))

    def plus(self, decisions: Iterable[Decision]) -> Self:
        return type(self)((*self.decisions, *decisions), self.policy)

    def counts(self) -> dict[str, int]:
        """Number of decisions of each sort, e.g. `{"swap": 12, "recompute": 30}`."""
        return {"swap": len(self.swaps), "recompute": len(self.recomputes)}


@dataclass(frozen=True)
class Residency:
    """Which values are in device memory before which op, if `plan` is followed."""

    trace: Trace
    plan: Plan
    _away: dict[ValueId, list[tuple[int, int]]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        end = len(self.trace.ops)
        for decision in self.plan.decisions:
            gap = decision.gap
            stretches = self._away.setdefault(gap.value, [])
            back = decision.prefetch_at if isinstance(decision, Swap) else decision.remake_at
            if not gap.wraps:
                stretches.append((gap.start, end if back is None else back))
                continue
            stretches.append((gap.start, end))
            for first in _first_versions(self.trace, gap):
                self._away.setdefault(first, []).append((-1, end if back is None else back))

    def holds(self, value: ValueId, op: int) -> bool:
        """Is `value` resident (or on its way in, to be waited for) just before op `op` runs?"""
        it = self.trace.values[value]
        if it.producer is not None and it.producer >= op:
            return False
        if it.freed is not None and it.freed < op:
            return False
        return not any(start < op < back for start, back in self.away(value))

    def away(self, value: ValueId) -> Sequence[tuple[int, int]]:
        """The stretches for which `value` is away: after one op, and until just before another."""
        return self._away.get(value, ())


def check(trace: Trace, plan: Plan, machine: Machine | None = None) -> None:
    """Raise `PlanError` with every fault of `plan`; return nothing if it fits.

    With a `machine`, the tiers that the plan names must exist there.
    """
    faults = list(_shape_faults(trace, plan))
    if machine is not None:
        for tier in sorted({swap.tier for swap in plan.swaps}):
            try:
                machine.tier(tier)
            except TraceError as error:
                faults.append(str(error))
    if not faults:
        faults.extend(_overlap_faults(trace, plan))
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
        first = [trace.uses[v][:1] for v in _first_versions(trace, gap)]
        if not first:
            return f"its next use, op {gap.stop}, is not after op {gap.start}"
        if value.freed is not None or uses[-1] != gap.start:
            return f"only its last use in the step may open a gap into the next, not op {gap.start}"
        if first[0] != (gap.stop,):
            return f"the next step uses it first at op {first[0][0] if first[0] else None}"
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


def _first_versions(trace: Trace, gap: Gap) -> list[ValueId]:
    storage = trace.values[gap.value].storage
    return [v for v in trace.initial if trace.values[v].storage == storage]


def _stretch(gap: Gap) -> str:
    return f"{gap.start}..{'end' if gap.stop is None else gap.stop}"
