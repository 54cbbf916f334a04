"""Which values to hold and which work to run again, stage by stage: Checkmate's programme, and POET's.

A step is cut into nodes that run in a fixed order. Stage `t` runs node `t` for the first time, and
before it any earlier nodes again, in their order. In the papers' letters:

    R[t, k]         node k runs again in stage t
    S[t, v]         v is there when stage t begins
    FREE[t, v, k]   in stage t, v goes after node k
    U[t, k]         bytes in stage t while node k runs
    out, back       POET: v is copied to the tier below, or back from it, in stage t

Two things differ from the printed rows, and not from their integer solutions. FREE has upper bounds
only, each user of a value excluding all earlier frees in one row: the relaxation is tighter, and FREE
need not be called an integer. And a node may make several values, so that a block of a real step is
one node: what a second run makes beside what is wanted goes at once.
"""

import time
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

from penstock.errors import SolveError
from penstock.solve.milp import Model, Variable

__all__ = [
    "Data",
    "Graph",
    "Node",
    "Paging",
    "Staged",
    "begun",
    "bettered",
    "forced",
    "paged",
    "peak",
    "plain",
    "relaxed",
    "rounded",
    "solve",
]


@dataclass(frozen=True, slots=True)
class Node:
    """Some work in its place of the order."""

    reads: tuple[int, ...]  # positions in `Graph.data`
    cost: float  # of running it again
    again: frozenset[int]  # the stages in which it may run again
    workspace: int = 0  # bytes while it runs again, beside its data


@dataclass(frozen=True, slots=True)
class Data:
    """One value that passes between nodes, or several that come and go together.

    Where it is `held`, its bytes are no matter of the programme: the graph's own columns have them.
    """

    producer: int
    nbytes: int
    open: tuple[range, ...] = ()  # stages for which it is to be decided whether it is there
    held: tuple[range, ...] = ()  # stages in which it is there whatever is decided


@dataclass(frozen=True)
class Graph:
    """Nodes, what passes between them, and the bytes that no decision touches."""

    nodes: tuple[Node, ...]
    data: tuple[Data, ...]
    before: tuple[int, ...]  # by stage: other bytes when it begins
    during: tuple[int, ...]  # by stage: other bytes while its own node runs, its results included
    # Plans know one absence a gap: with `lasting`, what is there in an open stretch stays to its end
    # (unless a copy out ends its stay), so that every solution is a plan.
    lasting: bool = False

    @cached_property
    def writes(self) -> tuple[tuple[int, ...], ...]:
        """For each node, the data that it makes."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for position, data in enumerate(self.data):
            found[data.producer].append(position)
        return tuple(map(tuple, found))

    @cached_property
    def open_at(self) -> tuple[frozenset[int], ...]:
        """For each stage, and one more, the data whose presence is to be decided."""
        return self._at([one.open for one in self.data])

    @cached_property
    def held_at(self) -> tuple[frozenset[int], ...]:
        """For each stage, and one more, the data that is there whatever is decided."""
        return self._at([one.held for one in self.data])

    def _at(self, stretches: Sequence[Sequence[range]]) -> tuple[frozenset[int], ...]:
        found: list[set[int]] = [set() for _ in range(len(self.nodes) + 1)]
        for data, each in enumerate(stretches):
            for stretch in each:
                for stage in stretch:
                    found[stage].add(data)
        return tuple(map(frozenset, found))

    def is_open(self, stage: int, data: int) -> bool:
        return data in self.open_at[stage]

    def is_held(self, stage: int, data: int) -> bool:
        return data in self.held_at[stage]

    def may_run_again(self, stage: int) -> list[int]:
        return [k for k in range(stage) if stage in self.nodes[k].again]


@dataclass(frozen=True, slots=True)
class Paging:
    """What copies cost, by data; and, where they take time, how much of it hides."""

    out: tuple[float, ...]
    back: tuple[float, ...]
    # Copies of a stage run beside its compute; what does not fit costs as much as it lasts. Empty:
    # copies take no time, and what comes back takes no bytes before the next stage (POET's rows).
    out_seconds: tuple[float, ...] = ()
    back_seconds: tuple[float, ...] = ()
    seconds: tuple[float, ...] = ()  # by stage: its own node

    @property
    def takes_time(self) -> bool:
        return bool(self.seconds)


Pair: TypeAlias = tuple[int, int]
"""A stage, and a node or data."""


@dataclass(frozen=True, slots=True)
class Staged:
    """A solution. `cost` is what it adds to a step that runs every node once."""

    again: frozenset[Pair]
    held: frozenset[Pair]  # of open data
    out: frozenset[Pair] = frozenset()
    back: frozenset[Pair] = frozenset()
    cost: float = 0.0
    bound: float = 0.0
    proven: bool = False


def plain(costs: Sequence[float], sizes: Sequence[int], edges: Iterable[tuple[int, int]]) -> Graph:
    """The papers' own form: each node makes one value, any of it may be held or made again any time."""
    count = len(costs)
    reads: list[set[int]] = [set() for _ in costs]
    for source, target in edges:
        reads[target].add(source)
    return Graph(
        tuple(
            Node(tuple(sorted(reads[k])), costs[k], frozenset(range(k + 1, count)))
            for k in range(count)
        ),
        tuple(Data(k, sizes[k], (range(k + 1, count),)) for k in range(count)),
        (0,) * count,
        tuple(sizes),
    )


