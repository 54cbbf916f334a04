"""Where a forward pass is narrow, and what can be remade."""

from collections import defaultdict

from penstock.ir.lineage import Gone, lineage
from penstock.ir.plan import Plan, Residency
from penstock.ir.trace import Gap, OpIndex, Phase, Trace

__all__ = ["crossings", "remakeable"]


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


def remakeable(trace: Trace, gap: Gap, given: Plan) -> bool:
    """Can the gap's value be remade when the gap closes, if the rest is kept as `given` says?"""
    if gap.stop is None or gap.wraps:
        return False
    residency = Residency(trace, given)
    try:
        lineage(trace, gap.value, gap.stop, residency.holds)
    except Gone:
        return False
    return True
