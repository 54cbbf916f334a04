"""chen: keep the ends of segments, remake what lies between them.

Idea      Cut the forward pass into segments. Keep what crosses a cut; drop every other saved value
          and remake a segment's values in one pass when its backward begins.
Assumes   One device; forward ops may run twice (random draws are replayed).
Inferred  A cut may be made where at most `width` forward values of this step cross; what crosses is
          kept. Where the paper takes the threshold with the least memory, we take one that fits the
          budget at the least cost, and the least memory only if none fits. Widths above 1 (skip
          connections) are tried too: the paper speaks of articulation points only.
Symbols   B: bytes after which a segment may end; x: bytes kept; y: bytes of the largest segment.
Reads     The trace and the budget.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

from penstock.ir.plan import Plan
from penstock.ir.policy import Need, Paper, Problem
from penstock.simulate.least import MOVABLE_FROM
from penstock.solve.best import best
from penstock.solve.remakes import alone
from penstock.solve.segments import crossings, split

__all__ = ["Chen"]


@dataclass(frozen=True, slots=True)
class Chen:
    """Sublinear-memory segments, with the paper's search over the threshold."""

    tries: int = 6  # thresholds on the grid around the first guess
    low: float = 1 / sqrt(2)  # ends of the grid, times the first guess
    high: float = sqrt(2)
    widths: int = 3
    smallest: int = MOVABLE_FROM  # bytes: smaller values are kept

    paper: ClassVar = Paper(
        "Training Deep Nets with Sublinear Memory Cost",
        "Chen, Xu, Zhang, Guestrin",
        "arXiv",
        2016,
        "https://arxiv.org/abs/1604.06174",
    )
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __call__(self, problem: Problem) -> Plan:
        return best(problem, self.candidates(problem)).plan

    def candidates(self, problem: Problem) -> Iterator[Plan]:
        trace, saved = problem.trace, alone(problem, problem.free_saved_gaps(self.smallest))
        yield problem.given
        for width in range(1, self.widths + 1):
            cuts = crossings(trace, width, self.smallest)
            if not cuts or not saved:
                continue
            first = split(trace, saved, cuts, 0)
            guess = sqrt(first.kept * first.largest)
            for step in range(self.tries):
                share = step / max(1, self.tries - 1)
                threshold = int(guess * (self.low + share * (self.high - self.low)))
                yield problem.given.plus(split(trace, saved, cuts, threshold).decisions)
