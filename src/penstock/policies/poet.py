"""poet: recomputation and paging in one integer programme.

Idea      Checkmate's programme with two places for a value: S_ram, and S_sd in the tier below. M_out
          copies it down in a stage, M_in back up, and it is there from the next stage on. Minimise
          the energy of all runs and copies under the budget of RAM.
Assumes   One device and one tier; copies run beside compute.
Inferred  A machine here knows seconds, not joules: a run costs its seconds, a copy `power` of its
          own (what moving costs beside computing), and the part of a stage's copies that outlasts
          its compute is a stall and costs in full. The paper takes time as a limit only, charges no
          bytes to a copy back before it has arrived, and lets copies take no time; we charge them
          from their start. A value is copied out and back once a gap, as plans have it. Merged
          nodes and the rounds with the simulator are as in `checkmate`.
Symbols   R, S as in `checkmate`; M_out, M_in: `out`, `back` in solve/stages.py.
Reads     The trace with its seconds, the first tier (past its room, the next), the budget.
"""

import time
from dataclasses import dataclass
from typing import ClassVar

from penstock.ir.machine import Link, Tier
from penstock.ir.plan import Plan
from penstock.ir.policy import Accounting, Counts, Need, Paper, Problem
from penstock.simulate.least import MOVABLE_FROM
from penstock.solve.condense import Condensed, condense
from penstock.solve.pressure import Pressure
from penstock.solve.settle import Answer, settled
from penstock.solve.stages import Graph, Paging, Staged, begun, forced, paged, peak, solve

__all__ = ["Poet"]


@dataclass(frozen=True, slots=True)
class Poet:
    """Rematerialisation and paging, chosen together."""

    power: float = 0.05  # of a copy, over that of computing
    nodes: int = 60
    time_limit: float = 60.0  # seconds
    smallest: int = MOVABLE_FROM  # bytes: smaller values are kept
    accounting: Accounting = "ours"

    paper: ClassVar = Paper(
        "POET: Training Neural Networks on Tiny Devices with Integrated Rematerialization and Paging",
        "Patil, Jain, Dutta, Stoica, Gonzalez",
        "ICML",
        2022,
        "https://arxiv.org/abs/2207.07697",
    )
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TIER, Need.SECONDS})
    counts: ClassVar = Counts(workspace=False, slack=False, state=False)

    def __call__(self, problem: Problem) -> Plan:
        if Pressure(problem).is_relieved:
            return problem.given
        tier = problem.machine.tiers[0]
        condensed = condense(problem, self.nodes, self.smallest)
        graph = condensed.graph
        paging = self.paging(problem, condensed, tier)

        def solved(budget: int, seconds: float) -> Answer:
            deadline = time.monotonic() + seconds
            start = self.start(graph, paging, budget, seconds / 3)
            left = max(1.0, deadline - time.monotonic())
            staged = solve(graph, budget, left, paging=paging, start=start)
            decisions = condensed.decisions(staged, tier)
            return Answer(decisions, peak(graph, staged), not staged.proven)

        dropped = forced(graph, ())
        copied = paged(graph, dropped, paging)
        nothing_held = [condensed.decisions(one, tier) for one in (dropped, copied)]
        return settled(problem, solved, nothing_held, self.time_limit)

    def start(self, graph: Graph, paging: Paging, budget: int, seconds: float) -> Staged | None:
        """Recomputation alone, or copies in its place, whichever costs less."""
        remade = begun(graph, budget, seconds)
        swapped = paged(graph, remade or forced(graph, ()), paging)
        starts = [one for one in (remade, swapped) if one and peak(graph, one) <= budget]
        return min(starts, key=lambda one: one.cost, default=None)

    def paging(self, problem: Problem, condensed: Condensed, tier: Tier) -> Paging:
        trace, starts = problem.trace, condensed.starts

        def seconds(link: Link) -> tuple[float, ...]:
            values = [0] * len(condensed.graph.data)
            for (data, _), gaps in condensed.gaps.items():
                values[data] = len(gaps)  # each copy has the link's latency
            return tuple(
                count * link.latency + data.nbytes / link.bandwidth
                for count, data in zip(values, condensed.graph.data, strict=True)
            )

        ends = (*starts[1:], len(trace.ops))
        out, back = seconds(tier.write), seconds(tier.read)
        return Paging(
            tuple(self.power * one for one in out),
            tuple(self.power * one for one in back),
            out,
            back,
            tuple(
                sum(op.seconds + op.host_seconds for op in trace.ops[start:end])
                for start, end in zip(starts, ends, strict=True)
            ),
        )
