"""superneurons: keep what is dear to remake, and send it away when room lacks; remake the rest.

Idea      Outputs of checkpoint layers (convolution, matrix product, join, fork, concatenation) stay, or
          go to the host; all others are dropped after forward and remade from the checkpoint before.
          A segment whose layers need together no more than the worst layer of backward alone is remade
          once, in one pass (speed-centric); a larger one anew for every layer (memory-centric).
Assumes   One device, pinned host memory; the order of layers is fixed. Model state stays.
Inferred  A layer is an op; a join reads two activations, the output of a fork is read twice in forward.
          Liveness is what a trace has anyway. A layer whose checkpoint is dead in backward counts as
          one itself: no plan can make a value live longer. Each technique is left out where the step
          fits without it at less cost. Not carried: the choice of convolution algorithms (a trace has
          one kernel an op), and the heap.
Reads     The trace, the first tier (past its room, the next), the budget.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from penstock.ir.plan import Decision, Plan, Recompute, Swap
from penstock.ir.policy import Accounting, Counts, Need, Paper, Problem
from penstock.ir.trace import Gap, Op, OpIndex, Phase, Trace, ValueId
from penstock.simulate.least import MOVABLE_FROM
from penstock.simulate.roofline import class_of
from penstock.solve.best import best
from penstock.solve.online import least_recently_used, replay
from penstock.solve.remakes import (
    in_one_pass,
    is_heavy,
    light,
    one_by_one,
    possible,
    swappable,
)
from penstock.solve.tiers import shelved

__all__ = ["Superneurons"]


@dataclass(frozen=True, slots=True)
class Superneurons:
    """Tensor cache or eager offloading, and cost-aware recomputation."""

    offload: Literal["cache", "eager", "none"] = "cache"  # on failure, least recently used first
    recompute: Literal["cost-aware", "speed", "memory", "none"] = "cost-aware"
    smallest: int = MOVABLE_FROM  # bytes: smaller values are kept
    accounting: Accounting = "ours"

    paper: ClassVar = Paper(
        "SuperNeurons: Dynamic GPU Memory Management for Training Deep Neural Networks",
        "Wang, Ye, Zhao, Wu, Li, Song, Xu, Kraska",
        "PPoPP",
        2018,
        "https://doi.org/10.1145/3178487.3178491",
    )
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TIER})
    counts: ClassVar[Counts] = Counts(slack=False, state=False)

    def __call__(self, problem: Problem) -> Plan:
        return best(problem, self.candidates(problem)).plan

    def candidates(self, problem: Problem) -> Iterator[Plan]:
        """The techniques one after another, as the paper adds them."""
        remaking = problem.given.plus(self.remakes(problem))
        yield problem.given
        yield problem.given.plus(self.offloaded(problem))
        yield remaking
        yield remaking.plus(self.offloaded(replace(problem, given=remaking)))

    def offloaded(self, problem: Problem) -> tuple[Decision, ...]:
        match self.offload:
            case "cache":
                score = least_recently_used
                return replay(problem, score, by="swap", smallest=self.smallest).decisions
            case "eager":
                return tuple(shelved(problem, eager(problem, self.smallest)))
            case "none":
                return ()

    def remakes(self, problem: Problem) -> list[Recompute]:
        """Everything between checkpoints, segment by segment."""
        if self.recompute == "none":
            return []
        trace, worst = problem.trace, bottleneck(problem.trace)
        segment, needed = segments(trace)
        made = {
            gap: op for gap, op in saved(problem, self.smallest) if not is_checkpoint(trace, op)
        }
        members: defaultdict[int, list[Gap]] = defaultdict(list)
        for gap in light(problem, made, lambda op: not is_heavy(op)):
            members[segment[made[gap].index]].append(gap)
        found: list[Recompute] = []
        for number, gaps in members.items():
            fits = self.recompute == "cost-aware" and needed[number] <= worst
            together = in_one_pass if fits or self.recompute == "speed" else one_by_one
            found += together(gaps)
        return possible(problem.given, trace, found)


def is_checkpoint(trace: Trace, op: Op) -> bool:
    """Is it a layer whose output stays?"""
    is_join = sum(is_activation(trace, value) for value in op.reads) > 1
    is_fork = any(
        sum(trace.ops[reader].phase is Phase.FORWARD for reader in trace.readers[value]) > 1
        for value in op.writes
    )
    return is_heavy(op) or is_join or is_fork or ".cat" in op.name


def segments(trace: Trace) -> tuple[dict[OpIndex, int], list[int]]:
    """For each forward op, its segment; for each segment, what its ops but the checkpoints read."""
    segment: dict[OpIndex, int] = {}
    needed, before = [0], Phase.FORWARD
    for op in trace.ops:
        if op.phase is Phase.FORWARD:
            ends = is_checkpoint(trace, op)
            if ends or before is not Phase.FORWARD:  # another micro-batch begins
                needed.append(0)
            needed[-1] += 0 if ends else bytes_read(trace, op)
            segment[op.index] = len(needed) - 1
        before = op.phase
    return segment, needed


def bottleneck(trace: Trace) -> int:
    """Bytes: the most that one backward op reads of what forward made, with its workspace."""
    backward = (op for op in trace.ops if op.phase is Phase.BACKWARD)
    return max((bytes_read(trace, op) + op.workspace for op in backward), default=0)


def eager(problem: Problem, smallest: int) -> Iterator[Swap]:
    """Outputs of convolutions leave when they are made; each comes back with the next one's backward.

    Or sooner, when a remake starts from it.
    """
    trace, tier = problem.trace, problem.machine.tiers[0].name
    named = {swap.gap.value for swap in problem.given.swaps}
    named |= {remake.gap.value for remake in problem.given.recomputes}
    away: list[tuple[OpIndex, Gap, OpIndex]] = []
    for gap, due in swappable(problem, smallest).items():
        made = trace.values[gap.value].producer
        if due is None or made is None or not trace.awaits_backward(gap):
            continue
        if class_of(trace.ops[made].name) == "convolution":
            # A value that is also away elsewhere must not leave before this gap opens.
            leaves = OpIndex((gap.start if gap.value in named else made) + 1)
            away.append((due, gap, leaves))
    before = OpIndex(0)
    for due, gap, leaves in sorted(away, key=lambda one: (one[0], one[1].value)):
        earliest = max(leaves, gap.start) + 1
        if earliest <= due:
            yield Swap(gap, tier, leaves, before if before >= earliest else due)
        before = due


def saved(problem: Problem, smallest: int) -> Iterator[tuple[Gap, Op]]:
    """The free gaps of saved values, and the ops that made these."""
    for gap in problem.free_saved_gaps(smallest):
        made = problem.trace.values[gap.value].producer
        if made is not None and problem.trace.ops[made].phase is Phase.FORWARD:
            yield gap, problem.trace.ops[made]


def bytes_read(trace: Trace, op: Op) -> int:
    return sum(trace.values[value].nbytes for value in op.reads if is_activation(trace, value))


def is_activation(trace: Trace, value: ValueId) -> bool:
    """Did forward make it?"""
    made = trace.values[value].producer
    return made is not None and trace.ops[made].phase is Phase.FORWARD
