"""sentinel: short-lived tensors stay in fast memory, the others come interval by interval.

Idea      Most tensors live within one layer: they get a part of fast memory of their own and never move.
          The step is cut into intervals of so many layers. When one begins, what the next one uses is
          brought in, the most accessed first, while it fits; what has no further use in its interval, or
          in the next, goes out at once. How many layers an interval has is one number: all are weighed.
Assumes   A step that repeats itself, so that accesses can be counted in one and used in the next.
Inferred  A layer is a run of ops of one module in one phase, an op of no module a layer of its own.
          Accesses are uses by ops. The paper ranks intervals by a formula of what fast memory
          holds and what an interval hides: so do we, and price some of the ranks. What does not fit ahead
          is brought in when its own interval begins; else it is used from the slow memory. Where an
          interval waits for what it needs, the paper measures a step in which that is used from the slow
          memory: we simulate it. Without direct access what an op uses is there. Where the paper refuses,
          because short-lived tensors and the largest other do not fit, all others stay below.
          Not carried: packing by access count into shared pages, since values move by themselves.
Reads     The trace with its seconds; the first tier with direct access, or else the first; the budget.
"""

from bisect import bisect_right
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from penstock.ir.plan import Plan
from penstock.ir.policy import Accounting, Counts, Need, Paper, Problem
from penstock.ir.trace import Trace
from penstock.simulate.least import MOVABLE_FROM
from penstock.solve.best import Outcome, outcome
from penstock.solve.placement import Stored, decisions, room_above, slow_tier, stored, whole_pages
from penstock.solve.pressure import Pressure

__all__ = ["Memory", "Sentinel", "layer_starts"]