def solve(
    graph: Graph,
    budget: int,
    time_limit: float,
    *,
    paging: Paging | None = None,
    start: Staged | None = None,
) -> Staged:
    """The cheapest solution inside `budget`, or the best that is found in `time_limit` seconds.

    `start`: one to begin with, and the answer where the solver has none. Without it that raises
    `SolveError`: there is no solution, or none was found in time.
    """
    try:
        programme = _Programme(graph, budget, paging, whole=True)
        known = None if start is None else programme.named(start)
        solution = programme.model.solve(time_limit, gap=1e-4, start=known)
    except SolveError:
        if start is None:
            raise
        return start
    chosen: dict[str, set[Pair]] = {letter: set() for letter in ("R", "S", "out", "back")}
    for name, value in solution.values.items():
        assert isinstance(name, tuple)
        if name[0] in chosen and value > 0.5:
            chosen[name[0]].add((name[1], name[2]))
    return Staged(
        frozenset(chosen["R"]),
        frozenset(chosen["S"]),
        frozenset(chosen["out"]),
        frozenset(chosen["back"]),
        solution.objective,
        solution.bound,
        solution.proven,
    )


def relaxed(graph: Graph, budget: int, time_limit: float) -> tuple[dict[Pair, float], float]:
    """S where its variables may be fractions, and the cost: a bound on that of any solution."""
    solution = _Programme(graph, budget, None, whole=False).model.solve(time_limit)
    held = {
        (name[1], name[2]): value
        for name, value in solution.values.items()
        if isinstance(name, tuple) and name[0] == "S"
    }
    return held, solution.bound


def rounded(
    graph: Graph, budget: int, time_limit: float, *, threshold: float = 0.5, margin: float = 0.1
) -> Staged:
    """Two phases: the relaxation for a `margin` less, S from `threshold` on, and R as it must be.

    If that takes more than `budget`, the cheapest of the thresholds 0.1, ..., 0.9 that does not; if
    none does, again for two and for three margins less. Raises `SolveError` if the relaxation has no
    solution or if none of it fits.
    """
    for times in (1, 2, 3) if margin else (1,):
        held, _ = relaxed(graph, int((1 - times * margin) * budget), time_limit)
        for thresholds in ([threshold], [tenths / 10 for tenths in range(1, 10)]):
            found = [forced(graph, above(graph, held, least)) for least in thresholds]
            if fitting := [one for one in found if peak(graph, one) <= budget]:
                return min(fitting, key=lambda one: one.cost)
    raise SolveError(f"no rounding of the relaxation fits into {budget:,} bytes")


