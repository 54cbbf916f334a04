"""A recorded step of thousands of ops as a graph of a few dozen nodes, and its solution as a plan.

**Nodes** are runs of neighbouring ops of one phase. From one op each, the two neighbours are merged
whose merging blurs least: with a piece as a vector of its share of the seconds and its share of the
saved bytes, that is the area between the two vectors. So ops of one price in seconds a byte are
merged, and what is cheap to remake stays apart from what is dear.

**Data** are the forward values that pass between nodes; those that come and go in the same stages are
one. Open to decision are the gaps of values that forward made, that are large enough, that can be
remade, and that close after forward (so nothing runs again while forward still runs). All other
bytes, model state and gradients too, are the graph's own columns. A node runs again as a whole, so
the graph's costs are upper bounds: the plan runs only what its values need.
"""

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from penstock.ir.machine import Tier
from penstock.ir.plan import Decision, Recompute, Residency, Swap
from penstock.ir.policy import Problem
from penstock.ir.trace import Gap, Kind, Op, OpIndex, Phase, Trace, ValueId
from penstock.solve.pressure import bytes_held
from penstock.solve.remakes import alone
from penstock.solve.stages import Data, Graph, Node, Staged

__all__ = ["Condensed", "ahead_of", "condense", "others_than", "pieces", "scratch"]


@dataclass(frozen=True)
class Condensed:
    """A graph, and what its parts are in the trace."""

    graph: Graph
    starts: tuple[OpIndex, ...]  # the first op of each node
    gaps: dict[tuple[int, range], tuple[Gap, ...]]  # by data and open stretch

    def decisions(self, staged: Staged, tier: Tier | None = None) -> list[Decision]:
        """The solution for the trace. `tier`: where copies out go."""
        found: list[Decision] = []
        for (data, stretch), gaps in self.gaps.items():
            there = [(stage, data) in staged.held for stage in stretch]
            if all(there):
                continue
            out = [stage for stage in (stretch.start - 1, *stretch) if (stage, data) in staged.out]
            back = [stage for stage in stretch if (stage, data) in staged.back]
            if tier is not None and out and back:
                found.extend(self.swaps(gaps, tier, out[0], back[-1]))
            else:
                # Remade in the last stage that began without it.
                stage = stretch.stop - 1 - there[::-1].index(False)
                found.extend(Recompute(gap, self.starts[stage]) for gap in gaps)
        return found

    def swaps(self, gaps: Iterable[Gap], tier: Tier, out: int, back: int) -> Iterator[Swap]:
        for gap in gaps:
            assert gap.stop is not None
            evict_at = max(gap.start + 1, self.starts[out])
            prefetch_at = max(evict_at + 1, self.starts[back])
            if prefetch_at <= gap.stop:
                yield Swap(gap, tier.name, OpIndex(evict_at), OpIndex(prefetch_at))


def condense(problem: Problem, nodes: int, smallest: int) -> Condensed:
    """The problem as a graph of about `nodes` nodes; values under `smallest` bytes are kept."""
    return _Condenser(problem, nodes, smallest).condensed()


