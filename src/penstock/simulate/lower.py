"""From a plan to its schedule: when every copy starts, what is remade, and who waits for what.

Room is settled here, in program order, and not by looking at a clock: each op, remake and prefetch
that takes bytes is made to wait for just so many of the copies out before it (oldest first) that
the budget holds even if no other copy has ended. So the budget never depends on how fast a link is.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from penstock.ir.lineage import lineage
from penstock.ir.plan import Plan, Recompute, Residency, Swap
from penstock.ir.schedule import Cause, Schedule, ScheduleBuilder, TransferId, Verb
from penstock.ir.trace import OpIndex, Trace, ValueId

__all__ = ["lower"]


def lower(trace: Trace, plan: Plan, budget: int | None = None) -> Schedule:
    """Spell `plan` out. The plan must pass `check`; `budget` None means that room never lacks."""
    triggers: defaultdict[int, _Triggers] = defaultdict(_Triggers)
    for decision in plan.decisions:
        match decision:
            case Swap():
                triggers[decision.evict_at].evict.append(decision)
                if decision.prefetch_at is not None:
                    triggers[decision.prefetch_at].prefetch.append(decision)
                if decision.fence is not None:
                    triggers[decision.fence].fence.append(decision)
            case Recompute():
                triggers[decision.gap.start].drop.append(decision.gap.value)
                triggers[decision.remake_at].remake.append(decision.gap.value)

    state = _Lowering(trace, plan, budget)
    idle = _Triggers()
    for op in trace.ops:
        due = triggers.get(op.index, idle)
        for swap in due.evict:
            state.evict(swap)
        for swap in due.prefetch:
            state.prefetch(swap)
        for swap in due.fence:
            state.wait(state.leaving[swap], Cause.FENCE)
        if due.remake:
            state.remake(due.remake, op.index)
        state.run(op.index)
        for value in due.drop:
            state.drop(value)
    for swap in triggers.get(len(trace.ops), idle).evict:
        state.evict(swap)
    return state.schedule()


@dataclass(slots=True)
class _Triggers:
    """What one op index sets off."""

    evict: list[Swap] = field(default_factory=list)
    prefetch: list[Swap] = field(default_factory=list)
    fence: list[Swap] = field(default_factory=list)
    drop: list[ValueId] = field(default_factory=list)
    remake: list[ValueId] = field(default_factory=list)


class _Lowering:
    """The walk along the program: what is resident, how many bytes are taken, what is pending."""

    def __init__(self, trace: Trace, plan: Plan, budget: int | None) -> None:
        self.trace, self.budget = trace, budget
        self.size = [value.nbytes for value in trace.values]
        self.residency = Residency(trace, plan)
        self.out = ScheduleBuilder(trace)
        self.leaving: dict[Swap, TransferId] = {}
        self.arriving: dict[ValueId, TransferId] = {}
        self.gone: set[ValueId] = set()  # not resident by plan
        # Copies out of which some bytes still count as held, oldest first: the bytes, and the op
        # that they outlive in any case.
        self.pending: dict[TransferId, tuple[int, int]] = {}
        self.pending_bytes = 0  # their sum
        self.early = any(swap.evict_at <= swap.gap.start for swap in plan.swaps)
        self.need = [0] * len(trace.ops)
        self.occupied = sum(self.size[v] for v in trace.initial)
        self.away: list[tuple[ValueId, TransferId]] = []
        # The step before may still be copying, and its last copies are the last to end.
        for swap in sorted(plan.swaps, key=lambda swap: swap.evict_at):
            if swap.gap.wraps:
                value = self.returning(swap)
                self.leaving[swap] = copy = self.out.transfer(value, swap.tier, inward=False)
                self.owe(copy, self.size[value], -1)
                self.gone.add(value)
                self.away.append((value, copy))
        while budget is not None and self.occupied > budget and self.pending:
            self.wait(next(iter(self.pending)), Cause.ROOM)

    def schedule(self) -> Schedule:
        return self.out.build(self.away, self.need, self.budget)

    def run(self, index: OpIndex) -> None:
        op = self.trace.ops[index]
        self.await_inputs(op.reads)
        takes = self.trace.fresh[index]
        self.take(takes, op.workspace, index)
        for value in op.writes:  # a new version stands where the old one stood
            if (before := self.trace.previous_version.get(value)) is not None:
                self.gone.discard(before)
        frees = tuple(v for v in self.trace.freed_after[index] if v not in self.gone)
        self.occupied -= self.bytes_of(frees)
        self.out.add(Verb.RUN, index, takes=takes, frees=frees)

    def evict(self, swap: Swap) -> None:
        value = swap.gap.value
        if (copy := self.leaving.get(swap)) is None:
            self.leaving[swap] = copy = self.out.transfer(value, swap.tier, inward=False)
        self.out.add(Verb.EVICT, copy, swap.gap.start)
        self.owe(copy, self.size[value], swap.gap.start)
        self.gone.add(value)

    def prefetch(self, swap: Swap) -> None:
        value, out = self.returning(swap), self.leaving[swap]
        nbytes = self.size[value]
        self.settle(out)  # it comes back only when it has gone
        assert swap.prefetch_at is not None
        room = self.reserve(nbytes, swap.prefetch_at)
        copy = self.out.transfer(value, swap.tier, inward=True)
        self.out.add(Verb.PREFETCH, copy, out, room=room)
        self.occupied += nbytes
        self.gone.discard(value)
        self.arriving[value] = copy

    def remake(self, targets: Iterable[ValueId], at: OpIndex) -> None:
        """One pass that remakes `targets`: each op of their joint lineage runs once."""
        trace, wanted = self.trace, set(targets)

        def holds(value: ValueId, op: int) -> bool:
            return value not in wanted and self.residency.holds(value, op)

        ops = sorted({index for v in wanted for index in lineage(trace, v, at, holds)})
        last_read = {read: index for index in ops for read in trace.ops[index].reads}
        inside: set[ValueId] = set()  # made by this pass and still there
        for index in ops:
            op = trace.ops[index]
            self.await_inputs(read for read in op.reads if read not in inside)
            takes = []
            for value in op.writes:
                before = trace.previous_version.get(value)
                if before is None:
                    takes.append(value)
                elif before in inside:
                    inside.discard(before)
                else:
                    continue  # model state, which a second run leaves alone
                inside.add(value)
            self.take(takes, op.workspace, at)
            frees = sorted(
                v
                for v in {*op.reads, *op.writes} & inside - wanted
                if last_read.get(v, -1) <= index
            )
            inside.difference_update(frees)
            self.occupied -= self.bytes_of(frees)
            self.out.add(Verb.RUN_AGAIN, index, takes=takes, frees=frees)
        self.gone.difference_update(wanted)

    def drop(self, value: ValueId) -> None:
        self.out.add(Verb.DROP, value)
        self.occupied -= self.size[value]
        self.gone.add(value)

    def await_inputs(self, values: Iterable[ValueId]) -> None:
        for value in values:
            if (copy := self.arriving.pop(value, None)) is not None:
                self.wait(copy, Cause.INPUT)

    def wait(self, copy: TransferId, cause: Cause) -> None:
        self.settle(copy)
        self.out.wait(copy, cause)

    def owe(self, copy: TransferId, nbytes: int, outlives: int) -> None:
        """A copy out begins: its bytes count as held until something waits for it."""
        self.pending[copy] = nbytes, outlives
        self.pending_bytes += nbytes

    def settle(self, copy: TransferId, nbytes: int | None = None) -> None:
        """A copy out has ended; only `nbytes` of it count as free (None: all)."""
        held, outlives = self.pending.get(copy, (0, 0))
        used = held if nbytes is None else nbytes
        self.occupied -= used
        self.pending_bytes -= used
        if used < held:
            self.pending[copy] = held - used, outlives
        else:
            self.pending.pop(copy, None)

    def note_need(self, nbytes: int, at: OpIndex) -> None:
        """Around op `at`, `nbytes` more are wanted: how much is needed even if all left that can?"""
        leaving = self.pending_bytes
        if self.early:  # some copies begin while their value is still in use
            leaving = sum(held for held, outlives in self.pending.values() if outlives < at)
        self.need[at] = max(self.need[at], self.occupied - leaving + nbytes)

    def take(self, values: Iterable[ValueId], workspace: int, at: OpIndex) -> None:
        """Wait until the bytes of `values` and `workspace` fit; hold those of `values` from here."""
        nbytes = self.bytes_of(values)
        if self.budget is not None:
            limit = self.budget - nbytes - workspace
            while self.occupied > limit and (copy := self.oldest_pending(at)) is not None:
                self.wait(copy, Cause.ROOM)
        self.note_need(nbytes + workspace, at)
        self.occupied += nbytes

    def reserve(self, nbytes: int, at: OpIndex) -> list[TransferId]:
        """The copies out that must end before a prefetch of `nbytes` starts.

        Only the prefetch waits for them, so only the bytes that it takes count as free; the rest
        of such a copy stays pending, for compute to wait for.
        """
        room: list[TransferId] = []
        self.note_need(nbytes, at)
        if self.budget is None:
            return room
        wanted = min(nbytes, self.occupied + nbytes - self.budget)
        while wanted > 0 and (copy := self.oldest_pending(at)) is not None:
            used = min(wanted, self.pending[copy][0])
            self.settle(copy, used)
            wanted -= used
            room.append(copy)
        return room

    def oldest_pending(self, at: int) -> TransferId | None:
        for copy, (_, outlives) in self.pending.items():
            if outlives < at:
                return copy
        return None

    def returning(self, swap: Swap) -> ValueId:
        """The value that the copy in brings: in a wrapping gap, the next step's first version."""
        if not swap.gap.wraps:
            return swap.gap.value
        storage = self.trace.values[swap.gap.value].storage
        return next(v for v in self.trace.initial if self.trace.values[v].storage == storage)

    def bytes_of(self, values: Iterable[ValueId]) -> int:
        return sum(self.size[v] for v in values)
