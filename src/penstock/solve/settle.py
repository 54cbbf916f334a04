"""From a solver that knows bytes only roughly to a plan that the simulator agrees with."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from penstock.errors import SolveError
from penstock.ir.plan import Decision, Plan, Recompute, Swap
from penstock.ir.policy import Problem
from penstock.solve.best import outcome
from penstock.solve.remakes import possible
from penstock.solve.tiers import shelved

__all__ = ["Answer", "settled", "together"]

_ROUNDS = 8
"""How often the solver is asked, at most."""


class Answer(NamedTuple):
    """What a solver decided."""

    decisions: Sequence[Decision]
    needs: int  # bytes, as the solver believes
    cut_short: bool  # its time ended before it had proven that nothing is better


def settled(
    problem: Problem,
    solve: Callable[[int, float], Answer],
    smallest: Iterable[Sequence[Decision]],
    time_limit: float,
) -> Plan:
    """The best plan of several calls of `solve(bytes, seconds)`, which may raise `SolveError`.

    What an answer really needs is simulated, and the next call is asked for as many bytes more or less
    as the solver was wrong. `smallest`: what the method decides where nothing else fits. With these as
    the first answers there is always one.
    """
    deadline = time.monotonic() + time_limit
    budget = problem.budget - problem.trace.slack
    found = outcome(problem, problem.given)

    def tried(decisions: Sequence[Decision]) -> int:
        """Bytes that the decisions need."""
        nonlocal found
        again = outcome(problem, problem.given.plus(together(problem, decisions)))
        found = min(found, again, key=lambda one: one.rank)
        return int(max(again.schedule.need))

    for decisions in smallest:
        tried(decisions)
    target, asked, is_cut_short = budget, set[int](), False
    failed = 0  # the most bytes that gave no answer
    solved = max(budget, problem.trace.peak)  # the least that did, or must
    step = max(1, (solved - budget) // 10)
    for _ in range(_ROUNDS):
        left = deadline - time.monotonic()
        is_cut_short |= left <= 0
        if left <= 0 or target in asked:
            break
        asked.add(target)
        try:
            answer = solve(target, left if len(asked) > 1 else 0.7 * left)
        except SolveError:  # none with so few bytes, or none in time
            failed = max(failed, target)
            target = target + step if target + step < solved else (target + solved + 1) // 2
            step *= 2
            continue
        solved = min(solved, target)
        is_cut_short |= answer.cut_short
        need = tried(answer.decisions)
        wanted = budget + answer.needs - need
        if need <= budget and wanted <= target + budget // 100:
            break
        if need > budget:
            wanted = min(wanted, target + budget - need)
        # Where the last answer lacks bytes and fewer give none, the truth lies between.
        target = wanted if wanted > failed else (target + failed) // 2
    return replace(found.plan, cut_short=is_cut_short)


def together(problem: Problem, decisions: Sequence[Decision]) -> list[Decision]:
    """`decisions` as one plan has them: without recomputations whose lineage would be gone."""
    swaps = shelved(problem, (one for one in decisions if isinstance(one, Swap)))
    remakes = [one for one in decisions if isinstance(one, Recompute)]
    return [*swaps, *possible(problem.given.plus(swaps), problem.trace, remakes)]
