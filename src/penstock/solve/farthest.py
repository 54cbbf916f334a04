"""Where room lacks, send away what is needed again last: the rule, for any policy to fall back on."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from heapq import heappop, heappush

from penstock.ir.plan import Plan, Swap
from penstock.ir.policy import Problem
from penstock.ir.trace import Gap, OpIndex
from penstock.solve.best import best
from penstock.solve.pressure import Pressure
from penstock.solve.remakes import until_wanted
from penstock.solve.tiers import sent_below

__all__ = ["completed", "farthest_first"]


def farthest_first(problem: Problem, smallest: int, rounds: int = 8) -> Plan:
    """What is given, with so many swaps more that the step fits, if any do that.

    Values under `smallest` bytes stay. What a given remake starts from is back before that. One walk
    after another, because copies back and remakes need room that the walk before did not foresee.
    """
    plan = problem.given
    for _ in range(rounds):
        now = replace(problem, given=plan)
        pressure = Pressure(now)
        if pressure.is_relieved:
            break
        away = until_wanted(now, smallest)
        if not (victims := _walk(now, pressure, away)):
            break
        plan = plan.plus(sent_below(now, victims, away=away, pressure=pressure))
    return plan


def completed(problem: Problem, swaps: Iterable[Swap], smallest: int) -> Plan:
    """What is given and `swaps`, and as much more as fits need.

    Where the swaps as they are leave too much, either others make room for what they bring back, or it
    comes back later, as pages would that are read on demand: whichever costs less.
    """
    wanted = tuple(swaps)
    punctual = replace(problem, given=problem.given.plus(wanted))
    plans = (farthest_first(punctual, smallest), _on_demand(problem, wanted, smallest))
    return best(problem, plans).plan


def _on_demand(problem: Problem, wanted: Sequence[Swap], smallest: int) -> Plan:
    """What `wanted` brings back waits for room; the swaps beside it count on none of it."""
    trace, given = problem.trace, problem.given
    on_demand = [replace(swap, prefetch_at=swap.gap.stop) for swap in wanted]
    whole = farthest_first(replace(problem, given=given.plus(on_demand)), smallest)
    pressure = Pressure(replace(problem, given=whole))
    timed = []
    for swap in sorted(wanted, key=lambda swap: (not swap.gap.wraps, swap.prefetch_at or 0)):
        if (back := swap.prefetch_at) is not None:
            nbytes = trace.values[swap.gap.value].nbytes
            back = OpIndex(pressure.earliest_return(swap.gap, nbytes, back))
        timed.append(replace(swap, prefetch_at=back))
    more = whole.decisions[len(given.decisions) + len(on_demand) :]
    return given.plus([*timed, *more])


def _walk(problem: Problem, pressure: Pressure, away: Mapping[Gap, Gap]) -> list[Gap]:
    """The gaps to send away, of those in `away`; each is marked as relieved in `pressure`."""
    trace, ops = problem.trace, len(problem.trace.ops)
    opening: list[list[tuple[int, Gap]]] = [[] for _ in range(ops + 1)]
    whole = {short: gap for gap, short in away.items()}
    for gap in whole:
        opens = gap.start + 1
        if gap.stop is None:
            opening[opens].append((2 * ops, gap))
        elif gap.wraps:
            opening[0].append((gap.stop, gap))  # away since the step before
            opening[opens].append((ops + gap.stop, gap))
        else:
            opening[opens].append((gap.stop, gap))
    idle: list[tuple[int, int, int, Gap]] = []  # latest next use first, then largest
    chosen: dict[Gap, None] = {}  # in the order in which they were chosen
    for op in range(ops):
        for next_use, gap in opening[op]:
            nbytes = trace.values[gap.value].nbytes
            heappush(idle, (-next_use, -nbytes, gap.value, gap))
        while pressure.over(op) > 0 and idle and -idle[0][0] > op:
            gap = heappop(idle)[3]
            if gap not in chosen:
                chosen[gap] = None
                pressure.relieve(gap, trace.values[gap.value].nbytes)
    return [whole[gap] for gap in chosen]
