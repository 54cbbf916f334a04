"""When to send values away and call them back, once it is settled which."""

from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate

from penstock.ir.machine import Tier
from penstock.ir.plan import Swap
from penstock.ir.trace import Gap, OpIndex, Trace
from penstock.solve.pressure import Pressure

__all__ = ["away_ops", "just_in_time", "op_starts"]


def op_starts(trace: Trace) -> list[float]:
    """When each op starts if nothing ever waits, and when the step ends: one more than ops."""
    costs = (op.host_seconds + op.seconds for op in trace.ops)
    return list(accumulate(costs, initial=0.0))


def away_ops(gap: Gap, trace: Trace) -> int:
    """For how many ops the gap's value could be away."""
    if gap.stop is None:
        return len(trace.ops) - gap.start - 1
    if gap.wraps:
        return len(trace.ops) - gap.start - 1 + gap.stop
    return gap.stop - gap.start - 1


def just_in_time(
    trace: Trace,
    tier: Tier,
    gaps: Iterable[Gap],
    *,
    margin: float = 1.1,
    pressure: Pressure | None = None,
) -> list[Swap]:
    """Swaps that leave as soon as they are idle and come back as late as the link allows.

    Copies back share one lane: each must have ended before its value is used and before the next
    one has to start. `margin` is how much slower than promised the link may be. With `pressure`
    (in which all of `gaps` count as away), none comes back before there is room for it. A gap too
    short to leave and come back in is passed over.
    """
    starts = op_starts(trace)
    swaps: list[Swap] = []
    latest = float("inf")  # when the copy after this one must start
    by_stop = sorted(
        gaps, key=lambda gap: (gap.stop is not None, gap.stop, gap.start), reverse=True
    )
    for gap in by_stop:
        evict_at = OpIndex(gap.start + 1)
        if gap.stop is None:
            swaps.append(Swap(gap, tier.name, evict_at, None))
            continue
        needed = min(starts[gap.stop], latest)
        begin = needed - tier.read.seconds(trace.values[gap.value].nbytes) * margin
        at = max(0, bisect_right(starts, begin) - 1)
        earliest = 0 if gap.wraps else gap.start + 2
        if earliest > gap.stop:
            continue
        latest = min(begin, latest)
        at = min(max(at, earliest), gap.stop)
        if pressure is not None and not gap.wraps:
            at = pressure.earliest_return(gap, trace.values[gap.value].nbytes, at)
        swaps.append(Swap(gap, tier.name, evict_at, OpIndex(at)))
    return sorted(swaps, key=lambda swap: (swap.evict_at, swap.gap.value))
