"""capuchin: swap what the link hides, then recompute what gives most memory for its time.

Idea      A value idle from access e to access b can be swapped for free if both copies fit in
          between: FT = (b - SwapTime_in) - (e + SwapTime_out) >= 0. Take such swaps, longest FT
          first, until enough is saved; then go on with whichever costs less: the best remaining swap
          (-FT) or the best recomputation (largest MSPS, memory saving per second).
Assumes   A step that repeats itself; model state stays; one device and one tier.
Inferred  The required saving is what the simulated step lacks, op by op, not one sum, because our
          engine need not run out of memory to learn it. FT is computed one value at a time, as
          printed, but copies in one direction exclude each other: so the choice is then iterated on
          the simulated timeline, turning the swaps that relieve the links most for their cost into
          recomputations while the step gets faster. In-triggers start at the latest time at which
          the queue of copies still meets every back-access, and move earlier by 5 % of SwapTime
          while a value is late (the paper's feedback). Intermediates that are targets themselves
          are kept in one pass (collective recomputation) if that simulates better.
Symbols   FT, MSPS as above; rp_time: seconds to remake; ext_time: seconds added because a chosen
          target's chain runs through the candidate; srcs: what a remake starts from.
Reads     The trace with its seconds, the first tier, the budget.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from penstock.ir.lineage import Gone, lineage, sources
from penstock.ir.plan import Decision, Plan, Residency, Swap
from penstock.ir.policy import Need, Paper, Problem
from penstock.ir.trace import Gap, Trace, ValueId
from penstock.simulate.least import MOVABLE_FROM
from penstock.solve.best import Outcome, best, outcome
from penstock.solve.pressure import Pressure
from penstock.solve.remakes import collective, remade_at_need
from penstock.solve.swaps import before, just_in_time, late_gaps, op_starts

__all__ = ["Candidate", "Capuchin", "by_msps", "choose"]


@dataclass(slots=True)
class Candidate:
    """A value that recomputation could save."""

    value: ValueId
    nbytes: int
    rp_time: float
    srcs: set[ValueId]
    ext_time: float = 0.0

    @property
    def msps(self) -> float:
        return self.nbytes / max(self.rp_time + self.ext_time, 1e-9)


def choose(
    target: Candidate,
    chosen: list[Candidate],
    candidates: Iterable[Candidate],
    mode: Literal["literal", "accumulating"],
) -> None:
    """The paper's Algorithm 2, one round: `target` is chosen; update everybody else."""
    repeats = 1
    for other in chosen:
        if target.value in other.srcs:
            other.srcs.remove(target.value)
            other.srcs |= target.srcs
            repeats += 1
    chosen.append(target)
    for one in candidates:
        if target.value in one.srcs:
            one.srcs.remove(target.value)
            one.srcs |= target.srcs
            one.rp_time += target.rp_time
            one.ext_time = sum(one.rp_time for other in chosen if one.value in other.srcs)
        if one.value in target.srcs:
            # The last assignment overwrites: a source of two targets is charged once (literal).
            extra = repeats * one.rp_time
            one.ext_time = extra if mode == "literal" else one.ext_time + extra


def by_msps(
    candidates: Iterable[Candidate], need: int, mode: Literal["literal", "accumulating"]
) -> list[Candidate]:
    """Recomputation alone: the targets in the order in which they are chosen."""
    left, chosen = list(candidates), list[Candidate]()
    while need > 0 and left:
        target = max(left, key=lambda one: one.msps)
        left.remove(target)
        choose(target, chosen, left, mode)
        need -= target.nbytes
    return chosen


