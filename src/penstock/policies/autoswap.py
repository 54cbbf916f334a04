"""autoswap: swap the values that are idle across the load's peak, by a score of their absence.

Idea      Whatever lowers the peak is idle while it lasts. Rank the values by how long and how largely
          they can be absent, send away the best until the load is below the limit, copy out as soon
          as possible and back as late as possible. Which ranking is best depends on the step: so
          learn the weights of their sum, by Bayesian optimisation on the simulated step.
Assumes   A step that repeats itself; one tier, with a queue for each direction.
Inferred  An access is an op that makes or reads a value, and a gap between two of one step is a pair
          of consecutive accesses. Where the gaps across the peak do not do, the others follow in the
          same order; gaps that relieve no op that lacks room are passed over. No value comes back
          before there is room for it, where the paper delays compute. Areas are integrals over time
          (the authors' Python sums over events). The single scores are the first weights tried, so
          that the sum is never worse than the best of them. `mode=free` is the paper's zero overhead:
          what would make compute wait is kept, even if the limit is then passed.
          Not carried: the detection of the iteration in a log (a trace is one step). The addresses of
          the pool are a function of their own, `solve.smartpool`: a plan names none.
Symbols   DOA, duration of absence: between the accesses, less both copies. AOA: size x DOA, or DOA /
          size below 0. WDOA: area under the load between the accesses. SWDOA: WDOA, after what was
          picked before has left the load.
Reads     The trace with its seconds, the first tier (past its room, the next), the budget.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from penstock.ir.machine import Tier
from penstock.ir.plan import Plan, Swap
from penstock.ir.policy import Accounting, Counts, Need, Paper, Problem
from penstock.ir.trace import Gap, Trace
from penstock.solve.best import outcome
from penstock.solve.pressure import Pressure, bytes_held
from penstock.solve.search import Ledger, Rank, bayesian
from penstock.solve.swaps import late_gaps, op_starts
from penstock.solve.tiers import sent_below

__all__ = ["SCORES", "Autoswap", "scores"]

SCORES = ("doa", "aoa", "wdoa", "swdoa")


def scores(
    trace: Trace, tier: Tier, gaps: Sequence[Gap], load: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """The four scores of each gap: larger leaves first. `load` is in bytes, by op."""
    starts = np.array(op_starts(trace))
    begin = starts[[gap.start + 1 for gap in gaps]]
    end = starts[[gap.stop or 0 for gap in gaps]]
    nbytes = [trace.values[gap.value].nbytes for gap in gaps]
    copies = np.array([tier.write.seconds(n) + tier.read.seconds(n) for n in nbytes])
    size = np.array(nbytes, np.float64)
    doa = end - begin - copies
    area = np.concatenate(([0.0], np.cumsum(load * np.diff(starts))))
    wdoa = np.interp(end, starts, area) - np.interp(begin, starts, area)
    return {
        "doa": doa,
        "aoa": np.where(doa >= 0, size * doa, doa / size),
        "wdoa": wdoa,
        "swdoa": _submodular(wdoa, size, begin, end),
    }


def _submodular(
    wdoa: NDArray[np.float64],
    size: NDArray[np.float64],
    begin: NDArray[np.float64],
    end: NDArray[np.float64],
) -> NDArray[np.float64]:
    """WDOA at the moment of being picked: what was picked before has left the load while it is away."""
    left, found = wdoa.copy(), np.zeros(len(wdoa))
    for _ in range(len(wdoa)):
        one = int(left.argmax())
        found[one], left[one] = left[one], -np.inf
        both = np.maximum(0.0, np.minimum(end, end[one]) - np.maximum(begin, begin[one]))
        left -= size[one] * both
    return found


@dataclass(frozen=True, slots=True)
class Autoswap:
    """Priority scores, and their weighted sum."""

    score: Literal["combined", "doa", "aoa", "wdoa", "swdoa"] = "combined"
    mode: Literal["limit", "free"] = "limit"  # stick to the limit, or never make compute wait
    smallest: int = 1 << 20  # bytes: smaller values are kept
    evaluations: int = 30  # weights tried for the combined score; the paper: 20 to 40
    seed: int = 0
    time_limit: float = 30.0  # seconds
    accounting: Accounting = "ours"

    paper: ClassVar = Paper(
        "Efficient Memory Management for GPU-based Deep Learning Systems",
        "Zhang, Yeung, Shu, He, Wang",
        "arXiv",
        2019,
        "https://arxiv.org/abs/1903.06631",
    )
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TIER, Need.SECONDS})
    counts: ClassVar = Counts(slack=False)

    def __call__(self, problem: Problem) -> Plan:
        gaps = [
            gap
            for gap in problem.free_gaps(self.smallest)
            if gap.stop is not None and not gap.wraps
        ]
        if not gaps or Pressure(problem).is_relieved:
            return problem.given
        load = bytes_held(problem)
        by_name = scores(problem.trace, problem.machine.tiers[0], gaps, load)
        if self.score != "combined":
            return self.plan(problem, self.ranked(gaps, by_name[self.score], int(load.argmax())))

        standard = np.stack([_standardised(by_name[name]) for name in SCORES], axis=1)
        plans: dict[tuple[Gap, ...], tuple[Plan, Rank]] = {}
        chosen: dict[tuple[float, ...], Plan] = {}

        def cost(weights: tuple[float, ...]) -> Rank:
            order = self.ranked(gaps, standard @ np.array(weights), int(load.argmax()))
            if (key := tuple(order)) not in plans:
                plan = self.plan(problem, order)
                plans[key] = plan, outcome(problem, plan).rank
            chosen[weights], rank = plans[key]
            return rank

        ledger = Ledger(cost, evaluations=self.evaluations, time_limit=self.time_limit)
        bayesian(ledger, [tuple(row) for row in np.eye(len(SCORES)).tolist()], seed=self.seed)
        return replace(chosen[ledger.best], cut_short=ledger.is_cut_short)

    def ranked(self, gaps: Sequence[Gap], score: NDArray[np.float64], peak: int) -> list[Gap]:
        """The gaps across the peak, best first, and then the others."""
        at = sorted(range(len(gaps)), key=lambda i: (not gaps[i].covers(peak), -score[i]))
        return [gaps[i] for i in at]

    def plan(self, problem: Problem, order: Sequence[Gap]) -> Plan:
        """Take gaps in `order` until the load is below the limit, and say when each copy is made."""
        pressure = Pressure(problem)
        taken: list[Gap] = []
        for gap in order:
            if pressure.is_relieved:
                break
            if pressure.touches(gap):
                taken.append(gap)
                pressure.relieve(gap, problem.trace.values[gap.value].nbytes)
        swaps = sent_below(problem, taken, margin=1.0, pressure=pressure)
        if self.mode == "free":
            swaps = without_stalls(problem, swaps)
        return problem.given.plus(swaps)


def without_stalls(problem: Problem, swaps: list[Swap]) -> list[Swap]:
    """Those of `swaps` that come back in time where nothing waits for room."""
    roomy = replace(problem, budget=2 * problem.trace.peak + problem.trace.slack)
    while True:
        found = outcome(roomy, problem.given.plus(swaps))
        late = late_gaps(found) & {swap.gap for swap in swaps}
        if found.timeline.stall_seconds <= 0 or not late:
            return swaps
        swaps = [swap for swap in swaps if swap.gap not in late]


def _standardised(score: NDArray[np.float64]) -> NDArray[np.float64]:
    spread = score.std()
    found: NDArray[np.float64] = (score - score.mean()) / (spread if spread > 0 else 1.0)
    return found
