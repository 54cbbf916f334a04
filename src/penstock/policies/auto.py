"""auto: ask several policies, complete what does not fit, and take the best answer.

Idea      No method wins everywhere. Planning costs seconds, simulating milliseconds, a bad plan
          costs every step: so try all that plan quickly. A plan that moves too little (most policies
          never touch model state) is a good beginning: `belady` sends away what is still lacking.
Assumes   That the simulator tells the truth.
Reads     Everything, through the policies that it asks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from penstock.errors import NeedError, PlanError
from penstock.ir.plan import Plan
from penstock.ir.policy import Need, Policy, Problem
from penstock.policies import ask, configured, quick
from penstock.solve.best import Outcome

__all__ = ["Auto"]


@dataclass(frozen=True, slots=True)
class Auto:
    """The best plan by simulation: one that fits, then the fastest."""

    # Few: a step is planned again while it runs, as long as its times are being learnt.
    among: str = "belady capuchin chen keep swap-all"  # whom to ask; `all`: who needs no time limit

    paper: ClassVar[None] = None
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __call__(self, problem: Problem) -> Plan:
        return min(self.answers(problem), key=lambda found: found.rank).plan

    def asked(self) -> list[str]:
        if self.among != "all":
            return self.among.split()
        return [name for name in quick() if name != "auto"]

    def answers(self, problem: Problem) -> Iterator[Outcome]:
        for name in self.asked():
            found = _answer(configured(name), problem)
            if found is not None and found.shortfall and found.plan.decisions:
                yield found
                found = _answer(configured("belady"), replace(problem, given=found.plan))
            if found is not None:
                yield found


def _answer(policy: Policy, problem: Problem) -> Outcome | None:
    """What `policy` makes of `problem`; None if it cannot."""
    try:
        return ask(policy, problem)
    except (NeedError, PlanError):
        return None
