"""meng: swap what is farthest from the loss, and bring it back as late as the graph's clock allows.

Idea      Walk forward from its end. Values near the loss wait shortest: keep them while they fit, and
          swap those with the longest path to the loss. A value comes back after the latest op that
          ends so early that the copy is over when the value is needed.
Assumes   One device, one tier; ops' times are known; weights stay; copies do not queue.
Inferred  A value leaves as soon as it is made (the source's identity op on the host), and is free when
          its last forward reader has run too. All its backward readers share one copy back. The
          bytes that may be kept are not a number: as much is swapped as the simulated step needs to
          fit. Times are those of the longest path through the graph, as in the paper, so that ops of
          other branches count as running beside it. The attention rewrite is for sums that
          broadcast an activation, and what is made of them at once by tanh; it is made only if the
          plain step does not fit.
Reads     The trace with its seconds, the first tier (past its room, the next), the budget.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from penstock.ir.plan import Plan, Recompute, Swap
from penstock.ir.policy import Accounting, Counts, Need, Paper, Problem
from penstock.ir.trace import Gap, Op, Trace
from penstock.simulate.least import MOVABLE_FROM
from penstock.solve.best import outcome
from penstock.solve.offloads import first_to_fit, named_storages, swap_within
from penstock.solve.paths import finish_times, seconds_to_end_of_forward
from penstock.solve.remakes import remade_at_need
from penstock.solve.tiers import shelved

__all__ = ["Meng"]

_PROMOTED = 4  # times: two operands of one shape differ no more in bytes, whatever their dtypes


@dataclass(frozen=True, slots=True)
class Meng:
    """Longest path to the loss first, as many as must be."""

    attention: bool = True  # are attention's broadcast sums remade in backward?
    smallest: int = MOVABLE_FROM  # bytes: smaller values are kept
    accounting: Accounting = "ours"

    paper: ClassVar = Paper(
        "Training Deeper Models by GPU Memory Optimization on TensorFlow",
        "Meng, Sun, Yang, Qiu, Gu",
        "ML Systems Workshop at NIPS",
        2017,
    )
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TIER, Need.SECONDS})
    counts: ClassVar[Counts] = Counts(workspace=False, slack=False)

    def __call__(self, problem: Problem) -> Plan:
        return first_to_fit(problem, self.plans(problem))

    def plans(self, problem: Problem) -> Iterator[Plan]:
        yield problem.given
        if self.attention:
            problem = replace(problem, given=problem.given.plus(self.rewrites(problem)))
        swaps = self.by_distance(problem)

        def sending(count: int) -> Plan:
            return problem.given.plus(shelved(problem, swaps[:count]))

        # More swaps lack no more: how many at the far end do?
        fewest = bisect_left(
            range(len(swaps)),
            x=True,
            key=lambda n: not outcome(problem, sending(n)).shortfall,
        )
        yield sending(fewest)

    def by_distance(self, problem: Problem) -> list[Swap]:
        """The swaps of all saved values, those farthest from the loss first."""
        trace, tier = problem.trace, problem.machine.tiers[0]
        distance = seconds_to_end_of_forward(trace)
        finish = np.array(finish_times(trace))
        named = named_storages(problem)

        def swap(gap: Gap) -> Swap:
            made = trace.values[gap.value].producer
            assert made is not None and gap.stop is not None
            begins = finish[gap.stop] - trace.ops[gap.stop].seconds
            arrives = finish[made + 1 : gap.stop] + tier.read.seconds(
                trace.values[gap.value].nbytes
            )
            in_time = np.flatnonzero(arrives <= begins)
            # The latest by the graph's clock; of several, the latest of the step.
            best = max(in_time.tolist(), key=lambda n: (arrives[n], n), default=-1)
            after = made + 1 + best
            return swap_within(
                problem, gap, named, evict_at=made + 1, prefetch_at=after + 1 if best >= 0 else 0
            )

        def nearness(gap: Gap) -> tuple[float, int]:
            made = trace.values[gap.value].producer
            assert made is not None
            return -distance[made], made

        return [swap(gap) for gap in sorted(problem.free_saved_gaps(self.smallest), key=nearness)]

    def rewrites(self, problem: Problem) -> list[Recompute]:
        """Attention's sums, dropped after forward and remade for their gradients."""
        trace = problem.trace
        sums = {v for op in trace.ops if _broadcasts(trace, op) for v in op.writes}
        gaps = []
        for gap in problem.free_saved_gaps(self.smallest):
            producer = trace.values[gap.value].producer
            assert producer is not None
            op = trace.ops[producer]
            if gap.value in sums or (_bare(op) == "tanh" and sums.intersection(op.reads)):
                gaps.append(gap)
        return remade_at_need(problem.given, trace, gaps)[0]


def _broadcasts(trace: Trace, op: Op) -> bool:
    """Is it a sum of two activations, the smaller of which is repeated?"""
    if _bare(op) != "add" or len(op.reads) != 2:
        return False
    one, other = (trace.values[v] for v in op.reads)
    least, most = sorted((one.nbytes, other.nbytes))
    return most > _PROMOTED * least and not (one.kind.is_state or other.kind.is_state)


def _bare(op: Op) -> str:
    return op.name.removeprefix("aten.").removesuffix("_")
