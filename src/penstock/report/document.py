"""What `--report` writes, as plain data: the session's summary, and both runs of its last plan."""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from penstock.ir.timeline import COMPUTE, Timeline
from penstock.ir.trace import Trace
from penstock.report.stalls import stalls
from penstock.session import Session

__all__ = ["Json", "document", "run", "runs_of"]

Json: TypeAlias = dict[str, Any]

_POINTS = 1000
"""Points that a curve keeps, and stretches of one lane: more than a screen can show."""


def document(session: Session) -> Json:
    """A session's report. `predicted` and `measured` are None for what has not happened."""
    trace = session.trace
    runs = {} if trace is None else {n: run(trace, it) for n, it in runs_of(session).items()}
    if "measured" in runs:
        runs["measured"]["held"] = _samples(session.samples)
    return {
        **session.summary(),
        "tiers": [{"name": tier.name, "budget": tier.capacity} for tier in session.machine.tiers],
        "predicted": None,
        "measured": None,
        **runs,
    }


def runs_of(session: Session) -> dict[str, Timeline]:
    """Both runs of a session's last plan, as far as they have happened."""
    trace, found, measured = session.trace, session.outcome, session.measured
    runs = {} if trace is None or found is None else {"predicted": found.timeline}
    if trace is not None and measured is not None and _is_of(measured, trace):
        runs["measured"] = measured
    return runs


def _is_of(timeline: Timeline, trace: Trace) -> bool:
    """Is this a run of that step? The last one measured may have had another shape."""
    first = (timeline.span_lane == 0) & ~timeline.span_again
    return bool(np.array_equal(timeline.span_ref[first], np.arange(len(trace.ops))))


def run(trace: Trace, timeline: Timeline) -> Json:
    """One run of a step. Times are in seconds since it began."""
    return {
        "seconds": timeline.seconds,
        "peak": timeline.peak,
        "at_peak": timeline.at_peak(),
        "stalls": {str(cause): seconds for cause, seconds in timeline.stalls.items()},
        "recompute_seconds": timeline.recompute_seconds,
        "traffic": timeline.traffic,
        "curve": _curve(timeline),
        "lanes": _lanes(trace, timeline),
    }


def _curve(timeline: Timeline) -> Json:
    """The residency curve: bytes by kind from each time on. The peak is among its points."""
    shown = _thinned(timeline.times, timeline.total, timeline.seconds)
    kinds = {
        kind: timeline.resident[row, shown].tolist()
        for row, kind in enumerate(timeline.kinds)
        if timeline.resident[row].any()
    }
    if timeline.overhead_bytes:
        kinds["allocator"] = [timeline.overhead_bytes] * len(shown)
    return {"times": timeline.times[shown].round(6).tolist(), "bytes": kinds}


def _samples(samples: list[tuple[float, int]]) -> Json:
    """What the device really held after each op."""
    if not samples:
        return {"times": [], "bytes": []}
    times, held = (np.array(column) for column in zip(*samples, strict=True))
    shown = _thinned(times, held, float(times[-1]))
    return {"times": times[shown].round(6).tolist(), "bytes": held[shown].tolist()}


def _thinned(
    times: NDArray[np.float64], heights: NDArray[np.int64], seconds: float
) -> NDArray[np.int64]:
    """Positions of at most `_POINTS` points: of those closer than one can see, the highest."""
    slots = np.floor(times / (seconds or 1.0) * (_POINTS - 1)).clip(0, _POINTS - 1)
    by_slot = np.lexsort((heights, slots))
    last_of_slot = np.append(np.diff(slots[by_slot]) > 0, True)[: len(by_slot)]
    return np.sort(by_slot[last_of_slot])


def _lanes(trace: Trace, timeline: Timeline) -> dict[str, list[list[Any]]]:
    """What kept each lane busy: rows of start, end and what it was.

    Recomputation has a lane of its own, and so has waiting: where the compute lane stood still for
    longer than the host needs between two ops.
    """
    lanes: dict[str, list[list[Any]]] = {COMPUTE: [], "recompute": [], "stall": []}
    lanes.update({lane: [] for lane in timeline.lanes if lane != COMPUTE})
    finest = timeline.seconds / _POINTS
    for span in sorted(timeline.spans, key=lambda span: span.start):
        if span.lane != COMPUTE:
            what, lane = trace.describe(trace.values[span.ref].id), span.lane
        else:
            what = trace.describe_op(trace.ops[span.ref].index)
            lane = "recompute" if span.again else COMPUTE
        _append(lanes[lane], span.start, span.end, what, finest)
    for stall in stalls(trace, timeline, at_least=finest / 4):
        what = f"before {trace.describe_op(stall.before)}"
        _append(lanes["stall"], stall.start, stall.end, what, finest)
    return {lane: rows for lane, rows in lanes.items() if rows}


def _append(rows: list[list[Any]], start: float, end: float, what: str, finest: float) -> None:
    """Add a stretch, or lengthen the last one if the two are too short to be told apart."""
    if rows and start - rows[-1][1] < finest / 4 and end - rows[-1][0] < finest:
        rows[-1][1:] = [round(end, 6), f"{rows[-1][2].removesuffix(' …')} …"]
    else:
        rows.append([round(start, 6), round(end, 6), what])
