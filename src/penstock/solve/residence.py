"""The integer programme of two memories: where each storage is at each of its uses and between them.

AutoTM's flow through gadgets, with the flow's edges as binary variables: what is in fast memory at a
use, and what after it. Other methods can be measured against its optimum.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from penstock.ir.machine import Tier
from penstock.ir.policy import Problem
from penstock.solve.milp import Model, Solution, Variable
from penstock.solve.placement import Stored, slow_tier, stored
from penstock.solve.pressure import Pressure

__all__ = ["Moves", "Programme", "programme"]

Moves: TypeAlias = Literal["static", "synchronous", "asynchronous"]
"""None; between ops, which wait; or also beside an op near a use."""
_Terms: TypeAlias = list[tuple[Variable, float]]
_FEW = 100
"""Storages up to which a row names all that is held: the solver finds better bounds in such rows, but
a thousand ops with a thousand storages each are too much for it."""


def programme(
    problem: Problem, moves: Moves, *, window: int = 15, page: int = 1, smallest: int = 1
) -> "Programme":
    """The integer programme of a problem.

    `window`: ops before and after a use beside which a move may run. `page`: bytes to whose multiple
    sizes are rounded up. Storages under `smallest` bytes stay on the device.
    """
    tier, pressure = slow_tier(problem.machine), Pressure(problem)
    values = problem.trace.values
    found = Programme(
        problem,
        tier,
        moves,
        window if moves == "asynchronous" else 0,
        page,
        tuple(op.index for op in problem.trace.ops if pressure.over(op.index) > 0),
        frozenset((values[gap.value].storage, gap.start) for gap in problem.free_gaps()),
        Model(offset=problem.trace.seconds),
    )
    for one in stored(problem, tier, smallest):
        nearest = bisect_left(found.tight, one.born)
        if nearest < len(found.tight) and found.tight[nearest] <= one.dies:
            found.add(one)
    found.limit(pressure)
    return found


@dataclass(slots=True)
class Programme:
    """The programme of `problem`; its objective is the seconds of the step.

    Binary variables by name: `("at", s, i)` is 1 if storage s is on the device at its use i;
    `("after", s, i)` if it is there after that, when moves down are done and moves up not begun;
    `("lead", s)` before its first use; `("up", s, i, k)` and `("down", s, i, k)` if after use i it moves
    beside op k. If there are no moves, all of them are `("at", s)`.
    """

    problem: Problem
    tier: Tier
    moves: Moves
    window: int
    page: int
    tight: tuple[int, ...]  # ops at which room lacks
    free: frozenset[tuple[int, int]]  # the gaps: storage and op that opens it
    model: Model
    storages: list[Stored] = field(default_factory=list)
    lowest: dict[Hashable, float] = field(default_factory=dict)  # all below that can be: a solution
    _held: defaultdict[int, _Terms] = field(default_factory=lambda: defaultdict(list))  # pages
    _live: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))  # bytes, by op
    _beside: defaultdict[int, _Terms] = field(default_factory=lambda: defaultdict(list))  # seconds
    _spared: defaultdict[int, _Terms] = field(default_factory=lambda: defaultdict(list))  # seconds

    def add(self, one: Stored) -> None:
        """Variables, costs and moves of a storage."""
        self.storages.append(one)
        s, uses, bound = one.storage, range(len(one.uses)), self.tier.direct is None
        if self.moves == "static":
            lead = self._binary("at", s, stays=bound)
            at = after = [lead for _ in uses]
        else:
            at = [self._binary("at", s, i, stays=bound) for i in uses]
            stuck = [bound and (s, use) not in self.free for use in one.uses]
            after = [self._binary("after", s, i, stays=stuck[i]) for i in uses]
            goes_on = one.lasts and uses
            lead = after[-1] if goes_on else self._binary("lead", s, stays=bound)
        self._hold(one, one.lead, [(lead, 0, True)])
        for i in uses:
            use, extra, idle = one.uses[i], one.extra[i], one.idle[i]
            self._hold(one, range(use, use + 1), [(at[i], 0, True)])
            if not bound and extra:
                self.model.offset += extra
                self.model.charge(at[i], -extra)
                self._spared[use].append((at[i], extra))
            inner = self.window and i + 1 < len(uses)
            ups = {k: self._binary("up", s, i, k) for k in idle[-self.window :] if inner}
            downs = {k: self._binary("down", s, i, k) for k in idle[: self.window] if inner}
            rising = [(up, k, True) for k, up in ups.items()]
            falling = [(down, k, False) for k, down in downs.items()]
            self._hold(one, idle, [(after[i], 0, True), *rising, *falling])
            if self.moves == "static":
                continue
            if i + 1 < len(uses) or one.lasts:
                self._move_up(one, after[i], at[(i + 1) % len(uses)], ups)
            self._move_down(one, i, at, after, lead, downs)
        if one.begins and not one.lasts and uses and self.moves != "static":
            self._move_up(one, lead, at[0], {})

    def limit(self, pressure: Pressure) -> None:
        """What is on the device fits at each op; what runs beside an op is paid beyond its end."""
        room = {}
        for op, terms in self._held.items():
            least = sum(pages for variable, pages in terms if self.model.is_fixed(variable))
            room[op] = float(max((self._live[op] - pressure.over(op)) // self.page, least))
        rows: dict[tuple[tuple[Variable, float], ...], float] = {}
        for op, terms in self._held.items():
            if len(terms) <= _FEW:
                rows[tuple(terms)] = min(room[op], rows.get(tuple(terms), room[op]))
        for row, most in rows.items():
            self.model.at_most(most, *row)
        self._limit_changes(room)
        for op, moves in self._beside.items():
            spared = self._spared.get(op, [])
            longest = self.problem.trace.ops[op].seconds + sum(seconds for _, seconds in spared)
            beyond = self.model.continuous(("beyond", op), cost=1.0)
            less = [(variable, -seconds) for variable, seconds in (*moves, *spared)]
            self.model.at_least(-longest, (beyond, 1.0), *less)

    def _limit_changes(self, room: dict[int, float]) -> None:
        """The same where much is held: each row says only what changes since the one before."""
        before: dict[Variable, float] = {}
        held: Variable | None = None  # pages at the op before
        for op in sorted(op for op, terms in self._held.items() if len(terms) > _FEW):
            now = dict(self._held[op])
            changes = [(one, -pages) for one, pages in now.items() if one not in before]
            changes += [(one, pages) for one, pages in before.items() if one not in now]
            if held is not None and not changes:
                self.model.lower_to(held, room[op])
                continue
            rest = [] if held is None else [(held, -1.0)]
            held, before = self.model.continuous(("held", op), upper=room[op]), now
            self.model.equal(0.0, (held, 1.0), *rest, *changes)

    def stretches(self, one: Stored, found: Solution) -> list[tuple[int, bool]]:
        """Where a solution has a storage: from which op on, and whether in the tier."""

        def below(*name: Hashable) -> bool:
            return found.values[name] < 0.5

        s = one.storage
        if self.moves == "static":
            return [(0 if one.begins else one.born, below("at", s))]
        there: list[tuple[int, bool]] = []
        if one.lead:
            goes_on = one.lasts and one.uses
            name = ("after", s, len(one.uses) - 1) if goes_on else ("lead", s)
            there.append((0, below(*name)))
        for i, (use, idle) in enumerate(zip(one.uses, one.idle, strict=True)):
            there.append((use, below("at", s, i)))
            if not idle:
                continue
            there.append((use + 1, below("after", s, i)))
            if there[-1][1]:
                ups = (k for k in idle[1:] if found.values.get(("up", s, i, k), 0.0) > 0.5)
                there += [(k, False) for k in ups]
        return there

    def _binary(self, *name: Hashable, stays: bool = False) -> Variable:
        """Is it on the device? `stays`: it cannot be elsewhere."""
        variable = self.model.binary(name)
        self.lowest[name] = float(stays)
        if stays:
            self.model.fix(variable, 1.0)
        return variable

    def _hold(self, one: Stored, ops: range, terms: list[tuple[Variable, int, bool]]) -> None:
        """Pages held during `ops`: those of each variable from its op on, or up to its op."""
        first, last = bisect_left(self.tight, ops.start), bisect_left(self.tight, ops.stop)
        pages = -(-one.nbytes // self.page)
        for op in self.tight[first:last]:
            self._live[op] += one.nbytes
            there = (variable for variable, k, rises in terms if (k <= op if rises else op <= k))
            self._held[op] += [(variable, pages) for variable in there]

    def _move_up(
        self, one: Stored, after: Variable, at: Variable, ups: dict[int, Variable]
    ) -> None:
        """What is not there after a use, but at the next one, is read from the tier in between."""
        seconds = self.tier.read.seconds(one.nbytes)
        sooner = [(variable, -1.0) for variable in (after, *ups.values())]
        self._move(at, sooner, seconds)
        for op, up in ups.items():
            self._beside[op].append((up, seconds))

    def _move_down(
        self,
        one: Stored,
        i: int,
        at: list[Variable],
        after: list[Variable],
        lead: Variable,
        downs: dict[int, Variable],
    ) -> None:
        """What leaves after use i is copied to the tier, unless that holds this version already."""
        model, seconds = self.model, self.tier.write.seconds(one.nbytes)
        stay = [(variable, -1.0) for variable in (after[i], *downs.values())]
        epoch = one.epoch[i]
        if self.tier.direct is None:
            self._move(at[i], stay, seconds)
            for op, down in downs.items():
                self._beside[op].append((down, seconds))
            return
        self._move(at[i], stay, 0.0)
        if epoch < 0 and one.lasts:
            return  # nothing ever writes it: the tier has it
        made = lead if epoch < 0 else at[epoch]  # a version that is written there needs no copy
        name = ("copied", one.storage, epoch)
        if name not in model.names:
            model.continuous(name, upper=1.0, cost=seconds)
        left = [(variable, -factor) for variable, factor in ((at[i], 1.0), *stay)]
        model.at_least(-1.0, (model.names[name], 1.0), (made, -1.0), *left)
        earlier = [
            j for j in range(len(one.uses)) if one.epoch[j] == epoch and one.turn(j) < one.turn(i)
        ]
        gone = [term for j in earlier for term in ((at[j], 1.0), (after[j], -1.0))]
        for op, down in downs.items():
            paid = model.continuous(("paid", one.storage, i, op), upper=1.0)
            model.at_least(-1.0, (paid, 1.0), (down, -1.0), (made, -1.0), *gone)
            self._beside[op].append((paid, seconds))

    def _move(self, there: Variable, others: _Terms, seconds: float) -> None:
        """A move between ops is what `others`, counted below 0, leave of `there`; it costs `seconds`."""
        self.model.at_least(0.0, (there, 1.0), *others)
        for variable, factor in ((there, 1.0), *others):
            self.model.charge(variable, factor * seconds)
