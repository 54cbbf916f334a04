"""Belady's rule beside what is given: remakes, and swaps that overshoot."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from hosts import host
from penstock.ir.plan import Plan, Recompute, Swap, check
from penstock.ir.policy import Problem
from penstock.solve.best import outcome
from penstock.solve.farthest import completed, farthest_first
from steps import chain
from strategies import plans, problems

MIB = 2**20
TRACE = chain(12, "4M", "1s")
MACHINE = host(64 * MIB)
GAPS = {gap.value: gap for gap in TRACE.saved_gaps()}
"""By value; the value of layer n is n + 1, for 0 is the input."""


def remade_between_every_third_layer():
    """Layers 1, 2, 4, 5, 7 and 8 are remade from layers 0, 3 and 6, each pair in one pass."""
    return Plan(
        tuple(
            Recompute(GAPS[value], GAPS[start + 2].stop)
            for start in (1, 4, 7)
            for value in (start + 1, start + 2)
        )
    )


def test_what_a_remake_starts_from_leaves_too_and_is_back_before_it():
    given_plan = remade_between_every_third_layer()
    alone = outcome(Problem(TRACE, MACHINE, 2**40), given_plan)
    budget = int(alone.schedule.need.max()) - 4 * MIB
    problem = Problem(TRACE, MACHINE, budget, given_plan)
    assert GAPS[1] not in set(problem.free_gaps())
    plan = farthest_first(problem, 1)
    swap = next(one for one in plan.swaps if one.gap == GAPS[1])
    assert swap.prefetch_at <= GAPS[3].stop < swap.gap.stop
    assert outcome(problem, plan).shortfall == 0


@settings(max_examples=60)
@given(problem=problems(), data=st.data())
def test_what_is_given_stays_and_the_plan_is_valid(problem, data):
    drawn = data.draw(plans(problem.trace, problem.machine))
    problem = Problem(problem.trace, problem.machine, problem.budget, drawn)
    plan = farthest_first(problem, 1)
    check(problem.trace, plan, problem.machine)
    assert plan.decisions[: len(drawn.decisions)] == drawn.decisions


# -- swaps that overshoot -----------------------------------------------------------------------


def test_swaps_that_leave_room_for_all_they_bring_back_stay_as_they_are():
    wanted = [
        Swap(GAPS[value], "host", GAPS[value].start + 1, GAPS[value].stop - 1) for value in (1, 2)
    ]
    plan = completed(Problem(TRACE, MACHINE, TRACE.peak - 8 * MIB), wanted, 1)
    assert set(plan.decisions) == set(wanted)


@settings(max_examples=40)
@given(problem=problems(), data=st.data())
def test_completed_swaps_all_leave_and_the_plan_is_valid(problem, data):
    drawn = data.draw(plans(problem.trace, problem.machine))
    closed = [swap for swap in drawn.swaps if swap.gap.stop is not None]
    plan = completed(problem, closed, 1)
    check(problem.trace, plan, problem.machine)
    assert {swap.gap for swap in closed} <= {swap.gap for swap in plan.swaps}
    punctual = replace(problem, given=problem.given.plus(closed))
    others_make_room = outcome(problem, farthest_first(punctual, 1))
    assert outcome(problem, plan).rank <= others_make_room.rank