def above(graph: Graph, held: Mapping[Pair, float], threshold: float) -> set[Pair]:
    """What is held more than `threshold`; in a lasting graph, to the end of its gap."""
    chosen = {pair for pair, share in held.items() if share > threshold}
    if graph.lasting:
        for v, data in enumerate(graph.data):
            for stretch in data.open:
                first = next((t for t in stretch if (t, v) in chosen), stretch.stop)
                chosen.update((t, v) for t in range(first, stretch.stop))
    return chosen


def begun(graph: Graph, budget: int, time_limit: float) -> Staged | None:
    """A good solution to begin with, bettered: the relaxation's, or what holds everything.

    None if neither leads to one that fits.
    """
    try:
        held, _ = relaxed(graph, budget, time_limit / 2)
        chosen = above(graph, held, 0.5)
    except SolveError:
        chosen = {(t, v) for t, data in enumerate(graph.open_at) for v in data}
    found = bettered(graph, forced(graph, chosen), budget, time_limit / 2)
    return found if peak(graph, found) <= budget else None


def forced(graph: Graph, held: Iterable[Pair]) -> Staged:
    """What must run again if just `held` is held. What cannot be made again is held as well."""
    kept = set(held)
    while (again := _forced(graph, kept)) is None:
        pass
    cost = sum(graph.nodes[node].cost for _, node in again)
    return Staged(frozenset(again), frozenset(kept), cost=cost)


def _forced(graph: Graph, kept: set[Pair]) -> set[Pair] | None:
    """The second runs; None after adding something to `kept` that has to be there."""
    again: set[Pair] = set()

    def there(stage: int, data: int) -> bool:
        return (stage, data) in kept or graph.is_held(stage, data)

    def hold(stage: int, data: int) -> None:
        for stretch in graph.data[data].open:
            if stage in stretch:
                kept.update((t, data) for t in (stretch if graph.lasting else (stage,)))
                return
        raise SolveError(
            f"data {data} is read in stage {stage}, when it can be neither held nor made"
        )

    complete = True
    for stage in range(len(graph.nodes)):
        # What is there from the next stage on, and was not before, is made now.
        wanted = {
            graph.data[v].producer
            for v in graph.open_at[stage]
            if (stage, v) not in kept and there(stage + 1, v)
        }
        for k in range(stage, -1, -1):
            if k != stage and k not in wanted:
                continue
            if k != stage and stage not in graph.nodes[k].again:
                wanted.discard(k)
                complete = False
                for v in graph.writes[k]:
                    if graph.is_open(stage, v):
                        hold(stage, v)
                continue
            for v in graph.nodes[k].reads:
                if there(stage, v) or (k == stage and not graph.is_open(stage, v)):
                    continue
                producer = graph.data[v].producer
                if stage in graph.nodes[producer].again:
                    wanted.add(producer)
                else:
                    hold(stage, v)
                    complete = False
        again.update((stage, k) for k in wanted)
    return again if complete else None


def bettered(graph: Graph, staged: Staged, budget: int, time_limit: float) -> Staged:
    """What a search from `staged` finds, one stay at a time: it fits if anything on the way does.

    For lasting graphs. A stay may begin with its gap, not at all, or with those of its neighbours: what
    begins in one stage is remade in one go. Ends where no single change helps, or with the time.
    """
    deadline = time.monotonic() + time_limit
    stretches = [(v, one) for v, data in enumerate(graph.data) for one in data.open]
    begins = [next((t for t in one if (t, v) in staged.held), one.stop) for v, one in stretches]

    def at(chosen: Sequence[int]) -> tuple[tuple[int, float], Staged]:
        held = {
            (t, v)
            for (v, one), begin in zip(stretches, chosen, strict=True)
            for t in range(begin, one.stop)
        }
        found = forced(graph, held)
        over = sum(max(0, nbytes - budget) for nbytes in peaks(graph, found))
        return (over, found.cost), found

    best, found = at(begins)
    order = sorted(range(len(stretches)), key=lambda n: -graph.data[stretches[n][0]].nbytes)
    is_changed = True
    while is_changed:
        is_changed = False
        for n in order:
            one = stretches[n][1]
            others = {begin for begin in begins if one.start < begin < one.stop}
            near = sorted(others, key=lambda begin: abs(begin - begins[n]))[:4]
            for begin in (one.start, one.stop, *near):
                if begin == begins[n]:
                    continue
                if time.monotonic() > deadline:
                    return found
                again, candidate = at([*begins[:n], begin, *begins[n + 1 :]])
                if again < best:
                    best, found, begins[n], is_changed = again, candidate, begin, True
    return found


