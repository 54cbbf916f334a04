"""From a choice of swaps and recomputations to the best plan for it, on the simulated timeline."""

from collections.abc import Sequence
from dataclasses import replace

from penstock.ir.plan import Decision, Swap
from penstock.ir.policy import Problem
from penstock.ir.trace import Gap, OpIndex
from penstock.solve.best import Outcome, best, outcome
from penstock.solve.pressure import Pressure
from penstock.solve.remakes import collective, remade_at_need
from penstock.solve.swaps import before, late_gaps, op_starts
from penstock.solve.tiers import sent_below

__all__ = ["hasten", "settle", "turn"]


def settle(
    problem: Problem,
    swaps: Sequence[Gap],
    targets: Sequence[Gap],
    *,
    joined: bool = True,
    fenced: bool = False,
) -> Outcome:
    """The plan for a choice: triggers set, and passes joined if that is better (and wanted).

    What cannot be remade, because the swaps took what it starts from, is swapped too. `fenced`: the op
    after a copy out waits for it.
    """
    trace = problem.trace
    pressure = Pressure(problem)
    for gap in (*swaps, *targets):
        pressure.relieve(gap, trace.values[gap.value].nbytes)
    timed = sent_below(problem, swaps, pressure=pressure)
    if fenced:
        timed = [_fenced(swap, len(trace.ops)) for swap in timed]
    alone, lost = remade_at_need(problem.given.plus(timed), trace, list(targets))
    if lost:
        left = [one.gap for one in alone]
        return settle(problem, [*swaps, *lost], left, joined=joined, fenced=fenced)
    plans = [problem.given.plus([*timed, *alone])]
    if joined and (together := collective(problem.given.plus(timed), trace, alone)):
        plans.append(problem.given.plus([*timed, *together]))
    return best(problem, plans)


def _fenced(swap: Swap, ops: int) -> Swap:
    waits = max(swap.evict_at, swap.gap.start + 1)
    return replace(swap, fence=OpIndex(waits)) if waits < ops else swap


def hasten(problem: Problem, found: Outcome, *, rounds: int, share: float) -> Outcome:
    """While values are late and it helps, their copies back start earlier by a share of their time."""
    trace = problem.trace
    starts = op_starts(trace)
    for _ in range(rounds):
        late = late_gaps(found) - {swap.gap for swap in problem.given.swaps}
        if not late:
            break
        moved: list[Decision] = []
        for decision in found.plan.decisions:
            if isinstance(decision, Swap) and decision.gap in late:
                link = problem.machine.tier(decision.tier).read
                step = share * link.seconds(trace.values[decision.gap.value].nbytes)
                moved.append(before(decision, starts, step))
            else:
                moved.append(decision)
        again = outcome(problem, replace(found.plan, decisions=tuple(moved)))
        if again.rank >= found.rank:
            break
        found = again
    return found


def turn(
    problem: Problem,
    swaps: Sequence[Gap],
    targets: Sequence[Gap],
    found: Outcome,
    *,
    order: Sequence[Gap],
    rounds: int,
    joined: bool = True,
    fenced: bool = False,
) -> Outcome:
    """Turn the first so many swaps of `order` into recomputations: as many as serve best."""
    step, best_count = len(order), 0
    for _ in range(rounds):
        step = (step + 1) // 2
        for count in (best_count - step, best_count + step):
            if 0 < count <= len(order):
                turned = set(order[:count])
                kept = [gap for gap in swaps if gap not in turned]
                remade = [*targets, *order[:count]]
                again = settle(problem, kept, remade, joined=joined, fenced=fenced)
                if again.rank < found.rank:
                    found, best_count = again, count
        if step <= 1:
            break
    return found
