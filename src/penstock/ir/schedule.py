"""A plan spelled out: every run, copy, wait and drop of one step, in program order.

The simulator prices a schedule and the engine carries the same schedule out, so the two cannot
drift apart. Program order is the order in which the host meets the actions; copies then proceed on
their own lanes. Kept as columns, for speed; `actions` shows them as records, for people and for the
engine.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from functools import cached_property
from itertools import chain
from typing import NamedTuple, NewType, TypeAlias

import numpy as np
from numpy.typing import NDArray

from penstock.ir.trace import OpIndex, Trace, ValueId

__all__ = [
    "Access",
    "Action",
    "Cause",
    "Drop",
    "Evict",
    "Prefetch",
    "Run",
    "Schedule",
    "ScheduleBuilder",
    "Transfer",
    "TransferId",
    "Verb",
    "Wait",
]

TransferId = NewType("TransferId", int)
"""Position in `Schedule.transfers`."""


class Cause(StrEnum):
    """Why the compute lane waits."""

    INPUT = "input"  # a value that the next op reads is still on its way in
    ROOM = "room"  # the next op needs bytes that a copy out has not freed yet
    FENCE = "fence"  # the plan says that the op waits for a copy out


@dataclass(frozen=True, slots=True)
class Transfer:
    """One copy of one value over one link."""

    value: ValueId
    tier: str
    inward: bool
    nbytes: int


class Access(NamedTuple):
    """An op uses a value where it is placed: reads it there, or writes it."""

    value: ValueId
    tier: str
    written: bool


@dataclass(frozen=True, slots=True)
class Run:
    """Run an op on the compute lane. `again`: a recomputation.

    `takes` are the values that need new bytes, held from its start; `frees` those whose bytes go
    back at its end. An in-place write takes nothing: its value stands where the one before stood.
    `direct`: what it uses in a tier, where it is placed.
    """

    op: OpIndex
    again: bool = False
    takes: tuple[ValueId, ...] = ()
    frees: tuple[ValueId, ...] = ()
    direct: tuple[Access, ...] = ()


@dataclass(frozen=True, slots=True)
class Evict:
    """Put the copy out on its lane. Its bytes come free when it ends, and not before `after` ran.

    `after` None: no op of this step has used them yet.
    """

    transfer: TransferId
    after: OpIndex | None


@dataclass(frozen=True, slots=True)
class Prefetch:
    """Put the copy in on its lane; it takes its bytes when it starts.

    It starts after `out`, the copy out of the same value (None: it was placed without one), and after
    `room`, the copies out whose
    bytes are the ones that it takes.
    """

    transfer: TransferId
    out: TransferId | None
    room: tuple[TransferId, ...] = ()


@dataclass(frozen=True, slots=True)
class Wait:
    """The compute lane waits until `transfer` has ended."""

    transfer: TransferId
    cause: Cause


@dataclass(frozen=True, slots=True)
class Drop:
    """Free a value's bytes without a copy; it is remade later, or never."""

    value: ValueId


Action: TypeAlias = Run | Evict | Prefetch | Wait | Drop


class Verb(IntEnum):
    """What a row of `Schedule.verb` says."""

    RUN = 0
    RUN_AGAIN = 1
    EVICT = 2
    PREFETCH = 3
    WAIT = 4
    DROP = 5


@dataclass(frozen=True)
class Rows:
    """A ragged column: the items of row i are `items[starts[i]:starts[i + 1]]`."""

    starts: NDArray[np.int32]
    items: NDArray[np.int32]

    def __getitem__(self, row: int) -> list[int]:
        found: list[int] = self.items[self.starts[row] : self.starts[row + 1]].tolist()
        return found

    @cached_property
    def owner(self) -> NDArray[np.int32]:
        """For each item, the row that it belongs to."""
        return np.repeat(np.arange(len(self.starts) - 1, dtype=np.int32), np.diff(self.starts))


@dataclass(frozen=True)
class Copies:
    """The transfers of a schedule, by column."""

    value: NDArray[np.int32]
    tier: NDArray[np.int16]  # position in `tiers`
    inward: NDArray[np.bool_]
    tiers: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.value)


