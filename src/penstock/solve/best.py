"""Which of several plans is best, by simulation."""

from collections import Counter
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
    timeline = price(schedule, problem.machine)
    return Outcome(plan, schedule, timeline, schedule.shortfall, _overfull(problem, plan))


def _overfull(problem: Problem, plan: Plan) -> int:
    """Bytes that the tiers lack where most lie in each."""
    trace, machine = problem.trace, problem.machine
    sent = Counter[str]()
    for swap in plan.swaps:
        sent[swap.tier] += trace.values[swap.gap.value].nbytes
    if all(sent[tier.name] <= tier.capacity for tier in machine.tiers):
        return 0  # even if all of it lay there at once: searches ask thousands of times
    shelves = Shelves(trace, machine, plan)
    return sum(max(0, shelves.peak(tier.name) - tier.capacity) for tier in machine.tiers)


def best(problem: Problem, plans: Iterable[Plan]) -> Outcome:
    """The best of `plans`, of which there must be at least one."""
    return min((outcome(problem, plan) for plan in plans), key=lambda found: found.rank)
