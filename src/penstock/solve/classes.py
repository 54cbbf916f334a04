"""Swaps that follow from size classes: each class has its objects, and Belady's rule fills them.

The device's memory as SwapAdvisor sees it: a class is some sizes, an object has room for its largest,
and a storage lives in an object of its class. Where none is free, the member whose next use is
farthest leaves, and what takes its object waits for it.
"""

from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from penstock.ir.plan import Swap
from penstock.ir.policy import Problem
from penstock.ir.trace import Gap, OpIndex, StorageId
from penstock.solve.placement import decided
from penstock.solve.pressure import Pressure
from penstock.solve.swaps import op_starts
from penstock.solve.tiers import shelved

__all__ = ["Objects", "Scan"]


@dataclass(frozen=True)
class Objects:
    """What a problem asks of objects. Storages about which something is given stay out of them."""

    problem: Problem
    smallest: int  # bytes: smaller storages stay out
    gaps: dict[tuple[StorageId, int], Gap] = field(default_factory=dict, init=False)  # by start
    size_of: dict[StorageId, int] = field(default_factory=dict, init=False)
    uses: dict[StorageId, list[OpIndex]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        trace, values = self.problem.trace, self.problem.trace.values
        taken = decided(self.problem)
        for value in values:
            if value.nbytes >= self.smallest and value.storage not in taken:
                self.size_of[value.storage] = value.nbytes
                found = {*self.uses.get(value.storage, ()), *trace.uses[value.id]}
                self.uses[value.storage] = sorted(found)
        for gap in self.problem.free_gaps(self.smallest):
            if (storage := values[gap.value].storage) in self.size_of:
                self.gaps[storage, gap.start] = gap

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Ascending."""
        return tuple(sorted(set(self.size_of.values())))

    @cached_property
    def memory(self) -> int:
        """Bytes for objects: what the rest of the step leaves where it needs most."""
        pressure = Pressure(self.problem)
        held: list[int] = (self.live @ np.array(self.sizes, np.int64)).tolist()
        return -max(pressure.over(op) - nbytes for op, nbytes in enumerate(held))

    @cached_property
    def live(self) -> NDArray[np.int64]:
        """Ops x sizes: how many storages of each size are alive while each op runs."""
        change = np.zeros((len(self.problem.trace.ops) + 1, len(self.sizes)), np.int64)
        column = {nbytes: i for i, nbytes in enumerate(self.sizes)}
        for storage, nbytes in self.size_of.items():
            born = 0 if storage in self.initial else self.uses[storage][0]
            change[born, column[nbytes]] += 1
        for op, gone in enumerate(self.deaths):
            for storage in gone:
                change[op + 1, column[self.size_of[storage]]] -= 1
        return np.cumsum(change, axis=0)[:-1]

    def most(self, cls: Sequence[int], number: int) -> int:
        """The most storages of class `number` that are alive at once."""
        mine = np.array(cls) == number
        return int(self.live[:, mine].sum(axis=1).max(initial=1))

    @cached_property
    def initial(self) -> frozenset[StorageId]:
        trace = self.problem.trace
        return frozenset(trace.values[v].storage for v in trace.initial) & self.size_of.keys()

    @cached_property
    def deaths(self) -> tuple[tuple[StorageId, ...], ...]:
        """By op: the storages that are gone when it has ended."""
        values = self.problem.trace.values
        return tuple(
            tuple(s for v in gone if (s := values[v].storage) in self.size_of)
            for gone in self.problem.trace.freed_after
        )

    @cached_property
    def needed(self) -> tuple[tuple[StorageId, ...], ...]:
        """By op: the storages that must be in objects while it runs."""
        found: list[list[StorageId]] = [[] for _ in self.problem.trace.ops]
        for storage, ops in self.uses.items():
            for op in ops:
                found[op].append(storage)
        return tuple(map(tuple, found))

    @cached_property
    def starts(self) -> list[float]:
        return op_starts(self.problem.trace)

    @cached_property
    def wraps(self) -> Mapping[StorageId, Gap]:
        """The gap between two steps of each storage that may be away then."""
        return {storage: gap for (storage, _), gap in self.gaps.items() if gap.wraps}

    def swaps(self, cls: Sequence[int], cnt: Sequence[int], idle: float) -> list[Swap]:
        """The swaps of `scan`, and where what they send away waits."""
        return shelved(self.problem, self.scan(cls, cnt, idle).swaps())

    def scan(self, cls: Sequence[int], cnt: Sequence[int], idle: float) -> "Scan":
        """A walk in which size i is of class `cls[i]`, and class c has `cnt[c]` objects.

        A victim was last used `idle` seconds ago, if there is one. Two scans: the first begins without
        the state that may be away, the second with what the first ended with.
        """
        fixed = self.initial - self.wraps.keys()
        first = Scan(self, cls, cnt, idle, fixed)
        first.walk()
        second = Scan(self, cls, cnt, idle, fixed | (first.here.keys() & self.wraps.keys()))
        second.walk()
        return second


class Scan:
    """One walk over the step: who is in an object, who is away, which objects are free since when."""

    def __init__(
        self,
        asked: Objects,
        cls: Sequence[int],
        cnt: Sequence[int],
        idle: float,
        here: frozenset[StorageId] | set[StorageId],
    ) -> None:
        self.asked, self.idle = asked, idle
        by_size = dict(zip(asked.sizes, cls, strict=True))
        self.class_of = {storage: by_size[n] for storage, n in asked.size_of.items()}
        self.here: dict[StorageId, None] = {}
        self.members: list[dict[StorageId, None]] = [{} for _ in cnt]
        self.free: list[list[int]] = [[0] * n for n in cnt]  # since which op, ascending
        self.borrowed = [0] * len(cnt)  # objects beyond the count, now: nothing could leave
        self.lacked = False  # was any ever borrowed?
        self.last: dict[StorageId, OpIndex] = {}
        self.away: dict[StorageId, Gap] = {
            storage: gap for storage, gap in asked.wraps.items() if storage not in here
        }
        self.back: dict[Gap, int | None] = {}
        for storage in sorted(here):
            self.enter(storage, 0, needed=())

    def walk(self) -> None:
        for op, needed in enumerate(self.asked.needed):
            for storage in needed:
                if storage not in self.here:
                    self.enter(storage, op, needed)
            self.last.update(dict.fromkeys(needed, OpIndex(op)))
            for storage in self.asked.deaths[op]:
                self.away.pop(storage, None)
                self.leave(storage, op + 1)

    def enter(self, storage: StorageId, op: int, needed: Sequence[StorageId]) -> None:
        """Take an object: a free one, that of a victim, or one that is not there."""
        gap, number = self.away.pop(storage, None), self.class_of[storage]
        if not self.free[number] and (victim := self.victim(number, op, needed)) is not None:
            leaves = self.gap_of(victim)
            assert leaves is not None
            self.away[victim] = leaves
            # Model state that goes before its first use was sent away by the step before.
            is_early = leaves.wraps and victim not in self.last
            self.back.setdefault(leaves, 0 if leaves.wraps else None)
            self.leave(victim, 0 if is_early else leaves.start + 1)
        if not self.free[number]:
            self.borrowed[number] += 1
            self.lacked = True
            since = op
        elif gap is None:
            since = self.free[number].pop()  # made now: whichever was free last will do
        else:
            since = self.free[number].pop(0)  # a copy back may start so much earlier
        if gap is not None:
            assert gap.stop is not None
            earliest = 0 if gap.wraps else gap.start + 2
            self.back[gap] = min(max(since, earliest), gap.stop)
        self.here[storage] = self.members[number][storage] = None

    def leave(self, storage: StorageId, since: int) -> None:
        if storage not in self.here:
            return
        number = self.class_of[storage]
        del self.here[storage], self.members[number][storage]
        if self.borrowed[number]:
            self.borrowed[number] -= 1
        else:
            insort(self.free[number], since)

    def gap_of(self, storage: StorageId) -> Gap | None:
        """The gap in which it may be away now."""
        last = self.last.get(storage)
        if last is None:
            return self.asked.wraps.get(storage)
        return self.asked.gaps.get((storage, last))

    def victim(self, number: int, op: int, needed: Sequence[StorageId]) -> StorageId | None:
        """The member whose next use is farthest; one that is idle long enough if there is any."""
        found: StorageId | None = None
        best = (False, -1)
        ops, now = len(self.asked.needed), self.asked.starts[op]
        for storage in self.members[number]:
            if storage in needed or (gap := self.gap_of(storage)) is None:
                continue
            last = self.last.get(storage)
            is_old = last is None or now - self.asked.starts[last + 1] >= self.idle
            next_use = 2 * ops if gap.stop is None else gap.stop
            if gap.wraps and last is not None:
                next_use += ops
            if (is_old, next_use) > best:
                found, best = storage, (is_old, next_use)
        return found

    def swaps(self) -> list[Swap]:
        tier = self.asked.problem.machine.tiers[0].name
        found = [
            Swap(gap, tier, OpIndex(gap.start + 1), None if at is None else OpIndex(at))
            for gap, at in self.back.items()
        ]
        return sorted(found, key=lambda swap: (swap.evict_at, swap.gap.value))
