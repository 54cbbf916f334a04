"""One training step as data: its ops, the values they read and write, and what each cost."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from itertools import pairwise
from typing import NewType, Self

import numpy as np
from numpy.typing import NDArray

from penstock.errors import TraceError

__all__ = ["Gap", "Kind", "Op", "OpIndex", "Phase", "StorageId", "Trace", "Value", "ValueId"]

OpIndex = NewType("OpIndex", int)
"""Position in `Trace.ops`: the clock of every plan."""
ValueId = NewType("ValueId", int)
"""Position in `Trace.values`."""
StorageId = NewType("StorageId", int)
"""What torch allocates; the values of one storage are its versions, in order."""


class Phase(StrEnum):
    FORWARD = "forward"
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"


class Kind(StrEnum):
    PARAMETER = "parameter"
    GRADIENT = "gradient"
    OPTIMIZER_STATE = "optimizer_state"
    BUFFER = "buffer"
    INPUT = "input"
    ACTIVATION = "activation"
    TEMPORARY = "temporary"

    @property
    def is_state(self) -> bool:
        """Model state: it lives from step to step."""
        return self in (Kind.PARAMETER, Kind.OPTIMIZER_STATE, Kind.BUFFER)


@dataclass(frozen=True, slots=True)
class Value:
    """One version of one storage. Views share it; an in-place write makes the next version.

    `freed` is the op after which this version is gone: its storage died, or the op overwrote it
    in place (then the next version of `storage` begins there and no byte is given back).

    `nbytes` are those that the device holds for it. Its storage may have more: a CPU holds no page that
    nobody wrote to.
    """

    id: ValueId
    storage: StorageId
    nbytes: int
    kind: Kind
    producer: OpIndex | None = None  # None: alive before the step begins
    freed: OpIndex | None = None  # None: alive when the step ends
    saved: bool = False  # made in forward, read in backward: autograd keeps it
    name: str = ""  # the user's name for it, e.g. `decoder.11.mlp.weight`
    unwritten: int = field(default=0, repr=False)  # bytes of its storage that nobody writes

    @property
    def allocated(self) -> int:
        """Bytes of its storage."""
        return self.nbytes + self.unwritten


@dataclass(frozen=True, slots=True)
class Op:
    """One ATen call of the step. Ops that only make views are not recorded: they move no byte.

    `reads` and `writes` name each value once, in argument order and then in output order.
    `host_seconds` is what Python and autograd spent between the op before and this one.
    """

    index: OpIndex
    name: str
    phase: Phase
    reads: tuple[ValueId, ...] = ()
    writes: tuple[ValueId, ...] = ()
    seconds: float = 0.0
    host_seconds: float = 0.0
    flops: int = 0
    moved: int = 0  # bytes read and written
    workspace: int = 0  # bytes, alive only while the op runs
    random: bool = False  # draws random numbers
    repeatable: bool = True  # running it again from the same inputs changes nothing else
    module: str = ""  # path of the module whose forward (or its backward) made the call
    dtype: str = ""  # of what it computes, e.g. `float32`; empty: not known


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch in which `value` lies idle: op `start` used it last, op `stop` uses it next.

    `stop` None: nothing in this step uses it again. `stop <= start`: the next use is in the next
    step, by whichever version of the storage that step finds (model state between two steps).
    """

    value: ValueId
    start: OpIndex
    stop: OpIndex | None

    @property
    def wraps(self) -> bool:
        """Does the gap reach into the next step?"""
        return self.stop is not None and self.stop <= self.start

    def covers(self, op: int) -> bool:
        """Is the value idle while op `op` runs?"""
        if self.stop is None:
            return op > self.start
        if self.wraps:
            return op > self.start or op < self.stop
        return self.start < op < self.stop


@dataclass(frozen=True)
class Columns:
    """A trace's numbers as arrays, for hot loops."""

    seconds: NDArray[np.float64]  # by op
    host_seconds: NDArray[np.float64]  # by op
    workspace: NDArray[np.int64]  # by op
    freed_before: NDArray[np.int64]  # by op: bytes that went back since the op before ran
    nbytes: NDArray[np.int64]  # by value
    kind: NDArray[np.int64]  # by value: position in `Kind`


