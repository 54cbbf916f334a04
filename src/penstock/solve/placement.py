"""Where storages are, op by op, on the device or in one tier below; and the decisions that say so.

For methods that think of two memories. Where ops can use the tier directly, a storage may be there
while it is used; elsewhere only while it lies idle.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from penstock.ir.machine import Machine, Tier
from penstock.ir.plan import Decision, Place, Swap
from penstock.ir.policy import Problem
from penstock.ir.trace import Gap, OpIndex, StorageId, Trace, ValueId
from penstock.solve.pressure import Pressure
from penstock.solve.tiers import shelved

__all__ = [
    "Stored",
    "decided",
    "decisions",
    "penalty",
    "room_above",
    "slow_tier",
    "stored",
    "whole_pages",
]


@dataclass(frozen=True, eq=False)  # told apart by identity: many a table is by storage
class Stored:
    """A storage about whose place nothing is decided yet.

    It is there from op `born` to op `dies`, both included. `begins`: it is there before the step;
    `lasts`: and when it has ended, so that what follows the last use goes on before the first.
    """

    storage: StorageId
    versions: tuple[ValueId, ...]
    nbytes: int
    uses: tuple[OpIndex, ...]  # the ops that read or write it
    extra: tuple[float, ...]  # by use: seconds more if it is in the tier; inf: it cannot be
    epoch: tuple[
        int, ...
    ]  # by use: which use wrote what is there then; -1: none, it was there before
    pinned: tuple[range, ...]  # ops during which it cannot be in the tier
    born: int
    dies: int
    begins: bool
    lasts: bool

    @cached_property
    def idle(self) -> tuple[range, ...]:
        """By use: the ops between it and the next use in this step."""
        stops = (*self.uses[1:], self.dies + 1)[: len(self.uses)]
        return tuple(range(use + 1, stop) for use, stop in zip(self.uses, stops, strict=True))

    @cached_property
    def lead(self) -> range:
        """The ops before the first use, if it is there before the step."""
        if not self.begins:
            return range(0)
        return range(self.uses[0] if self.uses else self.dies + 1)

    def turn(self, use: int) -> int:
        """How many uses lie between the write of what is there at `use` and that one."""
        epoch = self.epoch[use]
        return use if epoch < 0 else (use - epoch) % len(self.uses)


def slow_tier(machine: Machine) -> Tier:
    """The first tier that ops can use directly; if there is none, the first."""
    return next((tier for tier in machine.tiers if tier.direct), machine.tiers[0])


def penalty(machine: Machine, tier: Tier, nbytes: int, *, written: bool) -> float:
    """Seconds that an op takes longer if it reads or writes `nbytes` in `tier`; inf: it cannot."""
    if tier.direct is None:
        return math.inf
    bandwidth = machine.device.bandwidth
    rate = tier.direct.write if written else tier.direct.read
    return nbytes * max(0.0, 1 / rate - (1 / bandwidth if bandwidth else 0.0))


def stored(problem: Problem, tier: Tier, at_least: int = 1) -> list[Stored]:
    """The storages of `at_least` bytes whose place is free to choose, in order of birth.

    Without direct access that is also asked of each gap: see `decisions`.
    """
    trace, taken = problem.trace, decided(problem)
    free: set[tuple[int, int]] = set()
    if tier.direct is None:
        free = {(trace.values[gap.value].storage, gap.start) for gap in problem.free_gaps()}
    return [
        _stored(problem, tier, storage, versions, free)
        for storage, versions in trace.versions_of.items()
        if trace.values[versions[0]].nbytes >= at_least and storage not in taken
    ]


def decided(problem: Problem) -> set[StorageId]:
    """The storages about which something is given."""
    given, values = problem.given, problem.trace.values
    named = (*(one.gap.value for one in given.of_gaps), *(one.value for one in given.places))
    return {values[value].storage for value in named}


def _stored(
    problem: Problem,
    tier: Tier,
    storage: StorageId,
    versions: tuple[ValueId, ...],
    free: Collection[tuple[int, int]],
) -> Stored:
    trace, machine = problem.trace, problem.machine
    first, last = trace.values[versions[0]], trace.values[versions[-1]]
    lasts, extra = trace.lasts(storage), dict[OpIndex, float]()
    for version in versions:
        made, nbytes = trace.values[version].producer, trace.values[version].nbytes
        for use in trace.uses[version]:
            more = penalty(machine, tier, nbytes, written=use == made)
            extra[use] = extra.get(use, 0.0) + more
    uses = tuple(sorted(extra))
    written = [uses.index(made) for v in versions if (made := trace.values[v].producer) is not None]
    before = written[-1] if lasts and written else -1  # what the step before left there
    born, dies = first.producer or 0, len(trace.ops) - 1 if last.freed is None else last.freed
    pinned: list[range] = []
    if tier.direct is None:
        stops = (*uses[1:], dies + 1)[: len(uses)]
        moves = [(storage, use) in free for use in uses]
        pinned = [
            range(use, use + 1 if moves[at] else stop)
            for at, (use, stop) in enumerate(zip(uses, stops, strict=True))
        ]
        if first.producer is None and not (lasts and uses and moves[-1]):
            pinned.append(range(uses[0] if uses else dies + 1))
    return Stored(
        storage,
        versions,
        first.nbytes,
        uses,
        tuple(extra[use] for use in uses),
        tuple(max((at for at in written if at <= use), default=before) for use in range(len(uses))),
        tuple(pinned),
        born,
        dies,
        first.producer is None,
        lasts,
    )


def whole_pages(nbytes: int, page: int) -> int:
    """The bytes of the pages that `nbytes` fill."""
    return -(-nbytes // page) * page


def room_above(problem: Problem, storages: Iterable[Stored], page: int = 1) -> NDArray[np.int64]:
    """By op: the bytes left on the device if `storages` are below whenever they can be."""
    pressure = Pressure(problem)
    room = np.array([-pressure.over(op.index) for op in problem.trace.ops], np.int64)
    for one in storages:
        room[one.born : one.dies + 1] += one.nbytes
        for ops in one.pinned:
            room[ops.start : ops.stop] -= whole_pages(one.nbytes, page)
    return room


def decisions(
    problem: Problem, tier: Tier, where: Mapping[Stored, Sequence[tuple[int, bool]]]
) -> list[Decision]:
    """What brings each storage where it is to be.

    `where`: stretches by the op that begins them, in order and without a hole, each with whether the
    storage is then in `tier`. Without direct access, what is below must lie idle in a free gap, and
    what does not stays on the device.
    """
    gaps: dict[tuple[ValueId, OpIndex], Gap] = {}
    if tier.direct is None:
        gaps = {(gap.value, gap.start): gap for gap in problem.free_gaps()}
    places: list[Place] = []
    swaps: list[Swap] = []
    for one, stretches in where.items():
        for start, stop in _below(one, stretches, len(problem.trace.ops)):
            if tier.direct is not None:
                places.append(_place(problem.trace, tier, one, start, stop))
            elif (swap := _swap(problem.trace, tier, one, start, stop, gaps)) is not None:
                swaps.append(swap)
    return sorted((*places, *shelved(problem, swaps)), key=_order)


def _below(
    one: Stored, stretches: Iterable[tuple[int, bool]], ops: int
) -> Iterator[tuple[int | None, int | None]]:
    """The stretches in the tier, joined: first op (None: from birth), first op after (None: none).

    Those of what lives from step to step are joined over its end, too.
    """
    joined: list[tuple[int, bool]] = []
    for start, below in stretches:
        if not joined or joined[-1][1] != below:
            joined.append((start, below))
    if not joined:
        return
    starts: list[int | None] = [start for start, _ in joined]
    ends = [*starts[1:], None]
    begins_below, ends_below = joined[0][1], joined[-1][1]
    if not one.lasts or len(joined) == 1:
        starts[0] = None
    elif begins_below and ends_below:  # one stretch, over the end of the step
        ends[-1] = ends[0]
    elif ends_below:
        ends[-1] = 0
    else:  # if it begins below, it goes there when the step ends
        starts[0] = ops
    around = one.lasts and begins_below and ends_below and len(joined) > 1
    for number, (_, below) in enumerate(joined):
        if below and not (around and number == 0):
            yield starts[number], ends[number]


def _place(trace: Trace, tier: Tier, one: Stored, start: int | None, stop: int | None) -> Place:
    value = one.versions[0] if start is None else trace.version_before(one.storage, start)
    return Place(
        value,
        tier.name,
        None if start is None else OpIndex(start),
        None if stop is None else OpIndex(stop),
    )


def _swap(
    trace: Trace,
    tier: Tier,
    one: Stored,
    start: int | None,
    stop: int | None,
    gaps: Mapping[tuple[ValueId, OpIndex], Gap],
) -> Swap | None:
    """The swap that has the storage away from `start` to `stop`; None if no free gap has room."""
    if start is None:
        return None
    value = trace.version_before(one.storage, start)
    before = max((use for use in trace.uses[value] if use < start), default=None)
    if before is None or (gap := gaps.get((value, before))) is None:
        return None
    if gap.stop is None:
        return Swap(gap, tier.name, OpIndex(start), None)
    if stop is None or stop > gap.stop or (stop <= start and not gap.wraps):
        return None
    return Swap(gap, tier.name, OpIndex(start), OpIndex(stop))


def _order(decision: Decision) -> tuple[int, int]:
    match decision:
        case Place(value=value, evict_at=at):
            return (-1 if at is None else at, value)
        case Swap(gap=gap, evict_at=at):
            return (at, gap.value)
        case _:
            raise AssertionError("decisions here are placements and swaps")
