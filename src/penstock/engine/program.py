"""A plan made ready to be followed: for each op of the step, what the engine does around it."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from torch._ops import OpOverload

from penstock.dispatch.schema import facts_of
from penstock.dispatch.storage import StorageRef
from penstock.errors import PlanError, TraceError
from penstock.ir.lineage import lineage, sources
from penstock.ir.plan import Plan, Residency
from penstock.ir.schedule import Action, Drop, Evict, Numbered, Run, Schedule, TransferId, Wait
from penstock.ir.timeline import Timeline
from penstock.ir.trace import OpIndex, Trace, ValueId
from penstock.simulate.least import MOVABLE_FROM

__all__ = [
    "CopyAhead",
    "Discard",
    "Instruction",
    "Lineage",
    "Pass",
    "Program",
    "Spot",
    "compile_program",
]

Spot: TypeAlias = tuple[OpIndex, int]
"""An op, and which of the values that it makes: alike in steps of all shapes."""

_BOUND_SHARE = 256
"""Values of at least this part of the budget are always known to the engine, in case it must evict
more than was planned; none that is never moved, all from 1 MiB on."""
_GRAM = 5


@dataclass(frozen=True, slots=True)
class Lineage:
    """How a dropped value comes back: ops to run again, and values that must be there for them."""

    ops: tuple[OpIndex, ...]
    sources: tuple[ValueId, ...]


@dataclass(frozen=True, slots=True)
class Pass:
    """A recomputation: run `ops` again, keep `targets`, each with its own lineage."""

    ops: tuple[OpIndex, ...]
    targets: dict[ValueId, Lineage]
    rows: tuple[int, ...]  # of the runs in the schedule


@dataclass(frozen=True, slots=True)
class CopyAhead:
    """Start to copy out what ops still read; it is evicted when the last of them has run."""

    transfer: TransferId


@dataclass(frozen=True, slots=True)
class Discard:
    """Free a value's bytes; its lineage brings them back."""

    value: ValueId
    lineage: Lineage


@dataclass(frozen=True, slots=True)
class Instruction:
    """What happens around one op, beyond running it.

    Binding says which storage holds a value in this step: `reads` are (position among the op's
    input storages, value), `writes` positions among its overwritten, then its fresh storages.
    """

    before: tuple[tuple[int, Action | CopyAhead | Pass], ...] = ()  # with rows of the schedule
    after: tuple[tuple[int, Action | CopyAhead | Discard], ...] = ()
    reads: tuple[tuple[int, ValueId], ...] = ()
    writes: tuple[tuple[int, ValueId], ...] = ()
    captures: bool = False  # some lineage runs the op again
    random: bool = False
    need: int = 0  # bytes that the op takes while it runs, if they are many
    scratch: int = 0  # those of them that it frees again
    unsure: bool = False  # they depend on data: ask again


