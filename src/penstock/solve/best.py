"""Which of several plans is best, by simulation."""

from collections.abc import Iterable
from typing import NamedTuple

from penstock.ir.plan import Plan, check
from penstock.ir.policy import Problem
from penstock.ir.schedule import Schedule
from penstock.ir.timeline import Timeline
from penstock.simulate.lower import lower
from penstock.simulate.run import price
from penstock.simulate.shelves import Shelves

__all__ = ["Outcome", "best", "outcome"]


class Outcome(NamedTuple):
    """A plan, spelled out and priced."""

    plan: Plan
    schedule: Schedule
    timeline: Timeline
    shortfall: int  # bytes by which it misses the budget; 0 if it fits
    overfull: int = 0  # bytes more than the tiers below can hold

    @property
    def missing(self) -> int:
        """Bytes that are lacking on the device or below; 0 if the plan fits."""
        return self.shortfall + self.overfull

    @property
    def rank(self) -> tuple[int, float, int]:
        """Smaller is better: what fits, then what is fast, then what moves little."""
        return self.missing, self.timeline.seconds, sum(self.timeline.traffic.values())


def outcome(problem: Problem, plan: Plan) -> Outcome:
    """Check, lower and price a plan. Raises `PlanError` if it does not fit the trace."""
    check(problem.trace, plan, problem.machine)
    # The allocator's slack is in the budget, and no plan can move it.
    schedule = lower(problem.trace, plan, problem.budget - problem.trace.slack)
    shelves = Shelves(problem.trace, problem.machine, plan)
    overfull = sum(
        max(0, shelves.peak(tier.name) - tier.capacity) for tier in problem.machine.tiers
    )
    return Outcome(plan, schedule, price(schedule, problem.machine), schedule.shortfall, overfull)


def best(problem: Problem, plans: Iterable[Plan]) -> Outcome:
    """The best of `plans`, of which there must be at least one."""
    return min((outcome(problem, plan) for plan in plans), key=lambda found: found.rank)