@dataclass(frozen=True, slots=True)
class Capuchin:
    """The paper's hybrid policy, iterated on the simulator."""

    mode: Literal["literal", "accumulating"] = "accumulating"
    smallest: int = MOVABLE_FROM  # bytes: smaller values are kept
    feedback: int = 20  # rounds of moving in-triggers
    rounds: int = 10  # halvings when swaps are turned into recomputations

    paper: ClassVar = Paper(
        "Capuchin: Tensor-based GPU Memory Management for Deep Learning",
        "Peng, Shi, Dai, Jin, Ma, Xiong, Yang, Qian",
        "ASPLOS",
        2020,
        "https://doi.org/10.1145/3373376.3378505",
    )
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TIER, Need.SECONDS})

    def __call__(self, problem: Problem) -> Plan:
        swaps, recomputes = self.choose(problem)
        found = self.settle(problem, swaps, recomputes)
        return self.hasten(problem, self.turn(problem, swaps, recomputes, found)).plan

    def choose(self, problem: Problem) -> tuple[list[Gap], list[Gap]]:
        """Which gaps to swap and which values to recompute, before anything is timed."""
        trace, tier, pressure = problem.trace, problem.machine.tiers[0], Pressure(problem)
        starts = op_starts(trace)

        def free_time(gap: Gap) -> float:
            nbytes = trace.values[gap.value].nbytes
            end = starts[-1] if gap.stop is None else starts[gap.stop]
            return (
                end - starts[gap.start + 1] - tier.read.seconds(nbytes) - tier.write.seconds(nbytes)
            )

        left = {
            gap: free_time(gap)
            for gap in problem.free_gaps(self.smallest)
            if not trace.values[gap.value].kind.is_state and not gap.wraps and pressure.touches(gap)
        }
        swaps: list[Gap] = []
        for gap in sorted(left, key=lambda gap: -left[gap]):
            if pressure.is_relieved or left[gap] < 0:
                break
            if pressure.touches(gap):
                swaps.append(gap)
                pressure.relieve(gap, trace.values[gap.value].nbytes)
                del left[gap]
        chosen: list[Candidate] = []
        targets: list[Gap] = []
        pool = self.pool(trace, left, problem.given)
        while not pressure.is_relieved and (
            left := {gap: ft for gap, ft in left.items() if pressure.touches(gap)}
        ):
            swap = max(left, key=lambda gap: left[gap])
            remakes = [gap for gap in left if gap in pool]
            remake = max(remakes, key=lambda gap: pool[gap].msps, default=None)
            if remake is not None and pool[remake].rp_time < max(0.0, -left[swap]):
                target = pool.pop(remake)
                choose(target, chosen, pool.values(), self.mode)
                targets.append(remake)
                taken = remake
            else:
                swaps.append(swap)
                pool.pop(swap, None)
                taken = swap
            pressure.relieve(taken, trace.values[taken.value].nbytes)
            del left[taken]
        return swaps, targets

    def pool(self, trace: Trace, gaps: Iterable[Gap], given: Plan) -> dict[Gap, Candidate]:
        """What recomputation could save, each as if everything else stayed."""
        residency = Residency(trace, given)
        found = {}
        for gap in gaps:
            if gap.stop is None:
                continue
            try:
                ops = lineage(trace, gap.value, gap.stop, residency.holds)
            except Gone:
                continue
            seconds = sum(trace.ops[op].seconds for op in ops)
            found[gap] = Candidate(
                gap.value, trace.values[gap.value].nbytes, seconds, sources(trace, ops)
            )
        return found

    def settle(self, problem: Problem, swaps: list[Gap], targets: list[Gap]) -> Outcome:
        """The plan for a choice: triggers set, passes joined if that is better."""
        trace, tier = problem.trace, problem.machine.tiers[0]
        pressure = Pressure(problem)
        for gap in (*swaps, *targets):
            pressure.relieve(gap, trace.values[gap.value].nbytes)
        timed = just_in_time(trace, tier, swaps, pressure=pressure)
        alone, lost = remade_at_need(problem.given.plus(timed), trace, targets)
        if lost:  # what they start from would be gone: they are swapped too
            return self.settle(problem, [*swaps, *lost], [one.gap for one in alone])
        plans = [problem.given.plus([*timed, *alone])]
        if joined := collective(problem.given.plus(timed), trace, alone):
            plans.append(problem.given.plus([*timed, *joined]))
        return best(problem, plans)

    def hasten(self, problem: Problem, found: Outcome) -> Outcome:
        """The paper's feedback: while a value is late, its copy back starts earlier."""
        trace, tier = problem.trace, problem.machine.tiers[0]
        starts = op_starts(trace)
        for _ in range(self.feedback):
            late = late_gaps(found) - {swap.gap for swap in problem.given.swaps}
            if not late:
                break
            moved: list[Decision] = []
            for decision in found.plan.decisions:
                if isinstance(decision, Swap) and decision.gap in late:
                    step = 0.05 * tier.read.seconds(trace.values[decision.gap.value].nbytes)
                    moved.append(before(decision, starts, step))
                else:
                    moved.append(decision)
            again = outcome(problem, replace(found.plan, decisions=tuple(moved)))
            if again.rank >= found.rank:
                break
            found = again
        return found

    def turn(
        self, problem: Problem, swaps: list[Gap], targets: list[Gap], found: Outcome
    ) -> Outcome:
        """Turn swaps into recomputations, those that free the links most for their cost first."""
        pool = self.pool(problem.trace, swaps, problem.given)
        order = sorted(pool, key=lambda gap: -pool[gap].msps)
        step = len(order)
        best_count = 0
        for _ in range(self.rounds):
            step = (step + 1) // 2
            for count in (best_count - step, best_count + step):
                if 0 < count <= len(order) and count != best_count:
                    turned = set(order[:count])
                    kept = [gap for gap in swaps if gap not in turned]
                    again = self.settle(problem, kept, [*targets, *order[:count]])
                    if again.rank < found.rank:
                        found, best_count = again, count
            if step <= 1:
                break
        return found
