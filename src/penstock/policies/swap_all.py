"""swap-all: every value that autograd saved goes below the device and comes back just in time.

Idea      The simplest use of a tier: nothing that waits for backward waits on the device.
Assumes   Nothing; what the link cannot hide, the step waits for.
Reads     The trace's seconds and the tiers (the first as long as it has room); not the budget.
"""

from dataclasses import dataclass
from typing import ClassVar

from penstock.ir.plan import Plan
from penstock.ir.policy import Need, Problem
from penstock.solve.tiers import sent_below

__all__ = ["SwapAll"]


@dataclass(frozen=True, slots=True)
class SwapAll:
    """Swap every saved value of at least `smallest` bytes."""

    smallest: int = 1 << 20

    paper: ClassVar[None] = None
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TIER})

    def __call__(self, problem: Problem) -> Plan:
        gaps = problem.free_saved_gaps(self.smallest)
        return problem.given.plus(sent_below(problem, gaps))