def paged(graph: Graph, staged: Staged, paging: Paging) -> Staged:
    """A solution of a lasting graph with copies for second runs: out at once, back a stage early."""
    held, out, back = set(staged.held), set[Pair](), set[Pair]()
    for v, data in enumerate(graph.data):
        for stretch in data.open:
            begin = next((t for t in stretch if (t, v) in held), stretch.stop - 1)
            if begin - 1 in stretch:
                out.add((stretch.start - 1, v))
                back.add((begin - 1, v))
                held.update((t, v) for t in range(begin, stretch.stop))
            else:
                held.update((t, v) for t in stretch)
    cost = sum(paging.out[v] for _, v in out) + sum(paging.back[v] for _, v in back)
    for stage, seconds in enumerate(paging.seconds):
        leaving = sum(paging.out_seconds[v] for t, v in out if t == stage)
        coming = sum(paging.back_seconds[v] for t, v in back if t == stage)
        cost += max(0.0, leaving - seconds, coming - seconds)
    return Staged(frozenset(), frozenset(held), frozenset(out), frozenset(back), cost)


def peak(graph: Graph, staged: Staged) -> int:
    """Bytes: the most that is held at once. Frees as soon as a value has no further use."""
    return max(peaks(graph, staged), default=0)


def peaks(graph: Graph, staged: Staged) -> list[int]:
    """By stage: the most bytes that are held in it."""
    found = []
    runs: dict[int, list[int]] = {}
    for stage, node in sorted(staged.again):
        runs.setdefault(stage, []).append(node)
    held: dict[int, set[int]] = {}
    for stage, v in staged.held:
        held.setdefault(stage, set()).add(v)
    coming: dict[int, set[int]] = {}  # a copy back takes its bytes from its start
    for stage, v in staged.back:
        coming.setdefault(stage, set()).add(v)
    for stage in range(len(graph.nodes)):
        most = 0
        there = {*held.get(stage, ()), *coming.get(stage, ())}
        stays = held.get(stage + 1, set())
        again = runs.get(stage, [])
        order = [*again, stage]
        last_use = {v: k for k in order for v in graph.nodes[k].reads}
        for k in again:
            there.update(v for v in graph.writes[k] if not graph.is_held(stage, v))
            size = sum(graph.data[v].nbytes for v in there)
            most = max(most, size + graph.nodes[k].workspace + graph.before[stage])
            for v in (*graph.nodes[k].reads, *graph.writes[k]):
                if last_use.get(v, -1) <= k and v not in stays and not graph.is_held(stage + 1, v):
                    there.discard(v)
        own = sum(graph.data[v].nbytes for v in there) + graph.during[stage]
        found.append(max(most, own))
    return found


_BITS = 16
"""Up to so many binary digits a budget is counted in bytes."""

_Term: TypeAlias = tuple[float, Variable | None]
"""A constant, and a variable of factor 1 beside it."""


