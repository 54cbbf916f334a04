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
          are kept in one pass (collective recomputation) if that simulates better. Passive mode takes
          what was accessed first, whatever its size.
Symbols   FT, MSPS as above; rp_time: seconds to remake; ext_time: seconds added because a chosen
          target's chain runs through the candidate; srcs: what a remake starts from.
Reads     The trace with its seconds, the first tier (past its room, the next), the budget.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from penstock.ir.lineage import Gone, lineage, sources
from penstock.ir.machine import Tier
from penstock.ir.plan import Plan, Residency
from penstock.ir.policy import Need, Paper, Problem
from penstock.ir.trace import Gap, Trace, ValueId
from penstock.simulate.least import MOVABLE_FROM
from penstock.solve.best import Outcome
from penstock.solve.hybrid import hasten, settle, turn
from penstock.solve.online import first_made, replay
from penstock.solve.pressure import Pressure
from penstock.solve.swaps import op_starts

__all__ = ["Candidate", "Capuchin", "by_msps", "choose", "free_time"]


def free_time(evicted: float, back: float, nbytes: int, tier: Tier) -> float:
    """FT: seconds that are left when a value was copied out after one access and in before another."""
    return back - evicted - tier.read.seconds(nbytes) - tier.write.seconds(nbytes)


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
    """The paper's hybrid policy, iterated on the simulator; its parts and its passive mode."""

    method: Literal["hybrid", "swap", "recompute", "passive"] = "hybrid"
    order: Literal["best", "printed"] = "best"  # the text's, or the listing's: value by value
    mode: Literal["literal", "accumulating"] = "accumulating"
    decoupled: bool = True  # compute waits for a copy out only where it lacks room
    collective: bool = True
    feedback: int = 20  # rounds of moving in-triggers
    step: float = 0.05  # of SwapTime, by which the feedback moves one
    rounds: int = 10  # halvings when swaps are turned into recomputations
    tries: int = 3  # choices, each for as many bytes more as the plan for the one before lacks
    smallest: int = MOVABLE_FROM  # bytes: smaller values are kept

    paper: ClassVar = Paper(
        "Capuchin: Tensor-based GPU Memory Management for Deep Learning",
        "Peng, Shi, Dai, Jin, Ma, Xiong, Yang, Qian",
        "ASPLOS",
        2020,
        "https://doi.org/10.1145/3373376.3378505",
    )
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TIER, Need.SECONDS})

    def __call__(self, problem: Problem) -> Plan:
        if self.method == "passive":
            replayed = replay(problem, first_made, by="swap", smallest=self.smallest)
            return problem.given.plus(replayed.decisions)
        ways = {"joined": self.collective, "fenced": not self.decoupled}
        found, swaps, targets = self.fitting(problem, ways)
        if self.method == "hybrid":
            pool = self.pool(problem.trace, swaps, problem.given)
            order = sorted(pool, key=lambda gap: -pool[gap].msps)
            found = turn(problem, swaps, targets, found, order=order, rounds=self.rounds, **ways)
            if not found.shortfall and found.timeline.stall_seconds > 0.02 * problem.trace.seconds:
                # Copies hide badly: perhaps none is worth its wait.
                kept, remade = replace(self, method="recompute").choose(problem)
                found = min(found, settle(problem, kept, remade, **ways), key=lambda one: one.rank)
        return hasten(problem, found, rounds=self.feedback, share=self.step).plan

    def fitting(
        self, problem: Problem, ways: dict[str, bool]
    ) -> tuple[Outcome, list[Gap], list[Gap]]:
        """What to swap and what to recompute, and the plan for it: one that fits, if any tried does.

        Remakes need room that the choice does not foresee. Where that lacks, as much more is saved; and
        by swaps alone, because they need none.
        """
        asked, tried = problem, list[tuple[Outcome, list[Gap], list[Gap]]]()
        for _ in range(self.tries):
            swaps, targets = self.choose(asked)
            tried.append((settle(problem, swaps, targets, **ways), swaps, targets))
            if not (lacking := tried[-1][0].shortfall):
                return tried[-1]
            asked = replace(asked, budget=asked.budget - lacking)
        if self.method == "hybrid":
            swaps, _ = replace(self, method="swap").choose(problem)
            tried.append((settle(problem, swaps, [], **ways), swaps, []))
        return min(tried, key=lambda one: one[0].rank)

    def choose(self, problem: Problem) -> tuple[list[Gap], list[Gap]]:
        """Which gaps to swap and which values to recompute, before anything is timed."""
        trace, pressure, starts = problem.trace, Pressure(problem), op_starts(problem.trace)
        left: dict[Gap, float] = {}
        for gap in problem.free_gaps(self.smallest):
            value = trace.values[gap.value]
            if not (value.kind.is_state or gap.wraps) and pressure.touches(gap):
                back = starts[-1] if gap.stop is None else starts[gap.stop]
                left[gap] = free_time(
                    starts[gap.start + 1], back, value.nbytes, problem.machine.tiers[0]
                )
        swaps: list[Gap] = []
        hidden = sorted(left, key=lambda gap: -left[gap]) if self.method != "recompute" else []
        for gap in hidden:
            if pressure.is_relieved or left[gap] < 0:
                break
            if pressure.touches(gap):
                swaps.append(gap)
                pressure.relieve(gap, trace.values[gap.value].nbytes)
                del left[gap]
        chosen: list[Candidate] = []
        targets: list[Gap] = []
        pool = self.pool(trace, left, problem.given) if self.method != "swap" else {}
        # What relieves nothing now will not later: it is struck out when it is met.
        waiting = sorted(left, key=lambda gap: -left[gap])[::-1]
        while not pressure.is_relieved:
            while waiting and not (waiting[-1] in left and pressure.touches(waiting[-1])):
                waiting.pop()
            if not waiting:
                break
            taken = swap = waiting[-1]
            if self.order == "printed":
                remake = swap if swap in pool else None
            else:
                remake = _dearest(pool, pressure)
            wanted = self.method == "recompute" or (
                remake is not None and pool[remake].rp_time < max(0.0, -left[swap])
            )
            if remake is not None and wanted:
                target = pool.pop(taken := remake)
                choose(target, chosen, pool.values(), self.mode)
                targets.append(taken)
            elif self.method != "recompute":
                swaps.append(swap)
                pool.pop(swap, None)
            else:  # it can only be kept
                del left[swap]
                continue
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


def _dearest(pool: dict[Gap, Candidate], pressure: Pressure) -> Gap | None:
    """The gap of the largest MSPS of those that relieve anything; larger ones that do not are dropped."""
    while pool:
        found = max(pool, key=lambda gap: pool[gap].msps)
        if pressure.touches(found):
            return found
        del pool[found]
    return None