@dataclass(frozen=True)
class Program:
    """A recorded step with the plan to follow in it."""

    funcs: tuple[OpOverload, ...]
    instructions: tuple[Instruction | None, ...]
    trace: Trace
    plan: Plan
    schedule: Schedule
    predicted: Timeline
    initial: dict[ValueId, StorageRef]
    bound_from: int  # bytes: values at least so large are known to the engine

    @cached_property
    def bare(self) -> tuple[OpOverload | None, ...]:
        """The calls around which nothing happens, None for others and for the end."""
        calls = zip(self.funcs, self.instructions, strict=True)
        return (*(func if what is None else None for func, what in calls), None)

    @cached_property
    def marks(self) -> tuple[tuple[int, ValueId], ...]:
        """The first large values of the step, as (op, value): their sizes tell shapes apart."""
        found: list[tuple[int, ValueId]] = []
        for op in self.trace.ops:
            for value in self.trace.fresh[op.index]:
                if self.trace.values[value].nbytes >= self.bound_from:
                    found.append((op.index, value))
            if len(found) >= 8:
                break
        return tuple(found)

    @cached_property
    def spots(self) -> tuple[Spot, ...]:
        """Where the marks are, in any step that makes the same calls."""
        fresh = self.trace.fresh
        return tuple((OpIndex(op), fresh[op].index(value)) for op, value in self.marks)

    @cached_property
    def marked_sizes(self) -> list[int]:
        return self.sizes_at(self.spots)

    def sizes_at(self, spots: Iterable[Spot]) -> list[int]:
        """Bytes of what was made there; 0 where nothing was."""
        fresh, values = self.trace.fresh, self.trace.values
        return [
            values[fresh[op][nth]].allocated if nth < len(fresh[op]) else 0 for op, nth in spots
        ]

    def names_in(self, other: "Program", ops: int) -> dict[ValueId, ValueId]:
        """What values are called in `other`, whose first `ops` calls are the same.

        Without those of which the two disagree who is who.
        """
        found: dict[ValueId, ValueId] = {}
        unsure = set[ValueId]()
        for mine, its in zip(self.trace.ops[:ops], other.trace.ops[:ops], strict=True):
            for values, names in ((mine.reads, its.reads), (mine.writes, its.writes)):
                pairs = zip(values, names, strict=False)
                unsure.update(
                    value for value, name in pairs if found.setdefault(value, name) != name
                )
        return {value: name for value, name in found.items() if value not in unsure}

    @cached_property
    def grams(self) -> dict[tuple[OpOverload, ...], list[int]]:
        """Where each run of a few calls ends: to find one's place again after a deviation."""
        found: defaultdict[tuple[OpOverload, ...], list[int]] = defaultdict(list)
        for end in range(_GRAM, len(self.funcs) + 1):
            found[self.funcs[end - _GRAM : end]].append(end)
        return dict(found)

    def find(self, recent: Sequence[OpOverload], at_least: int) -> int | None:
        """The op that comes after the calls `recent`, at or after `at_least` if possible."""
        ends = self.grams.get(tuple(recent))
        if not ends:
            return None
        return next((end for end in ends if end >= at_least), ends[0])


