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
from typing import ClassVar, NamedTuple

from penstock.ir.plan import Plan, Recompute
from penstock.ir.policy import Need, Paper, Problem
from penstock.ir.trace import Gap, OpIndex, Trace
from penstock.simulate.least import MOVABLE_FROM
from penstock.solve.best import best
from penstock.solve.segments import crossings, remakeable

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
        trace = problem.trace
        saved = [
            gap
            for gap in problem.free_saved_gaps(self.smallest)
            if remakeable(trace, gap, problem.given)
        ]
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


class Split(NamedTuple):
    """A segmentation: the values it drops, x and y."""

    decisions: list[Recompute]
    kept: int
    largest: int


def split(trace: Trace, saved: list[Gap], cuts: dict[OpIndex, set[int]], threshold: int) -> Split:
    """End a segment at the first cut after more than `threshold` bytes (the paper's B)."""
    decisions: list[Recompute] = []
    segment: list[Gap] = []
    kept = largest = local = 0

    def close() -> None:
        if segment:
            begin = min(gap.stop for gap in segment if gap.stop is not None)
            decisions.extend(Recompute(gap, begin) for gap in segment)
            segment.clear()

    by_producer: dict[int, list[Gap]] = {}
    for gap in saved:
        by_producer.setdefault(trace.values[gap.value].producer or 0, []).append(gap)
    for op in sorted({*by_producer, *cuts}):
        for gap in by_producer.get(op, ()):
            segment.append(gap)
            local += trace.values[gap.value].nbytes
        if op in cuts and local > threshold:
            crossing = cuts[OpIndex(op)]
            ends = [gap for gap in segment if gap.value in crossing]
            segment[:] = [gap for gap in segment if gap.value not in crossing]
            kept += sum(trace.values[gap.value].nbytes for gap in ends)
            largest, local = max(largest, local), 0
            close()
    # The last segment is needed as soon as backward begins: remaking it would save nothing.
    return Split(decisions, kept, max(largest, local))
