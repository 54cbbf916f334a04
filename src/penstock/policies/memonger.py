"""memonger: the released search for the threshold of Chen et al.'s segments.

Idea      Segments end where more than a threshold of bytes has gathered. Try none; then, twice, the
          root of half of kept times largest, in whole MiB, by the figures of the try before; then a
          grid from the smallest segment seen up to sqrt(2) times the last guess.
Assumes   One device; forward ops may run twice (random draws are replayed).
Inferred  The user's marks (`mirror_stage`): a segment may end where at most `widths` values cross, and
          those of one cut are kept together, as values with one label are. Bytes are those of saved
          values: what backward does not read dies in PyTorch, while MXNet kept it. The release takes
          the least memory, found by a real allocation: `goal=memory` takes the least simulated peak,
          the default whatever fits the budget at the least cost.
Symbols   save: bytes kept; max: bytes of the largest segment that a cut ends.
Reads     The trace, and for the default goal the budget.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import isqrt, sqrt
from typing import ClassVar, Literal

from penstock.ir.plan import Plan
from penstock.ir.policy import Accounting, Counts, Need, Paper, Problem
from penstock.simulate.least import MOVABLE_FROM
from penstock.solve.best import best, outcome
from penstock.solve.remakes import alone
from penstock.solve.segments import Split, crossings, split

__all__ = ["Memonger"]


@dataclass(frozen=True, slots=True)
class Memonger:
    """Memory Monger's search over the threshold."""

    goal: Literal["budget", "memory"] = "budget"
    guesses: int = 3  # the first is none
    tries: int = 6  # thresholds on the grid
    unit: int = 2**20  # bytes: thresholds are whole multiples
    widths: int = 3  # values that may cross where a segment ends
    smallest: int = MOVABLE_FROM  # bytes: smaller values are kept
    accounting: Accounting = "ours"

    paper: ClassVar = Paper(
        "Training Deep Nets with Sublinear Memory Cost (MXNet Memory Monger)",
        "Chen, Xu, Zhang, Guestrin",
        "arXiv",
        2016,
        "https://github.com/dmlc/mxnet-memonger",
    )
    needs: ClassVar[frozenset[Need]] = frozenset()
    counts: ClassVar[Counts] = Counts(workspace=False, slack=False, state=False)

    def __call__(self, problem: Problem) -> Plan:
        plans = [problem.given, *self.candidates(problem)]
        if self.goal == "budget":
            return best(problem, plans).plan
        return min(plans, key=lambda plan: outcome(problem, plan).timeline.peak)

    def candidates(self, problem: Problem) -> Iterator[Plan]:
        trace, saved = problem.trace, alone(problem, problem.free_saved_gaps(self.smallest))
        for width in range(1, self.widths + 1) if saved else ():
            cuts = crossings(trace, width, self.smallest)
            if cuts:
                for _, found in self.search(partial(split, trace, saved, cuts)):
                    yield problem.given.plus(found.decisions)

    def search(self, cut: Callable[[int], Split]) -> Iterator[tuple[int, Split]]:
        """The thresholds in the order in which the release tries them, and what each gives."""
        threshold, least = 0, None
        for _ in range(self.guesses):
            found = cut(threshold * self.unit)
            yield threshold, found
            save, largest = found.kept // self.unit, found.closed // self.unit
            least = largest if least is None else min(least, largest)
            threshold = isqrt(save * largest // 2)
        begin = least or 0
        step = int((threshold * sqrt(2) - begin) / max(1, self.tries))
        if step > 0:
            for number in range(1, self.tries + 1):
                yield begin + number * step, cut((begin + number * step) * self.unit)