@dataclass(frozen=True)
class Trace:
    """A whole step: forward, backward, optimizer.

    Construction checks that ops and values agree and raises `TraceError` with every fault found.
    """

    ops: tuple[Op, ...]
    values: tuple[Value, ...]
    device: str = "cpu"
    label: str = ""  # what was recorded, for people
    slack: int = 0  # bytes the device held beyond live values when it held most (allocator)
    versions: dict[str, str] = field(default_factory=dict, compare=False)  # python, torch, ...

    def __post_init__(self) -> None:
        if faults := list(_faults(self.ops, self.values)):
            shown = "\n".join(faults[:20])
            raise TraceError(f"the trace contradicts itself:\n{shown}")

    # -- derived facts -----------------------------------------------------------------------

    @cached_property
    def columns(self) -> Columns:
        number = {kind: position for position, kind in enumerate(Kind)}
        return Columns(
            np.array([op.seconds for op in self.ops], np.float64),
            np.array([op.host_seconds for op in self.ops], np.float64),
            np.array([op.workspace for op in self.ops], np.int64),
            np.array([0, *self.freed_bytes], np.int64)[: len(self.ops)],
            np.array([value.nbytes for value in self.values], np.int64),
            np.array([number[value.kind] for value in self.values], np.int64),
        )

    @cached_property
    def readers(self) -> tuple[tuple[OpIndex, ...], ...]:
        """For each value, the ops that read it, in clock order."""
        found: list[list[OpIndex]] = [[] for _ in self.values]
        for op in self.ops:
            for value in op.reads:
                found[value].append(op.index)
        return tuple(map(tuple, found))

    @cached_property
    def uses(self) -> tuple[tuple[OpIndex, ...], ...]:
        """For each value, the op that makes it and the ops that read it, in clock order."""
        return tuple(
            readers if value.producer is None else (value.producer, *readers)
            for value, readers in zip(self.values, self.readers, strict=True)
        )

    @cached_property
    def freed_after(self) -> tuple[tuple[ValueId, ...], ...]:
        """For each op, the values whose bytes go back when it has ended."""
        found: list[list[ValueId]] = [[] for _ in self.ops]
        for value in self.values:
            if value.freed is not None and not self.is_overwritten(value.id):
                found[value.freed].append(value.id)
        return tuple(map(tuple, found))

    @cached_property
    def versions_of(self) -> dict[StorageId, tuple[ValueId, ...]]:
        """For each storage, its values in the order in which they take each other's place."""
        found: dict[StorageId, list[ValueId]] = {}
        for value in self.values:
            found.setdefault(value.storage, []).append(value.id)
        return {storage: tuple(values) for storage, values in found.items()}

    def version_before(self, storage: StorageId, op: int) -> ValueId:
        """The version of `storage` that op `op` finds. There must be one."""
        return next(
            value
            for value in reversed(self.versions_of[storage])
            if (made := self.values[value].producer) is None or made < op
        )

    def lasts(self, storage: StorageId) -> bool:
        """Is the storage there before the step begins and when it has ended?"""
        first, last = self.versions_of[storage][0], self.versions_of[storage][-1]
        return self.values[first].producer is None and self.values[last].freed is None

    @cached_property
    def producers(self) -> NDArray[np.int64]:
        """By value: the op that makes it; -1 if it is there before the step begins."""
        made = (value.producer for value in self.values)
        return np.array([-1 if op is None else op for op in made], np.int64)

    @cached_property
    def next_version(self) -> dict[ValueId, ValueId]:
        """For each overwritten value, the version that took its place."""
        latest: dict[StorageId, ValueId] = {}
        following: dict[ValueId, ValueId] = {}
        for value in self.values:
            if (before := latest.get(value.storage)) is not None:
                following[before] = value.id
            latest[value.storage] = value.id
        return following

    @cached_property
    def previous_version(self) -> dict[ValueId, ValueId]:
        """For each value made by an in-place write, the version it overwrote."""
        return {after: before for before, after in self.next_version.items()}

    def is_overwritten(self, value: ValueId) -> bool:
        return value in self.next_version

    @cached_property
    def initial(self) -> tuple[ValueId, ...]:
        """Values alive before the first op."""
        return tuple(value.id for value in self.values if value.producer is None)

    @cached_property
    def fresh(self) -> tuple[tuple[ValueId, ...], ...]:
        """For each op, the written values that take new bytes (first versions of a storage)."""
        return tuple(
            tuple(value for value in op.writes if value not in self.previous_version)
            for op in self.ops
        )

    @cached_property
    def fresh_bytes(self) -> tuple[int, ...]:
        """For each op, the bytes of what is `fresh`."""
        return tuple(sum(self.values[value].nbytes for value in made) for made in self.fresh)

    @cached_property
    def freed_bytes(self) -> tuple[int, ...]:
        """For each op, the bytes of what is `freed_after` it."""
        return tuple(sum(self.values[value].nbytes for value in gone) for gone in self.freed_after)

    @cached_property
    def replaced(self) -> tuple[tuple[ValueId, ...], ...]:
        """For each op, the versions that it overwrites: a new one stands where the old one stood."""
        previous = self.previous_version
        return tuple(
            tuple(previous[value] for value in op.writes if value in previous) for op in self.ops
        )

    @cached_property
    def reads_again(self) -> tuple[tuple[tuple[ValueId, bool], ...], ...]:
        """For each op, what a second run of it reads, and whether it overwrites that.

        Without the running statistics that it overwrites: a second run leaves them alone.
        """
        return tuple(
            tuple(
                (read, read in overwritten)
                for read in op.reads
                if read not in overwritten or self.values[read].kind is not Kind.BUFFER
            )
            for op, overwritten in zip(self.ops, self.replaced, strict=True)
        )

    @cached_property
    def live(self) -> NDArray[np.int64]:
        """For each op, the bytes held while it runs when nothing is evicted, workspace included."""
        change = np.zeros(len(self.ops) + 1, np.int64)
        change[0] = sum(self.values[value].nbytes for value in self.initial)
        change[:-1] += np.array(self.fresh_bytes, np.int64)
        change[1:] -= np.array(self.freed_bytes, np.int64)
        held: NDArray[np.int64] = np.cumsum(change)[:-1] + self.columns.workspace
        return held

    @property
    def peak(self) -> int:
        """Bytes: the most that the step holds at once when nothing is evicted."""
        return int(self.live.max(initial=0))

    @cached_property
    def is_dense(self) -> bool:
        """Is nearly all of its values written to? What is not has no memory only if that is fresh."""
        unwritten = sum(value.unwritten for value in self.values)
        return unwritten * _DENSE <= sum(value.nbytes for value in self.values)

    @cached_property
    def seconds(self) -> float:
        """The step's time without a budget: its ops and the host's time between them."""
        return sum(op.seconds + op.host_seconds for op in self.ops)

    @cached_property
    def last_index(self) -> OpIndex:
        return OpIndex(len(self.ops) - 1)

    # -- gaps --------------------------------------------------------------------------------

    def gaps(self, at_least: int = 1) -> Iterator[Gap]:
        """Every stretch of at least one op in which a value of `at_least` bytes lies idle.

        In value order; the last gap of persistent state wraps into the next step.
        """
        first_version = {self.values[v].storage: v for v in reversed(self.initial)}
        for value in self.values:
            if value.nbytes < at_least:
                continue
            uses = self.uses[value.id]
            for start, stop in pairwise(uses):
                if stop - start > 1:
                    yield Gap(value.id, start, stop)
            if not uses:
                continue
            last = uses[-1]
            if value.freed is not None:
                if value.freed - last > 1:
                    yield Gap(value.id, last, None)
            elif (first := first_version.get(value.storage)) is not None and self.uses[first]:
                yield Gap(value.id, last, self.uses[first][0])
            elif len(self.ops) - last > 1:
                yield Gap(value.id, last, None)

    def saved_gaps(self, at_least: int = 1) -> Iterator[Gap]:
        """For each value that autograd saved, the gap between its last use in forward and its
        first in backward.
        """
        return (gap for gap in self.gaps(at_least) if self.awaits_backward(gap))

    def awaits_backward(self, gap: Gap) -> bool:
        """Is this the gap of a saved value between its last use in forward and backward?"""
        return (
            self.values[gap.value].saved
            and gap.stop is not None
            and not gap.wraps
            and self.ops[gap.start].phase is Phase.FORWARD
            and self.ops[gap.stop].phase is Phase.BACKWARD
        )

    def idle(self, gap: Gap, until: int | None = None) -> list[tuple[int, int]]:
        """The ops during which the gap's value lies idle, as half-open ranges.

        `until`: it is back before this op; None: it is not before the op that closes the gap. A gap
        that nothing closes lasts until the value dies.
        """
        end = len(self.ops)
        if gap.stop is None:
            freed = self.values[gap.value].freed
            return [(gap.start + 1, end if freed is None else freed + 1)]
        back = gap.stop if until is None else until
        return [(gap.start + 1, end), (0, back)] if gap.wraps else [(gap.start + 1, back)]

    # -- text for people ---------------------------------------------------------------------

    def describe(self, value: ValueId) -> str:
        """What a person calls this value, e.g. `h.3.mlp aten.tanh (op 96)`."""
        it = self.values[value]
        if it.producer is None:
            return it.name or f"{it.kind} {value}"
        op = self.ops[it.producer]
        return it.name or f"{op.module} {op.name} (op {op.index})".strip()

    def describe_op(self, op: OpIndex) -> str:
        it = self.ops[op]
        where = f", {it.module}" if it.module else ""
        return f"op {op} ({it.name}{where})"

    def relearnt(self, slack: int, seconds: NDArray[np.float64]) -> Self:
        """This step as it was measured again: its slack, and ops x (own, host) seconds.

        NaN leaves what was known.
        """
        ops = tuple(
            replace(
                op,
                seconds=op.seconds if math.isnan(own) else own,
                host_seconds=op.host_seconds if math.isnan(host) else host,
            )
            for op, (own, host) in zip(self.ops, seconds.tolist(), strict=True)
        )
        found = replace(self, ops=ops, slack=slack)
        for fact in _UNTIMED & vars(self).keys():  # what was derived is as true of the new one
            vars(found)[fact] = vars(self)[fact]
        return found

    def relabelled(self, label: str) -> Self:
        return replace(self, label=label)


