"""The page says in its figures and carries in its data what the report says."""

import re
from dataclasses import replace

import pytest

from pages import asked_for, carried, seen
from penstock.ir.plan import Plan, Swap
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.ir.trace import Gap
from penstock.leaderboard import Entry
from penstock.report.curves import curve_of
from penstock.report.document import planned
from penstock.report.html import page
from penstock.simulate.run import price
from penstock.solve.best import outcome

MIB = 2**20
STEP = parse("""
    f a  x:I1M w.a.weight:P2M -> h:A4M!  1s
    f b  h                    -> y:A1M   2s
    f c  y                    -> z:A1M   4s
    b d  z h                  -> g:T1M   1s
""").relabelled("a step")
PLAN = Plan((Swap(Gap(2, 1, 3), "disk", evict_at=2, prefetch_at=3),), "mine")


def point(policy, budget, peak=0, seconds=0.0, **facts):
    return Entry("", "a step", "card", budget, policy, 8.0, peak, seconds, **facts)


POINTS = [
    point("keep", 4 * MIB, shortfall=MIB),
    point("keep", 8 * MIB, 8 * MIB, 8.0),
    point("swap", 4 * MIB, 4 * MIB, 12.0),
    point("swap", 8 * MIB, 8 * MIB, 8.5),
    point("none", 4 * MIB, problem="policy None needs a tier below the device"),
    point("none", 8 * MIB, problem="policy None needs a tier below the device"),
]


@pytest.fixture
def problem(machine):
    return Problem(STEP, machine, 8 * MIB)


@pytest.fixture
def body(problem, machine):
    found = outcome(problem, PLAN)
    slower = replace(machine, tiers=tuple(replace(t, write=t.read) for t in machine.tiers))
    return planned(problem, found, price(found.schedule, slower))


def test_a_page_needs_nothing_else(body):
    text = page([body], curve_of(POINTS, 8.0))
    assert asked_for(text) == []


def test_figures_stand_beside_each_other(body):
    text = seen(page([body]))
    # c waits 1 s (predicted) or 2 s until h has left, and d 2 s until it is back.
    assert "budget 8.00 MiB 89% of the 9.00 MiB without one" in text
    assert re.search(r"step 12 s predicted 11 s \(-8\.3 %\)", text)
    assert "without a budget predicted measured predicted is off by" in text
    assert "disk write 4.00 MiB 4.00 MiB +0.0 %" in text
    assert "policy mine 1 swap " in text


def test_what_fills_the_peak_is_told_by_kind_module_and_value(body):
    text = seen(page([body]))
    peak = text.split("What fills the peak")[1].split("Predicted against measured")[0]
    for part in ("By kind", "By module", "The largest values"):
        assert part in peak
    assert "h activation · to disk after op 1, back for op 3 4.00 MiB" in peak
    assert "w.a.weight w.a · parameter · kept 2.00 MiB" in peak


def test_the_script_gets_both_runs_and_the_values(body):
    data = carried(page([body], curve_of(POINTS, 8.0)))
    (view,) = data["views"]
    assert list(view["runs"]) == ["predicted", "measured"]
    assert view["runs"]["predicted"]["curve"] == body["predicted"]["curve"]
    assert view["values"]["name"][0] == "h"
    assert data["curve"]["front"] == [[4 * MIB, 12.0, "swap"], [8 * MIB, 8.0, "keep"]]


def test_the_curve_says_who_is_best_and_who_found_nothing():
    text = page([], curve_of(POINTS, 8.0))
    rows = re.findall(r"<tr><td>([^<]*)</td>(.*?)</tr>", text)
    assert [budget for budget, _ in rows] == ["4.00 MiB", "8.00 MiB"]
    assert rows[0][1] == "<td>-</td><td class=best>12 s</td>"
    assert rows[1][1] == "<td class=best>8 s</td><td>8.5 s</td>"
    assert "none: policy None needs a tier" in seen(text)


def test_names_cannot_end_the_script(problem):
    evil = "</script><script>alert(1)</script>"
    values = tuple(replace(v, name=evil) if v.name == "h" else v for v in STEP.values)
    bad = replace(problem, trace=replace(STEP, values=values, label=evil))
    text = page([planned(bad, outcome(bad, PLAN))])
    assert evil not in text
    assert evil in carried(text)["views"][0]["values"]["name"]


def test_each_budget_has_its_view(problem):
    bodies = [
        planned(one, outcome(one, PLAN)) for one in (problem, replace(problem, budget=7 * MIB))
    ]
    text = page(bodies)
    assert re.findall(r"data-view='(\d)'( hidden)?", text) == [("0", ""), ("1", " hidden")]
    assert [view["budget"] for view in carried(text)["views"]] == [8 * MIB, 7 * MIB]
    assert "8.00 MiB (89%)" in text and "7.00 MiB (78%)" in text


def test_a_plan_that_does_not_fit_says_so(problem):
    tight = replace(problem, budget=6 * MIB)
    text = seen(page([planned(tight, outcome(tight, Plan()))]))
    assert "This plan does not fit: 3.00 MiB are missing" in text


def test_a_report_without_values_is_still_a_page(body):
    """One that was left before values were written into reports."""
    older = {key: value for key, value in body.items() if key not in ("values", "label", "decided")}
    for name in ("predicted", "measured"):
        older[name] = {
            k: v for k, v in body[name].items() if k not in ("stays", "fullest", "phases")
        }
    text = page([older])
    assert "By kind" in text and carried(text)["views"][0]["values"] is None


def test_a_step_of_ten_thousand_ops_stays_light(machine):
    ops = 5_000
    lines = ["f embed x:I1M -> h0:A1M! 1ms"]
    lines += [f"f aten.native_layer_norm h{n} -> h{n + 1}:A1M! 1ms" for n in range(ops - 1)]
    lines += [f"b aten.native_layer_norm_backward h{ops - 1} -> g{ops - 1}:T1M 1ms"]
    lines += [
        f"b aten.native_layer_norm_backward h{n} g{n + 1} -> g{n}:T1M 1ms"
        for n in reversed(range(ops - 1))
    ]
    step = parse("\n".join(lines))
    module = "model.decoder.layers.{}.self_attention.layer_norm"
    step = replace(
        step,
        ops=tuple(replace(op, module=module.format(op.index % ops // 60)) for op in step.ops),
        values=tuple(replace(value, name="") for value in step.values),
    )
    swaps = [
        Swap(gap, "disk", gap.start + 1, gap.stop - 1)
        for gap in step.saved_gaps()
        if gap.stop - gap.start > 4
    ]
    problem = Problem(step, machine, step.peak)
    text = page([planned(problem, outcome(problem, Plan(tuple(swaps))))])
    assert len(step.ops) == 2 * ops and len(swaps) > 4_900
    assert len(text.encode()) < 5_000_000
