"""rotor: the best persistent checkpointing of a chain of unequal blocks, by dynamic programming.

Idea      A chain of blocks, each with its seconds and bytes. opt(m, a, b), the least time of forward
          and backward of blocks a to b in m bytes, is the better of two: keep only the input of a
          later block and run the blocks before it again (A), or save a block's values now (B). See
          solve/chain.py, solve/blocks.py.
Assumes   A chain; one device, no swapping; forward may run again (random draws are replayed).
Inferred  A block ends where at most `width` forward values cross; widths 1 to `widths` are tried, as
          in `chen`, once with the cuts where backward reads all that crosses and once with all. What
          crosses is the next block's input. Too many
          blocks are thinned to `blocks` of about equal bytes. One option a block: save what autograd
          saved. What is held beside the chain (gradients grow as backward goes) is charged to each
          block's backward and to the passes before it. Bytes are counted in `units` parts of the
          budget, and are rough: of the programme's schedules for all budgets, the fastest that fits
          when it is simulated is taken. If none does, it plans for less room, up to `again` times.
Symbols   cw: `input`; cbw: `saved`; fwd_tmp, bwd_tmp, ff_tmp: `*_scratch`; ff_fw: `passing`.
Reads     The trace with its seconds, the budget.
"""

import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from penstock.ir.plan import Plan
from penstock.ir.policy import Accounting, Counts, Need, Paper, Problem
from penstock.ir.trace import Gap, OpIndex, ValueId
from penstock.simulate.least import MOVABLE_FROM
from penstock.solve.best import best
from penstock.solve.blocks import Blocks, Cut
from penstock.solve.pressure import Pressure
from penstock.solve.remakes import alone
from penstock.solve.segments import crossings

__all__ = ["Rotor"]


@dataclass(frozen=True, slots=True)
class Rotor:
    """Optimal persistent schedules for chains."""

    units: int = 300  # parts into which the budget's bytes are counted
    blocks: int = 60
    widths: int = 3
    again: int = 3  # times to plan for less room, if what was found does not fit
    time_limit: float = 60.0  # seconds
    smallest: int = MOVABLE_FROM  # bytes: smaller values are kept
    accounting: Accounting = "ours"

    paper: ClassVar = Paper(
        "Optimal Re-Materialization Strategies for Heterogeneous Chains",
        "Beaumont, Eyraud-Dubois, Herrmann, Joly, Shilova",
        "ACM Transactions on Mathematical Software",
        2024,
        "https://inria.hal.science/hal-02352969",
    )
    needs: ClassVar[frozenset[Need]] = frozenset({Need.SECONDS})
    counts: ClassVar = Counts(workspace=True, slack=False, state=False)

    def __call__(self, problem: Problem) -> Plan:
        if Pressure(problem).is_relieved:
            return problem.given
        deadline = time.monotonic() + self.time_limit
        found = best(problem, self.candidates(problem, deadline))
        room = problem.budget
        for _ in range(self.again):
            room -= found.shortfall
            if not found.shortfall or room <= 0:
                break
            tighter = self.candidates(replace(problem, budget=room), deadline)
            found = best(problem, [found.plan, *tighter])
        cut_short = found.plan.cut_short or time.monotonic() > deadline
        return replace(found.plan, cut_short=cut_short)

    def candidates(self, problem: Problem, deadline: float) -> Iterator[Plan]:
        yield problem.given
        gaps = alone(problem, problem.free_saved_gaps(self.smallest))
        for width in range(1, self.widths + 1):
            all_cuts = crossings(problem.trace, width, self.smallest)
            kept = {gap.value for gap in gaps}
            strict = {op: values for op, values in all_cuts.items() if values <= kept}
            for found in (strict, all_cuts) if len(strict) < len(all_cuts) else (strict,):
                if time.monotonic() > deadline:
                    return
                if cuts := self.chosen(problem, gaps, found):
                    blocks = Blocks(problem, gaps, cuts, self.units)
                    yield blocks.plan(self.time_limit / self.widths / 2)

    def chosen(
        self, problem: Problem, gaps: list[Gap], found: Mapping[OpIndex, Collection[int]]
    ) -> list[Cut]:
        """The ops after which blocks end, with those values that cross there and are to be kept."""
        trace = problem.trace
        kept = {gap.value for gap in gaps}
        cuts = [(op, {v for v in kept if v in values}) for op, values in found.items()]
        made = np.zeros(len(trace.ops))
        for gap in gaps:
            made[trace.values[gap.value].producer or 0] += trace.values[gap.value].nbytes
        total = np.cumsum(made)
        # One cut of each run of cuts with nothing saved in between; then thinned to equal bytes.
        at = {float(total[op]): (op, values) for op, values in reversed(cuts) if total[op]}
        at.pop(float(total[-1]) if len(total) else 0.0, None)
        if len(at) < self.blocks:
            return [at[bytes_before] for bytes_before in sorted(at)]
        thinned: dict[OpIndex, set[ValueId]] = {}
        for share in range(1, self.blocks):
            wanted = total[-1] * share / self.blocks
            op, values = at[min(at, key=lambda bytes_before: abs(bytes_before - wanted))]
            thinned[op] = values
        return [(op, thinned[op]) for op in sorted(thinned)]
