"""Where room lacks, and what sending a value away does about it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.ir.machine import Device, Machine
from penstock.ir.plan import Plan, Swap
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.ir.trace import Gap
from penstock.simulate.lower import lower
from penstock.solve.pressure import Pressure
from strategies import plans, problems

MIB = 2**20
MACHINE = Machine(Device("cpu", 2**40))
STEP = parse("""
    f a  x:T1M -> h:A8M!  1ms
    f b  h     -> y:A4M   1ms
    f c  y     -> z:A4M   1ms
    f d  z     -> u:A4M   1ms
    b e  u h   -> g:T1M   1ms
""")  # live: 9, 12, 16, 16, 13 MiB
H = Gap(1, 1, 4)


def pressure(budget):
    return Pressure(Problem(STEP, MACHINE, budget * MIB))


def over(found):
    return [found.over(op) // MIB for op in range(len(STEP.ops))]


def test_it_is_live_bytes_above_the_budget():
    tight = pressure(10)
    assert over(tight) == [-1, 2, 6, 6, 3]
    assert tight.worst == 6 * MIB
    assert not tight.is_relieved


@pytest.mark.parametrize(("budget", "relieved"), [(16, True), (15, False)])
def test_a_budget_may_be_used_to_the_last_byte(budget, relieved):
    assert pressure(budget).is_relieved is relieved
    assert (pressure(budget).worst == 0) is relieved


def test_a_value_that_is_away_relieves_the_ops_inside_its_gap():
    tight = pressure(10)
    tight.relieve(H, 8 * MIB)
    assert over(tight) == [-1, 2, -2, -2, 3]
    early = pressure(10)
    early.relieve(H, 8 * MIB, until=3)
    assert over(early) == [-1, 2, -2, 6, 3]


def test_a_gap_touches_where_room_lacks_inside_it():
    assert pressure(14).touches(H)
    assert not pressure(14).touches(Gap(1, 0, 1))
    assert not pressure(14).touches(H, until=2)
    assert not pressure(16).touches(H)


def test_a_wrapping_gap_relieves_both_ends_of_the_step():
    tight = pressure(10)
    tight.relieve(Gap(0, 3, 2), MIB)
    assert over(tight) == [-2, 1, 6, 6, 2]


def test_a_gap_that_nothing_closes_relieves_until_its_value_is_freed():
    tight = pressure(10)
    tight.relieve(Gap(1, 2, None), MIB)  # h is freed after op 4
    assert over(tight) == [-1, 2, 6, 5, 2]


def test_a_value_returns_when_there_is_room_and_takes_it():
    loose = pressure(16)
    loose.relieve(H, 8 * MIB)
    assert loose.earliest_return(H, 8 * MIB, 2) == 2
    assert over(loose) == [-7, -4, 0, 0, -3]
    tight = pressure(15)
    tight.relieve(H, 8 * MIB)
    assert tight.earliest_return(H, 8 * MIB, 2) == 4  # the op that needs it


def test_slack_lies_in_the_budget():
    roomy = Pressure(Problem(STEP, MACHINE, 16 * MIB))
    slack = Pressure(
        Problem(parse_with_slack(MIB), MACHINE, 16 * MIB),
    )
    assert roomy.is_relieved
    assert slack.worst == MIB


def parse_with_slack(nbytes):
    return type(STEP)(STEP.ops, STEP.values, slack=nbytes)


def test_what_is_given_counts_as_done():
    given_plan = Plan((Swap(H, "disk", 2, 4),))
    after = Pressure(Problem(STEP, MACHINE, 10 * MIB, given_plan))
    assert over(after) == [-1, 2, -2, -2, 3]


@given(problems(), st.data())
def test_it_agrees_with_the_schedule_of_what_is_given(problem, data):
    plan = data.draw(plans(problem.trace, problem.machine))
    found = Pressure(Problem(problem.trace, problem.machine, problem.budget, plan))
    assert found.worst == lower(problem.trace, plan, problem.budget).shortfall
