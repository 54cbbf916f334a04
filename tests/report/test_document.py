"""A report as data: which values are there, from when to when, and what was decided about them."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.ir.machine import Direct
from penstock.ir.plan import Place, Plan, Recompute, Swap
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.ir.timeline import WORKSPACE
from penstock.ir.trace import Gap, ValueId
from penstock.report.document import planned, run
from penstock.simulate.run import price
from penstock.solve.best import outcome
from strategies import plans, problems

MIB = 2**20
STEP = parse("""
    f a  x:I1M w.a.weight:P2M -> h:A4M!  1s
    f b  h                    -> y:A1M   2s
    f c  y                    -> z:A1M   4s
    b d  z h                  -> g:T1M   1s
""")
H = Gap(2, 1, 3)
SWAP = Plan((Swap(H, "disk", evict_at=2, prefetch_at=3),), "mine")


def at(body, time):
    """Bytes by kind that the stays of a report tell of at one time."""
    values, there = body["values"], body["predicted"]["stays"]
    held = {}
    for row, since, until in zip(there["value"], there["since"], there["until"], strict=True):
        if since <= time < until:
            held[values["kind"][row]] = held.get(values["kind"][row], 0) + values["nbytes"][row]
    return held


@given(st.data())
def test_what_is_there_between_two_changes_sums_to_the_curve(data):
    problem = data.draw(problems())
    plan = data.draw(plans(problem.trace, problem.machine))
    body = planned(problem, outcome(problem, plan))
    found = body["predicted"]
    times = [*found["curve"]["times"], found["seconds"]]
    # Changes that are closer than one can see are left out of the curve.
    clear = found["seconds"] / 400
    quiet = [n for n, (now, later) in enumerate(pairwise(times)) if later - now > clear]
    if not quiet:
        return
    point = data.draw(st.sampled_from(quiet))
    held = {kind: column[point] for kind, column in found["curve"]["bytes"].items()}
    held = {kind: n for kind, n in held.items() if n and kind not in (WORKSPACE, "allocator")}
    assert at(body, (times[point] + times[point + 1]) / 2) == held


def test_a_swapped_value_is_away_in_between(machine):
    problem = Problem(STEP, machine, 16 * MIB)
    body = planned(problem, outcome(problem, SWAP))
    h, there = body["values"]["name"].index("h"), body["predicted"]["stays"]
    stays = [
        (since, until)
        for row, since, until in zip(
            *(there[key] for key in ("value", "since", "until")), strict=True
        )
        if row == h
    ]
    # Made by a at 0 s; out from 3 s to 4 s at 4 MiB/s; back from 7 s, when d asks for it, to the end.
    assert stays == [(0.0, 4.0), (7.0, 10.0)]


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan(), ""),
        (SWAP, "to disk after op 1, back for op 3"),
        (Plan((Recompute(H, remake_at=3),)), "dropped after op 1, computed again before op 3"),
    ],
    ids=["kept", "swapped", "recomputed"],
)
def test_each_value_tells_its_decision(machine, plan, words):
    problem = Problem(STEP, machine, 16 * MIB)
    values = planned(problem, outcome(problem, plan))["values"]
    h = values["name"].index("h")
    assert values["decision"][h] == words
    assert (values["kind"][h], values["nbytes"][h]) == ("activation", 4 * MIB)
    assert {said for row, said in enumerate(values["decision"]) if row != h} == {""}


def test_what_is_placed_is_told_and_is_not_on_the_device_meanwhile(machine):
    (disk,) = machine.tiers
    near = replace(machine, tiers=(replace(disk, direct=Direct(MIB, MIB)),))
    problem = Problem(STEP, near, 16 * MIB)
    plan = Plan((Place(ValueId(2), "disk", evict_at=2), Place(ValueId(4), "disk")))
    body = planned(problem, outcome(problem, plan))
    told = dict(zip(body["values"]["name"], body["values"]["decision"], strict=True))
    assert told["h"] == "placed in disk from op 2"
    assert "z" not in told  # it is nowhere else
    assert body["decided"] == {"swap": 0, "recompute": 0, "place": 2}


def test_values_stand_with_their_modules_largest_first(machine):
    ops = tuple(replace(op, module=f"net.{op.index}") for op in STEP.ops)
    step = replace(
        STEP, ops=ops, values=tuple(replace(v, name="") if v.id > 1 else v for v in STEP.values)
    )
    problem = Problem(step, machine, 16 * MIB)
    values = planned(problem, outcome(problem, Plan()))["values"]
    assert values["nbytes"] == sorted(values["nbytes"], reverse=True)
    assert dict(zip(values["name"], values["module"], strict=True)) == {
        "a (op 0)": "net.0",
        "w.a.weight": "w.a",
        "x": "",
        "b (op 1)": "net.1",
        "c (op 2)": "net.2",
        "d (op 3)": "net.3",
    }


def test_the_fullest_moment_is_that_of_each_run(machine):
    problem = Problem(STEP, machine, 16 * MIB)
    found = outcome(problem, SWAP)
    slower = replace(machine, tiers=tuple(replace(t, write=t.read) for t in machine.tiers))
    body = planned(problem, found, price(found.schedule, slower))
    for name in ("predicted", "measured"):
        one = body[name]
        named = sum(value["nbytes"] for value in one["fullest"]["values"])
        assert named == sum(n for _, n in one["fullest"]["modules"]) == one["peak"]
    assert body["measured"]["stays"]["until"] != body["predicted"]["stays"]["until"]


def test_a_run_of_another_plan_has_a_curve_but_no_values(machine):
    problem = Problem(STEP, machine, 16 * MIB)
    body = planned(problem, outcome(problem, SWAP), outcome(problem, Plan()).timeline)
    assert "stays" in body["predicted"] and "stays" not in body["measured"]
    assert body["measured"]["peak"] == STEP.peak


def test_phases_follow_each_other(machine):
    problem = Problem(STEP, machine, 16 * MIB)
    found = run(STEP, outcome(problem, SWAP).timeline)
    assert found["phases"] == [["forward", 0.0, 7.0], ["backward", 9.0, 10.0]]


def test_times_of_a_fast_step_are_told_apart(machine):
    ops = tuple(replace(op, seconds=op.seconds * 1e-6) for op in STEP.ops)
    step = replace(STEP, ops=ops)
    problem = Problem(step, machine, 16 * MIB)
    found = run(step, outcome(problem, Plan()).timeline)
    assert found["phases"] == [["forward", 0.0, 7e-6], ["backward", 7e-6, 8e-6]]
