"""When to send values away and call them back, once it is settled which."""

from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import accumulate

import numpy as np

from penstock.ir.machine import Tier
from penstock.ir.plan import Swap
from penstock.ir.trace import Gap, OpIndex, Trace
from penstock.solve.best import Outcome
from penstock.solve.pressure import Pressure

__all__ = ["as_room_allows", "before", "just_in_time", "late_gaps", "op_starts"]


def op_starts(trace: Trace) -> list[float]:
    """When each op starts if nothing ever waits, and when the step ends: one more than ops."""
    costs = (op.host_seconds + op.seconds for op in trace.ops)
    return list(accumulate(costs, initial=0.0))


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
        if pressure is not None:
            at = pressure.earliest_return(gap, trace.values[gap.value].nbytes, at)
        swaps.append(Swap(gap, tier.name, evict_at, OpIndex(at)))
    return sorted(swaps, key=lambda swap: (swap.evict_at, swap.gap.value))


def late_gaps(found: Outcome) -> set[Gap]:
    """The swapped gaps whose value was still on its way in when it was needed."""
    timeline = found.timeline
    is_run = timeline.first_runs
    begins = dict(
        zip(timeline.span_ref[is_run].tolist(), timeline.span_start[is_run].tolist(), strict=True)
    )
    is_read = np.isin(
        timeline.span_lane, [n for n, lane in enumerate(timeline.lanes) if lane.endswith("read")]
    )
    ends = dict(
        zip(timeline.span_ref[is_read].tolist(), timeline.span_end[is_read].tolist(), strict=True)
    )
    return {
        swap.gap
        for swap in found.plan.swaps
        if swap.gap.stop is not None
        and ends.get(swap.gap.value, 0.0) >= begins[swap.gap.stop] - 1e-9
    }


def before(swap: Swap, starts: list[float], seconds: float) -> Swap:
    """The swap with its copy back triggered `seconds` earlier, if it can be away so short."""
    assert swap.prefetch_at is not None
    wanted = starts[swap.prefetch_at] - seconds
    at = int(swap.prefetch_at)
    while at > max(swap.evict_at, swap.gap.start) + 1 and starts[at] > wanted:
        at -= 1
    return replace(swap, prefetch_at=OpIndex(at))


def as_room_allows(
    trace: Trace,
    tier: Tier,
    gaps: Iterable[Gap],
    pressure: Pressure,
    *,
    after: Callable[[Gap], int] = lambda gap: -1,
) -> list[Swap]:
    """Swaps that leave as soon as they are idle and come back, in the order of use, with room.

    All of `gaps` count as away in `pressure`, which learns what comes back. None comes back with the
    op `after(gap)` or before it, nor before one that is used sooner. A gap too short to leave and
    come back in is passed over.
    """
    swaps: list[Swap] = []
    queued = 0  # none starts before the one ahead of it
    for gap in sorted(gaps, key=lambda gap: (gap.stop is None, gap.stop, gap.start)):
        evict_at = OpIndex(gap.start + 1)
        if gap.stop is None:
            swaps.append(Swap(gap, tier.name, evict_at, None))
            continue
        earliest = 0 if gap.wraps else gap.start + 2
        if earliest > gap.stop:
            continue
        wanted = min(max(earliest, after(gap) + 1, queued), gap.stop)
        queued = pressure.earliest_return(gap, trace.values[gap.value].nbytes, wanted)
        swaps.append(Swap(gap, tier.name, evict_at, OpIndex(queued)))
    return sorted(swaps, key=lambda swap: (swap.evict_at, swap.gap.value))
