"""Blends: remakes of several methods beside swaps, and triggers set anew."""

import math
from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from hosts import host
from penstock import policies
from penstock.ir.plan import Plan, Recompute, check
from penstock.ir.policy import Problem
from penstock.solve.best import outcome
from penstock.solve.blend import blended, families, mixed, retimed
from steps import STEPS, chain
from strategies import plans, problems

MIB = 2**20
TRACE = chain(24, "4M", "1s")

# A link that carries one layer's value in the time of three.
PROBLEM = Problem(TRACE, host(4 * MIB / 3), 36 * MIB)


def answers(problem, *names):
    return [policies.ask(policies.configured(name), problem) for name in names]


def test_of_remakes_of_one_worth_what_is_away_for_longest_comes_first():
    gaps = list(TRACE.saved_gaps())[1:17:2]  # each is remade from the layer before it
    apart = Plan(tuple(Recompute(gap, gap.stop) for gap in gaps), "apart")
    kind = families(PROBLEM, [outcome(PROBLEM, apart)])[0]
    assert kind.name == "apart"
    assert [one.gap for together in kind.passes for one in together] == gaps


def test_what_frees_more_bytes_a_second_comes_first():
    trace = STEPS["skips"]
    problem = Problem(trace, host(MIB), trace.peak // 2)
    for kind in families(problem, answers(problem, "chen", "capuchin")):
        worth = []
        for together in kind.passes:
            values = {one.gap.value for one in together}
            seconds = sum(trace.ops[trace.values[value].producer].seconds for value in values)
            worth.append(sum(trace.values[value].nbytes for value in values) / seconds)
        assert all(b < 2 * a for a, b in pairwise(worth))


def test_a_blend_of_no_remakes_is_beladys_plan():
    kinds = families(PROBLEM, answers(PROBLEM, "chen"))
    (belady,) = answers(PROBLEM, "belady")
    assert mixed(PROBLEM, kinds, [0] * len(kinds)).decisions == belady.plan.decisions


def test_a_blend_beats_both_of_its_parts_where_the_link_carries_half():
    parts = answers(PROBLEM, "belady", "chen")
    found = blended(PROBLEM, parts, evaluations=24, time_limit=math.inf)
    assert found.shortfall == 0
    assert found.plan.swaps
    assert found.plan.recomputes
    fitting = [part.timeline.seconds for part in parts if not part.shortfall]
    assert found.timeline.seconds < 0.95 * min(fitting)


@settings(max_examples=40)
@given(problem=problems(), data=st.data())
def test_a_blend_keeps_what_is_given_and_is_never_worse_than_its_parts(problem, data):
    given_plan = Plan(data.draw(plans(problem.trace, problem.machine)).recomputes)
    problem = replace(problem, given=given_plan)
    parts = answers(problem, "keep", "belady", "chen")
    found = blended(problem, parts, evaluations=12, time_limit=math.inf)
    check(problem.trace, found.plan, problem.machine)
    assert set(given_plan.decisions) <= set(found.plan.decisions)
    assert all(found.rank <= part.rank for part in parts)


@settings(max_examples=20)
@given(problem=problems(), evaluations=st.sampled_from([1, 3]))
def test_no_time_or_few_tries_still_give_an_answer(problem, evaluations):
    parts = answers(problem, "keep", "belady")
    best = min(part.rank for part in parts)
    assert blended(problem, parts, evaluations=evaluations, time_limit=0.0).rank <= best


# -- triggers -----------------------------------------------------------------------------------


def test_swaps_that_need_not_be_are_left_out():
    problem = Problem(TRACE, host(MIB), 2 * TRACE.peak)
    (moving,) = answers(problem, "swap-all")
    assert moving.plan.swaps
    found = retimed(problem, moving, until=math.inf)
    assert found.plan.decisions == ()
    assert found.timeline.seconds == TRACE.seconds


def test_what_came_too_late_comes_earlier():
    """The link is as fast as the layers, so copies hide; but all are called for when they are needed."""
    problem = Problem(TRACE, host(8 * MIB), 60 * MIB)
    (good,) = answers(problem, "belady")
    late = replace(
        good.plan,
        decisions=tuple(replace(one, prefetch_at=one.gap.stop) for one in good.plan.swaps),
    )
    found = retimed(problem, outcome(problem, late), until=math.inf)
    assert outcome(problem, late).timeline.stall_seconds > 1
    assert found.timeline.stall_seconds == 0


@settings(max_examples=40)
@given(problem=problems(), data=st.data())
def test_retiming_keeps_what_is_given_and_never_harms(problem, data):
    whole = data.draw(plans(problem.trace, problem.machine))
    problem = replace(problem, given=Plan(whole.decisions[::2]))
    if Plan(whole.decisions[::2]).recomputes != whole.recomputes:
        return  # half of a set of remakes may be impossible
    before = outcome(problem, whole)
    after = retimed(problem, before, until=math.inf)
    assert set(problem.given.decisions) <= set(after.plan.decisions)
    assert after.rank <= before.rank
