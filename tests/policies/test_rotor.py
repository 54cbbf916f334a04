"""Beaumont et al.: Optimal Re-Materialization Strategies for Heterogeneous Chains."""

import pytest

from penstock.ir.machine import Device, Machine
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.policies.chen import Chen
from penstock.policies.rotor import Rotor
from penstock.solve.best import outcome
from steps import chain

MIB = 2**20
MACHINE = Machine(Device("cpu", 2**40))


def answered(policy, trace, budget):
    problem = Problem(trace, MACHINE, budget)
    return outcome(problem, policy(problem))


@pytest.mark.parametrize("budget", [14, 18, 24, 40, 60])
def test_it_is_never_worse_than_chen_on_a_chain(budget):
    """T3 of the sheet: Rotor <= Chen's best k on every chain and budget."""
    trace = chain(64, "1M")
    rotor, segments = (answered(one, trace, budget * MIB) for one in (Rotor(), Chen()))
    assert rotor.rank <= segments.rank


def test_budgets_far_below_two_roots_are_met_by_running_again_twice():
    """Chen's segments take 2 sqrt(64) + 1; the recursion goes below, at more than one forward more."""
    trace = chain(64, "1M")
    found = answered(Rotor(), trace, 10 * MIB)
    assert found.shortfall == 0
    forward = sum(op.seconds for op in trace.ops if op.phase == "forward")
    assert found.timeline.recompute_seconds > forward
    assert answered(Chen(), trace, 10 * MIB).shortfall > 0


def test_seconds_fall_as_the_budget_grows():
    trace = chain(40, "1M")
    seconds = [answered(Rotor(), trace, n * MIB).timeline.seconds for n in (9, 12, 16, 24, 44)]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[-1] == trace.seconds


def test_unequal_blocks_are_cut_where_it_is_cheap():
    lines = ["f f0 x:I1K -> h0:A1M! 1ms"]
    for n in range(1, 12):
        size, seconds = ("1M", "8ms") if n % 2 else ("8M", "1ms")
        lines.append(f"f f{n} h{n - 1} -> h{n}:A{size}! {seconds}")
    lines += ["f loss h11 -> l:T1 0ms", "b loss' l -> g12:T1 0ms"]
    lines += [f"b b{n} g{n + 1} h{n} -> g{n}:T1 1ms" for n in reversed(range(12))]
    trace = parse("\n".join(lines))
    found = answered(Rotor(), trace, trace.peak // 2)
    assert found.shortfall == 0
    again = {span.ref for span in found.timeline.spans if span.again}
    assert all(trace.ops[op].seconds < 8e-3 for op in again), "only what is cheap runs again"


def test_coarse_units_still_fit():
    trace = chain(40, "1M")
    assert answered(Rotor(units=25), trace, 16 * MIB).shortfall == 0
