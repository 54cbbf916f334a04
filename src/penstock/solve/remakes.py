"""Which dropped values can be remade, when, and together with which others."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace

from penstock.ir.lineage import Gone, lineage
from penstock.ir.plan import Plan, Recompute, Residency, sources_of_remakes
from penstock.ir.policy import Problem
from penstock.ir.trace import Gap, Op, OpIndex, Trace, ValueId
from penstock.simulate.roofline import class_of

__all__ = [
    "alone",
    "collective",
    "in_one_pass",
    "is_heavy",
    "light",
    "one_by_one",
    "possible",
    "remade_at_need",
    "swappable",
    "until_wanted",
]

_HEAVY = frozenset({"convolution", "matmul", "attention", "recurrent"})


def is_heavy(op: Op) -> bool:
    """Is it one of the ops that papers call too dear to run twice: a matrix product in some form?"""
    return class_of(op.name) in _HEAVY


def alone(problem: Problem, gaps: Iterable[Gap]) -> list[Gap]:
    """Those of `gaps` whose value can be remade when the gap closes, if all else stays as given.

    Then it can also be remade earlier in the gap, or when others of `gaps` are dropped too: what one
    needs is there as long as what needs it.
    """
    closing = [gap for gap in gaps if gap.stop is not None and not gap.wraps]
    lost = set(_impossible(problem.given, problem.trace, one_by_one(closing)))
    return [gap for gap in closing if gap not in lost]


def light(problem: Problem, gaps: Iterable[Gap], is_light: Callable[[Op], bool]) -> list[Gap]:
    """Those of `gaps` whose values can be remade by light ops alone, if all of these are dropped.

    A plan cannot make a value live longer than it does: where what a light op reads is dead when the
    gap closes, more would have to run again, and the gap is left out. In the order of their producers.
    """
    trace = problem.trace
    residency = Residency(trace, problem.given)
    dropped: defaultdict[ValueId, list[Gap]] = defaultdict(list)

    def holds(value: ValueId, op: int) -> bool:
        away = any(gap.covers(op) for gap in dropped[value]) if value in dropped else False
        return not away and residency.holds(value, op)

    found: list[Gap] = []
    by_producer = sorted(gaps, key=lambda gap: (trace.values[gap.value].producer or 0, gap.start))
    for gap in by_producer:
        if gap.stop is None or gap.wraps:
            continue
        try:
            ops = lineage(trace, gap.value, gap.stop, holds)
        except Gone:
            continue
        if all(is_light(trace.ops[op]) for op in ops):
            found.append(gap)
            dropped[gap.value].append(gap)
    return found


def one_by_one(gaps: Iterable[Gap]) -> list[Recompute]:
    """Each value remade when it is needed."""
    return [Recompute(gap, gap.stop) for gap in gaps if gap.stop is not None]


def in_one_pass(gaps: Iterable[Gap]) -> list[Recompute]:
    """All values remade together when the first is needed; those that are still in use then, later."""
    ends = [(gap, gap.stop) for gap in gaps if gap.stop is not None]
    first = min((stop for _, stop in ends), default=OpIndex(0))
    return [Recompute(gap, first if gap.start < first else stop) for gap, stop in ends]


def possible(rest: Plan, trace: Trace, remakes: Iterable[Recompute]) -> list[Recompute]:
    """Those of `remakes` that can be done together, beside `rest`; the values of the others stay."""
    left = list(remakes)
    while lost := set(_impossible(rest.plus(left), trace, left)):
        # What is impossible by itself may be all that the others lack.
        here = [one for one in left if one.gap in lost]
        by_itself = set(_impossible(rest, trace, here)) or lost
        left = [one for one in left if one.gap not in by_itself]
    return left


def remade_at_need(
    rest: Plan, trace: Trace, targets: list[Gap]
) -> tuple[list[Recompute], list[Gap]]:
    """The targets that can be remade when they are needed, beside `rest`; and those that cannot."""
    alone = one_by_one(targets)
    lost = _impossible(rest.plus(alone), trace, alone)
    return [one for one in alone if one.gap not in lost], lost


def _impossible(plan: Plan, trace: Trace, remakes: list[Recompute]) -> list[Gap]:
    """The gaps of those of `remakes` whose lineage `plan` has away when they are due."""
    residency = Residency(trace, plan)
    lost: list[Gap] = []
    for decision in remakes:
        try:
            lineage(trace, decision.gap.value, decision.remake_at, residency.holds)
        except Gone:
            lost.append(decision.gap)
    return lost


def collective(rest: Plan, trace: Trace, targets: list[Recompute]) -> list[Recompute]:
    """Targets that are made on the way to a target needed earlier are kept in that pass."""
    at = {decision.gap: decision.remake_at for decision in targets}
    gaps_of: dict[ValueId, list[Gap]] = {}
    for gap in at:
        gaps_of.setdefault(gap.value, []).append(gap)
    residency = Residency(trace, rest.plus(targets))
    for decision in sorted(targets, key=lambda one: one.remake_at):
        when = at[decision.gap]
        try:
            ops = lineage(trace, decision.gap.value, when, residency.holds)
        except Gone:
            return []
        for value in {v for op in ops for v in trace.ops[op].writes}:
            for gap in gaps_of.get(value, ()):
                if gap.start < when < at[gap]:
                    at[gap] = when
    joined = [Recompute(gap, when) for gap, when in at.items()]
    return [] if _impossible(rest.plus(joined), trace, joined) else joined


def swappable(problem: Problem, at_least: int) -> dict[Gap, OpIndex | None]:
    """The gaps in which a value of `at_least` bytes may be away, and before which op it must be back.

    That is where the gap closes, or where the first given remake starts from it. Without remakes these
    are the free gaps.
    """
    trace, given = problem.trace, problem.given
    wanted = sources_of_remakes(trace, given)
    dropped = {one.gap for one in given.recomputes}
    others = tuple(one for one in given.decisions if not isinstance(one, Recompute))
    gaps = replace(problem, given=Plan(others)).free_gaps(at_least)
    return {
        gap: min((op for op in wanted.get(gap.value, ()) if gap.covers(op)), default=gap.stop)
        for gap in gaps
        if gap not in dropped
    }


def until_wanted(problem: Problem, at_least: int) -> dict[Gap, Gap]:
    """The gaps of `swappable`, each with the part of it in which the value may be away.

    Those are left out whose value is wanted too soon to leave and come back.
    """
    found = {}
    for gap, due in swappable(problem, at_least).items():
        if due == gap.stop:
            found[gap] = gap
        elif due is not None and gap.stop is not None and not gap.wraps and due - gap.start > 1:
            found[gap] = replace(gap, stop=due)
    return found
