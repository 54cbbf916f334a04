"""A report as plain data: what a plan is predicted to do with a step, and what it did."""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeAlias, assert_never

import numpy as np
from numpy.typing import NDArray

from penstock.ir.plan import Decision, Place, Plan, Recompute, Swap, wraps
from penstock.ir.policy import Problem
from penstock.ir.schedule import Schedule, Verb
from penstock.ir.timeline import COMPUTE, Timeline
from penstock.ir.trace import StorageId, Trace, ValueId
from penstock.report.fullest import fullest, module_of
from penstock.report.stalls import stalls
from penstock.session import Session
from penstock.simulate.holders import stays
from penstock.simulate.least import least_budget
from penstock.simulate.run import unbounded
from penstock.solve.best import Outcome

__all__ = ["Json", "document", "planned", "run", "runs_of", "told_of"]

Json: TypeAlias = dict[str, Any]

_POINTS = 1000
"""What is closer than one part of so many of a step cannot be told apart on a screen."""
_VALUES = 4000
"""Values that are told apart, the largest: the others are too small to be seen."""
_AT_PEAK = 12
"""Values at the peak that are told by name."""
_PHASES = 100
"""A step that changes more often between forward and backward has no phases to show."""


def document(session: Session) -> Json:
    """A session's report. `predicted` and `measured` are None for what has not happened."""
    found = told_of(session)
    body = {
        **session.summary(),
        "tiers": [{"name": tier.name, "budget": tier.capacity} for tier in session.machine.tiers],
        "predicted": None,
        "measured": None,
    }
    if found is None:
        return body
    body |= _runs(found, runs_of(session))
    if body["measured"] is not None:
        body["measured"]["held"] = _samples(session.samples)
    return body


def planned(problem: Problem, found: Outcome, measured: Timeline | None = None) -> Json:
    """The same for a plan that no session has run; `measured`: what became of it elsewhere."""
    trace, machine = problem.trace, problem.machine
    runs = {"predicted": found.timeline}
    if measured is not None:
        runs["measured"] = measured
    return {
        "penstock": "report",
        "version": 1,
        "label": trace.label,
        "budget": problem.budget,
        "policy": found.plan.policy,
        "machine": asdict(machine),
        "least_budget": least_budget(trace).nbytes,
        "without_budget": {
            "peak": trace.peak + trace.slack,
            "seconds": unbounded(trace, machine).seconds,
        },
        "steps": [],
        "tiers": [{"name": tier.name, "budget": tier.capacity} for tier in machine.tiers],
        **_runs(found, runs),
    }


def told_of(session: Session) -> Outcome | None:
    """The plan that a session's report tells of: the last, or the last one that was measured.

    After the last measured step another plan may have been made, which nothing has followed yet.
    """
    found, measured, charted = session.outcome, session.measured, session.charted
    if found is None or measured is None or charted is None:
        return found
    is_same_step = _is_of(measured, found.schedule.trace)
    return charted if is_same_step and not _follows(measured, found.schedule) else found


def runs_of(session: Session) -> dict[str, Timeline]:
    """Both runs of that plan, as far as they have happened."""
    found, measured = told_of(session), session.measured
    if found is None:
        return {}
    runs = {"predicted": found.timeline}
    if measured is not None and _is_of(measured, found.schedule.trace):
        runs["measured"] = measured
    return runs


def _is_of(timeline: Timeline, trace: Trace) -> bool:
    """Is this a run of that step? The last one measured may have had another shape."""
    return bool(np.array_equal(timeline.span_ref[timeline.first_runs], np.arange(len(trace.ops))))


def _follows(timeline: Timeline, schedule: Schedule) -> bool:
    """Is this a run of that very schedule? The step may have been planned again since."""
    verb, subject = schedule.verb, schedule.subject
    is_copy = (verb == Verb.EVICT) | (verb == Verb.PREFETCH)
    ref = subject.copy()
    ref[is_copy] = schedule.copies.value[subject[is_copy]]
    return bool(np.array_equal(timeline.span_ref, ref[is_copy | (verb <= Verb.RUN_AGAIN)]))


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
        "phases": _phases(trace, timeline),
    }


# -- curves --------------------------------------------------------------------------------------


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
    return {"times": _times(timeline.times[shown], timeline.seconds), "bytes": kinds}


def _samples(samples: list[tuple[float, int]]) -> Json:
    """What the device really held after each op."""
    if not samples:
        return {"times": [], "bytes": []}
    times, held = (np.array(column) for column in zip(*samples, strict=True))
    seconds = float(times[-1])
    shown = _thinned(times, held, seconds)
    return {"times": _times(times[shown], seconds), "bytes": held[shown].tolist()}


def _thinned(
    times: NDArray[np.float64], heights: NDArray[np.int64], seconds: float
) -> NDArray[np.int64]:
    """Positions of the points to show: of those closer than one can see, the highest and the last.

    The highest, or the peak could go unseen; the last, because it may hold for long.
    """
    slots = np.floor(times / (seconds or 1.0) * (_POINTS - 1)).clip(0, _POINTS - 1)
    by_slot = np.lexsort((heights, slots))
    highest = by_slot[np.append(np.diff(slots[by_slot]) > 0, True)[: len(by_slot)]]
    last = np.flatnonzero(np.append(np.diff(slots) > 0, True)[: len(slots)])
    return np.union1d(highest, last)


