"""A timeline as a Chrome trace: nothing is lost, nothing overlaps."""

import json
from itertools import groupby, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.ir.plan import Plan, Swap
from penstock.ir.text import parse
from penstock.ir.timeline import COMPUTE
from penstock.ir.trace import Gap
from penstock.report.chrome import chrome_trace
from penstock.simulate.lower import lower
from penstock.simulate.run import price
from strategies import plans, problems

MIB = 2**20
STEP = parse("""
    f a  x:I1M -> h:A4M!  1s
    f b  h     -> y:A1M   2s
    f c  y     -> z:A1M   4s
    b d  z h   -> g:T1M   1s
""")
SWAP = Swap(Gap(1, 1, 3), "disk", evict_at=2, prefetch_at=3)


@st.composite
def runs(draw):
    problem = draw(problems(max_layers=4))
    plan = draw(plans(problem.trace, problem.machine))
    schedule = lower(problem.trace, plan, draw(st.sampled_from([problem.budget, None])))
    return problem.trace, price(schedule, problem.machine)


def lanes_of(events):
    """Spans by the name of their thread, in order of time."""
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    spans = sorted((e["tid"], e["ts"], e["ts"] + e["dur"]) for e in events if e["ph"] == "X")
    found = {name: [] for name in names.values()}
    for thread, mine in groupby(spans, key=lambda span: span[0]):
        found[names[thread]] = [(start, end) for _, start, end in mine]
    return found


@settings(max_examples=40)
@given(runs())
def test_spans_sum_to_the_timeline_and_do_not_overlap(case):
    trace, timeline = case
    body = json.loads(json.dumps(chrome_trace(trace, {"predicted": timeline}), allow_nan=False))
    lanes = lanes_of(body["traceEvents"])
    assert set(lanes) == {*timeline.lanes, "stall"}
    for lane, spans in lanes.items():
        assert all(a[1] <= b[0] + 1e-6 for a, b in pairwise(spans)), lane
        busy = timeline.stall_seconds if lane == "stall" else timeline.busy(lane)
        assert sum(end - start for start, end in spans) == pytest.approx(busy * 1e6, abs=1e-3)
    moved = sum(e["args"]["bytes"] for e in body["traceEvents"] if e.get("cat") == "copy")
    # What the first chart of a steady state still owes belongs to the step before.
    assert moved == sum(
        trace.values[span.ref].nbytes for span in timeline.spans if span.lane != COMPUTE
    )


@settings(max_examples=40)
@given(runs())
def test_the_counter_reaches_the_peak_and_ends_where_the_curve_ends(case):
    trace, timeline = case
    events = chrome_trace(trace, {"predicted": timeline})["traceEvents"]
    counts = [e for e in events if e["ph"] == "C"]
    held = [sum(e["args"].values()) for e in counts]
    assert max(held) == timeline.peak
    assert held[-1] == timeline.total[-1]
    assert [e["ts"] for e in counts] == sorted(e["ts"] for e in counts)


def test_spans_carry_the_users_names(machine):
    timeline = price(lower(STEP, Plan((SWAP,))), machine)
    events = chrome_trace(STEP.relabelled("net"), {"predicted": timeline})["traceEvents"]
    assert events[0]["args"] == {"name": "net, predicted"}
    copies = [e for e in events if e.get("cat") == "copy"]
    assert [(e["name"], e["ts"], e["dur"], e["args"]["bytes"]) for e in copies] == [
        ("h", 3e6, 1e6, 4 * MIB),
        ("h", 7e6, 2e6, 4 * MIB),
    ]
    (stall,) = [e for e in events if e.get("cat") == "stall"]
    assert (stall["ts"], stall["dur"], stall["args"]["before"]) == (7e6, 2e6, "op 3 (d)")
    (last,) = [e for e in events if e["ph"] == "X" and e["name"] == "d"]
    assert last["args"]["reads"] == ["z", "h"] and last["cat"] == "backward"


def test_two_runs_are_two_processes(machine):
    timeline = price(lower(STEP, Plan()), machine)
    body = chrome_trace(STEP, {"predicted": timeline, "measured": timeline})
    assert {e["pid"] for e in body["traceEvents"]} == {1, 2}
    assert body["otherData"]["measured"]["peak"] == timeline.peak
