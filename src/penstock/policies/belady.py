"""belady: where room lacks, send away what is needed again last. Model state too.

Idea      The optimal replacement rule, for a programme that is known beforehand: walk the step, and
          wherever more is live than fits, evict the value whose next use is farthest in the future.
Assumes   A step that repeats itself: the next use of model state may lie in the next step.
Inferred  The rule's pages are of one size and come back at once; ours are not and do not. So a value
          leaves as soon as it is idle and comes back as late as the link allows, and the walk is
          repeated while copies back or remakes need room that it did not foresee. What the first tier
          cannot hold goes to the next.
Reads     The trace with its seconds, the tiers, the budget, what is given.
"""

from dataclasses import dataclass
from typing import ClassVar

from penstock.ir.plan import Plan
from penstock.ir.policy import Need, Paper, Problem
from penstock.simulate.least import MOVABLE_FROM
from penstock.solve.farthest import farthest_first

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
        return farthest_first(problem, self.smallest, self.rounds)
