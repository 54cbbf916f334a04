"""A step's graph of ops: their levels, longest paths, and who comes before whom."""

from dataclasses import dataclass
from functools import cached_property
from heapq import heapify, heappop, heappush

from penstock.ir.trace import OpIndex, Phase, Trace

__all__ = ["Graph", "ancestor", "finish_times", "graph_of", "seconds_to_end_of_forward"]


@dataclass(frozen=True)
class Graph:
    """A step's ops by level, each with those that made what it reads, and those that read of it.

    An op's level is that in a topological sort: an op that reads nothing made in the step is on 0.
    """

    level: list[int]
    before: list[tuple[OpIndex, ...]]
    after: list[list[OpIndex]]
    is_backward: list[bool]

    @cached_property
    def first_backward(self) -> int:
        """The lowest level of backward; 0 if there is none."""
        pairs = zip(self.level, self.is_backward, strict=True)
        return min((level for level, backward in pairs if backward), default=0)


def graph_of(trace: Trace) -> Graph:
    before = _producers(trace)
    level: list[int] = []
    after: list[list[OpIndex]] = [[] for _ in trace.ops]
    for op in trace.ops:
        level.append(1 + max((level[one] for one in before[op.index]), default=-1))
        for one in before[op.index]:
            after[one].append(op.index)
    return Graph(level, before, after, [op.phase is Phase.BACKWARD for op in trace.ops])


def _producers(trace: Trace) -> list[tuple[OpIndex, ...]]:
    made = [value.producer for value in trace.values]
    return [
        tuple(sorted({at for read in op.reads if (at := made[read]) is not None}))
        for op in trace.ops
    ]


def finish_times(trace: Trace) -> list[float]:
    """For each op, the seconds of the longest path to its end, as if all else ran beside it."""
    found: list[float] = []
    for op, before in zip(trace.ops, _producers(trace), strict=True):
        found.append(op.seconds + max((found[one] for one in before), default=0.0))
    return found


def seconds_to_end_of_forward(trace: Trace) -> list[float]:
    """For each op, the seconds of the longest path from its end through forward ops, to the loss."""
    below = [0.0] * len(trace.ops)
    before = _producers(trace)
    for op in reversed(trace.ops):
        if op.phase is Phase.FORWARD:
            for one in before[op.index]:
                below[one] = max(below[one], op.seconds + below[op.index])
    return below


def ancestor(graph: Graph, op: OpIndex, *, above: int, at_most: int) -> OpIndex | None:
    """The op on the highest level up to `at_most` from which `op` can be reached; the latest of them.

    `None` if there is none above level `above`.
    """
    pending = [(-graph.level[one], -one) for one in graph.before[op]]
    heapify(pending)
    seen = set(graph.before[op])
    while pending:
        level, it = heappop(pending)
        if -level <= above:
            return None
        if -level <= at_most:
            return OpIndex(-it)
        for one in graph.before[-it]:
            if one not in seen:
                seen.add(one)
                heappush(pending, (-graph.level[one], -one))
    return None