@dataclass(frozen=True, slots=True)
class Sentinel:
    """Interval migration of long-lived tensors, with the paper's choice of the interval."""

    page: int = 4096  # bytes
    smallest: int = MOVABLE_FROM  # bytes: smaller storages are kept
    lengths: int = 8  # intervals that are priced
    trials: int = 16  # intervals of which it is tried whether they had better use the slow memory
    accounting: Accounting = "ours"

    paper: ClassVar = Paper(
        "Sentinel: Efficient Tensor Migration and Allocation on Heterogeneous Memory Systems for Deep "
        "Learning",
        "Ren, Luo, Wu, Zhang, Jeon, Li",
        "HPCA",
        2021,
        "https://arxiv.org/abs/1909.05182",
    )
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TIER, Need.SECONDS})
    counts: ClassVar = Counts(slack=False)

    def __call__(self, problem: Problem) -> Plan:
        if Pressure(problem).is_relieved:
            return problem.given
        memory = Memory(problem, self.page, self.smallest)
        ranked = sorted(range(1, len(memory.layers) + 1), key=memory.exposed)
        tried = ranked[:: -(-len(ranked) // self.lengths)]
        priced = {length: outcome(problem, memory.plan(length)) for length in tried}
        length = min(priced, key=lambda one: priced[one].rank)
        found = priced[length]
        if memory.tier.direct is not None:
            found = self.settle(problem, memory, length, found)
        return found.plan

    def settle(self, problem: Problem, memory: "Memory", length: int, found: Outcome) -> Outcome:
        """The paper's case 3: an interval that has to wait may use the slow memory instead."""
        starts, timeline = memory.layers[::length], found.timeline
        runs = timeline.first_runs
        begins, ends = timeline.span_start[runs], timeline.span_end[runs]
        waits = np.add.reduceat(begins - np.concatenate(([0.0], ends[:-1])), starts)
        lazy: set[int] = set()
        for interval in np.argsort(-waits, kind="stable")[: self.trials].tolist():
            tried = outcome(problem, memory.plan(length, {*lazy, interval}))
            if tried.rank < found.rank:
                found = tried
                lazy.add(interval)
        return found


def layer_starts(trace: Trace) -> list[int]:
    """The ops that begin a layer."""
    starts, before = [], None
    for op in trace.ops:
        layer = (op.phase, op.module) if op.module else op.index
        if layer != before:
            starts.append(int(op.index))
        before = layer
    return starts


class Memory:
    """A problem as Sentinel sees it: layers, long-lived storages, and the room for these."""

    def __init__(self, problem: Problem, page: int, smallest: int) -> None:
        self.problem, self.page, self.tier = problem, page, slow_tier(problem.machine)
        self.layers = layer_starts(problem.trace)
        movable = stored(problem, self.tier, smallest)
        self.long = [one for one in movable if self.is_long_lived(one)]
        self.room = room_above(problem, self.long, page)
        # Every use of a long-lived storage: its layer, and whose it is.
        uses = [
            (bisect_right(self.layers, use) - 1, n)
            for n, one in enumerate(self.long)
            for use in one.uses
        ]
        self.layer, self.owner = np.array(uses, np.int64).reshape(-1, 2).T
        self.pages = np.array([whole_pages(one.nbytes, page) for one in self.long], np.int64)

    def is_long_lived(self, one: Stored) -> bool:
        born, dies = (bisect_right(self.layers, op) for op in (one.born, one.dies))
        return one.begins or one.lasts or born != dies

    def exposed(self, length: int) -> tuple[bool, float]:
        """The paper's measure, less is better: what an interval uses does not fit; the seconds of
        copies into what is left of fast memory that it cannot hide. What cannot fit is to be short.
        """
        room, intervals = int(self.room.min(initial=0)), -(-len(self.layers) // length)
        touched = np.unique(self.owner * intervals + self.layer // length)
        wanted = np.bincount(touched % intervals, self.pages[touched // intervals], intervals)
        if wanted.max(initial=0) >= room:
            return True, float(length)
        return False, room / self.tier.read.bandwidth - self.problem.trace.seconds / intervals

    def plan(self, length: int, lazy: Collection[int] = ()) -> Plan:
        """The plan with intervals of `length` layers. Nothing is brought in for those in `lazy`."""
        starts, room = self.layers[::length], self.room.copy()
        stays: dict[Stored, list[tuple[int, int]]] = {one: [] for one in self.long}
        for interval, one, uses in sorted(
            self.visits(starts), key=lambda visit: (visit[0], -len(visit[2]), visit[1].storage)
        ):
            mine, pages = stays[one], whole_pages(one.nbytes, self.page)
            pinned = np.array([op for ops in one.pinned for op in ops], np.int64)
            after = mine[-1][1] + 1 if mine else one.born
            made_here = not one.begins and one.uses[0] in uses
            if interval in lazy and not made_here:
                continue
            for ahead in (1, 0):
                first, last = max(starts[max(0, interval - ahead)], after), uses[-1]
                free = room[first : last + 1]
                own = pinned[(first <= pinned) & (pinned <= last)] - first
                free[own] += pages  # for these ops there is room in any case
                if fits := bool((free >= pages).all()):
                    free -= pages
                    mine.append((first, last))
                    break
                free[own] -= pages
            if one.pinned and not fits:
                mine += [(use, use) for use in uses]
        where = {one: list(_stretches(one, mine)) for one, mine in stays.items()}
        return self.problem.given.plus(decisions(self.problem, self.tier, where))

    def visits(self, starts: list[int]) -> Iterator[tuple[int, Stored, list[int]]]:
        """Each interval, by number, in which a storage is used, and the uses there."""
        for one in self.long:
            found: dict[int, list[int]] = {}
            for use in one.uses:
                found.setdefault(bisect_right(starts, use) - 1, []).append(use)
            for interval, uses in found.items():
                yield interval, one, uses


def _stretches(one: Stored, stays: list[tuple[int, int]]) -> Iterator[tuple[int, bool]]:
    """Where the storage is: on the device from the first op of each stay to the last, both included."""
    at = 0 if one.begins else one.born
    for first, last in stays:
        if at < first:
            yield at, True
        yield first, False
        at = last + 1
    if at <= one.dies:
        yield at, True
