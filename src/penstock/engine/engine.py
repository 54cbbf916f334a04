"""The engine: runs every call of the training step, follows the plan, and keeps the budget.

It works in one of two ways. *Following*, it knows what comes next: it checks that each call is the
one recorded and does what the program says around it. *Serving*, it knows nothing: before each call
it brings back what the call reads and evicts what was touched longest ago if room is short. A step
that leaves the recorded path is served until the path is found again.

**Guarantees.** Whatever the plan and whatever the step, each call sees the bytes that plain PyTorch
would show it. When there is no room, values are evicted that the plan would have kept; only when
nothing is left to evict does the engine raise `BudgetError`.
"""

import re
import threading
import time
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, assert_never

import torch
from torch import Tensor, UntypedStorage
from torch._ops import OpOverload

from penstock.dispatch.clock import Clock, in_backward
from penstock.dispatch.generators import draw_of, rewind
from penstock.dispatch.resident import CAllocator, Meter
from penstock.dispatch.schema import facts_of, tensors_in
from penstock.dispatch.storage import (
    CAN_SWAP,
    components_of,
    components_on,
    is_sparse,
    key_of,
    lies_on,
    nbytes_of,
    storage_of,
)
from penstock.engine.lanes import Copy
from penstock.engine.lineage import Call, capture, fresh_storages, renamed_call, run_again
from penstock.engine.log import Log
from penstock.engine.needs import output_bytes
from penstock.engine.program import CopyAhead, Discard, Instruction, Lineage, Pass, Program, Spot
from penstock.engine.residency import MountedTier, Place, ResidencyManager, Resident
from penstock.engine.room import Room
from penstock.engine.watch import Moment, Watch
from penstock.errors import BudgetError, TierError
from penstock.ir.schedule import (
    Action,
    Cause,
    Drop,
    Evict,
    Prefetch,
    Run,
    TransferId,
    Wait,
)
from penstock.ir.trace import Op, ValueId
from penstock.simulate.least import MOVABLE_FROM

__all__ = ["Engine", "Execute", "Happened"]

Execute = Callable[[OpOverload, tuple[Any, ...], dict[str, Any]], Any]

_UNKNOWN_NEED = 1 << 20
"""Bytes to make room for when a failed allocation does not say how many it wanted."""
_UNPLANNED = 4 << 20
"""Bytes that a process takes now and then for what is no tensor."""
_ALIKE = 0.5
"""Of the sizes of a known step, the share that a smaller one must have to follow its program."""
_READING = frozenset(
    {
        *("saved_tensors", "untyped_storage", "const_data_ptr"),
        *("tolist", "__repr__", "__getitem__", "clone", "cpu", "set_", "nbytes", "__len__"),
    }
)
"""Doors through which nobody writes."""
_FOREVER = 1 << 62
_NOTHING = Instruction()
_PLAIN = (Tensor,)  # what torch names as the classes of a call that it makes from Python


@dataclass
class Happened:
    """What happened in one step, beyond what was planned."""

    stalls: dict[Cause, float] = field(default_factory=lambda: dict.fromkeys(Cause, 0.0))
    fetch_seconds: float = 0.0  # waiting for copies that nobody planned
    events: list[str] = field(default_factory=list)  # fallback, retry, replan ...
    fell_back: bool = False  # it left the recorded path
    begun_alike: bool = False  # and that after its first large values had the known sizes
    joined_late: bool = False  # after these, it turned out to be a step of another kind, also known
    likeness: float = 1.0  # of the sizes in the program that was followed, the share that it had
    overrun: int = 0  # bytes by which the budget was missed because nothing was left to evict
    overrun_op: str = ""
    lacked: int = 0  # bytes that the plan had room for and the device did not
    followed: int = 0  # ops that ran as recorded
    served: int = 0

    def note(self, event: str) -> None:
        if event not in self.events:
            self.events.append(event)


