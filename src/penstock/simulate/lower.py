"""From a plan to its schedule: when every copy starts, what is remade, and who waits for what.

Room is settled here, in program order, and not by looking at a clock: each op, remake and prefetch
that takes bytes is made to wait for just so many of the copies out before it (oldest first) that
the budget holds even if no other copy has ended. So the budget never depends on how fast a link is.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from penstock.ir.lineage import joint_lineage
from penstock.ir.plan import Place, Plan, Recompute, Residency, Swap, wraps
from penstock.ir.schedule import Access, Cause, Schedule, ScheduleBuilder, TransferId, Verb
from penstock.ir.trace import Op, OpIndex, StorageId, Trace, ValueId

__all__ = ["lower"]


def lower(trace: Trace, plan: Plan, budget: int | None = None) -> Schedule:
    """Spell `plan` out. The plan must pass `check`; `budget` None means that room never lacks."""
    due = _Triggers(plan)
    state = _Lowering(trace, plan, budget)
    for op in trace.ops:
        if op.index in due:
            state.prepare(due, op.index)
        state.run(op.index)
        for value in due.drop.get(op.index, ()):
            state.drop(value)
    state.prepare(due, OpIndex(len(trace.ops)))  # copies out, for the next step
    return state.schedule()


class _Triggers:
    """What each op index sets off."""

    def __init__(self, plan: Plan) -> None:
        self.evict: defaultdict[int, list[Swap]] = defaultdict(list)
        self.place: defaultdict[int, list[Place]] = defaultdict(list)
        self.prefetch: defaultdict[int, list[Swap]] = defaultdict(list)
        self.bring_back: defaultdict[int, list[Place]] = defaultdict(list)
        self.fence: defaultdict[int, list[Swap]] = defaultdict(list)
        self.remake: defaultdict[int, list[ValueId]] = defaultdict(list)
        self.drop: defaultdict[int, list[ValueId]] = defaultdict(list)
        for decision in plan.decisions:
            match decision:
                case Swap():
                    self.evict[decision.evict_at].append(decision)
                    if decision.prefetch_at is not None:
                        self.prefetch[decision.prefetch_at].append(decision)
                    if decision.fence is not None:
                        self.fence[decision.fence].append(decision)
                case Place():
                    if decision.evict_at is not None:
                        self.place[decision.evict_at].append(decision)
                    if decision.prefetch_at is not None:
                        self.bring_back[decision.prefetch_at].append(decision)
                case Recompute():
                    self.remake[decision.remake_at].append(decision.gap.value)
                    self.drop[decision.gap.start].append(decision.gap.value)
        before = (self.evict, self.place, self.prefetch, self.bring_back, self.fence, self.remake)
        self._before = frozenset[int]().union(*before)

    def __contains__(self, op: int) -> bool:
        """Is anything to be done before op `op` runs?"""
        return op in self._before


class _Lowering:
    """The walk along the program: what is resident, how many bytes are taken, what is pending."""

    def __init__(self, trace: Trace, plan: Plan, budget: int | None) -> None:
        self.trace, self.budget = trace, budget
        self.size = [value.nbytes for value in trace.values]
        self.residency = Residency(trace, plan)
        self.out = ScheduleBuilder(trace)
        self.leaving: dict[Swap | Place, TransferId] = {}
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
        # What is placed: by storage, the tier where it is now, and the copy that took it there if
        # that may not have ended; the values that are born there; those that begin the step there.
        self.placing = bool(plan.places)
        self.below: dict[StorageId, str] = {}
        self.unsettled: dict[StorageId, TransferId] = {}
        self.born: dict[ValueId, str] = {}
        self.begins: list[ValueId] = []
        self.copied = _still_copied(trace, plan.places)
        for place in plan.places:
            if place.evict_at is None:
                self.born[place.value] = place.tier
            begins = place.evict_at is None and trace.values[place.value].producer is None
            if begins or (place in self.copied and wraps(trace, place)):
                self.begin_below(place)
        # The step before may still be copying, and its last copies are the last to end.
        for leaver in self.leavers(plan):
            value = self.returning(leaver)
            self.leaving[leaver] = copy = self.out.transfer(value, leaver.tier, inward=False)
            self.owe(copy, self.size[value], -1)
            self.gone.add(value)
            self.away.append((value, copy))
            if isinstance(leaver, Place):
                storage = trace.values[value].storage
                self.below[storage], self.unsettled[storage] = leaver.tier, copy
        while budget is not None and self.occupied > budget and self.pending:
            self.wait(next(iter(self.pending)), Cause.ROOM)

    def schedule(self) -> Schedule:
        return self.out.build(self.away, self.begins, self.need, self.budget)

    def prepare(self, due: _Triggers, at: OpIndex) -> None:
        """All that is to be done before op `at` runs."""
        for swap in due.evict.get(at, ()):
            self.evict(swap)
        for place in due.place.get(at, ()):
            self.move_below(place)
        for swap in due.prefetch.get(at, ()):
            self.prefetch(swap)
        for place in due.bring_back.get(at, ()):
            self.bring_back(place)
        for swap in due.fence.get(at, ()):
            self.wait(self.leaving[swap], Cause.FENCE)
        if (wanted := due.remake.get(at)) is not None:
            self.remake(wanted, at)

    def run(self, index: OpIndex) -> None:
        trace = self.trace
        op = trace.ops[index]
        if self.arriving:
            self.await_inputs(op.reads)
        takes: Sequence[ValueId] = trace.fresh[index]
        nbytes = trace.fresh_bytes[index]
        direct: Sequence[Access] = ()
        if self.placing:
            takes, direct = self.reach(op)
            nbytes = self.bytes_of(takes)
        self.take(nbytes, op.workspace, index)
        self.gone.difference_update(trace.replaced[index])
        if self.below:  # what is written there stays there
            self.gone.update(access.value for access in direct if access.written)
        frees, freed = trace.freed_after[index], trace.freed_bytes[index]
        if not self.gone.isdisjoint(frees):
            frees = tuple(value for value in frees if value not in self.gone)
            freed = self.bytes_of(frees)
        self.occupied -= freed
        if direct:
            self.out.use(direct)
        self.out.add(Verb.RUN, index, takes=takes, frees=frees)

    def evict(self, swap: Swap) -> None:
        value = swap.gap.value
        if self.placing:  # it may have been brought back and not been used since
            self.await_inputs((value,))
        self.copy_out(swap, value, swap.gap.start)

    def prefetch(self, swap: Swap) -> None:
        assert swap.prefetch_at is not None
        self.copy_in(swap, self.returning(swap), swap.prefetch_at)

    def copy_out(self, leaver: Swap | Place, value: ValueId, outlives: int) -> TransferId:
        if (copy := self.leaving.get(leaver)) is None:
            self.leaving[leaver] = copy = self.out.transfer(value, leaver.tier, inward=False)
        self.out.add(Verb.EVICT, copy, outlives)
        self.owe(copy, self.size[value], outlives)
        self.gone.add(value)
        return copy

    def copy_in(self, leaver: Swap | Place, value: ValueId, at: OpIndex) -> None:
        if (out := self.leaving.get(leaver)) is not None:
            self.settle(out)  # it comes back only when it has gone
        nbytes = self.size[value]
        room = self.reserve(nbytes, at)
        copy = self.out.transfer(value, leaver.tier, inward=True)
        self.out.add(Verb.PREFETCH, copy, -1 if out is None else out, room=room)
        self.occupied += nbytes
        self.gone.discard(value)
        self.arriving[value] = copy

    def leavers(self, plan: Plan) -> list[Swap | Place]:
        """The decisions whose copies out the step before may still be at, in their order."""
        places = (p for p in plan.places if wraps(self.trace, p) and p not in self.copied)
        swaps = (swap for swap in plan.swaps if swap.gap.wraps)
        return sorted((*swaps, *places), key=lambda one: one.evict_at or 0)

    def begin_below(self, place: Place) -> None:
        """The step begins with the value in its tier, and no copy on its way there."""
        storage = self.trace.values[place.value].storage
        first = self.trace.versions_of[storage][0]
        self.below[storage] = place.tier
        self.begins.append(first)
        self.gone.add(first)
        self.occupied -= self.size[first]

    def move_below(self, place: Place) -> None:
        value, storage = place.value, self.trace.values[place.value].storage
        self.await_inputs((value,))
        self.below[storage] = place.tier
        if place in self.copied:
            self.drop(value)
            return
        assert place.evict_at is not None
        uses = [use for v in self.trace.versions_of[storage] for use in self.trace.uses[v]]
        after = max((use for use in uses if use < place.evict_at), default=-1)
        self.unsettled[storage] = self.copy_out(place, value, after)

    def bring_back(self, place: Place) -> None:
        assert place.prefetch_at is not None
        storage = self.trace.values[place.value].storage
        value = self.trace.version_before(storage, place.prefetch_at)
        del self.below[storage]
        self.unsettled.pop(storage, None)
        self.copy_in(place, value, place.prefetch_at)

    def reach(self, op: Op) -> tuple[list[ValueId], list[Access]]:
        """What `op` must find room for on the device, and what it uses below."""
        previous, values = self.trace.previous_version, self.trace.values
        for value in op.writes:
            if (tier := self.born.get(value)) is not None:
                self.below[values[value].storage] = tier
        self.await_inputs(previous[value] for value in op.writes if value in previous)
        takes = [value for value in self.trace.fresh[op.index] if value not in self.born]
        return takes, [*self.reached(op.reads), *self.reached(op.writes, written=True)]

    def reached(self, values: Iterable[ValueId], *, written: bool = False) -> list[Access]:
        """Those of `values` that are used below, once they are there."""
        found = []
        for value in values:
            storage = self.trace.values[value].storage
            if (tier := self.below.get(storage)) is not None:
                if (copy := self.unsettled.pop(storage, None)) is not None:
                    self.wait(copy, Cause.INPUT)
                found.append(Access(value, tier, written))
        return found

    def remake(self, targets: Iterable[ValueId], at: OpIndex) -> None:
        """One pass that remakes `targets`: each op of their joint lineage runs once."""
        trace, wanted = self.trace, set(targets)

        def holds(value: ValueId, op: int) -> bool:
            return value not in wanted and self.residency.holds(value, op)

        ops = joint_lineage(trace, wanted, at, holds)
        last_read = {read: index for index in ops for read in trace.ops[index].reads}
        inside: set[ValueId] = set()  # made by this pass and still there
        for index in ops:
            op = trace.ops[index]
            outside = [read for read in op.reads if read not in inside]
            self.await_inputs(outside)
            direct: Sequence[Access] = ()
            if self.below:
                alive = (read for read in outside if self.residency.holds(read, at))
                direct = self.reached(alive)
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
            self.take(self.bytes_of(takes), op.workspace, at)
            frees = sorted(
                v
                for v in {*op.reads, *op.writes} & inside - wanted
                if last_read.get(v, -1) <= index
            )
            inside.difference_update(frees)
            self.occupied -= self.bytes_of(frees)
            if direct:
                self.out.use(direct)
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

    def take(self, nbytes: int, workspace: int, at: OpIndex) -> None:
        """Wait until `nbytes` and `workspace` fit; hold `nbytes` from here."""
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

    def returning(self, leaver: Swap | Place) -> ValueId:
        """The value that the copy in brings: across steps, the next one's first version."""
        if isinstance(leaver, Swap) and not leaver.gap.wraps:
            return leaver.gap.value
        value = leaver.gap.value if isinstance(leaver, Swap) else leaver.value
        return self.trace.versions_of[self.trace.values[value].storage][0]

    def bytes_of(self, values: Iterable[ValueId]) -> int:
        return sum(self.size[v] for v in values)


def _still_copied(trace: Trace, places: Sequence[Place]) -> set[Place]:
    """Those that need no copy out: what an earlier one brought back was not written since."""
    found = set()
    of: defaultdict[StorageId, list[Place]] = defaultdict(list)
    for place in places:
        of[trace.values[place.value].storage].append(place)
    for storage, mine in of.items():
        brought = sorted(
            (place.prefetch_at, place.tier) for place in mine if place.prefetch_at is not None
        )
        first, last = trace.versions_of[storage][0], trace.versions_of[storage][-1]
        for place in mine:
            if place.evict_at is None or not brought:
                continue
            before = [one for one in brought if one[0] < place.evict_at]
            at, tier = (before or brought)[-1]
            value = trace.version_before(storage, at)
            if not before:  # if any, it was brought back in the step before
                value = first if trace.lasts(storage) and value == last else ValueId(-1)
            if value == place.value and tier == place.tier:
                found.add(place)
    return found
