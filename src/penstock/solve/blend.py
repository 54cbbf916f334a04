"""Better plans from good ones: remakes of several methods, swaps for the rest, other triggers.

A family is a method's remakes in passes, the most rewarding first. A plan is then a few numbers: how
many passes of each family are made. What lacks room beside them is swapped, farthest next use first.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from math import log2
from typing import TypeAlias

from penstock.ir.lineage import Gone, joint_lineage
from penstock.ir.machine import Tier
from penstock.ir.plan import Decision, Plan, Recompute, Residency, Swap
from penstock.ir.policy import Problem
from penstock.ir.trace import Gap, OpIndex, Trace, ValueId
from penstock.simulate.least import MOVABLE_FROM
from penstock.solve.best import Outcome, outcome
from penstock.solve.farthest import farthest_first
from penstock.solve.pressure import Pressure
from penstock.solve.remakes import (
    alone,
    collective,
    is_heavy,
    light,
    one_by_one,
    possible,
    until_wanted,
)
from penstock.solve.search import Ledger, Rank, pattern
from penstock.solve.segments import crossings, split
from penstock.solve.swaps import as_room_allows, just_in_time, late_gaps

__all__ = ["Family", "blended", "families", "retimed"]

Pass: TypeAlias = tuple[Recompute, ...]
"""Values that are remade together."""


@dataclass(frozen=True, slots=True)
class Family:
    """Remakes of one method, in the order in which they are worth making."""

    name: str
    passes: tuple[Pass, ...]


def blended(
    problem: Problem, answers: Sequence[Outcome], *, evaluations: int, time_limit: float
) -> Outcome:
    """The best of `answers`, and of what can be made of them in `evaluations` and `time_limit` seconds."""
    deadline = time.monotonic() + time_limit
    kinds = families(problem, answers)
    made: dict[tuple[int, ...], Outcome] = {}

    def rank(counts: tuple[int, ...]) -> Rank:
        made[counts] = outcome(problem, mixed(problem, kinds, counts))
        return made[counts].rank

    if kinds:
        ledger = Ledger(rank, evaluations=evaluations, time_limit=time_limit)
        pattern(ledger, [len(kind.passes) for kind in kinds])
    found = min((*answers, *made.values()), key=lambda one: one.rank)
    return retimed(problem, found, until=deadline)


def families(problem: Problem, answers: Iterable[Outcome]) -> list[Family]:
    """The remakes of `answers`, method by method; those by light ops alone; those of small blocks."""
    given = set(problem.given.decisions)
    found: dict[frozenset[Recompute], str] = {}
    for answer in answers:
        if own := frozenset(answer.plan.recomputes) - given:
            found.setdefault(own, answer.plan.policy)
    saved = alone(problem, problem.free_saved_gaps(MOVABLE_FROM))
    for name, remakes in (("light", _light(problem, saved)), ("blocks", _blocks(problem, saved))):
        if remakes:
            found.setdefault(frozenset(remakes), name)
    return [Family(name, tuple(_passes(problem, remakes))) for remakes, name in found.items()]


def mixed(problem: Problem, kinds: Sequence[Family], counts: Sequence[int]) -> Plan:
    """So many passes of each family; in a gap that two of them name, the first decides."""
    trace, given = problem.trace, problem.given
    chosen: dict[Gap, Recompute] = {}
    for kind, count in zip(kinds, counts, strict=True):
        for one in (one for together in kind.passes[:count] for one in together):
            chosen.setdefault(one.gap, one)
    plan = given.plus(possible(given, trace, chosen.values()))
    if not problem.machine.tiers:
        return plan
    return farthest_first(replace(problem, given=plan), MOVABLE_FROM)


def _light(problem: Problem, saved: list[Gap]) -> list[Recompute]:
    """What light ops remake, those of one chain in one pass."""
    trace, given = problem.trace, problem.given
    gaps = light(problem, saved, lambda op: not is_heavy(op))
    apart = possible(given, trace, one_by_one(gaps))
    return collective(given, trace, apart) or apart


def _blocks(problem: Problem, saved: list[Gap]) -> list[Recompute]:
    """All between one narrow place of forward and the next: passes as small as can be."""
    cuts = crossings(problem.trace, 1, MOVABLE_FROM)
    return split(problem.trace, saved, cuts, 0).decisions if cuts else []


def _passes(problem: Problem, remakes: Iterable[Recompute]) -> list[Pass]:
    """By bytes that are freed for a second of remaking; of those that are about alike, the latest first.

    What is remade last is away for longest.
    """
    trace = problem.trace
    together: defaultdict[OpIndex, list[Recompute]] = defaultdict(list)
    for one in sorted(remakes, key=lambda one: one.gap.value):
        together[one.remake_at].append(one)
    residency = Residency(trace, problem.given.plus(chain.from_iterable(together.values())))

    def worth(at: OpIndex) -> float:
        targets = {one.gap.value for one in together[at]}
        again = _lineage(problem, residency, targets, at)
        seconds = sum(trace.ops[op].seconds for op in again)
        return sum(trace.values[value].nbytes for value in targets) / max(seconds, 1e-9)

    order = {at: (round(log2(worth(at))), at) for at in together}
    return [tuple(together[at]) for at in sorted(order, key=order.__getitem__, reverse=True)]


def _lineage(
    problem: Problem, residency: Residency, targets: set[ValueId], at: OpIndex
) -> tuple[OpIndex, ...]:
    """The ops that one pass runs again; none where that is impossible."""

    def holds(value: ValueId, op: int) -> bool:
        return value not in targets and residency.holds(value, op)

    try:
        return joint_lineage(problem.trace, targets, at, holds)
    except Gone:
        return ()


# -- triggers -------------------------------------------------------------------------------------

_Times: TypeAlias = Callable[[Trace, Tier, Iterable[Gap], Pressure], list[Swap]]
"""When values leave and come back that go to one tier."""


def _late(
    trace: Trace, tier: Tier, gaps: Iterable[Gap], pressure: Pressure, *, margin: float
) -> list[Swap]:
    return just_in_time(trace, tier, gaps, margin=margin, pressure=pressure)


_TIMES: tuple[_Times, ...] = (
    as_room_allows,
    partial(_late, margin=1.0),
    partial(_late, margin=1.5),
)


def retimed(problem: Problem, found: Outcome, *, until: float) -> Outcome:
    """The same plan, or a better one: without swaps that need not be, or with other triggers.

    `until`: the time (monotonic) after which nothing more is tried.
    """
    changes: list[Callable[[Problem, Outcome], Plan]] = [_pruned]
    changes += [partial(_timed, times=times) for times in _TIMES]
    for change in changes if found.plan.swaps else ():
        if time.monotonic() > until:
            break
        other = outcome(problem, change(problem, found))
        found = min(found, other, key=lambda one: one.rank)
    return found


def _own(problem: Problem, plan: Plan) -> list[Swap]:
    """The swaps that are not given."""
    given = set(problem.given.swaps)
    return [swap for swap in plan.swaps if swap not in given]


def _pruned(problem: Problem, found: Outcome) -> Plan:
    """Without swaps whose values might as well stay; first those that are waited for."""
    trace, plan, late = problem.trace, found.plan, late_gaps(found)
    pressure = Pressure(replace(problem, given=plan))
    size = trace.columns.nbytes.tolist()
    own = sorted(_own(problem, plan), key=lambda one: (one.gap not in late, -size[one.gap.value]))
    stay = {one for one in own if pressure.restore(one.gap, size[one.gap.value], one.prefetch_at)}
    return _without(plan, stay)


def _timed(problem: Problem, found: Outcome, *, times: _Times) -> Plan:
    """With all that may move leaving as soon as it is idle, and coming back by `times`."""
    trace, plan = problem.trace, found.plan
    own = _own(problem, plan)
    away = until_wanted(replace(problem, given=_without(plan, set(own))), 1)
    moved = [swap for swap in own if swap.gap in away]
    bare = _without(plan, set(moved))
    pressure = Pressure(replace(problem, given=bare))
    for swap in moved:
        pressure.relieve(away[swap.gap], trace.values[swap.gap.value].nbytes)
    timed: list[Swap] = []
    for tier in problem.machine.tiers:
        whole = {away[swap.gap]: swap.gap for swap in moved if swap.tier == tier.name}
        for swap in times(trace, tier, whole, pressure):
            timed.append(replace(swap, gap=whole[swap.gap]))
    return bare.plus(timed)


def _without(plan: Plan, swaps: Container[Decision]) -> Plan:
    return replace(plan, decisions=tuple(one for one in plan.decisions if one not in swaps))