@dataclass(frozen=True)
class Accesses:
    """What runs use where it is placed, by column and in the order of the runs."""

    row: NDArray[np.int32]  # of the run
    value: NDArray[np.int32]
    tier: NDArray[np.int16]  # position in `Copies.tiers`
    written: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.value)


@dataclass(frozen=True)
class Schedule:
    """Actions in program order, one row each.

    `subject` is an op for runs, a transfer for copies and waits, a value for drops. `extra` is the
    op that an eviction must outlive, the copy out of a copy in (-1: there is none), or the number of a
    wait's cause.

    `away` holds the values that a wrapping gap keeps off the device when the step begins, each with
    the copy out that took it there at the end of the step before: an action that names such a
    transfer ahead of its eviction means that earlier one. `below` holds those that are then placed in a
    tier with no copy under way.

    `need` is, by op, the bytes that must be held at once around it even if all copies out have ended
    that may have. `shortfall` is how far the largest of them is above the budget; 0 if all fit.
    """

    trace: Trace
    verb: NDArray[np.int8]
    subject: NDArray[np.int32]
    extra: NDArray[np.int32]
    takes: Rows  # of runs
    frees: Rows  # of runs
    room: Rows  # of prefetches
    copies: Copies
    direct: Accesses  # of runs
    away: tuple[tuple[ValueId, TransferId], ...] = ()
    below: tuple[ValueId, ...] = ()
    need: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    budget: int | None = None  # bytes, less the allocator's slack

    @property
    def shortfall(self) -> int:
        if self.budget is None:
            return 0
        return max(0, int(self.need.max(initial=0)) - self.budget)

    @property
    def worst(self) -> OpIndex | None:
        """The op that lacks most; None if all fit."""
        return OpIndex(int(self.need.argmax())) if self.shortfall else None

    @cached_property
    def here(self) -> tuple[ValueId, ...]:
        """The values that the device holds when the step begins."""
        elsewhere = {*(value for value, _ in self.away), *self.below}
        return tuple(value for value in self.trace.initial if value not in elsewhere)

    @cached_property
    def transfers(self) -> tuple[Transfer, ...]:
        copies, size = self.copies, self.trace.columns.nbytes[self.copies.value].tolist()
        columns = copies.value.tolist(), copies.tier.tolist(), copies.inward.tolist(), size
        return tuple(
            Transfer(value, copies.tiers[tier], inward, nbytes)
            for value, tier, inward, nbytes in zip(*columns, strict=True)
        )

    @cached_property
    def actions(self) -> tuple[Action, ...]:
        """The rows as records."""
        return tuple(self._records())

    def _records(self) -> Iterator[Action]:
        causes = tuple(Cause)
        direct = self._accesses()
        verbs, subjects, extras = self.verb.tolist(), self.subject.tolist(), self.extra.tolist()
        for row, (verb, subject, extra) in enumerate(zip(verbs, subjects, extras, strict=True)):
            match Verb(verb):
                case Verb.RUN | Verb.RUN_AGAIN:
                    takes, frees = map(ValueId, self.takes[row]), map(ValueId, self.frees[row])
                    again, used = verb == Verb.RUN_AGAIN, tuple(direct.get(row, ()))
                    yield Run(subject, again, tuple(takes), tuple(frees), used)
                case Verb.EVICT:
                    yield Evict(subject, None if extra < 0 else extra)
                case Verb.PREFETCH:
                    room = tuple(map(TransferId, self.room[row]))
                    yield Prefetch(subject, None if extra < 0 else extra, room)
                case Verb.WAIT:
                    yield Wait(subject, causes[extra])
                case Verb.DROP:
                    yield Drop(subject)

    def _accesses(self) -> dict[int, list[Access]]:
        """By row, what its run uses where it is placed."""
        found: dict[int, list[Access]] = {}
        it, tiers = self.direct, self.copies.tiers
        columns = it.row.tolist(), it.value.tolist(), it.tier.tolist(), it.written.tolist()
        for row, value, tier, written in zip(*columns, strict=True):
            found.setdefault(row, []).append(Access(value, tiers[tier], written))
        return found

    @cached_property
    def around(self) -> tuple["Around", ...]:
        """For each op: what the host does just before its own run, and just after.

        Drops and copies out that follow a run belong to it: the sooner they go the better.
        Everything else belongs to the run that it prepares.
        """
        found: list[Around] = []
        after: list[Numbered] = []
        pending: list[Numbered] = []
        for row, action in enumerate(self.actions):
            match action:
                case Run(again=False):
                    after = []
                    found.append(Around(row, tuple(pending), after))
                    pending.clear()
                case Drop() | Evict() if found and not pending:
                    after.append((row, action))
                case _:
                    pending.append((row, action))
        after.extend(pending)
        return tuple(found)


