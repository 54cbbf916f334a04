"""Online methods replayed over a recorded step: a score of victims becomes a plan.

Such a method looks at nothing that is still to come. Where an op finds no room, the idle value of the
lowest score leaves, until there is room; when an op reads a value that left, it comes back first.

Rejected  To keep what dies in forward once a remake has made it again: the engine frees it at the end
          of that remake, so the replay does too (DTR's runtime keeps it until something evicts it).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal, TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

from penstock.ir.plan import Decision, Recompute, Swap
from penstock.ir.policy import Problem
from penstock.ir.trace import Gap, Kind, Op, OpIndex, Trace, ValueId
from penstock.simulate.least import MOVABLE_FROM
from penstock.solve.pressure import Pressure
from penstock.solve.remakes import alone, possible, swappable
from penstock.solve.tiers import shelved

__all__ = ["Floats", "Idle", "Replay", "Score", "first_made", "least_recently_used", "replay"]

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

_RUNS = 4
"""How many ops may run again where remakes may take as long as the step, over those of the step."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What became of a step under an online method.

    `decisions` are what a plan can say of it: one absence for each gap, from its beginning to the last
    return in it. `runs` counts what the method itself ran, remakes included, `again` the seconds of
    these. `lacking` is the most bytes that were missing when nothing could leave.
    """

    decisions: tuple[Decision, ...]
    runs: int
    again: float
    lacking: int
    thrashed: bool  # the remakes passed their limit, and from there on nothing left


@dataclass(frozen=True, slots=True)
class Idle:
    """The values that could leave now, as columns: what a score may look at."""

    nbytes: Ints
    seconds: Floats  # of the op that made each
    made: Ints  # by which op
    last_access: Floats  # by the clock, which counts the seconds of all ops so far
    clock: float
    _values: Ints
    _away: "_Away"

    @property
    def staleness(self) -> Floats:
        return self.clock - self.last_access

    def ancestors(self) -> Floats:
        """Seconds of the values that are gone and from which each was made, as far as what is there."""
        return self._away.closures(self._values, upward=True)

    def descendants(self) -> Floats:
        """Seconds of the values that are gone and were made from each, as far as what is there."""
        return self._away.closures(self._values, upward=False)

    def neighbourhoods(self) -> Floats:
        """As ancestors and descendants together, but approximated: gone values that ever met count as
        one group, which loses a value that comes back, and never falls apart.
        """
        return self._away.groups(self._values)


Score: TypeAlias = Callable[[Idle], Floats]
"""One number for each idle value: the least leaves first."""


def first_made(idle: Idle) -> Floats:
    return idle.made.astype(np.float64)


def least_recently_used(idle: Idle) -> Floats:
    return idle.last_access


def replay(
    problem: Problem,
    score: Score,
    *,
    by: Literal["drop", "swap"] = "drop",
    smallest: int = MOVABLE_FROM,
    limit: float = inf,
) -> Replay:
    """Let the values with the least `score` leave wherever room lacks, beside what is given.

    Dropped values are remade when they are read, and stay until they are chosen again; swapped ones
    come back when they are read, while the step waits. Model state stays.
    `limit`: the seconds of all remakes, over those of the step, after which nothing leaves any more; or
    four times as many ops, because some take next to no time.
    """
    trace, tiers = problem.trace, problem.machine.tiers
    free = dict.fromkeys(problem.free_gaps(smallest))
    due = swappable(problem, smallest) if by == "swap" else free
    gaps = [gap for gap in due if not (gap.wraps or trace.values[gap.value].kind.is_state)]
    if by == "drop":
        gaps = alone(problem, gaps)
    walk = _Walk(problem, score, gaps, by, limit)
    for gap in gaps:
        if (op := due[gap]) is not None and op != gap.stop:
            walk.wanted[op].append(gap.value)
    for running in trace.ops:
        walk.step(running)
    decisions: Iterable[Decision]
    if by == "drop":
        dropped = [Recompute(gap, walk.back[gap]) for gap in walk.left]
        decisions = possible(problem.given, trace, dropped)
    else:
        swapped = (
            Swap(gap, tiers[0].name, at, walk.back.get(gap, gap.stop), fence=at)
            for gap, at in walk.left.items()
        )
        decisions = shelved(problem, swapped)
    return Replay(tuple(decisions), walk.runs, walk.again, walk.lacking, walk.thrashed)


@dataclass(slots=True)
class _Frame:
    """An op that is about to run. `missing`: what it reads and waits for, the next one last."""

    op: Op
    again: bool
    reads: Sequence[ValueId]
    missing: list[ValueId]


class _Walk:
    """Where each value is while the method runs, and how many bytes that leaves."""

    def __init__(
        self, problem: Problem, score: Score, gaps: list[Gap], by: str, limit: float
    ) -> None:
        self.trace = trace = problem.trace
        self.score, self.by = score, by
        self.limit = limit * sum(op.seconds for op in trace.ops)
        self.most = (1 + limit * _RUNS) * len(trace.ops)
        self.pressure = Pressure(problem)
        self.opening: defaultdict[int, dict[ValueId, Gap]] = defaultdict(dict)
        for gap in gaps:
            self.opening[gap.start][gap.value] = gap
        self.wanted: defaultdict[int, list[ValueId]] = defaultdict(list)  # by given remakes
        count = len(trace.values)
        self.size = trace.columns.nbytes.tolist()
        self.nbytes = trace.columns.nbytes
        self.away = _Away(trace)
        self.made = trace.producers
        self.resident = [value.producer is None for value in trace.values]
        self.gap: dict[ValueId, Gap] = {}  # the gap in which a value is idle, if it may leave
        self.locks = [0] * count
        self.is_idle = np.zeros(count, np.bool_)
        self.queued = np.zeros(count, np.int64)  # when each became idle: breaks ties
        self.turn = 0
        self.last_access = np.zeros(count)
        self.clock = 0.0
        self.gone: set[ValueId] = set()  # left inside a gap; their bytes are free
        self.gone_bytes = 0
        self.borrowed: set[ValueId] = set()  # there for a remake only; their bytes are extra
        self.borrowed_bytes = 0
        self.left: dict[Gap, OpIndex] = {}  # the first departure in each gap
        self.back: dict[Gap, OpIndex] = {}  # the last return
        self.runs, self.again, self.lacking, self.thrashed = 0, 0.0, 0, False

    def step(self, op: Op) -> None:
        """One op of the step, with all that must be remade for it."""
        self.now = op.index
        for value in self.wanted.get(op.index, ()):
            self.recall(value)
        frames = [self.begun(op, again=False)]
        while frames:
            frame = frames[-1]
            if not frame.missing:
                self.make_room(frame)
                self.run(frame)
                frames.pop()
            elif self.resident[value := frame.missing[-1]]:
                self.locks[frame.missing.pop()] += 1
                self.is_idle[value] = False
            elif self.by == "swap":
                self.arrive(value)
            else:
                producer = self.trace.values[value].producer
                assert producer is not None
                frames.append(self.begun(self.trace.ops[producer], again=True))
        for value in tuple(self.borrowed):
            self.depart(value)
        for value in self.trace.freed_after[op.index]:
            if value in self.gone:  # away for good: it takes no room from here on in any case
                self.gone.remove(value)
                self.gone_bytes -= self.size[value]
            elif self.resident[value]:
                self.vanish(value)

    def recall(self, value: ValueId) -> None:
        """A given remake starts from the value: it is there, and does not leave in this gap again."""
        self.is_idle[value] = False
        if value in self.gone:
            self.arrive(value)
        self.gap.pop(value, None)

    def begun(self, op: Op, *, again: bool) -> _Frame:
        """What `op` reads counts as used now, and what is there of it is locked."""
        reads = [value for value in op.reads if self.resident[value] or self.can_return(value, op)]
        self.last_access[reads] = self.clock
        there = [value for value in reads if self.resident[value]]
        for value in there:
            self.locks[value] += 1
            self.is_idle[value] = False
        missing = [value for value in reversed(reads) if not self.resident[value]]
        return _Frame(op, again, reads, missing)

    def can_return(self, value: ValueId, op: Op) -> bool:
        """Is there a way back? Not for running statistics, which a second run leaves alone."""
        it = self.trace.values[value]
        is_statistic = it.kind is Kind.BUFFER and it.freed == op.index
        if value in self.gone or is_statistic or it.producer is None:
            return value in self.gone
        return self.trace.ops[it.producer].repeatable

    def make_room(self, frame: _Frame) -> None:
        lacking = self.pressure.over(self.now) - self.gone_bytes + self.borrowed_bytes
        if frame.again:  # what this op of the step takes is not there yet
            lacking -= (
                self.bytes_of(self.trace.fresh[self.now]) + self.trace.ops[self.now].workspace
            )
            lacking += self.bytes_of(self.trace.fresh[frame.op.index]) + frame.op.workspace
        while lacking > 0:
            if (victim := self.victim()) is None:
                self.lacking = max(self.lacking, lacking)
                return
            self.depart(victim)
            lacking -= self.size[victim]

    def victim(self) -> ValueId | None:
        idle = np.flatnonzero(self.is_idle)
        if not idle.size or self.thrashed:
            return None
        scores = self.score(
            Idle(
                self.nbytes[idle],
                self.away.seconds[idle],
                self.made[idle],
                self.last_access[idle],
                self.clock,
                idle,
                self.away,
            )
        )
        least = scores.min()
        ties = idle[scores == least]
        turns = self.queued[ties]
        # The last of those that tie, as in DTR's simulator; it stops at the first that costs nothing.
        return ValueId(int(ties[turns.argmin() if least == 0 else turns.argmax()]))

    def run(self, frame: _Frame) -> None:
        op = frame.op
        self.clock += op.seconds
        self.runs += 1
        if frame.again:
            self.again += op.seconds
            self.thrashed |= self.again > self.limit or self.runs > self.most
            for value in op.writes:
                before = self.trace.previous_version.get(value)
                if before is not None and before in self.borrowed:  # the op writes over it
                    self.vanish(before)
                if not self.resident[value]:
                    self.arrive(value)
        else:
            for value in (*op.writes, *op.reads):
                self.gap.pop(value, None)
            self.gap.update(self.opening[op.index])
            for value in op.writes:
                if (before := self.trace.previous_version.get(value)) is not None:
                    self.vanish(before)
                self.resident[value] = True
            self.last_access[list(op.writes)] = self.clock
        for value in op.writes:
            self.offer(value)
        for value in frame.reads:
            self.locks[value] -= 1
            self.offer(value)

    def offer(self, value: ValueId) -> None:
        """It may leave if nothing holds it, and if it lies in a gap or is there for a remake only."""
        may = value in self.gap or value in self.borrowed
        if may and self.resident[value] and not self.locks[value] and not self.is_idle[value]:
            self.turn += 1
            self.is_idle[value] = True
            self.queued[value] = self.turn

    def depart(self, value: ValueId) -> None:
        """A victim leaves; so does what was there for a remake only."""
        if value not in self.borrowed:
            gap = self.gap[value]
            self.left.setdefault(gap, self.now)
            self.back.pop(gap, None)
            self.gone.add(value)
            self.gone_bytes += self.size[value]
        self.vanish(value)

    def arrive(self, value: ValueId) -> None:
        """A value is there again: in its gap, or for a remake only if its life has ended."""
        self.resident[value] = True
        if self.made[value] >= 0:
            self.away.returns(value)
        if value in self.gone:
            self.gone.remove(value)
            self.gone_bytes -= self.size[value]
            self.back[self.gap[value]] = self.now
        else:
            self.borrowed.add(value)
            self.borrowed_bytes += self.size[value]

    def vanish(self, value: ValueId) -> None:
        self.resident[value] = self.is_idle[value] = False
        if value in self.borrowed:
            self.borrowed.remove(value)
            self.borrowed_bytes -= self.size[value]
        if self.made[value] >= 0:
            self.away.leaves(value)

    def bytes_of(self, values: Iterable[ValueId]) -> int:
        return sum(self.size[value] for value in values)


class _Away:
    """Which values were made and are gone, and what they cost together: sums along the lineage."""

    def __init__(self, trace: Trace) -> None:
        columns = trace.columns.seconds
        made = [value.producer for value in trace.values]
        self.producer = _rows([[] if op is None else [op] for op in made])
        self.readers = _rows(trace.readers)
        self.reads = _rows([op.reads for op in trace.ops])
        self.writes = _rows([op.writes for op in trace.ops])
        self.seconds = np.array([0.0 if op is None else columns[op] for op in made])
        self.is_gone = np.zeros(len(trace.values), np.bool_)
        # The sums of closures, by direction, and for which values they still hold.
        count = len(trace.values)
        self.sums = {way: (np.zeros(count), np.zeros(count, np.bool_)) for way in (True, False)}
        # Groups, for their approximation: a forest of nodes, of which roots know what they cost.
        self.node = np.full(len(trace.values), -1, np.int64)
        self.above = np.zeros(0, np.int64)
        self.total = np.zeros(0)
        self.nodes = 0

    def leaves(self, value: ValueId) -> None:
        self.is_gone[value] = True
        if self.nodes == len(self.above):
            self.above = np.concatenate((self.above, np.zeros(self.nodes + 1024, np.int64)))
            self.total = np.concatenate((self.total, np.zeros(self.nodes + 1024)))
        self.above[self.nodes] = self.node[value] = self.nodes
        self.total[self.nodes] = self.seconds[value]
        self.nodes += 1
        _join(value, *self._lineage, self.is_gone, self.node, self.above, self.total)
        self._forget(value)

    def returns(self, value: ValueId) -> None:
        self.is_gone[value] = False
        self.total[_root(self.node[value], self.above)] -= self.seconds[value]
        self.node[value] = -1
        self._forget(value)

    def closures(self, values: Ints, *, upward: bool) -> Floats:
        sums, hold = self.sums[upward]
        stale = values[~hold[values]]
        if stale.size:
            sums[stale] = _closures(stale, *self._edges(upward=upward), self.is_gone, self.seconds)
            hold[stale] = True
        found: Floats = sums[values]
        return found

    def _forget(self, value: ValueId) -> None:
        """It is there or not, other than before: what reaches it has another sum now."""
        for upward, (_, hold) in self.sums.items():
            if hold.any():
                _outdate(value, *self._edges(upward=not upward), self.is_gone, hold)

    def _edges(self, *, upward: bool) -> tuple[Ints, Ints, Ints, Ints]:
        """By value the ops, and by op the values, that one step up or down leads to."""
        return (*self.producer, *self.reads) if upward else (*self.readers, *self.writes)

    def groups(self, values: Ints) -> Floats:
        found: Floats = _groups(
            values, *self._lineage, self.is_gone, self.node, self.above, self.total
        )
        return found

    @property
    def _lineage(self) -> tuple[Ints, Ints, Ints, Ints, Ints, Ints, Ints, Ints]:
        return (*self.producer, *self.reads, *self.readers, *self.writes)


def _rows(lists: Iterable[Sequence[int]]) -> tuple[Ints, Ints]:
    """A ragged table: where each row begins, and all items."""
    rows = list(lists)
    starts = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)), out=starts[1:])
    return starts, np.fromiter((item for row in rows for item in row), np.int64, int(starts[-1]))


@njit(cache=True)
def _reached(
    value: int,
    op_starts: Ints,
    ops_of: Ints,
    value_starts: Ints,
    values_of: Ints,
    is_gone: NDArray[np.bool_],
) -> Ints:
    """What is reached from `value` through nothing but gone values, in the order in which it is met."""
    seen_value = np.zeros(len(is_gone), np.bool_)
    seen_op = np.zeros(len(value_starts) - 1, np.bool_)
    met, stack = np.empty((2, len(is_gone) + 1), np.int64)
    stack[0] = value
    count, height = 0, 1
    while height > 0:
        height -= 1
        at_value = stack[height]
        for at in range(op_starts[at_value], op_starts[at_value + 1]):
            op = ops_of[at]
            if seen_op[op]:
                continue
            seen_op[op] = True
            for place in range(value_starts[op], value_starts[op + 1]):
                other = values_of[place]
                if seen_value[other]:
                    continue
                seen_value[other] = True
                met[count] = other
                count += 1
                if is_gone[other]:
                    stack[height] = other
                    height += 1
    return met[:count]


@njit(cache=True)
def _closures(
    values: Ints,
    op_starts: Ints,
    ops_of: Ints,
    value_starts: Ints,
    values_of: Ints,
    is_gone: NDArray[np.bool_],
    seconds: Floats,
) -> Floats:
    """For each of `values`, the seconds of all that is gone and reached through nothing else."""
    found = np.zeros(len(values))
    for number in range(len(values)):
        for other in _reached(values[number], op_starts, ops_of, value_starts, values_of, is_gone):
            if is_gone[other]:
                found[number] += seconds[other]
    return found


@njit(cache=True)
def _outdate(
    value: int,
    op_starts: Ints,
    ops_of: Ints,
    value_starts: Ints,
    values_of: Ints,
    is_gone: NDArray[np.bool_],
    hold: NDArray[np.bool_],
) -> None:
    """The sum of what is reached from `value` does not hold any more."""
    for other in _reached(value, op_starts, ops_of, value_starts, values_of, is_gone):
        hold[other] = False


@njit(cache=True)
def _root(node: int, above: Ints) -> int:
    while above[node] != node:
        above[node] = above[above[node]]
        node = above[node]
    return node


@njit(cache=True)
def _join(
    value: int,
    made_starts: Ints,
    made_by: Ints,
    read_starts: Ints,
    reads: Ints,
    reader_starts: Ints,
    readers: Ints,
    write_starts: Ints,
    writes: Ints,
    is_gone: NDArray[np.bool_],
    node: Ints,
    above: Ints,
    total: Floats,
) -> None:
    """The group of a value that leaves takes in those of the gone values next to it."""
    for side in range(2):
        op_starts, ops = (made_starts, made_by) if side == 0 else (reader_starts, readers)
        starts, others = (read_starts, reads) if side == 0 else (write_starts, writes)
        for at in range(op_starts[value], op_starts[value + 1]):
            for place in range(starts[ops[at]], starts[ops[at] + 1]):
                other = others[place]
                if other == value or not is_gone[other]:
                    continue
                mine, theirs = _root(node[value], above), _root(node[other], above)
                if mine != theirs:
                    above[theirs] = mine
                    total[mine] += total[theirs]


@njit(cache=True)
def _groups(
    values: Ints,
    made_starts: Ints,
    made_by: Ints,
    read_starts: Ints,
    reads: Ints,
    reader_starts: Ints,
    readers: Ints,
    write_starts: Ints,
    writes: Ints,
    is_gone: NDArray[np.bool_],
    node: Ints,
    above: Ints,
    total: Floats,
) -> Floats:
    """For each of `values`, what the groups next to it cost together."""
    found = np.zeros(len(values))
    seen = np.full(len(above), -1)
    for number in range(len(values)):
        value = values[number]
        for side in range(2):
            op_starts, ops = (made_starts, made_by) if side == 0 else (reader_starts, readers)
            starts, others = (read_starts, reads) if side == 0 else (write_starts, writes)
            for at in range(op_starts[value], op_starts[value + 1]):
                for place in range(starts[ops[at]], starts[ops[at] + 1]):
                    other = others[place]
                    if is_gone[other]:
                        root = _root(node[other], above)
                        if seen[root] != number:
                            seen[root] = number
                            found[number] += total[root]
    return found