def compile_program(
    funcs: Sequence[OpOverload],
    plan: Plan,
    schedule: Schedule,
    predicted: Timeline,
    initial: dict[ValueId, StorageRef],
) -> Program:
    """Make a plan ready. `funcs` are the recorded calls, one for each op of the trace.

    Raises `PlanError` if the plan places values: a kernel of PyTorch reads and writes the memory of its
    device and nothing else.
    """
    trace = schedule.trace
    if len(funcs) != len(trace.ops):
        raise TraceError(f"{len(funcs)} calls for {len(trace.ops)} ops")
    if plan.places:
        tiers = " and ".join(sorted({place.tier for place in plan.places}))
        raise PlanError(
            [
                (
                    f"policy {plan.policy} places {len(plan.places)} values in tier {tiers} for direct "
                    f"access, which a step in PyTorch on {trace.device} cannot carry out; simulate it "
                    "(penstock plan, penstock compare), or choose a policy that swaps or recomputes"
                )
            ]
        )
    lineages = _lineages(trace, plan)
    remade: defaultdict[OpIndex, dict[ValueId, Lineage]] = defaultdict(dict)
    for decision in plan.recomputes:
        gap = decision.gap
        remade[decision.remake_at][gap.value] = lineages[gap.value, gap.start]
    repeated = {op for line in lineages.values() for op in line.ops}
    bound = {decision.gap.value for decision in plan.of_gaps}
    bound.update(source for line in lineages.values() for source in line.sources)
    bound_from = min(max((schedule.budget or 1 << 30) // _BOUND_SHARE, MOVABLE_FROM), 1 << 20)
    bound.update(v.id for v in trace.values if v.nbytes >= bound_from)
    unsure = _unsure(funcs, trace)
    instructions: list[Instruction | None] = []
    late: defaultdict[OpIndex, list[Numbered]] = defaultdict(list)  # evictions, by what they follow
    for op, around in zip(trace.ops, schedule.around, strict=True):
        before = tuple(_not_too_soon(around.before, op.index - 1, late))
        after = tuple(_not_too_soon(around.after, op.index, late))
        fresh = sum(trace.values[v].nbytes for v in trace.fresh[op.index])
        need = fresh + op.workspace
        instruction = Instruction(
            _with_passes(before, remade.get(op.index, {})),
            tuple(
                (row, Discard(act.value, lineages[act.value, op.index]))
                if isinstance(act, Drop)
                else (row, act)
                for row, act in (*late.pop(op.index, ()), *after)
            ),
            tuple(
                (position, value)
                for position, value in enumerate(op.reads)
                # Bind inputs where the step first meets them, whoever made them.
                if value in bound
                and trace.readers[value][0] == op.index
                and trace.values[value].producer is None
            ),
            tuple((position, v) for position, v in enumerate(op.writes) if v in bound),
            op.index in repeated,
            op.random,
            need if need >= bound_from else 0,
            op.workspace if need >= bound_from else 0,
            op.index in unsure,
        )
        instructions.append(None if instruction == Instruction() else instruction)
    return Program(
        tuple(funcs),
        tuple(instructions),
        trace,
        plan,
        schedule,
        predicted,
        initial,
        bound_from,
    )


def _unsure(funcs: Sequence[OpOverload], trace: Trace) -> set[OpIndex]:
    """Ops whose results may be larger than recorded: their shape, or an operand's, depends on data."""
    found: set[OpIndex] = set()
    values: set[ValueId] = set()
    for op, func in zip(trace.ops, funcs, strict=True):
        if facts_of(func).sized_by_data or not values.isdisjoint(op.reads):
            found.add(op.index)
            values.update(trace.fresh[op.index])
    return found


def _lineages(trace: Trace, plan: Plan) -> dict[tuple[ValueId, OpIndex], Lineage]:
    """For each value and the op after which it is dropped: its lineage, if it is remade alone."""
    residency = Residency(trace, plan)
    together: defaultdict[OpIndex, set[ValueId]] = defaultdict(set)
    for decision in plan.recomputes:
        together[decision.remake_at].add(decision.gap.value)
    found: dict[tuple[ValueId, OpIndex], Lineage] = {}
    for decision in plan.recomputes:
        at, value = decision.remake_at, decision.gap.value

        def holds(other: ValueId, op: int, group: set[ValueId] = together[at]) -> bool:
            return other not in group and residency.holds(other, op)

        ops = lineage(trace, value, at, holds)
        found[value, decision.gap.start] = Lineage(ops, tuple(sorted(sources(trace, ops))))
    return found


def _not_too_soon(
    actions: Sequence[Numbered], done: int, late: defaultdict[OpIndex, list[Numbered]]
) -> Iterator[tuple[int, Action | CopyAhead]]:
    """`actions`, after op `done` has run: what is still read then is copied, and leaves `late`."""
    for row, action in actions:
        if isinstance(action, Evict) and action.after is not None and action.after > done:
            late[action.after].append((row, action))
            yield row, CopyAhead(action.transfer)
        else:
            yield row, action


def _with_passes(
    before: Sequence[tuple[int, Action | CopyAhead]], remade: dict[ValueId, Lineage]
) -> tuple[tuple[int, Action | CopyAhead | Pass], ...]:
    """The runs of a recomputation joined to one pass, with all its waits ahead of it."""
    runs = [(row, action) for row, action in before if isinstance(action, Run)]
    if not runs:
        return tuple(before)
    ops = tuple(run.op for _, run in runs)
    joined = Pass(ops, remade, tuple(row for row, _ in runs))
    first = runs[0][0]
    ahead = tuple((row, a) for row, a in before if row < first or isinstance(a, Wait))
    rest = tuple((row, a) for row, a in before if row > first and not isinstance(a, Run | Wait))
    return (*ahead, (first, joined), *rest)