@dataclass
class _Programme:
    graph: Graph
    budget: int
    paging: Paging | None
    whole: bool  # False: the relaxation
    model: Model = field(default_factory=Model)

    def __post_init__(self) -> None:
        # In bytes the rows would be far from the solver's tolerances, and with fractions too near:
        # whole units, sizes rounded up and limits down.
        self.unit = 1 << max(0, self.budget.bit_length() - _BITS)
        self.terms: dict[tuple[str, int, int], _Term] = {}
        for stage in range(len(self.graph.nodes)):
            self.decide(stage)
        if self.paging is not None:
            self.page(self.paging)
        for stage in range(len(self.graph.nodes)):
            self.depend(stage)
            self.carry(stage)
            self.remember(stage)
            if self.graph.lasting:
                self.tighten(stage)
        if self.paging is not None and self.paging.takes_time:
            for stage in range(len(self.graph.nodes)):
                self.hide(self.paging, stage)

    def named(self, staged: Staged) -> Mapping[Hashable, float]:
        """A solution by the names of its variables."""
        pairs = {"R": staged.again, "S": staged.held, "out": staged.out, "back": staged.back}
        return {name: float(name[1:] in pairs[name[0]]) for name in self.terms if name[0] in pairs}

    def units(self, nbytes: int) -> int:
        return -(-nbytes // self.unit)

    # -- terms ---------------------------------------------------------------------------------

    def runs(self, stage: int, node: int) -> _Term:
        return (1.0, None) if node == stage else self.terms.get(("R", stage, node), (0.0, None))

    def there(self, stage: int, data: int) -> _Term:
        if (found := self.terms.get(("S", stage, data))) is not None:
            return found
        return (1.0, None) if self.graph.is_held(stage, data) else (0.0, None)

    def made(self, stage: int, data: int) -> _Term:
        """Do second runs of this stage make it where it is not already?"""
        if self.graph.is_held(stage, data):
            return 0.0, None
        producer = self.graph.data[data].producer
        runs = self.terms.get(("R", stage, producer), (0.0, None))
        if runs[1] is None or ("S", stage, data) not in self.terms:
            return runs
        if len(self.graph.writes[producer]) == 1:
            return runs  # nobody makes again what is there
        if (found := self.terms.get(("made", stage, data))) is None:
            found = self.share("made", stage, data)
            self.least(0.0, (1, found), (-1, runs), (1, self.there(stage, data)))
        return found

    def choice(self, letter: str, stage: int, item: int, cost: float = 0.0) -> _Term:
        name = (letter, stage, item)
        self.terms[name] = (
            0.0,
            (
                self.model.binary(name, cost=cost)
                if self.whole
                else self.model.continuous(name, upper=1.0, cost=cost)
            ),
        )
        return self.terms[name]

    def share(self, letter: str, stage: int, item: int) -> _Term:
        """A variable that is whole of itself where the choices are."""
        name = (letter, stage, item)
        self.terms[name] = 0.0, self.model.continuous(name, upper=1.0)
        return self.terms[name]

    def least(self, limit: float, *terms: tuple[float, _Term]) -> None:
        """The sum is `limit` or more."""
        constant = sum(factor * term[0] for factor, term in terms)
        variables = [(term[1], factor) for factor, term in terms if term[1] is not None]
        if variables:
            self.model.at_least(limit - constant, *variables)
        elif constant < limit - 1e-9:
            raise SolveError(
                f"no solution inside {self.budget:,} bytes: a stage has no room at all"
            )

    # -- rows ----------------------------------------------------------------------------------

    def decide(self, stage: int) -> None:
        for k in self.graph.may_run_again(stage):
            self.choice("R", stage, k, self.graph.nodes[k].cost)
        for v in range(len(self.graph.data)):
            if self.graph.is_open(stage, v):
                self.choice("S", stage, v)

    def depend(self, stage: int) -> None:
        """What a node reads is there, or made in this stage."""
        for k in (*self.graph.may_run_again(stage), stage):
            for v in self.graph.nodes[k].reads:
                there, producer = self.there(stage, v), self.graph.data[v].producer
                # What a first run reads is there unless it was decided otherwise.
                if there != (1.0, None) and (k != stage or self.graph.is_open(stage, v)):
                    self.least(
                        0, (1, there), (1, self.runs(stage, producer)), (-1, self.runs(stage, k))
                    )

    def carry(self, stage: int) -> None:
        """What is there as a stage begins was there or made in the one before, or came back."""
        nothing: _Term = (0.0, None)
        for v, data in enumerate(self.graph.data):
            after = self.there(stage + 1, v)
            if stage <= data.producer or after == nothing:
                continue
            now = self.there(stage, v)
            if now == (1.0, None):
                continue
            back = self.terms.get(("back", stage, v), nothing)
            self.least(0, (1, now), (1, self.runs(stage, data.producer)), (1, back), (-1, after))
            if self.graph.lasting and any(
                stage in stretch and stage + 1 in stretch for stretch in data.open
            ):
                out = self.terms.get(("out", stage, v), nothing)
                self.least(0, (1, after), (-1, now), (1, out))

    def remember(self, stage: int) -> None:
        """Bytes, run by run."""
        graph = self.graph
        limit = (self.budget - graph.before[stage]) // self.unit
        again = graph.may_run_again(stage)
        terms: list[tuple[float, _Term]] = []
        for v, data in enumerate(graph.data):
            if data.nbytes and ("S", stage, v) in self.terms:
                terms.append((-self.units(data.nbytes), self.there(stage, v)))
            if self.paging is not None and self.paging.takes_time:
                if (back := self.terms.get(("back", stage, v))) is not None:
                    terms.append((-self.units(data.nbytes), back))
        frees = self.frees(stage, again) if again else {}
        for k in again:
            for v in graph.writes[k]:
                if graph.data[v].nbytes:
                    terms.append((-self.units(graph.data[v].nbytes), self.made(stage, v)))
            if graph.nodes[k].workspace:
                scratch = -self.units(graph.nodes[k].workspace)
                self.least(-limit, *terms, (scratch, self.runs(stage, k)))
            # U as a variable: each row then has few entries, though it is a sum over the stage.
            occupied = self.model.continuous(("U", stage, k), upper=max(0, limit))
            self.least(0, *terms, (1, (0.0, occupied)))
            terms = [(-1, (0.0, occupied))]
            terms += [(self.units(graph.data[v].nbytes), free) for v, free in frees.get(k, ())]
        self.least(-((self.budget - graph.during[stage]) // self.unit), *terms)

    def tighten(self, stage: int) -> None:
        """What integer solutions keep anyway, and the relaxation would not.

        While a node runs, what it reads and makes is there, as a whole; so is what is there as the
        stage begins, for in a lasting graph that stays to the end of its gap; and so is, of what was
        made before, what is there as the next stage begins.
        """
        graph = self.graph
        size = [self.units(data.nbytes) for data in graph.data]
        open_now = [v for v in range(len(size)) if size[v] and ("S", stage, v) in self.terms]
        stays = {
            v
            for v in open_now
            if any(stage in one and stage + 1 in one for one in graph.data[v].open)
        }
        limit = (self.budget - graph.during[stage]) // self.unit
        own = [v for v in open_now if v in graph.nodes[stage].reads]
        others = [(-size[v], self.there(stage + 1, v)) for v in stays.difference(own)]
        self.least(sum(size[v] for v in own) - limit, *others)
        if self.paging is not None:
            return  # what is copied out may go in between
        limit = (self.budget - graph.before[stage]) // self.unit
        for k in graph.may_run_again(stage):
            own = [v for v in (*graph.nodes[k].reads, *graph.writes[k]) if size[v]]
            own = [v for v in dict.fromkeys(own) if not graph.is_held(stage, v)]
            others = [
                (-size[v], self.there(stage + (v in stays and graph.data[v].producer < k), v))
                for v in open_now
                if v not in own
            ]
            whole = sum(size[v] for v in own) + self.units(graph.nodes[k].workspace)
            self.least(-limit, *others, (-whole, self.runs(stage, k)))

    def frees(self, stage: int, again: list[int]) -> dict[int, list[tuple[int, _Term]]]:
        """For each node that may run again, what may go after it."""
        graph, found = self.graph, dict[int, list[tuple[int, _Term]]]()
        users: dict[int, list[int]] = {}
        for k in again:
            if len(graph.writes[k]) > 1:
                for v in graph.writes[k]:
                    users.setdefault(v, []).append(k)
        for k in (*again, stage):
            for v in graph.nodes[k].reads:
                users.setdefault(v, []).append(k)
        for v, nodes in users.items():
            if not graph.data[v].nbytes or graph.is_held(stage, v):
                continue
            now, made, after = self.there(stage, v), self.made(stage, v), self.there(stage + 1, v)
            if after == (1.0, None) or now == made == (0.0, None):
                continue
            earlier: list[tuple[float, _Term]] = []
            for k in sorted(set(nodes)):
                if earlier:
                    self.least(-1, *earlier, (-1, self.runs(stage, k)))
                if k == stage:
                    break
                name = ("free", stage, v, k)
                free: _Term = 0.0, self.model.continuous(name, upper=1.0)
                self.least(0, (1, self.runs(stage, k)), (-1, free))
                earlier.append((-1, free))
                found.setdefault(k, []).append((v, free))
            if earlier:  # only what is there, and will not be
                back = self.terms.get(("back", stage, v), (0.0, None))
                self.least(0, (1, now), (1, made), (1, back), (-1, after), *earlier)
        return found

    # -- POET ----------------------------------------------------------------------------------

    def page(self, paging: Paging) -> None:
        """Copies out and back; what has come back is there from the next stage on."""
        for v, data in enumerate(self.graph.data):
            for stretch in data.open:
                if self.graph.lasting:
                    self.page_once(paging, v, stretch)
                else:
                    self.page_freely(paging, v, stretch)

    def page_freely(self, paging: Paging, v: int, stretch: range) -> None:
        below: _Term = (0.0, None)  # is there a copy in the tier below?
        for stage in stretch:
            out = self.choice("out", stage, v, paging.out[v])
            back = self.choice("back", stage, v, paging.back[v])
            self.least(0, (1, self.there(stage, v)), (-1, out))
            self.least(0, (1, below), (-1, back))
            later = self.share("below", stage + 1, v)
            self.least(0, (1, below), (1, out), (-1, later))
            below = later

    def page_once(self, paging: Paging, v: int, stretch: range) -> None:
        """One copy out, from the stage of the last use on, which ends the stay; and one back."""
        first = self.there(stretch.start, v)
        outs: list[tuple[float, _Term]] = []
        for stage in range(stretch.start - 1, stretch.stop - 1):
            if stage in stretch and outs:
                back = self.choice("back", stage, v, paging.back[v])
                self.least(0, *((-factor, out) for factor, out in outs), (-1, back))
            out = self.choice("out", stage, v, paging.out[v])
            if stage in stretch:
                self.least(0, (1, first), (-1, out))
                self.least(0, (1, self.there(stage, v)), (-1, out))
            outs.append((-1, out))
        if outs:
            self.least(-1, *outs)

    def hide(self, paging: Paging, stage: int) -> None:
        """What the stage's compute does not cover of its copies is a stall."""
        again = [
            (self.graph.nodes[k].cost, self.runs(stage, k)) for k in self.graph.may_run_again(stage)
        ]
        stall: _Term | None = None
        for letter, seconds in (("out", paging.out_seconds), ("back", paging.back_seconds)):
            copies = [
                (-seconds[v], self.terms[letter, stage, v])
                for v in range(len(self.graph.data))
                if (letter, stage, v) in self.terms
            ]
            if copies:
                if stall is None:
                    stall = 0.0, self.model.continuous(("stall", stage), cost=1.0)
                self.least(-paging.seconds[stage], (1, stall), *again, *copies)
