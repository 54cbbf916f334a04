"""home: one action for each feature map, keep, swap or recompute, all of them chosen together.

Idea      Heuristics decide value by value; the actions depend on each other. So take the whole vector
          of actions as one point, start many particles at random, and let each take over, place by
          place, what the best particle or its own best does better. A simulation says what is better.
Assumes   A step that repeats itself; model state stays; one tier.
Inferred  A feature map is what one layer saves: the values that a run of forward ops of one module
          makes for backward; where a trace has no module paths, each value is a map. An offload is
          waited for only when its room is wanted, as in the paper; there a plan without room is an
          error, here less lacking room is better, or no random start would ever become feasible at
          small budgets. A copy back is issued one feature map ahead, or as soon after as there is
          room. Values that no recomputation brings back are swapped instead. Two particles start
          where all is kept, or swapped. The paper has 500 particles and as many iterations, on an
          evaluator of a millisecond; here the number of simulations is bounded.
Symbols   Actions: 0 keep, 1 swap, 2 recompute. P1, P2: the best of the last iteration, a particle's own.
Reads     The trace with its seconds, the first tier (past its room, the next), the budget.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import numpy as np

from penstock.ir.plan import Plan, Swap
from penstock.ir.policy import Accounting, Counts, Need, Paper, Problem
from penstock.ir.trace import Gap, OpIndex, Trace
from penstock.simulate.least import MOVABLE_FROM
from penstock.solve.best import outcome
from penstock.solve.pressure import Pressure
from penstock.solve.remakes import alone, remade_at_need
from penstock.solve.search import Ledger, swarm
from penstock.solve.tiers import shelved

__all__ = ["Home", "feature_maps"]

KEEP, SWAP, RECOMPUTE = range(3)


def feature_maps(trace: Trace, saved: Sequence[Gap]) -> list[list[Gap]]:
    """The saved gaps by the run of ops of one module that makes their values, in the order of runs."""
    run_of = [0]
    for op, after in pairwise(trace.ops):
        begins = not after.module or after.module != op.module
        run_of.append(run_of[-1] + begins)
    found: dict[int, list[Gap]] = {}
    for gap in saved:
        producer = trace.values[gap.value].producer
        found.setdefault(-1 if producer is None else run_of[producer], []).append(gap)
    return [found[run] for run in sorted(found)]


@dataclass(frozen=True, slots=True)
class Home:
    """Particle swarm without velocity over the actions of all feature maps."""

    particles: int = 16
    iterations: int = 500
    evaluations: int = 300  # vectors that are simulated
    mutation: float = 0.0  # probability of a random action; the paper has none
    smallest: int = MOVABLE_FROM  # bytes: smaller values are kept
    seed: int = 0
    time_limit: float = 40.0  # seconds
    accounting: Accounting = "ours"

    paper: ClassVar = Paper(
        "HOME: A Holistic GPU Memory Management Framework for Deep Learning",
        "He, Chen, Chen, Li, Yang, Chen, Shou",
        "IEEE Transactions on Computers",
        2023,
        "https://doi.org/10.1109/TC.2022.3180991",
    )
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TIER, Need.SECONDS})
    counts: ClassVar = Counts(workspace=False)

    def __call__(self, problem: Problem) -> Plan:
        saved = list(problem.free_saved_gaps(self.smallest))
        maps = feature_maps(problem.trace, saved)
        if not maps:
            return problem.given
        remakeable = set(alone(problem, saved))
        choices = [
            (KEEP, SWAP, RECOMPUTE) if remakeable.issuperset(gaps) else (KEEP, SWAP)
            for gaps in maps
        ]
        ledger = Ledger[tuple[int, ...]](
            lambda actions: outcome(problem, plan(problem, maps, actions)).rank,
            evaluations=self.evaluations,
            time_limit=self.time_limit,
        )
        swarm(
            ledger,
            self.starts(choices),
            iterations=self.iterations,
            mutation=self.mutation,
            choices=choices,
            seed=self.seed,
        )
        return replace(plan(problem, maps, ledger.best), cut_short=ledger.is_cut_short)

    def starts(self, choices: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
        random = np.random.default_rng(self.seed)
        pure = [(KEEP,) * len(choices), (SWAP,) * len(choices)]
        drawn = [
            tuple(int(random.choice(options)) for options in choices)
            for _ in range(self.particles - len(pure))
        ]
        return (pure + drawn)[: max(1, self.particles)]


def plan(problem: Problem, maps: Sequence[Sequence[Gap]], actions: Sequence[int]) -> Plan:
    """What a vector of actions means."""
    trace, tier = problem.trace, problem.machine.tiers[0].name
    size = trace.columns.nbytes.tolist()
    closing = sorted({gap.stop for gaps in maps for gap in gaps if gap.stop is not None})
    swapped, targets = (
        [gap for gaps, action in zip(maps, actions, strict=True) if action == taken for gap in gaps]
        for taken in (SWAP, RECOMPUTE)
    )
    pressure = Pressure(problem)
    for gap in (*swapped, *targets):
        pressure.relieve(gap, size[gap.value])

    def swap(gap: Gap) -> Swap:
        """One feature map ahead; when it is needed if none comes before it while it is away."""
        assert gap.stop is not None
        at = bisect_left(closing, gap.stop)
        is_ahead = at > 0 and closing[at - 1] >= gap.start + 2
        wanted = closing[at - 1] if is_ahead else gap.stop
        back = pressure.earliest_return(gap, size[gap.value], wanted)
        return Swap(gap, tier, OpIndex(gap.start + 1), OpIndex(back))

    timed = [swap(gap) for gap in swapped]
    while True:
        rest = problem.given.plus(shelved(problem, timed))
        remakes, lost = remade_at_need(rest, trace, targets)
        if not lost:
            return rest.plus(remakes)
        timed, targets = [*timed, *map(swap, lost)], [one.gap for one in remakes]
