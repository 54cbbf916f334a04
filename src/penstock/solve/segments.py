"""Where a forward pass is narrow, how it is cut into segments there, and where it ends."""

from collections import defaultdict
from typing import NamedTuple

from penstock.ir.plan import Recompute
from penstock.ir.trace import Gap, OpIndex, Phase, Trace
from penstock.solve.remakes import in_one_pass

__all__ = ["Split", "backward_after", "crossings", "split"]


def crossings(trace: Trace, width: int, smallest: int) -> dict[OpIndex, set[int]]:
    """The forward ops after which at most `width` values made in forward are still to be read
    there, with those values. Values under `smallest` bytes do not count.
    """
    opens: defaultdict[int, list[int]] = defaultdict(list)
    closes: defaultdict[int, list[int]] = defaultdict(list)
    last_forward = -1
    for value in trace.values:
        if value.nbytes < smallest or value.producer is None:
            continue
        if trace.ops[value.producer].phase is not Phase.FORWARD:
            continue
        reads = [use for use in trace.readers[value.id] if trace.ops[use].phase is Phase.FORWARD]
        last_forward = max(last_forward, value.producer)
        if reads and reads[-1] > value.producer:
            opens[value.producer].append(value.id)
            closes[reads[-1]].append(value.id)
    found: dict[OpIndex, set[int]] = {}
    crossing: set[int] = set()
    for op in trace.ops[: last_forward + 1]:
        crossing.difference_update(closes[op.index])
        crossing.update(opens[op.index])
        if 0 < len(crossing) <= width and op.phase is Phase.FORWARD:
            found[op.index] = set(crossing)
    return found


class Split(NamedTuple):
    """A segmentation: the values it drops, the bytes it keeps, and its largest segment.

    `closed` is the largest of the segments that a cut ends: the last one is not among them.
    """

    decisions: list[Recompute]
    kept: int
    largest: int
    closed: int


def split(trace: Trace, saved: list[Gap], cuts: dict[OpIndex, set[int]], threshold: int) -> Split:
    """End a segment at the first cut after more than `threshold` bytes (Chen et al.'s B)."""
    decisions: list[Recompute] = []
    segment: list[Gap] = []
    kept = closed = largest = local = before = 0
    by_producer: dict[int, list[Gap]] = {}
    for gap in saved:
        by_producer.setdefault(trace.values[gap.value].producer or 0, []).append(gap)
    for op in sorted({*by_producer, *cuts}):
        if any(one.phase is not Phase.FORWARD for one in trace.ops[before:op]):
            # Another micro-batch begins. The last segment of the one before is needed as soon as its
            # backward begins: remaking it would save nothing.
            segment.clear()
            largest, local = max(largest, local), 0
        before = op
        for gap in by_producer.get(op, ()):
            segment.append(gap)
            local += trace.values[gap.value].nbytes
        if op in cuts and local > threshold:
            crossing = cuts[OpIndex(op)]
            ends = [gap for gap in segment if gap.value in crossing]
            kept += sum(trace.values[gap.value].nbytes for gap in ends)
            closed, local = max(closed, local), 0
            decisions += in_one_pass(gap for gap in segment if gap.value not in crossing)
            segment.clear()
    return Split(decisions, kept, max(largest, closed, local), closed)


def backward_after(trace: Trace) -> list[OpIndex]:
    """For each op, the first of backward that follows it; the number of ops if none does."""
    found, following = [], OpIndex(len(trace.ops))
    for op in reversed(trace.ops):
        found.append(following)
        if op.phase is Phase.BACKWARD:
            following = op.index
    return found[::-1]
