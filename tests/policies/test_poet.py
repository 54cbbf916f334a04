"""Patil et al.: POET, Training Neural Networks on Tiny Devices (2022)."""

import pytest

from penstock.ir.machine import Device, Link, Machine, Tier
from penstock.ir.policy import Problem
from penstock.policies.checkmate import Checkmate
from penstock.policies.poet import Poet
from penstock.solve.best import outcome
from steps import STEPS, chain

MIB = 2**20


def machine(bandwidth):
    link = Link(bandwidth)
    return Machine(Device("cpu", 2**40), (Tier("disk", 2**40, link, link),))


def answered(policy, trace, budget, bandwidth):
    problem = Problem(trace, machine(bandwidth), budget)
    return outcome(problem, policy(problem))


def test_over_a_fast_link_it_copies_and_over_a_slow_one_it_remakes():
    trace = chain(12, "1M")
    fast = answered(Poet(), trace, 8 * MIB, 64 * 2.0**30)
    assert fast.plan.swaps and not fast.plan.recomputes
    assert fast.timeline.seconds == pytest.approx(trace.seconds, rel=0.01)
    slow = answered(Poet(), trace, 8 * MIB, 2.0**20)
    assert slow.plan.recomputes and not slow.plan.swaps


@pytest.mark.parametrize("bandwidth", [2.0**27, 2.0**30, 2.0**33])
def test_with_copies_allowed_it_takes_no_longer_than_checkmate(bandwidth):
    trace = STEPS["skips"]
    budget = trace.peak * 2 // 3
    both = answered(Poet(), trace, budget, bandwidth)
    alone = answered(Checkmate(), trace, budget, bandwidth)
    assert both.shortfall <= alone.shortfall
    if not alone.shortfall:
        assert both.timeline.seconds <= alone.timeline.seconds * 1.05


def test_where_nothing_can_be_remade_it_copies():
    trace = STEPS["in place"]
    found = answered(Poet(smallest=MIB), trace, trace.peak * 9 // 10, 64 * 2.0**30)
    assert found.shortfall == 0
    assert found.plan.swaps
