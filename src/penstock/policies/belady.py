"""belady: where room lacks, send away what is needed again last. Model state too.

Idea      The optimal replacement rule, for a programme that is known beforehand: walk the step, and
          wherever more is live than fits, evict the value whose next use is farthest in the future.
Assumes   A step that repeats itself: the next use of model state may lie in the next step.
Inferred  The rule's pages are of one size and come back at once; ours are not and do not. So a value
          leaves as soon as it is idle and comes back as late as the link allows, and the walk is
          repeated while copies back or remakes need room that it did not foresee.
Reads     The trace with its seconds, the first tier, the budget, what is given.
"""

from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import ClassVar

from penstock.ir.plan import Plan
from penstock.ir.policy import Need, Paper, Problem
from penstock.ir.trace import Gap
from penstock.simulate.least import MOVABLE_FROM
from penstock.solve.pressure import Pressure
from penstock.solve.swaps import just_in_time

__all__ = ["Belady"]


@dataclass(frozen=True, slots=True)
class Belady:
    """Farthest next use first, over activations and model state alike."""

    smallest: int = MOVABLE_FROM  # bytes: smaller values are kept
    rounds: int = 8  # walks

    paper: ClassVar = Paper(
        "A study of replacement algorithms for a virtual-storage computer",
        "Belady",
        "IBM Systems Journal",
        1966,
        "https://doi.org/10.1147/sj.52.0078",
    )
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TIER})

    def __call__(self, problem: Problem) -> Plan:
        plan = problem.given
        for _ in range(self.rounds):
            now = replace(problem, given=plan)
            pressure = Pressure(now)
            if not (victims := self.walk(now, pressure)):
                break
            tier = problem.machine.tiers[0]
            plan = plan.plus(just_in_time(problem.trace, tier, victims, pressure=pressure))
        return plan

    def walk(self, problem: Problem, pressure: Pressure) -> list[Gap]:
        """The gaps to send away, each marked as relieved in `pressure`."""
        trace, ops = problem.trace, len(problem.trace.ops)
        opening: list[list[tuple[int, Gap]]] = [[] for _ in range(ops + 1)]
        for gap in problem.free_gaps(self.smallest):
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
        return list(chosen)
