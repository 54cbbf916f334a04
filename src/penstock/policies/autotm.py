"""autotm: an integer programme says for each tensor and op whether it is in fast or in slow memory.

Idea      Two memories, DRAM and a larger and slower one that ops can use directly. Paid are ops that use
          the slow one, and moves: of one version the first move down is a copy, a second one is free. At
          each op, what is in DRAM must fit. Static: one place for life. Synchronous: moves between ops,
          which wait. Asynchronous: a move may run beside one op near a use, and costs by how much it
          outlasts that op.
Assumes   Measured seconds of a step that repeats itself.
Inferred  The paper profiles each kernel for each placement of its tensors. A trace has one time an op,
          so what each tensor adds is summed. A tensor is a storage, with a version for each write in
          place; model state ends the step where it began it. Without direct access (the paper's GPU) an
          op's operands are on the device, and every move down is paid. A plan's copies start when they
          can: those out of a synchronous plan, too, overlap with what follows. Only storages that are
          there while room lacks take part; the solver begins with all of them below.
          Not carried: the choice of convolution kernels, and the repetition with lower limits until an
          offline allocator fits, since a budget has its own place for fragmentation.
Reads     The trace with its seconds; the first tier with direct access, or else the first; the budget.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from penstock.ir.plan import Plan
from penstock.ir.policy import Accounting, Counts, Need, Paper, Problem
from penstock.simulate.least import MOVABLE_FROM
from penstock.solve.milp import Solution
from penstock.solve.placement import decisions, slow_tier
from penstock.solve.pressure import Pressure
from penstock.solve.residence import Moves, Programme, programme

__all__ = ["Autotm"]


@dataclass(frozen=True, slots=True)
class Autotm:
    """The paper's programme, solved by HiGHS."""

    variant: Moves = "synchronous"
    time_limit: float = 30.0  # seconds for the solver
    gap: float = 0.01  # share of the step's time by which the answer may miss the optimum
    window: int = 15  # ops before and after a use beside which an asynchronous move may run
    page: int = 4096  # bytes: sizes are rounded up
    smallest: int = MOVABLE_FROM  # bytes: smaller storages are kept
    accounting: Accounting = "ours"

    paper: ClassVar = Paper(
        "AutoTM: Automatic Tensor Movement in Heterogeneous Memory Systems using Integer Linear "
        "Programming",
        "Hildebrand, Khan, Trika, Lowe-Power, Akella",
        "ASPLOS",
        2020,
        "https://github.com/darchr/AutoTM",
    )
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TIER, Need.SECONDS})
    counts: ClassVar = Counts(slack=False)

    def __call__(self, problem: Problem) -> Plan:
        tier = slow_tier(problem.machine)
        if Pressure(problem).is_relieved or (self.variant == "static" and tier.direct is None):
            return problem.given
        sought, found = self.solve(problem)
        where = {one: sought.stretches(one, found) for one in sought.storages}
        plan = problem.given.plus(decisions(problem, tier, where))
        return replace(plan, cut_short=not found.proven)

    def solve(self, problem: Problem) -> tuple[Programme, Solution]:
        """The programme and its solution, which says what the step costs."""
        if self.variant != "asynchronous":
            sought = self.programme(problem, self.variant)
            return sought, sought.model.solve(self.time_limit, self.gap, sought.lowest)
        # A solution without overlap is one with it, and found much sooner.
        plain = self.programme(problem, "synchronous")
        first = plain.model.solve(self.time_limit / 2, self.gap, plain.lowest)
        sought = self.programme(problem, self.variant)
        start = {**sought.lowest, **{name: first.values[name] for name in plain.lowest}}
        return sought, sought.model.solve(self.time_limit / 2, self.gap, start)

    def programme(self, problem: Problem, moves: Moves) -> Programme:
        return programme(problem, moves, window=self.window, page=self.page, smallest=self.smallest)