class Engine:
    """Executes calls for one device under a budget.

    `base` and `allocator` are those of its `Room`. `rebase`: the base is read again when the first large
    tensor is made, so that what a script imports before does not count.
    """

    def __init__(
        self,
        device: torch.device,
        tiers: Sequence[MountedTier],
        budget: int,
        meter: Meter,
        base: int,
        *,
        verify: bool = False,
        allocator: CAllocator | None = None,
        rebase: bool = False,
    ) -> None:
        self.device = device
        self.manager = ResidencyManager(tiers, verify=verify)
        self.room = Room(device, self.manager, budget, meter, base, allocator)
        self.manager.when_short = self._room_at_any_rate
        self.manager.make_way = self.room.make_way_in_lane
        self.clock: Clock | None = None  # which hands every call to `handler`
        self._lock = threading.RLock()
        self._is_shared = False  # do other threads use tensors, or make calls of the step?
        self._backward = (-1, 0)  # the last backward pass that made a call, and from which thread
        self.handler = self.serve
        self.happened = Happened()
        self.log: Log | None = None  # of the step that runs, if it is to be charted
        self.program: Program | None = None
        self.candidates: tuple[Program, ...] = ()  # programs for all shapes of the step
        self._rebase = rebase
        self.uncharted: list[Program] = []  # what ops of these take is still to be seen
        self.tolerant = False  # recording: note an overrun and go on
        self.arrived = 0.0  # when the served call that runs now came in
        self._execute: Execute = _call
        self._tier = tiers[0].store.name if tiers else ""
        self._absent, self._ahead = self.manager.absent, self.manager.ahead
        self._tick = 0
        self._views: set[int] = set()  # ids of calls that move no byte, met so far
        self._funcs: tuple[OpOverload | None, ...] = (None,)
        self._bare: tuple[OpOverload | None, ...] = (None,)  # those with nothing to do around them
        self._instructions: tuple[Instruction | None, ...] = ()
        self._index = 0
        self._recent: deque[OpOverload] = deque(maxlen=5)
        self._bound: dict[ValueId, Resident] = {}
        self._calls: dict[int, Call] = {}
        self._copies: dict[TransferId, Copy] = {}
        self._guarded: defaultdict[int, set[int]] = defaultdict(set)  # source -> dropped, by key
        # Sizes of the step that runs, where the programs that were followed in it have marks.
        self._sizes: dict[Spot, int] = {}
        self._told = 0  # marks of the program that lie behind
        self._alike = _ALIKE
        self.has_recognised = False  # was the step, though it was to be recorded, a known one?
        self._in_use: set[int] = set()  # keys of what the current call reads: not to be evicted

    @property
    def handler(self) -> Execute:
        """What runs the next call."""
        return self._handler

    @handler.setter
    def handler(self, run: Execute) -> None:
        self._handler = run
        if self.clock is not None:  # one call less for each op than through the engine
            # A backward pass has a thread for each GPU, and one for the CPU: until it is known that
            # this step's needs only one of them, they take turns.
            takes_turns = self.device.type == "cuda" and run != self.follow
            self.clock.handler = self._alone if self._is_shared or takes_turns else run
            is_quick = run == self.follow and not self._is_shared
            self.clock.shorten(_shortcut(self) if is_quick else None)

    # -- steps -------------------------------------------------------------------------------

    def follow_program(self, program: Program | None, others: Iterable[Program] = ()) -> None:
        """From the next step on, follow `program` (None: serve)."""
        self.program = program
        self.candidates = (*others,) if program is None else (program, *others)
        self._copies.clear()

    def begin_step(
        self,
        execute: Execute | None = None,
        *,
        may_be_known: bool = True,
        alike: float = _ALIKE,
        charted: bool = False,
    ) -> None:
        """A step begins. With `execute`, calls are run through it (a recorder), until it is clear
        that the step is a known one; a known one is followed from the first, if it `may_be_known`.

        `alike`: a step that is smaller than any known one follows the program of the next larger, if it
        has at least this share of its sizes. `charted`: note when everything happens, for `measured`.
        """
        self.happened = Happened()
        self.log = None
        self._execute = execute or _call
        self._calls.clear()
        self._bound.clear()
        self._sizes.clear()
        self._alike = alike
        self._recent.clear()
        self.has_recognised = False
        if self.program is None or not may_be_known:
            self.handler = self.serve
        else:
            if charted:
                self.log = Log(self.program.schedule, Watch(self.device))
            self._enter(self.program, 0)
            self._bring_to_start(self.program)

    @property
    def is_following(self) -> bool:
        return self.handler == self.follow

    @property
    def _is_told(self) -> bool:
        """Are all large values that tell shapes apart behind?"""
        return self.program is not None and self._told == len(self.program.marks)

    def _likeness(self, program: Program) -> float:
        """The share of `program`'s sizes that this step had so far; 0 if it had a larger one."""
        expected = program.sizes_at(self._sizes)
        if any(size > known for size, known in zip(self._sizes.values(), expected, strict=True)):
            return 0.0
        return sum(self._sizes.values()) / sum(expected) if any(expected) else 1.0

    def _is_exact(self, program: Program) -> bool:
        """Has this step had the very sizes of `program` so far?"""
        return self._likeness(program) == 1.0

    @property
    def is_recording(self) -> bool:
        """Do calls run through a recorder?"""
        return self._execute is not _call

    def end_step(self) -> None:
        """A step has ended."""
        program = self.program
        if program is not None and self.is_following:
            left = len(program.instructions) - self._index
            self.has_recognised |= not left
            self.happened.likeness = self._likeness(program)
            if left and not self.is_recording:
                self.happened.note(f"the step ended {left} ops early")
        self._calls.clear()

    def _enter(self, program: Program, index: int) -> None:
        """Follow `program` from op `index` on."""
        self.program = program
        self._told = bisect_left(program.marks, (index, -1))
        if index and any(program is one for one in self.uncharted) and self._is_exact(program):
            self.room.return_freed()  # what an op takes is seen only if what was freed has gone
        if self.log is not None and self.log.schedule is not program.schedule:
            self.log = Log(program.schedule, self.log.watch)
        self._funcs = (*program.funcs, None)
        is_watched = self.log is not None or self.is_recording
        self._bare = (None,) * len(self._funcs) if is_watched else program.bare
        self._instructions = program.instructions
        self._expect(program)
        self._index = index
        self.handler = self.follow
        for value, ref in program.initial.items():
            storage = ref()
            if storage is not None:
                self._bind(value, storage)

    def _expect(self, program: Program) -> None:
        """Tell the room what the step leads to: all that there is, as long as nobody knows."""
        is_told = self._is_told or len(self.candidates) == 1
        is_foretold = is_told and self._is_exact(program)
        peak = program.predicted.peak if is_foretold else self.room.budget
        self.room.expect(peak, keeps_all=not program.plan.decisions)

    def _bring_to_start(self, program: Program) -> None:
        """Have away what the plan keeps away between steps, and here what it keeps here.

        Only the first step of a new plan finds it otherwise, or one after a step that left its path.
        """
        away = dict(program.schedule.away)
        begun = []
        for value, transfer in away.items():
            resident = self._bound.get(value)
            if resident is not None and self.manager.is_movable(resident, self._tick):
                copy = self.manager.evict(resident, program.schedule.transfers[transfer].tier)
                if copy is not None:
                    self._copies[transfer] = copy
                    begun.append(copy)
        for copy in begun:
            self.manager.settle(copy)
        for value in program.initial:
            resident = self._bound.get(value)
            if resident is None or resident.place is Place.HERE or value in away:
                continue
            if self.room.still_lacking(resident.held) <= 0:
                self.manager.bring_back(resident, self._room_for_fetch)

    # -- following ---------------------------------------------------------------------------

    def follow(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a call of a step whose course is known."""
        if id(func) in self._views and not is_sparse(args[0]):
            return func._op(*args, **kwargs)  # what `func` itself calls, one frame sooner
        index = self._index
        if func is not self._funcs[index]:
            return self._off_program(func, args, kwargs)
        self._index = index + 1
        instruction = self._instructions[index]
        if instruction is None:
            if self._absent or self._ahead:
                self._attend(args, kwargs)
                self._heed_writes(func, args, kwargs)
            if self.log is None and not self.is_recording:
                try:
                    return func._op(*args, **kwargs)
                except RuntimeError as error:
                    return self._retry(error, func, args, kwargs)
            instruction = _NOTHING
        return self._carry_out(instruction, index, func, args, kwargs)

    def _off_program(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        facts = facts_of(func)
        if facts.makes_view(args):
            if CAN_SWAP:
                if args and isinstance(args[0], Tensor):  # whose layout the shortcut asks for
                    self._views.add(id(func))  # hashing `func` itself is a call
            elif self._absent:
                self._attend(args, kwargs)
            return func(*args, **kwargs)
        index = self._index
        goes_on = [one for one in self._begun_alike() if one.funcs[index : index + 1] == (func,)]
        if (other := self._likest(goes_on)) is not None:
            self.happened.joined_late = self._is_told
            self._switch(other)
            return self.follow(func, args, kwargs)
        self._lose_track(facts.name)
        return self.serve(func, args, kwargs)

    def _begun_alike(self) -> list[Program]:
        """The programs of all steps that begin with the calls that this one had."""
        assert self.program is not None
        begun = self.program.funcs[: self._index]
        return [one for one in self.candidates if one.funcs[: self._index] == begun]

    def _distance(self, program: Program) -> int:
        """By how many bytes its sizes and those of this step differ."""
        return abs(sum(self._sizes.values()) - sum(program.sizes_at(self._sizes)))

    def _likest(self, programs: Iterable[Program]) -> Program | None:
        """That of the same shape as this step, or else of the next larger; None: all are too different."""
        best = max(programs, key=self._likeness, default=None)
        return best if best is not None and self._likeness(best) >= self._alike else None

    def _switch(self, other: Program) -> None:
        """Follow `other` from here on, which has begun in the same way: with its names for all values."""
        assert self.program is not None
        done = self._index
        names = self.program.names_in(other, done)
        bound, calls = [*self._bound.items()], [*self._calls.items()]
        self._bound.clear()
        self._calls.clear()
        self._copies.clear()
        self._enter(other, done)
        for value, resident in bound:
            storage = resident.ref()
            if value in names and storage is not None:
                self._bind(names[value], storage)
        for index, call in calls:
            if (renamed := renamed_call(call, other.trace.ops[index], names)) is not None:
                self._calls[index] = renamed

    def _lose_track(self, name: str) -> None:
        program = self.program
        assert program is not None
        expected = (
            program.trace.describe_op(program.trace.ops[self._index].index)
            if self._index < len(program.trace.ops)
            else "the end of the step"
        )
        self._fall_back(f"{name} came where {expected} was recorded")

    def _fall_back(self, why: str) -> None:
        """Serve from here on. The step was not planned, so an overrun is noted, as in a recorded one."""
        if self.is_recording:
            self.room.return_freed()  # what an op takes is seen only if what was freed has gone
        else:
            self.happened.note(f"fallback: {why}")
            self.happened.fell_back = True
            assert self.program is not None
            self.happened.begun_alike = self._is_told and self._is_exact(self.program)
        self.tolerant = True
        self.handler = self.serve

    def _carry_out(
        self,
        instruction: Instruction,
        index: int,
        func: OpOverload,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        self._tick += 1
        if self.is_recording:
            self.arrived = time.perf_counter()
        for row, action in instruction.before:
            self._perform(row, action)
        if self._absent or self._ahead:
            self._attend(args, kwargs)
            self._heed_writes(func, args, kwargs)
        is_cramped = False
        if (instruction.need or instruction.unsure) and self.device.type == "cpu":
            need = instruction.need
            if instruction.unsure:
                need = max(need, output_bytes(func, facts_of(func), args, kwargs, self.device))
            is_cramped = self.room.make_way(need, instruction.scratch)
            lacking = self.room.lacking(need)
            if lacking > self.room.budget // 100:
                self.happened.lacked = max(self.happened.lacked, lacking)
                self._in_use = self._keys(args, kwargs)
                self._make_room(need, facts_of(func).name, lambda: self._farthest(index))
        sources: list[UntypedStorage] | None = None
        if instruction.reads or instruction.writes or instruction.captures:
            sources = self._storages(tensors_in((args, kwargs)))
            for position, value in instruction.reads:
                if position < len(sources):
                    self._bind(value, sources[position])
        written: list[UntypedStorage] = []
        if instruction.writes:
            # Before the call: `set_`, and what writes sparse tensors, may give them other storages.
            written = self._storages(facts_of(func).written(args, kwargs))
        draw = draw_of(kwargs, self.device) if instruction.random else None
        if instruction.captures and sources is not None:
            self._capture(index, func, args, kwargs, sources, draw)
        begun = self._now()
        try:
            if is_cramped:
                with self.room.held_tight():
                    result = self._execute(func, args, kwargs)
            else:
                result = self._execute(func, args, kwargs)
        except RuntimeError as error:
            if draw is not None:
                rewind(draw)
            result = self._retry(error, func, args, kwargs)
        if self.log is not None:
            self.log.ran(index, begun, self.room.in_use())
        if instruction.writes and sources is not None:
            self._bind_results(instruction, index, sources, written, result)
            instruction = self._instructions[index] or _NOTHING  # perhaps of another program now
        for row, following in instruction.after:
            self._perform(row, following)
        return result

    def _capture(
        self,
        index: int,
        func: OpOverload,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        sources: list[UntypedStorage],
        draw: Any,
    ) -> None:
        assert self.program is not None
        op = self.program.trace.ops[index]
        if len(sources) == len(op.reads):
            values = {key_of(s): v for s, v in zip(sources, op.reads, strict=True)}
            call = capture(op, func, facts_of(func), args, kwargs, values, draw)
            if call is not None:
                self._calls[index] = call

    def _bind_results(
        self,
        instruction: Instruction,
        index: int,
        sources: list[UntypedStorage],
        written: list[UntypedStorage],
        result: Any,
    ) -> None:
        inputs = {key_of(storage) for storage in sources}
        made = [*written, *fresh_storages(result, inputs, self.device)]
        for position, value in instruction.writes:
            if position < len(made):
                self._bind(value, made[position])
        program = self.program
        assert program is not None
        if self._told < len(program.marks) and program.marks[self._told][0] == index:
            self._compare_shapes(program, index)

    def _compare_shapes(self, program: Program, index: int) -> None:
        """Is this the recorded step in another shape? Then follow the program for that shape."""
        while self._told < len(program.marks) and program.marks[self._told][0] == index:
            bound = self._bound.get(program.marks[self._told][1])
            spot = program.spots[self._told]
            self._sizes[spot] = bound.nbytes if bound is not None else 0
            self._told += 1
        if not self._is_exact(program) and not self.happened.fell_back:
            other = self._likest(self._begun_alike())
            if other is None:
                self._switch(min(self._begun_alike(), key=self._distance))  # may be found again
                self._fall_back("the step has another shape than any recorded one")
                return
            if other is not program:
                self._switch(other)
                program = other
            self.tolerant |= not self._is_exact(program)
        self._expect(program)
        if self.is_recording and self._is_told:
            self._execute, self.has_recognised = _call, True
            self._bare = program.bare

    # -- serving -----------------------------------------------------------------------------

    def serve(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a call of a step whose course is not known."""
        self.arrived = time.perf_counter()
        if (backward := in_backward()) != -1:
            self._meet_thread(backward)
        facts = facts_of(func)
        if facts.makes_view(args):
            if not CAN_SWAP and self._absent:
                self._attend(args, kwargs)
            # The recorder wants to see views too, to tell host time from op time.
            return func(*args, **kwargs)
        if self.program is not None and not self.is_recording and self._find_place(func):
            return self.follow(func, args, kwargs)
        self._tick += 1
        if self._absent or self._ahead:
            self._attend(args, kwargs)
            self._heed_writes(func, args, kwargs)
        sources = self._storages(tensors_in((args, kwargs)))
        keys = {key_of(storage) for storage in sources}
        self._in_use = keys
        need = output_bytes(func, facts, args, kwargs, self.device)
        if self._rebase and need >= MOVABLE_FROM:
            self._rebase = False
            self.room.begin_here()
        if self.room.still_lacking(need) > 0:
            self._make_room(need, facts.name, self._oldest)
        draw = draw_of(kwargs, self.device) if facts.random else None
        try:
            result = self._execute(func, args, kwargs)
        except RuntimeError as error:
            if draw is not None:
                rewind(draw)
            result = self._retry(error, func, args, kwargs)
        for storage in sources:
            self._touch(storage)
        fresh = fresh_storages(result, keys, self.device)
        for storage in fresh:
            self._touch(storage)
        self.happened.served += 1
        return result

    def _find_place(self, func: OpOverload) -> bool:
        """After a deviation: does `func` continue the recorded path somewhere?"""
        program = self.program
        assert program is not None
        found = None
        if len(self._recent) == self._recent.maxlen:
            found = program.find(tuple(self._recent), self._index)
        self._recent.append(func)
        if found is None or found >= len(program.funcs) or program.funcs[found] is not func:
            return False
        self._recent.clear()
        self._enter(program, found)
        return True

    def _touch(self, storage: UntypedStorage) -> None:
        if nbytes_of(storage) >= MOVABLE_FROM:
            self.manager.meet(storage).touched = self._tick

    # -- keeping the budget ------------------------------------------------------------------

    @property
    def _spare(self) -> int:
        """Bytes that the promise leaves to the allocator, and to Python itself."""
        return self.room.budget * 3 // 100

    def _make_room(self, nbytes: int, op: str, victims: Callable[[], list[Resident]]) -> None:
        """Evict `victims`, first come first gone, until `nbytes` more fit; if none are left, overrun."""
        self._clear(nbytes, victims)
        if (lacking := self.room.still_lacking(nbytes)) > 0:
            self._overrun(lacking, op)

    def _clear(self, nbytes: int, victims: Callable[[], list[Resident]]) -> None:
        """Let leave what is leaving, oldest first, then evict, as long as `nbytes` more do not fit."""
        start = time.perf_counter()
        for copy in self.manager.leaving():
            if self.room.still_lacking(nbytes) <= 0:
                break
            copy.drain()
        self.happened.fetch_seconds += time.perf_counter() - start
        if (lacking := self.room.still_lacking(nbytes)) > 0:
            self._evict(victims(), lacking)
            # A heap does not give back the holes that small values leave.
            if (lacking := self.room.still_lacking(nbytes)) > self._spare:
                self._evict(victims(), lacking)

    def _farthest(self, index: int) -> list[Resident]:
        """Following, before op `index` room is short although the plan says it is not: what is used
        again last.
        """
        program = self.program
        assert program is not None
        readers = program.trace.readers

        def next_use(resident: Resident) -> int:
            if resident.value is None:
                return _FOREVER - resident.touched
            return next((use for use in readers[resident.value] if use >= index), _FOREVER)

        victims = sorted(self._movable(), key=next_use, reverse=True)
        if victims:
            self.happened.note("retry: room was short, more was evicted than planned")
        return victims

    def _oldest(self) -> list[Resident]:
        """What may be evicted, longest untouched first."""
        return sorted(self._movable(), key=lambda resident: resident.touched)

    def _movable(self) -> list[Resident]:
        if not self._tier:
            return []
        return [
            resident
            for key, resident in list(self.manager.known.items())
            if key not in self._in_use
            and resident.nbytes >= MOVABLE_FROM
            and self.manager.is_movable(resident, self._tick)
        ]

    def _evict(self, victims: Iterable[Resident], lacking: int) -> None:
        """Evict victims, first come first gone, until `lacking` bytes are free again."""
        copies = []
        for resident in victims:
            if lacking <= 0:
                break
            try:
                copy = self.manager.evict(resident, self._tier)
            except TierError as error:
                self.happened.note(f"tier: {error}")
                break
            if copy is not None:
                copies.append(copy)
                lacking -= resident.held
        start = time.perf_counter()
        for copy in copies:
            self.manager.settle(copy)
        self.happened.fetch_seconds += time.perf_counter() - start

    def _overrun(self, lacking: int, op: str) -> None:
        if lacking > self.happened.overrun:
            self.happened.overrun, self.happened.overrun_op = lacking, op
        if not self.tolerant and lacking > max(self._spare, _UNPLANNED):
            raise self._budget_error(lacking, op)

    def _budget_error(self, lacking: int, op: str) -> BudgetError:
        budget, held = self.room.budget, self.room.used()
        return BudgetError(budget, budget + lacking, op, [("not evictable", held)])

    def _retry(
        self,
        error: RuntimeError,
        func: OpOverload,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """An allocation failed inside a call: evict, and run it again if nothing was written."""
        wanted = _bytes_wanted(error)
        if wanted is None:
            raise error
        facts = facts_of(func)
        self._in_use = self._keys(args, kwargs)
        while not facts.mutates:
            if not self._evict_at_any_rate(wanted):
                break
            if self.is_following:
                self.happened.lacked = max(self.happened.lacked, wanted)
            self.happened.note(f"retry: {facts.name} found no memory and was run again")
            draw = draw_of(kwargs, self.device) if facts.random else None
            try:
                return self._execute(func, args, kwargs)
            except RuntimeError as again:
                if draw is not None:
                    rewind(draw)
                if (wanted := _bytes_wanted(again)) is None:
                    raise
                error = again
        raise self._budget_error(wanted, facts.name) from error

    # -- actions -----------------------------------------------------------------------------

    def _perform(self, row: int, action: Action | CopyAhead | Discard | Pass) -> None:
        program = self.program
        assert program is not None
        begun = self._now()
        match action:
            case Evict() | CopyAhead():
                transfer = program.schedule.transfers[action.transfer]
                resident = self._bound.get(transfer.value)
                if resident is None or not self.manager.is_movable(resident, self._tick):
                    return
                is_early = isinstance(action, CopyAhead)
                leave = self.manager.copy_ahead if is_early else self.manager.evict
                try:
                    copy = leave(resident, transfer.tier)
                except TierError as error:  # the value stays, and the guard finds other room
                    self.happened.note(f"tier: {error}")
                    return
                if copy is not None:
                    self._copies[action.transfer] = copy
                    self._log_copy(row, copy)
            case Prefetch():
                transfer = program.schedule.transfers[action.transfer]
                resident = self._bound.get(transfer.value)
                if resident is None:
                    return
                if self._is_crowded(resident.held):
                    return  # what reads the value brings it back, and makes room
                after = [self._copies[one] for one in action.room if one in self._copies]
                copy = self.manager.prefetch(resident, after)
                if copy is not None:
                    self._copies[action.transfer] = copy
                    self._log_copy(row, copy)
                    self.room.make_way(0)
            case Wait():
                self._await(action)
                if self.log is not None:
                    self.log.waited(row, begun, action.cause)
            case Discard():
                self._drop(action.value, action.lineage)
                self._log_times(row, begun)
            case Pass():
                self._run_pass(action)
            case Run() | Drop():
                raise AssertionError("runs are joined to passes, drops know their lineage")
            case _:
                assert_never(action)

    def _is_crowded(self, nbytes: int) -> bool:
        """Has something that the plan does not know of taken its room for so many bytes?

        What the step met before it was recorded may have grown, and a step that left its path and found
        it again did not do all that the plan says.
        """
        most = self._spare + sum(one.moved for one in self.manager.leaving())
        return self.room.lacking(nbytes) > most and self.room.still_lacking(nbytes) > most

    def _now(self) -> Moment:
        """For the log; without one, nobody asks."""
        return 0.0 if self.log is None else self.log.now()

    def _log_times(self, row: int, begun: Moment) -> None:
        if self.log is not None:
            self.log.did(row, begun)

    def _log_copy(self, row: int, copy: Copy) -> None:
        if self.log is not None:
            self.log.copies[row] = copy

    def _await(self, action: Wait) -> None:
        program = self.program
        assert program is not None
        transfer = program.schedule.transfers[action.transfer]
        start = time.perf_counter()
        if transfer.inward:
            resident = self._bound.get(transfer.value)
            if resident is not None:
                self.manager.bring_back(resident, self._room_for_fetch)
        elif (copy := self._copies.get(action.transfer)) is not None:
            self.manager.settle(copy)
        self.happened.stalls[action.cause] += time.perf_counter() - start

    def _drop(self, value: ValueId, line: Lineage) -> None:
        """Free a value that its lineage can remake; keep it if anything of that is missing."""
        program = self.program
        assert program is not None
        resident = self._bound.get(value)
        if resident is None or not self.manager.is_movable(resident, self._tick):
            return
        calls = [self._calls.get(op) for op in line.ops]
        held = {source: self._living(source) for source in line.sources}
        if None in calls or None in held.values():
            self.happened.note("kept: a value's lineage was not complete")
            return
        known = [call for call in calls if call is not None]
        sources = {value: storage for value, storage in held.items() if storage is not None}
        for storage in sources.values():
            self._guarded[key_of(storage)].add(resident.ref.key)

        def remake() -> UntypedStorage:
            return self._remake(known, [value], sources, program)[value]

        self.manager.drop(resident, remake)

    def _run_pass(self, action: Pass) -> None:
        program = self.program
        assert program is not None
        wanted = {}
        for value in action.targets:
            resident = self._bound.get(value)
            if resident is not None and resident.place is Place.DROPPED:
                wanted[value] = resident
        calls = [self._calls.get(op) for op in action.ops]
        if len(wanted) < len(action.targets) or None in calls:
            return  # what is missing is remade when it is asked for
        known = [call for call in calls if call is not None]
        lines = [action.targets[value] for value in wanted]
        sources = {}
        for source in {source for line in lines for source in line.sources}:
            if (storage := self._living(source)) is None:
                return
            sources[source] = storage

        def note(place: int, begun: Moment) -> None:
            self._log_times(action.rows[place], begun)

        made = self._remake(known, wanted, sources, program, note)
        for value, storage in made.items():
            self.manager.deliver(wanted[value], storage)
            self._unguard(wanted[value], action.targets[value])

    def _remake(
        self,
        calls: Sequence[Call],
        wanted: Iterable[ValueId],
        sources: dict[ValueId, UntypedStorage],
        program: Program,
        note: Callable[[int, Moment], None] = lambda place, begun: None,
    ) -> dict[ValueId, UntypedStorage]:
        caller_uses = self._in_use
        self._in_use = caller_uses | {key_of(storage) for storage in sources.values()}

        def source(value: ValueId) -> UntypedStorage:
            storage = sources.get(value) or self._living(value)
            assert storage is not None
            resident = self.manager.known.get(key_of(storage))
            if resident is not None and resident.place is not Place.HERE:
                self.manager.bring_back(resident, self._room_for_fetch)
            return storage

        def prepare(op: Op) -> AbstractContextManager[None]:
            if self.room.keeps_freed:
                fresh = sum(
                    program.trace.values[value].nbytes for value in program.trace.fresh[op.index]
                )
                if self.room.make_way(fresh + op.workspace, op.workspace):
                    return self.room.held_tight()
            return nullcontext()

        wanted = list(wanted)
        try:
            while True:
                try:
                    return run_again(
                        calls,
                        wanted,
                        program.trace.fresh,
                        program.trace.previous_version,
                        source,
                        self.device,
                        prepare,
                        self._now,
                        note,
                    )
                except RuntimeError as error:
                    if (missing := _bytes_wanted(error)) is None:
                        raise
                    if not self._evict_at_any_rate(missing):
                        raise self._budget_error(missing, "a recomputation") from error
        finally:
            self._in_use = caller_uses

    def _heed_writes(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """If a call is about to overwrite what dropped values are remade from, remake them first; if
        it is what is being copied out ahead, that copy is worth nothing.
        """
        if not (self._guarded or self._ahead):
            return
        for tensor in facts_of(func).written(args, kwargs):
            for component in components_of(tensor):
                key = key_of(storage_of(component))
                if (copied := self._ahead.get(key)) is not None:
                    self.manager.call_off(copied)
                self._remake_dependents(key)

    def _remake_dependents(self, key: int) -> None:
        """The storage of `key` may be overwritten: remake now what is remade from it."""
        for dependent in self._guarded.pop(key, ()):
            resident = self.manager.known.get(dependent)
            if resident is not None and resident.place is Place.DROPPED:
                self.manager.bring_back(resident, self._room_for_fetch)
                self.happened.note("remade: a source was about to be overwritten")

    def _unguard(self, resident: Resident, line: Lineage) -> None:
        for source in line.sources:
            storage = self._living(source)
            if storage is not None and (keys := self._guarded.get(key_of(storage))) is not None:
                keys.discard(resident.ref.key)
                if not keys:
                    del self._guarded[key_of(storage)]

    # -- other threads -----------------------------------------------------------------------

    def share(self) -> None:
        """From now on, other Python threads run calls of their own, through `visit`."""
        self._is_shared = True
        self.handler = self._handler

    def _meet_thread(self, backward: int) -> None:
        """A call of a backward pass: if others of it came from another thread, they may overlap."""
        known, self._backward = self._backward, (backward, threading.get_ident())
        if known[0] == backward and known != self._backward and not self._is_shared:
            self.share()

    def _alone(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self._lock:
            return self._handler(func, args, kwargs)

    def visit(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a call of another thread: it is no part of the step, but finds its bytes."""
        with self._lock:
            in_use = self._in_use
            self._attend(args, kwargs)
            self._heed_writes(func, args, kwargs)
            self._in_use = in_use
            found = (self.manager.known.get(key) for key in self._keys(args, kwargs))
            visited = [resident for resident in found if resident is not None]
            for resident in visited:
                resident.visitors += 1
        try:
            return func(*args, **kwargs)
        finally:
            with self._lock:
                for resident in visited:
                    resident.visitors -= 1

    # -- looking -----------------------------------------------------------------------------

    def knock(self, reached: Tensor | UntypedStorage, door: str) -> None:
        """Python reaches for bytes without an op (see `dispatch.doors`)."""
        if not lies_on(reached, self.device):
            return
        if isinstance(reached, UntypedStorage):
            storage = reached
        elif is_sparse(reached):
            return
        else:
            storage = storage_of(reached)
        with self._lock:
            self._let_in(storage, door)

    def _let_in(self, storage: UntypedStorage, door: str) -> None:
        resident = self.manager.known.get(key_of(storage))
        if resident is None:
            if door in ("saved_tensors", "untyped_storage") or nbytes_of(storage) < MOVABLE_FROM:
                return
            resident = self.manager.meet(storage)
        if resident.place is not Place.HERE:
            self.manager.bring_back(resident, self._room_for_fetch)
        self.manager.call_off(resident)  # who reaches for the bytes may write to them
        if door not in _READING:
            self._remake_dependents(resident.ref.key)
        if door in ("data_ptr", "const_data_ptr") and self.device.type == "cpu":
            resident.exposed = _FOREVER  # nobody knows how long the address is used
        elif door == "__dlpack__":
            resident.exposed = _FOREVER
        else:
            resident.exposed = max(resident.exposed, self._tick + 1)

    def _attend(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Have the bytes of all arguments there."""
        tensors = tensors_in(args)
        if kwargs:
            tensors_in(kwargs, tensors)
        try:
            keys = {key_of(storage_of(tensor)) for tensor in tensors}
        except NotImplementedError:  # one is sparse
            components = (one for tensor in tensors for one in components_of(tensor))
            keys = {key_of(storage_of(one)) for one in components}
        if missing := keys & self._absent.keys():
            self._in_use = keys  # bringing one back must not send another away
            for key in missing:
                self._fetch(self._absent[key])

    def _fetch(self, resident: Resident) -> None:
        start = time.perf_counter()
        self.manager.bring_back(resident, self._room_for_fetch)
        self.happened.fetch_seconds += time.perf_counter() - start

    def _room_for_fetch(self, nbytes: int) -> None:
        # The plan, if there is one, has no room for what it did not foresee.
        if self.room.still_lacking(nbytes) > 0:
            # `_index` is the op after the one that is being prepared. What was touched longest ago
            # would be wrong here: in backward and in the optimizer that is often what comes next.
            is_known, index = self.is_following, self._index - 1
            self._clear(nbytes, lambda: self._farthest(index) if is_known else self._oldest())

    def _room_at_any_rate(self, nbytes: int) -> bool:
        """There was no memory for a copy in, whatever the budget says: what is free is in pieces."""
        self.happened.note("retry: a value that comes back found no memory")
        return self._evict_at_any_rate(nbytes)

    def _evict_at_any_rate(self, nbytes: int) -> bool:
        """The system refused so many bytes, perhaps for holes in what was kept. Is there more now?"""
        had_kept, before = self.room.keeps_freed, len(self._absent)
        self.room.return_freed(for_good=True)
        self._evict(self._oldest(), nbytes)
        return had_kept or len(self._absent) > before

    def _bind(self, value: ValueId, storage: UntypedStorage) -> None:
        trace = None if self.program is None else self.program.trace
        resident = self.manager.meet(storage)
        resident.value, resident.touched = value, self._tick
        resident.is_sparse = trace is not None and trace.values[value].unwritten > 0
        self._bound[value] = resident

    def _living(self, value: ValueId) -> UntypedStorage | None:
        resident = self._bound.get(value)
        return None if resident is None else resident.ref()

    def _storages(self, tensors: Iterable[Tensor]) -> list[UntypedStorage]:
        """Those on the device that are not empty, each once: in the recorder's order."""
        found = {
            key_of(storage): storage
            for storage in map(storage_of, components_on(tensors, self.device))
            if nbytes_of(storage)
        }
        return list(found.values())

    def _keys(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> set[int]:
        return {key_of(storage) for storage in self._storages(tensors_in((args, kwargs)))}

    # -- the end -----------------------------------------------------------------------------

    def restore(self) -> None:
        """Bring back every storage that still lives."""
        for resident in list(self._absent.values()):
            self.manager.bring_back(resident, lambda nbytes: None)

    def become_child(self) -> None:
        """This process is a fork of the one that trains: it has the values but not the threads.

        Calls are run as they come, and what they read is brought back; nothing is evicted here.
        """
        self.manager.become_child()

        def handler(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self._absent:
                self._attend(args, kwargs)
            return func(*args, **kwargs)

        self._tier = ""
        self.handler = handler

    def close(self) -> None:
        self._calls.clear()
        self._bound.clear()
        self.manager.close()


def _shortcut(engine: Engine) -> Callable[..., Any]:
    """`Engine.follow` for calls around which nothing happens; others go the whole way."""
    views, absent, ahead = engine._views, engine._absent, engine._ahead
    strided = torch.strided

    def follow(
        clock: Clock,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if id(func) in views and args[0].layout is strided and (not types or types == _PLAIN):
            return func._op(*args, **kwargs) if kwargs else func._op(*args)
        index = engine._index
        if func is not engine._bare[index] or absent or ahead or types:
            return Clock.__torch_dispatch__(clock, func, types, args, kwargs)
        engine._index = index + 1
        try:
            return func._op(*args, **kwargs) if kwargs else func._op(*args)
        except RuntimeError as error:
            return engine._retry(error, func, args, kwargs or {})

    return follow


def _call(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*args, **kwargs)


_WANTED_CPU = re.compile(r"you tried to allocate (\d+) bytes")
_WANTED_CUDA = re.compile(r"Tried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)")
_UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def _bytes_wanted(error: BaseException) -> int | None:
    """How many bytes a failed allocation asked for; None if the error is another one."""
    if found := _WANTED_CPU.search(str(error)):
        return int(found[1])
    if not isinstance(error, torch.OutOfMemoryError):
        return None
    if found := _WANTED_CUDA.search(str(error)):
        return int((float(found[1]) + 0.01) * _UNITS[found[2]])  # it was told rounded
    return _UNKNOWN_NEED