_DENSE = 50
"""One byte in so many may be one that nobody writes."""
_UNTIMED = frozenset(
    {
        *("readers", "uses", "freed_after", "versions_of", "producers", "next_version"),
        *("previous_version", "initial", "fresh", "live", "last_index", "is_dense"),
    }
)
"""The derived facts of a trace that say nothing of seconds or slack."""


def _faults(ops: Sequence[Op], values: Sequence[Value]) -> Iterator[str]:
    for position, value in enumerate(values):
        if value.id != position:
            yield f"value {value.id} stands at position {position}"
        if value.nbytes < 0:
            yield f"value {position} has {value.nbytes} bytes"
        if value.unwritten < 0:
            yield f"value {position} has {value.unwritten} bytes that nobody writes"
        if value.producer is not None and not 0 <= value.producer < len(ops):
            yield f"value {position} is made by op {value.producer}, which does not exist"
        elif value.freed is not None and not (value.producer or 0) <= value.freed < len(ops):
            yield f"value {position}, made by op {value.producer}, is freed after op {value.freed}"
    makers: dict[ValueId, OpIndex] = {}
    for position, op in enumerate(ops):
        if op.index != position:
            yield f"op {op.index} stands at position {position}"
        for read in op.reads:
            if not 0 <= read < len(values):
                yield f"op {position} reads value {read}, which does not exist"
                continue
            value = values[read]
            if value.producer is not None and value.producer >= position:
                yield f"op {position} reads value {read} before op {value.producer} makes it"
            if value.freed is not None and value.freed < position:
                yield f"op {position} reads value {read}, which was freed after op {value.freed}"
        for written in op.writes:
            if not 0 <= written < len(values):
                yield f"op {position} writes value {written}, which does not exist"
            elif values[written].producer != position:
                maker = values[written].producer
                yield f"op {position} writes value {written}, whose producer is said to be {maker}"
            elif written in makers:
                yield f"op {position} writes value {written} twice"
            else:
                makers[written] = OpIndex(position)
        if op.seconds < 0 or op.host_seconds < 0 or op.workspace < 0:
            yield f"op {position} has a negative time or workspace"
    for value in values:
        if value.producer is not None and value.id not in makers:
            yield f"value {value.id} is said to be made by op {value.producer}, which does not write it"
    latest: dict[StorageId, Value] = {}
    for value in values:
        before = latest.get(value.storage)
        if before is not None and value.producer is None:
            yield f"values {before.id} and {value.id} of one storage both begin the step"
        elif before is not None and before.freed != value.producer:
            yield (
                f"value {value.id} overwrites value {before.id} at op {value.producer}, "
                f"but that one is freed after op {before.freed}"
            )
        latest[value.storage] = value
