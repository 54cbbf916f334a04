"""tmof: send away what is not used for longest; copies out and copies back share the duplex link.

Idea      Evict the values with the largest reuse distance until the step fits. Pair copies: while one
          value goes out another comes in, since the link carries both at once.
Assumes   Steps alike; model state stays; pinned host memory behind a link of two lanes.
Inferred  Only the abstract was at hand. Reuse distance is counted in seconds. On one device pairing
          means that copies back begin as early as room allows, while others still leave (`paired`),
          or as late as they may (`late`); the faster of the two by simulation is taken (`best`), as the
          paper takes the faster of its mechanisms.
Not here  Several devices behind one link, and so disjoint sets of values and the token between devices:
          on one device its lanes are first come first served already. Nor the integer programme of the
          off-line form, whose variables are not known.
Reads     The trace with its seconds, the tiers (the first as long as it has room), the budget.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from penstock.ir.plan import Plan, Swap
from penstock.ir.policy import Need, Paper, Problem
from penstock.ir.trace import Gap
from penstock.simulate.least import MOVABLE_FROM
from penstock.solve.best import best
from penstock.solve.pressure import Pressure
from penstock.solve.swaps import as_room_allows, just_in_time, op_starts
from penstock.solve.tiers import spread

__all__ = ["Tmof"]


@dataclass(frozen=True, slots=True)
class Tmof:
    """Largest reuse distance first."""

    order: Literal["best", "paired", "late"] = "best"  # when copies back begin
    smallest: int = MOVABLE_FROM  # bytes: smaller values are kept

    paper: ClassVar = Paper(
        "Tensor Movement Orchestration in Multi-GPU Training Systems",
        "Lin, Chen, Cheng, Yang",
        "HPCA",
        2023,
        "https://doi.org/10.1109/HPCA56546.2023.10071043",
    )
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TIER, Need.SECONDS})

    def __call__(self, problem: Problem) -> Plan:
        gaps = self.choose(problem)
        orders = ("paired", "late") if self.order == "best" else (self.order,)
        plans = (problem.given.plus(timed(problem, gaps, order)) for order in orders)
        return best(problem, plans).plan

    def choose(self, problem: Problem) -> list[Gap]:
        """The gaps to send away, longest first: those that help where room lacks."""
        trace, pressure = problem.trace, Pressure(problem)
        starts = op_starts(trace)

        def distance(gap: Gap) -> float:
            return starts[-1 if gap.stop is None else gap.stop] - starts[gap.start + 1]

        found: list[Gap] = []
        free = (gap for gap in problem.free_gaps(self.smallest) if not gap.wraps)
        for gap in sorted(free, key=distance, reverse=True):
            if pressure.is_relieved:
                break
            if not trace.values[gap.value].kind.is_state and pressure.touches(gap):
                pressure.relieve(gap, trace.values[gap.value].nbytes)
                found.append(gap)
        return found


def timed(problem: Problem, gaps: list[Gap], order: str) -> Iterator[Swap]:
    """Swaps of `gaps` that leave at once and come back early (`paired`) or late."""
    trace, pressure = problem.trace, Pressure(problem)
    for gap in gaps:
        pressure.relieve(gap, trace.values[gap.value].nbytes)
    for tier, there in spread(problem, gaps):
        if order == "paired":
            yield from as_room_allows(trace, tier, there, pressure)
        else:
            yield from just_in_time(trace, tier, there, pressure=pressure)
