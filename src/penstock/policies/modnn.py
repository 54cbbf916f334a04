"""modnn: walk the step; make room only where it lacks, and fetch only as early as must be.

Idea      Simulate the tasks in order. If one finds no room, offload what costs the least delay, but
          nothing that the next task uses; if that does not do, everything. Look ahead: start the
          fetch of a later task's inputs now if after this task it would come too late, else wait.
Assumes   One stream of computing and one of copies each way; weights stay; times are known.
Inferred  Delay is the wait for the copy out that is not over yet, and for a copy back that the gap is
          too short to hide; of equals, the value goes that is needed last, then the larger. A copy
          out may have begun as soon as its value was made. A fetch counts those before it on its
          lane, and makes room only of what is needed later still. A value leaves once in each gap.
Not here  Sub-batches (a plan runs whole ops), hence no bound below one batch; addresses, so that room
          is bytes, any values make it, and nothing needs to be defragmented; the choice of
          convolution algorithms; drops of what the host still holds: they are copied again.
Symbols   EST: the earliest start of an op, with the delays so far.
Reads     The trace with its seconds, the first tier (past its room, the next), the budget.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import ClassVar

from penstock.ir.machine import Tier
from penstock.ir.plan import Plan
from penstock.ir.policy import Accounting, Counts, Need, Paper, Problem
from penstock.ir.trace import Gap, OpIndex, ValueId
from penstock.simulate.least import MOVABLE_FROM
from penstock.solve.offloads import named_storages, swap_within
from penstock.solve.pressure import Pressure
from penstock.solve.swaps import op_starts
from penstock.solve.tiers import shelved

__all__ = ["Modnn"]


@dataclass(frozen=True, slots=True)
class Modnn:
    """Offload on demand, fetch just in time."""

    wait: bool = True  # equation 9: may a fetch wait while it is not urgent?
    smallest: int = MOVABLE_FROM  # bytes: smaller values are kept
    accounting: Accounting = "ours"

    paper: ClassVar = Paper(
        "moDNN: Memory Optimal Deep Neural Network Training on Graphics Processing Units",
        "Chen, Chen, Hu, Han",
        "IEEE TPDS",
        2019,
    )
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TIER, Need.SECONDS})
    counts: ClassVar[Counts] = Counts(slack=False)

    def __call__(self, problem: Problem) -> Plan:
        trace = problem.trace
        opening: list[list[Gap]] = [[] for _ in range(len(trace.ops) + 1)]
        for gap in problem.free_gaps(self.smallest):
            if not gap.wraps and not trace.values[gap.value].kind.is_state:
                opening[gap.start + 1].append(gap)
        walk = _Walk(problem, problem.machine.tiers[0], Pressure(problem), op_starts(trace))
        for op in trace.ops:
            walk.arrive(op.index)
            walk.idle.update(dict.fromkeys(opening[op.index]))
            walk.make_room(op.index, walk.idle)
            walk.take_back(op.index)
            walk.look_ahead(op.index, wait=self.wait)
        named = named_storages(problem)
        swaps = []
        for gap in sorted(walk.sent, key=lambda gap: gap.start):
            made = trace.values[gap.value].producer
            soon, back = 0 if made is None else made + 1, walk.back.get(gap, gap.start)
            swaps.append(swap_within(problem, gap, named, evict_at=soon, prefetch_at=back))
            named.add(trace.values[gap.value].storage)
        return problem.given.plus(shelved(problem, swaps))


@dataclass(slots=True)
class _Walk:
    """The walk: what is away, and until when both lanes of copies are busy."""

    problem: Problem
    tier: Tier
    pressure: Pressure
    starts: list[float]  # of ops, if nothing ever waits
    late: float = 0.0  # seconds of delay so far
    out_busy: float = 0.0
    in_busy: float = 0.0
    begun: list[float] = field(default_factory=list)  # of ops, with the delays before them
    idle: dict[Gap, None] = field(default_factory=dict)  # on the device, and in a gap
    away: list[tuple[OpIndex, ValueId, Gap]] = field(default_factory=list)  # a heap, by next use
    sent: dict[Gap, OpIndex] = field(default_factory=dict)  # for each gap sent away, when last
    back: dict[Gap, OpIndex] = field(default_factory=dict)  # and the op that brings it back
    fetched: dict[Gap, None] = field(default_factory=dict)  # fetched, and not yet used

    def est(self, op: int) -> float:
        return self.starts[op] + self.late

    def nbytes(self, gap: Gap) -> int:
        return self.problem.trace.values[gap.value].nbytes

    def end(self, gap: Gap) -> int:
        """The op before which the value is used again, or gone."""
        if gap.stop is not None:
            return gap.stop
        freed = self.problem.trace.values[gap.value].freed
        return len(self.starts) if freed is None else freed + 1

    def arrive(self, op: OpIndex) -> None:
        """What `op` uses is no longer idle; what is not back yet comes, and the step waits."""
        while self.away and self.away[0][0] <= op:
            gap = heappop(self.away)[-1]
            self.back[gap] = op
            begins = max(self.est(op), self.in_busy)
            self.in_busy = begins + self.tier.read.seconds(self.nbytes(gap))
            self.late += self.in_busy - self.est(op)
        for gap in [gap for gap in self.fetched if self.end(gap) <= op]:
            del self.fetched[gap]
        for gap in [gap for gap in self.idle if self.end(gap) <= op]:
            del self.idle[gap]
        self.begun.append(self.est(op))

    def make_room(self, op: OpIndex, idle: Iterable[Gap]) -> None:
        """Offload of `idle` until `op` fits: what costs least, but last what the next op uses."""
        if self.pressure.over(op) <= 0:
            return
        order = {
            gap: (
                self.end(gap) == op + 1,
                self.delay(gap, op),
                -self.end(gap),
                -self.nbytes(gap),
                gap.value,
            )
            for gap in idle
        }
        for gap in sorted(order, key=order.__getitem__):
            if self.pressure.over(op) <= 0:
                return
            self.send(gap, op)

    def take_back(self, op: OpIndex) -> None:
        """If that did not do, what was fetched too early comes later."""
        for gap in sorted(self.fetched, key=self.end, reverse=True):
            if self.pressure.over(op) <= 0:
                return
            self.pressure.relieve(self.rest(gap, self.back[gap]), self.nbytes(gap))
            heappush(self.away, (OpIndex(self.end(gap)), gap.value, gap))
            self.sent[gap] = op
            del self.fetched[gap]

    def rest(self, gap: Gap, op: OpIndex) -> Gap:
        """The part of a gap in which its value takes room again, if `op` fetches it."""
        return Gap(gap.value, OpIndex(op - 1), gap.stop)

    def delay(self, gap: Gap, op: OpIndex) -> float:
        """Seconds that sending the gap's value away for `op` would cost."""
        now, nbytes = self.est(op), self.nbytes(gap)
        gone = max(now, self.leaves(gap) + self.tier.write.seconds(nbytes))
        if gap.stop is None:
            return gone - now
        hidden = self.est(gap.stop) - gone
        return gone - now + max(0.0, self.tier.read.seconds(nbytes) - hidden)

    def leaves(self, gap: Gap) -> float:
        """When a copy out that is decided only now can have begun: any time since its making."""
        made = self.problem.trace.values[gap.value].producer
        return max(self.out_busy, self.begun[0 if made is None else made + 1])

    def send(self, gap: Gap, op: OpIndex) -> None:
        del self.idle[gap]
        self.out_busy = self.leaves(gap) + self.tier.write.seconds(self.nbytes(gap))
        self.late += max(0.0, self.out_busy - self.est(op))
        self.pressure.relieve(gap, self.nbytes(gap))
        self.sent[gap] = op
        if gap.stop is not None:
            heappush(self.away, (gap.stop, gap.value, gap))

    def look_ahead(self, op: OpIndex, *, wait: bool) -> None:
        """Start the fetches that would come too late if they started after `op` (equation 9)."""
        while self.away:
            stop, _, gap = self.away[0]
            nbytes = self.nbytes(gap)
            seconds = self.tier.read.seconds(nbytes)
            if wait and max(self.est(op + 1), self.in_busy) + seconds <= self.est(stop):
                return
            if op in (self.sent[gap], gap.start + 1):
                return  # it has only just left
            later = [other for other in self.idle if self.end(other) > stop]
            if self.pressure.over(op) + nbytes > sum(map(self.nbytes, later)):
                return
            heappop(self.away)
            self.pressure.relieve(self.rest(gap, op), -nbytes)
            self.make_room(op, later)
            self.in_busy = max(self.est(op), self.in_busy) + seconds
            self.back[gap] = op
            self.fetched[gap] = None
