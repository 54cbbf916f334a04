"""checkmate: the cheapest recomputation that fits, by an integer programme over stages.

Idea      Stage t runs node t for the first time. R[t, k]: node k runs again in stage t; S[t, v]: v is
          held when stage t begins. Minimise the seconds of all R under the budget, with U, the bytes
          after each run, written out (solve/stages.py). With `rounding`, the relaxation is solved for
          (1 - eps) of the budget, S is 1 where it exceeds the threshold, R follows from S; if that
          does not fit, the cheapest of the thresholds 0.1, ..., 0.9 that does.
Assumes   One device, a fixed order, no swapping; forward may run again (random draws are replayed).
Inferred  Steps have thousands of ops, so neighbours are merged to `nodes` (solve/condense.py); what a
          node needs is an upper bound, so the simulator says what a solution really takes, and the
          programme is solved again for the difference. It begins with a rounded relaxation, bettered
          by changing one stay at a time. A value that is dropped goes after its last
          use and comes back once a gap, because that is what a plan can say: of the paper's
          schedules, those that hold a value for a part of a gap are left out. Gradients never run
          again. Not carried: the quadratic programme for the largest batch; `penstock largest` asks.
Symbols   As above; eps: `margin`.
Reads     The trace with its seconds, the budget.
"""

import time
from dataclasses import dataclass
from typing import ClassVar

from penstock.ir.plan import Plan
from penstock.ir.policy import Accounting, Counts, Need, Paper, Problem
from penstock.simulate.least import MOVABLE_FROM
from penstock.solve.condense import condense
from penstock.solve.pressure import Pressure
from penstock.solve.settle import Answer, settled
from penstock.solve.stages import Graph, Staged, begun, forced, peak, rounded, solve

__all__ = ["Checkmate"]


@dataclass(frozen=True, slots=True)
class Checkmate:
    """The integer programme, or its relaxation rounded in two phases."""

    rounding: float | None = None  # threshold from 0 to 1; none: the integer programme
    margin: float = 0.1  # share of the budget that the relaxation leaves free
    nodes: int | None = None  # none: 120, or 160 for the relaxation
    time_limit: float = 60.0  # seconds
    smallest: int = MOVABLE_FROM  # bytes: smaller values are kept
    accounting: Accounting = "ours"

    paper: ClassVar = Paper(
        "Checkmate: Breaking the Memory Wall with Optimal Tensor Rematerialization",
        "Jain, Jain, Nrusimha, Gholami, Abbeel, Keutzer, Stoica, Gonzalez",
        "MLSys",
        2020,
        "https://arxiv.org/abs/1910.02653",
    )
    needs: ClassVar[frozenset[Need]] = frozenset({Need.SECONDS})
    counts: ClassVar = Counts(workspace=False, slack=False)

    def __call__(self, problem: Problem) -> Plan:
        if Pressure(problem).is_relieved:
            return problem.given
        nodes = self.nodes or (120 if self.rounding is None else 160)
        condensed = condense(problem, nodes, self.smallest)

        def solved(budget: int, seconds: float) -> Answer:
            staged = self.solve(condensed.graph, budget, seconds)
            is_cut_short = self.rounding is None and not staged.proven
            return Answer(condensed.decisions(staged), peak(condensed.graph, staged), is_cut_short)

        nothing_held = condensed.decisions(forced(condensed.graph, ()))
        return settled(problem, solved, [nothing_held], self.time_limit)

    def solve(self, graph: Graph, budget: int, seconds: float) -> Staged:
        """What the paper solves, for a graph: exactly, or by rounding. Raises `SolveError`."""
        if self.rounding is not None:
            return rounded(graph, budget, seconds, threshold=self.rounding, margin=self.margin)
        deadline = time.monotonic() + seconds
        start = begun(graph, budget, seconds / 2)
        return solve(graph, budget, max(1.0, deadline - time.monotonic()), start=start)