Numbered: TypeAlias = tuple[int, Action]
"""An action and its row in the schedule."""


class Around(NamedTuple):
    """What surrounds the run of one op, which is row `row`."""

    row: int
    before: tuple[Numbered, ...]
    after: Sequence[Numbered]


@dataclass
class ScheduleBuilder:
    """Collects actions in program order and makes a `Schedule` of them."""

    trace: Trace
    verb: list[int] = field(default_factory=list)
    subject: list[int] = field(default_factory=list)
    extra: list[int] = field(default_factory=list)
    takes: list[Sequence[int]] = field(default_factory=list)
    frees: list[Sequence[int]] = field(default_factory=list)
    room: list[Sequence[int]] = field(default_factory=list)
    copied: list[tuple[ValueId, int, bool]] = field(default_factory=list)
    used: list[tuple[int, ValueId, int, bool]] = field(default_factory=list)
    tiers: dict[str, int] = field(default_factory=dict)

    def add(
        self,
        verb: Verb,
        subject: int,
        extra: int = 0,
        *,
        takes: Sequence[int] = (),
        frees: Sequence[int] = (),
        room: Sequence[int] = (),
    ) -> None:
        self.verb.append(verb)
        self.subject.append(subject)
        self.extra.append(extra)
        self.takes.append(takes)
        self.frees.append(frees)
        self.room.append(room)

    def use(self, direct: Sequence[Access]) -> None:
        """What the run that is added next uses where it is placed."""
        row = len(self.verb)
        self.used += [(row, value, self._tier(tier), written) for value, tier, written in direct]

    def wait(self, transfer: TransferId, cause: Cause) -> None:
        self.add(Verb.WAIT, transfer, _CAUSE_NUMBER[cause])

    def transfer(self, value: ValueId, tier: str, *, inward: bool) -> TransferId:
        self.copied.append((value, self._tier(tier), inward))
        return TransferId(len(self.copied) - 1)

    def _tier(self, name: str) -> int:
        return self.tiers.setdefault(name, len(self.tiers))

    def build(
        self,
        away: Iterable[tuple[ValueId, TransferId]] = (),
        below: Iterable[ValueId] = (),
        need: Sequence[int] = (),
        budget: int | None = None,
    ) -> Schedule:
        copied = np.array(self.copied, np.int32).reshape(-1, 3)
        used = np.array(self.used, np.int32).reshape(-1, 4)
        copies = Copies(
            copied[:, 0].copy(),
            copied[:, 1].astype(np.int16),
            copied[:, 2].astype(np.bool_),
            tuple(self.tiers),
        )
        return Schedule(
            self.trace,
            np.array(self.verb, np.int8),
            np.array(self.subject, np.int32),
            np.array(self.extra, np.int32),
            _rows(self.takes),
            _rows(self.frees),
            _rows(self.room),
            copies,
            Accesses(
                used[:, 0].copy(),
                used[:, 1].copy(),
                used[:, 2].astype(np.int16),
                used[:, 3].astype(np.bool_),
            ),
            tuple(away),
            tuple(below),
            np.array(need, np.int64),
            budget,
        )


_CAUSE_NUMBER = {cause: number for number, cause in enumerate(Cause)}


def _rows(lists: list[Sequence[int]]) -> Rows:
    starts = np.zeros(len(lists) + 1, np.int32)
    np.cumsum(np.fromiter(map(len, lists), np.int32, len(lists)), out=starts[1:])
    items = np.fromiter(chain.from_iterable(lists), np.int32, int(starts[-1]))
    return Rows(starts, items)
