"""auto: ask every other policy, and take the best answer for this step and budget.

Idea      No method wins everywhere. Planning costs seconds, simulating milliseconds, a bad plan
          costs every step: so try them all.
Assumes   That the simulator tells the truth.
Reads     Everything, through the policies that it asks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from penstock.errors import NeedError, PlanError
from penstock.ir.plan import Plan
from penstock.ir.policy import Need, Problem
from penstock.policies import load, names, require
from penstock.solve.best import best

__all__ = ["Auto"]


@dataclass(frozen=True, slots=True)
class Auto:
    """The best plan by simulation: one that fits, then the fastest."""

    paper: ClassVar[None] = None
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __call__(self, problem: Problem) -> Plan:
        return best(problem, self.answers(problem)).plan

    def answers(self, problem: Problem) -> Iterator[Plan]:
        for name in names():
            if name == "auto":
                continue
            policy = load(name)()
            try:
                require(policy, problem)
                yield policy(problem)
            except (NeedError, PlanError):
                continue