def pieces(trace: Trace, nodes: int) -> list[OpIndex]:
    """The first op of each of about `nodes` runs of ops. A run never crosses into another phase."""
    ops = len(trace.ops)
    seconds = trace.columns.seconds / max(trace.seconds, 1e-30)
    nbytes = np.zeros(ops)
    for gap in trace.saved_gaps():  # counted where they come and where they can first go
        size = trace.values[gap.value].nbytes
        producer = trace.values[gap.value].producer
        nbytes[gap.start if producer is None else producer] += size
        nbytes[gap.stop] += size
    nbytes /= max(float(nbytes.sum()), 1e-30)

    follows = list(range(1, ops + 1))  # by first op of a piece: the first op of the next
    precedes = list(range(-1, ops - 1))
    share: list[tuple[float, float]] = list(zip(seconds.tolist(), nbytes.tolist(), strict=True))
    stamp = [0] * ops
    forward = [op.phase is Phase.FORWARD for op in trace.ops]

    def blur(left: int, right: int) -> float:
        (a, b), (c, d) = share[left], share[right]
        return abs(a * d - b * c) + 1e-3 * (a + b) * (c + d)

    def mergeable(left: int) -> bool:
        right = follows[left]
        return right < ops and trace.ops[left].phase is trace.ops[right].phase

    heap = [(blur(n, n + 1), n, 0, 0) for n in range(ops - 1) if mergeable(n)]
    heapify(heap)
    # Forward pieces are what can run again, backward ones only when: two of three are forward.
    left = {True: sum(forward), False: ops - sum(forward)}
    wanted = {True: max(1, 2 * nodes // 3), False: max(1, nodes - 2 * nodes // 3)}
    while heap:
        _, one, its_stamp, next_stamp = heappop(heap)
        other = follows[one]
        if other >= ops or stamp[one] != its_stamp or stamp[other] != next_stamp:
            continue
        if left[forward[one]] <= wanted[forward[one]]:
            continue
        left[forward[one]] -= 1
        share[one] = share[one][0] + share[other][0], share[one][1] + share[other][1]
        follows[one] = follows[other]
        if follows[other] < ops:
            precedes[follows[other]] = one
        stamp[one] += 1
        stamp[other] = -1
        for first in (precedes[one], one):
            if first >= 0 and mergeable(first):
                after = follows[first]
                heappush(heap, (blur(first, after), first, stamp[first], stamp[after]))
    return [OpIndex(op) for op in range(ops) if stamp[op] >= 0]


_Likeness: TypeAlias = tuple[int, tuple[int, ...], tuple[range, ...], tuple[range, ...]]
"""Where values are made, who reads them, and where they are open and held."""


class _Condenser:
    """Works the graph out, part by part."""

    def __init__(self, problem: Problem, nodes: int, smallest: int) -> None:
        self.problem, self.trace = problem, problem.trace
        self.smallest = smallest
        self.starts = pieces(self.trace, nodes)
        self.count = len(self.starts)
        self.node_of: list[int] = (
            np.searchsorted(self.starts, np.arange(len(self.trace.ops)), side="right") - 1
        ).tolist()
        self.forward = [self.trace.ops[start].phase is Phase.FORWARD for start in self.starts]
        self.residency = Residency(self.trace, problem.given)

    def condensed(self) -> Condensed:
        open_gaps = self.open_gaps()
        members = self.members(open_gaps)
        data_of = {v: number for number, (_, values) in enumerate(members) for v in values}
        again, needs, sources = self.reruns(members, data_of)
        gaps: dict[tuple[int, range], tuple[Gap, ...]] = {}
        for number, (_, values) in enumerate(members):
            together = defaultdict[range, list[Gap]](list)
            for gap in (gap for v in values for gap in open_gaps.get(v, ())):
                together[self.stretch(gap)].append(gap)
            gaps.update(((number, stretch), tuple(found)) for stretch, found in together.items())
        nodes = []
        for k in range(self.count):
            reads = sources[k] if self.forward[k] else self.reads(k, data_of)
            cost = sum(self.trace.ops[op].seconds for op in needs[k])
            workspace = scratch(self.trace, needs[k], data_of) if again[k] else 0
            nodes.append(Node(tuple(sorted(reads)), cost, again[k], workspace))
        data = tuple(one for one, _ in members)
        before, during = self.others(open_gaps)
        graph = Graph(tuple(nodes), data, before, during, lasting=True)
        return Condensed(graph, tuple(self.starts), gaps)

    def reads(self, node: int, data_of: dict[ValueId, int]) -> set[int]:
        return {
            data_of[v]
            for op in self.ops(node)
            for v in op.reads
            if v in data_of and self.made_in(v) != node
        }

    def ops(self, node: int) -> tuple[Op, ...]:
        end = self.starts[node + 1] if node + 1 < self.count else len(self.trace.ops)
        return self.trace.ops[self.starts[node] : end]

    def made_in(self, value: ValueId) -> int:
        producer = self.trace.values[value].producer
        return -1 if producer is None else self.node_of[producer]

    def stretch(self, gap: Gap) -> range:
        """The stages at whose beginning a gap's value may be away."""
        assert gap.stop is not None
        return range(self.node_of[gap.start] + 1, self.node_of[gap.stop] + 1)

    def open_gaps(self) -> dict[ValueId, list[Gap]]:
        found = defaultdict[ValueId, list[Gap]](list)
        for gap in alone(self.problem, filter(self.is_open, self.problem.free_gaps(self.smallest))):
            found[gap.value].append(gap)
        return found

    def is_open(self, gap: Gap) -> bool:
        """Does it run from a value of forward to after forward, over more than one node?"""
        if gap.stop is None or gap.wraps or not self.stretch(gap):
            return False
        made_in = self.made_in(gap.value)
        return made_in >= 0 and self.forward[made_in] and not self.forward[self.node_of[gap.stop]]

    def members(
        self, open_gaps: dict[ValueId, list[Gap]]
    ) -> list[tuple[Data, tuple[ValueId, ...]]]:
        """The graph's data, each with its values."""
        alike = defaultdict[_Likeness, list[ValueId]](list)
        for value in self.trace.values:
            node = self.made_in(value.id)
            if node < 0 or not self.forward[node]:
                continue
            readers = {self.node_of[op] for op in self.trace.readers[value.id]} - {node}
            gaps = open_gaps.get(value.id, ())
            if not gaps and not any(self.forward[reader] for reader in readers):
                continue
            stretches = tuple(dict.fromkeys(self.stretch(gap) for gap in gaps))
            held = tuple(self.held(value.id, node, stretches))
            alike[node, tuple(sorted(readers)), stretches, held].append(value.id)
        found = []
        for (node, _, stretches, held), values in alike.items():
            nbytes = sum(self.trace.values[v].nbytes for v in values)
            if nbytes < self.smallest:
                nbytes = (
                    0  # a row of bytes and gigabytes is more than a solver's tolerance can tell
                )
            found.append((Data(node, nbytes, stretches, held), tuple(values)))
        return found

    def held(self, value: ValueId, node: int, stretches: tuple[range, ...]) -> Iterator[range]:
        """The stages at whose beginning it is there for certain."""
        begin: int | None = None
        for stage in range(node + 1, self.count + 1):
            there = (
                stage < self.count
                and not any(stage in stretch for stretch in stretches)
                and self.residency.holds(value, self.starts[stage])
            )
            if there and begin is None:
                begin = stage
            elif not there and begin is not None:
                yield range(begin, stage)
                begin = None

    def reruns(
        self, members: list[tuple[Data, tuple[ValueId, ...]]], data_of: dict[ValueId, int]
    ) -> tuple[list[frozenset[int]], list[set[OpIndex]], list[set[int]]]:
        """For each node: the stages in which it may run again, which of its ops then do, from what."""
        made = defaultdict[int, list[ValueId]](list)
        for one, values in members:
            made[one.producer].extend(values)
        again: list[frozenset[int]] = []
        needs: list[set[OpIndex]] = []
        reads: list[set[int]] = []
        for k in range(self.count):
            last, ops, read = self.lineage_inside(k, made[k])
            inputs = {data_of[v] for v in read}
            needs.append(ops)
            reads.append(inputs)
            begin = next((t for t in range(k + 1, self.count) if not self.forward[t]), self.count)
            again.append(
                frozenset(
                    stage
                    for stage in range(begin, last + 1)
                    if made[k]
                    and all(
                        any(
                            stage in stretch
                            for stretch in (*members[v][0].open, *members[v][0].held)
                        )
                        or stage in again[members[v][0].producer]
                        for v in inputs
                    )
                )
            )
        # A node runs again only while something that it makes, or that is made of it, may be away.
        useful: list[set[int]] = [set() for _ in range(self.count)]
        for one, _ in members:
            useful[one.producer].update(*one.open)
        for k in reversed(range(self.count)):
            again[k] &= frozenset(useful[k])
            for v in reads[k]:
                useful[members[v][0].producer] |= again[k]
        return again, needs, reads

    def lineage_inside(
        self, node: int, wanted: Iterable[ValueId]
    ) -> tuple[int, set[OpIndex], set[ValueId]]:
        """The last stage in which the node can make `wanted` again, with which ops, from what."""
        last, ops, inputs = self.count - 1, set[OpIndex](), set[ValueId]()
        pending = [*wanted]
        while pending:
            producer = self.trace.values[pending.pop()].producer
            assert producer is not None
            if producer in ops:
                continue
            op = self.trace.ops[producer]
            if not op.repeatable:
                return -1, set(), set()
            ops.add(producer)
            for read in op.reads:
                value = self.trace.values[read]
                becomes = self.trace.next_version.get(read) in op.writes
                if becomes and value.kind is Kind.BUFFER:
                    continue
                made_in = self.made_in(read)
                if made_in == node:
                    pending.append(read)
                elif made_in >= 0 and self.forward[made_in]:
                    inputs.add(read)
                elif becomes:
                    return -1, set(), set()
                else:  # from before the step, or from backward: while it is there
                    last = min(last, self.last_stage(read))
        return last, ops, inputs

    def last_stage(self, value: ValueId) -> int:
        freed = self.trace.values[value].freed
        if self.residency.away(value):
            return -1  # what is given sends it away at times
        return self.count - 1 if freed is None else self.node_of[freed]

    def others(
        self, open_gaps: dict[ValueId, list[Gap]]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """By stage: the bytes that are not open to decision, at its start and at its most."""
        trace = self.trace
        rest = others_than(
            self.problem,
            [
                (
                    value,
                    self.starts[stretch.start],
                    self.starts[stretch.stop] if stretch.stop < self.count else len(trace.ops),
                )
                for value, gaps in open_gaps.items()
                for stretch in dict.fromkeys(self.stretch(gap) for gap in gaps)
            ],
        )
        before = ahead_of(trace, rest)
        during = np.maximum.reduceat(rest, np.array(self.starts))
        return tuple(before[self.starts].tolist()), tuple(during.tolist())


def scratch(trace: Trace, ops: Iterable[OpIndex], apart: Container[ValueId] = ()) -> int:
    """Bytes that `ops` hold among themselves when they run again, at most; without values `apart`."""
    order = sorted(ops)
    last_read = {v: op for op in order for v in trace.ops[op].reads}
    inside: dict[ValueId, int] = {}
    held = most = 0
    for index in order:
        op = trace.ops[index]
        for v in op.writes:
            if (before := trace.previous_version.get(v)) is not None:
                if before not in inside:
                    continue  # model state, which a second run leaves alone
                held -= inside.pop(before)
            if v not in apart:
                inside[v] = trace.values[v].nbytes
                held += inside[v]
        most = max(most, held + op.workspace)
        for v in (*op.reads, *op.writes):
            if last_read.get(v, -1) <= index:
                held -= inside.pop(v, 0)
    return most


def others_than(problem: Problem, away: Iterable[tuple[ValueId, int, int]]) -> NDArray[np.int64]:
    """By op: the bytes that are held while it runs, values of `away` apart.

    Each of those is a value, the first op for which it does not count, and the one for which it does
    again. What is given counts as done.
    """
    trace = problem.trace
    change = np.zeros(len(trace.ops) + 1, np.int64)
    for value, begin, end in away:
        freed = trace.values[value].freed
        change[begin] += trace.values[value].nbytes
        change[end if freed is None else min(end, freed + 1)] -= trace.values[value].nbytes
    rest: NDArray[np.int64] = bytes_held(problem) - np.cumsum(change)[:-1]
    return rest


def ahead_of(trace: Trace, held: NDArray[np.int64]) -> NDArray[np.int64]:
    """By op: what of `held` is there just before it runs, without what it makes and its workspace."""
    fresh = np.array([sum(trace.values[v].nbytes for v in made) for made in trace.fresh])
    ahead: NDArray[np.int64] = held - fresh - trace.columns.workspace
    return ahead
