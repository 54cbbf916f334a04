"""Which values are on the device, against the residency curve, which only knows kinds."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from penstock.ir.plan import Plan, Swap
from penstock.ir.text import parse
from penstock.ir.timeline import KINDS, WORKSPACE
from penstock.ir.trace import Gap
from penstock.simulate.holders import holders
from penstock.simulate.lower import lower
from penstock.simulate.run import price
from strategies import plans, problems


@st.composite
def schedules(draw):
    problem = draw(problems())
    plan = draw(plans(problem.trace, problem.machine))
    budget = draw(st.sampled_from([problem.budget, None]))
    return lower(problem.trace, plan, budget), problem.machine


@given(schedules(), st.data())
def test_the_values_of_each_kind_sum_to_the_curve(case, data):
    schedule, machine = case
    timeline, values = price(schedule, machine), schedule.trace.values
    point = data.draw(st.integers(0, len(timeline.times) - 1))
    held = dict.fromkeys(KINDS, 0)
    for value in holders(schedule, timeline, point):
        held[values[value].kind] += values[value].nbytes
    curve = dict(zip(KINDS, timeline.resident[:, point].tolist(), strict=True))
    assert held | {WORKSPACE: 0} == curve | {WORKSPACE: 0}


def test_a_value_that_is_away_fills_nothing(machine):
    step = parse("""
        f a  x:I1M -> h:A4M!  1s
        f b  h     -> y:A2M   2s
        f c  y     -> z:A1M   4s
        b d  z h   -> g:T1M   1s
    """)
    plan = Plan((Swap(Gap(1, 1, 3), "disk", evict_at=2, prefetch_at=3),))
    schedule = lower(step, plan)
    timeline = price(schedule, machine)
    # h leaves from 3 s to 4 s, when c runs (3 s to 7 s).
    (point,) = np.flatnonzero(timeline.times == 4.0)
    names = [step.values[v].name for v in holders(schedule, timeline, int(point))]
    assert names == ["y", "x", "z"]
