"""Timelines as a Chrome trace: lanes as threads, the residency curve as a counter.

The format is the JSON array of trace events that chrome://tracing and ui.perfetto.dev open. Nothing
is left out: every span and every change of the curve is there. Times are in microseconds.
"""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np

from penstock.ir.timeline import COMPUTE, Timeline
from penstock.ir.trace import Trace, ValueId
from penstock.report.stalls import stalls

__all__ = ["chrome_trace"]

Event: TypeAlias = dict[str, Any]

_STALL = "stall"
"""The thread that shows where the compute lane stood still."""


def chrome_trace(trace: Trace, runs: Mapping[str, Timeline]) -> dict[str, Any]:
    """Runs of one step, such as `{"predicted": ..., "measured": ...}`: each becomes a process."""
    events: list[Event] = []
    for number, (name, timeline) in enumerate(runs.items(), start=1):
        events += _names(number, f"{trace.label or 'step'}, {name}", timeline)
        events += _spans(number, trace, timeline)
        events += _stalls(number, trace, timeline)
        events += _curve(number, timeline)
    facts = {
        name: {
            "seconds": timeline.seconds,
            "peak": timeline.peak,
            "stalls": {str(cause): seconds for cause, seconds in timeline.stalls.items()},
            "traffic": timeline.traffic,
        }
        for name, timeline in runs.items()
    }
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": facts}


def _names(process: int, title: str, timeline: Timeline) -> Iterator[Event]:
    """What the process and its threads are called, in the order in which they are shown."""
    yield _meta("process_name", process, 0, name=title)
    yield _meta("process_sort_index", process, 0, sort_index=process)
    for thread, lane in enumerate((*timeline.lanes, _STALL)):
        yield _meta("thread_name", process, thread, name=lane)
        yield _meta("thread_sort_index", process, thread, sort_index=thread)


def _meta(what: str, process: int, thread: int, **facts: Any) -> Event:
    return {"ph": "M", "name": what, "pid": process, "tid": thread, "args": facts}


def _spans(process: int, trace: Trace, timeline: Timeline) -> Iterator[Event]:
    thread = {lane: number for number, lane in enumerate(timeline.lanes)}
    for span in timeline.spans:
        event = {
            "ph": "X",
            "pid": process,
            "tid": thread[span.lane],
            "ts": span.start * 1e6,
            "dur": (span.end - span.start) * 1e6,
        }
        if span.lane == COMPUTE:
            op = trace.ops[span.ref]
            event["name"] = f"{op.name} again" if span.again else op.name
            event["cat"] = "recompute" if span.again else str(op.phase)
            event["args"] = {
                "op": op.index,
                "module": op.module,
                "reads": [trace.describe(value) for value in op.reads],
                "writes": [trace.describe(value) for value in op.writes],
                "bytes written": sum(trace.values[value].nbytes for value in op.writes),
                "workspace": op.workspace,
                "flops": op.flops,
            }
        else:
            value = trace.values[span.ref]
            event["name"] = trace.describe(ValueId(span.ref))
            event["cat"] = "copy"
            event["args"] = {"value": value.id, "kind": str(value.kind), "bytes": value.nbytes}
        yield event


def _stalls(process: int, trace: Trace, timeline: Timeline) -> Iterator[Event]:
    for stall in stalls(trace, timeline):
        yield {
            "ph": "X",
            "pid": process,
            "tid": len(timeline.lanes),
            "ts": stall.start * 1e6,
            "dur": (stall.end - stall.start) * 1e6,
            "name": "stall",
            "cat": "stall",
            "args": {"before": trace.describe_op(stall.before)},
        }


def _curve(process: int, timeline: Timeline) -> Iterator[Event]:
    """Bytes by kind, one event for each moment at which they change."""
    if not timeline.times.size:
        return
    last_of_moment = np.append(np.diff(timeline.times) > 0, True)
    # Of the changes at one moment the highest counts too, or the peak could go unseen.
    moment = np.concatenate(([0], np.cumsum(last_of_moment)[:-1]))
    by_height = np.lexsort((timeline.total, moment))
    highest = by_height[np.append(np.diff(moment[by_height]) > 0, True)]
    shown = np.union1d(np.flatnonzero(last_of_moment), highest)
    rows = [row for row in range(len(timeline.kinds)) if timeline.resident[row].any()]
    for point in shown.tolist():
        held = {timeline.kinds[row]: int(timeline.resident[row, point]) for row in rows}
        if timeline.overhead_bytes:
            held["allocator"] = timeline.overhead_bytes
        yield {
            "ph": "C",
            "pid": process,
            "name": "bytes on the device",
            "ts": float(timeline.times[point]) * 1e6,
            "args": held,
        }
