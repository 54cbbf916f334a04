"""The best of several plans, by simulation."""

import pytest

from penstock.errors import PlanError
from penstock.ir.machine import Device, Link, Machine, Tier
from penstock.ir.plan import Plan, Recompute, Swap
from penstock.ir.policy import Problem
from penstock.solve.best import best, outcome
from steps import chain

MIB = 2**20
TRACE = chain(6, "4M", "1s")
LINK = Link(4 * MIB)
MACHINE = Machine(Device("cpu", 2**40), (Tier("disk", 2**40, LINK, LINK),))
GAP = next(TRACE.saved_gaps())
KEEP = Plan(policy="keep")
SWAP = Plan((Swap(GAP, "disk", 2, 12),), "swap")
LATE = Plan((Swap(GAP, "disk", 2, 13),), "late swap")
REMAKE = Plan((Recompute(GAP, 13),), "remake")


def chosen(budget, *plans):
    return best(Problem(TRACE, MACHINE, budget), plans).plan.policy


@pytest.mark.parametrize("order", [1, -1])
def test_what_fits_comes_first_then_what_is_fast_then_what_moves_little(order):
    tight = TRACE.peak - 4 * MIB
    assert chosen(tight, *[KEEP, REMAKE][::order]) == "remake"  # it alone fits
    assert chosen(tight, *[LATE, SWAP][::order]) == "swap"  # as small, and faster
    assert chosen(TRACE.peak, *[SWAP, KEEP][::order]) == "keep"  # as fast, and moves nothing


def test_if_none_fits_the_least_shortfall_wins():
    assert chosen(1, KEEP, SWAP) == "swap"


def test_an_outcome_says_by_how_much_a_plan_misses():
    found = outcome(Problem(TRACE, MACHINE, TRACE.peak - 5), KEEP)
    assert (found.shortfall, found.plan) == (5, KEEP)
    assert outcome(Problem(TRACE, MACHINE, TRACE.peak), KEEP).shortfall == 0


def test_slack_lies_in_the_budget():
    slack = type(TRACE)(TRACE.ops, TRACE.values, slack=MIB)
    assert outcome(Problem(slack, MACHINE, TRACE.peak), KEEP).shortfall == MIB
    assert outcome(Problem(slack, MACHINE, TRACE.peak + MIB), KEEP).shortfall == 0


def test_what_the_tiers_cannot_hold_is_missing():
    held = TRACE.values[GAP.value].nbytes
    small = MACHINE.with_tiers(Tier("disk", held - 7, LINK, LINK))
    found = outcome(Problem(TRACE, small, TRACE.peak), SWAP)
    assert (found.shortfall, found.overfull, found.missing) == (0, 7, 7)
    tight = Problem(TRACE, small, TRACE.peak - held)
    assert best(tight, [SWAP, REMAKE]).plan.policy == "remake"


def test_a_plan_that_does_not_fit_its_trace_is_refused():
    with pytest.raises(PlanError, match="no tier 'tape'"):
        outcome(Problem(TRACE, MACHINE, 1), Plan((Swap(GAP, "tape", 2, 12),)))