def _times(times: NDArray[np.float64], seconds: float) -> list[float]:
    found: list[float] = times.round(_digits(seconds)).tolist()
    return found


def _digits(seconds: float) -> int:
    """Decimals that tell a millionth of a step of `seconds`."""
    return 6 - math.floor(math.log10(seconds)) if seconds > 0 else 6


# -- lanes ---------------------------------------------------------------------------------------


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
    digits = _digits(timeline.seconds)
    return {
        lane: [[round(start, digits), round(end, digits), what] for start, end, what in rows]
        for lane, rows in lanes.items()
        if rows
    }


def _append(rows: list[list[Any]], start: float, end: float, what: str, finest: float) -> None:
    """Add a stretch, or lengthen the last one if the two are too short to be told apart."""
    if rows and start - rows[-1][1] < finest / 4 and end - rows[-1][0] < finest:
        rows[-1][1:] = [end, f"{rows[-1][2].removesuffix(' …')} …"]
    else:
        rows.append([start, end, what])


def _phases(trace: Trace, timeline: Timeline) -> list[list[Any]]:
    """Forward, backward, optimizer: rows of phase, start and end."""
    rows: list[list[Any]] = []
    digits = _digits(timeline.seconds)
    for span in timeline.spans:
        if span.lane != COMPUTE or span.again:
            continue
        phase, end = str(trace.ops[span.ref].phase), round(span.end, digits)
        if rows and rows[-1][0] == phase:
            rows[-1][2] = end
        else:
            rows.append([phase, round(span.start, digits), end])
    return rows if len(rows) <= _PHASES else []


# -- values --------------------------------------------------------------------------------------


def _runs(found: Outcome, runs: Mapping[str, Timeline]) -> Json:
    """The runs of a plan, and the values that they are about."""
    trace, schedule = found.schedule.trace, found.schedule
    decided = _decided(trace, found.plan)
    there = stays(schedule, found.timeline)
    size = trace.columns.nbytes
    known = np.unique(there.value)
    shown = known[np.lexsort((known, -size[known]))][:_VALUES]
    row_of = np.full(len(trace.values), -1)
    row_of[shown] = np.arange(len(shown))

    def told(timeline: Timeline) -> Json:
        body = run(trace, timeline)
        if not timeline.times.size or not _follows(timeline, schedule):
            return body
        mine = stays(schedule, timeline)
        seen = (row_of[mine.value] >= 0) & (mine.until > mine.since)
        most = fullest(schedule, timeline)
        body["stays"] = {
            "value": row_of[mine.value[seen]].tolist(),
            "since": _times(mine.since[seen], timeline.seconds),
            "until": _times(mine.until[seen], timeline.seconds),
        }
        body["fullest"] = {
            "seconds": round(most.seconds, _digits(timeline.seconds)),
            "op": "" if most.op is None else trace.describe_op(most.op),
            "phase": "" if most.op is None else str(trace.ops[most.op].phase),
            "modules": [[module, nbytes] for module, nbytes in most.modules],
            "values": [_value(trace, value, decided) for value in most.values[:_AT_PEAK]],
        }
        return body

    values = [_value(trace, value, decided) for value in map(ValueId, shown.tolist())]
    return {
        "decided": found.plan.counts(),
        "shortfall": found.shortfall,
        "values": {key: [value[key] for value in values] for key in _COLUMNS},
        "predicted": told(runs["predicted"]) if "predicted" in runs else None,
        "measured": told(runs["measured"]) if "measured" in runs else None,
    }


_COLUMNS = ("name", "module", "kind", "nbytes", "decision")


def _value(trace: Trace, value: ValueId, decided: Mapping[StorageId, str]) -> Json:
    it = trace.values[value]
    op = None if it.producer is None else trace.ops[it.producer]
    made = f"{op.name} (op {op.index})" if op is not None else f"{it.kind} {value}"
    return {
        "name": it.name or made,
        "module": module_of(trace, value),
        "kind": str(it.kind),
        "nbytes": it.nbytes,
        "decision": decided.get(it.storage, ""),
    }


def _decided(trace: Trace, plan: Plan) -> dict[StorageId, str]:
    """What was decided about each storage, in words; what is not named is kept."""
    found: defaultdict[StorageId, list[str]] = defaultdict(list)
    for decision in plan.decisions:
        value = decision.value if isinstance(decision, Place) else decision.gap.value
        found[trace.values[value].storage].append(_said(trace, decision))
    return {
        storage: said[0] if len(said) == 1 else f"{said[0]}, and {len(said) - 1} more"
        for storage, said in found.items()
    }


def _said(trace: Trace, decision: Decision) -> str:
    match decision:
        case Swap(gap=gap, tier=tier) if gap.stop is None:
            return f"to {tier} after op {gap.start}, for the rest of the step"
        case Swap(gap=gap, tier=tier):
            when = " of the next step" if gap.wraps else ""
            return f"to {tier} after op {gap.start}, back for op {gap.stop}{when}"
        case Recompute(gap=gap, remake_at=at):
            return f"dropped after op {gap.start}, computed again before op {at}"
        case Place(tier=tier, evict_at=out, prefetch_at=back):
            start = "" if out is None else f" from op {out}"
            stop = "" if back is None else f" until op {back}"
            when = " of the next step" if wraps(trace, decision) else ""
            return f"placed in {tier}{start}{stop}{when}"
        case _:
            assert_never(decision)
