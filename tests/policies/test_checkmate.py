"""Jain et al.: Checkmate, Breaking the Memory Wall with Optimal Tensor Rematerialization (2020)."""

from dataclasses import replace

import pytest

from penstock import policies
from penstock.ir.machine import Device, Machine
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.policies.checkmate import Checkmate
from penstock.policies.chen import Chen
from penstock.simulate.least import least_budget
from penstock.solve.best import outcome
from steps import STEPS, chain

MIB = 2**20
MACHINE = Machine(Device("cpu", 2**40))


def answered(policy, trace, budget):
    problem = Problem(trace, MACHINE, budget)
    return outcome(problem, policy(problem))


@pytest.mark.parametrize("budget", [7, 9, 12])
def test_it_is_at_least_as_good_as_chen_on_a_chain(budget):
    trace = chain(16, "1M")
    exact, segments = (answered(one, trace, budget * MIB) for one in (Checkmate(), Chen()))
    assert exact.rank <= segments.rank
    assert exact.shortfall == 0


def test_costs_fall_as_the_budget_grows():
    trace = chain(12, "1M")
    seconds = [answered(Checkmate(), trace, n * MIB).timeline.seconds for n in range(5, 14)]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[-1] == trace.seconds


def test_the_cheap_value_is_remade_and_the_dear_one_kept():
    trace = parse("""
        f dear   x:I1K   -> a:A4M!  9ms
        f cheap  a       -> b:A4M!  1ms
        f loss   b       -> l:T1K   1ms
        b loss'  l       -> g:T1K   1ms
        b cheap' g b     -> h:T1K   1ms
        b dear'  h a     -> i:T1K   1ms
    """)
    # b is needed first, when a is still there: 8 MiB then in any case. With 1 MiB less in between:
    wide = parse("""
        f dear   x:I1K   -> a:A4M!  9ms
        f cheap  a       -> b:A4M!  1ms
        f big    x       -> c:A3M   1ms
        f loss   c       -> l:T1K   1ms
        b loss'  l       -> g:T1K   1ms
        b cheap' g b     -> h:T1K   1ms
        b dear'  h a     -> i:T1K   1ms
    """)
    assert answered(Checkmate(), trace, trace.peak).plan.decisions == ()
    (decision,) = answered(Checkmate(), wide, 9 * MIB).plan.decisions
    assert wide.values[decision.gap.value].name == "b"


@pytest.mark.parametrize("step", STEPS)
def test_rounding_costs_no_less_than_the_integer_programme(step):
    trace = STEPS[step]
    least = least_budget(trace).nbytes
    for share in (0.3, 0.6):
        budget = least + int(share * (trace.peak - least))
        exact = answered(Checkmate(), trace, budget)
        rough = answered(Checkmate(rounding=0.5), trace, budget)
        assert exact.shortfall <= rough.shortfall
        if not rough.shortfall:
            assert exact.timeline.seconds <= rough.timeline.seconds + 1e-9


def test_a_tenth_of_the_nodes_still_fits():
    trace = chain(64, "1M")
    found = answered(Checkmate(nodes=14), trace, 24 * MIB)
    assert found.shortfall == 0
    forward = sum(op.seconds for op in trace.ops if op.phase == "forward")
    assert 0 < found.timeline.recompute_seconds <= forward


def test_the_papers_accounting_leaves_workspace_out():
    trace = chain(12, "1M")
    ops = tuple(replace(op, workspace=4 * MIB) for op in trace.ops)
    problem = Problem(replace(trace, ops=ops), MACHINE, 8 * MIB)
    paper = policies.ask(Checkmate(accounting="paper"), problem)
    ours = policies.ask(Checkmate(), problem)
    assert paper.shortfall == 0
    assert paper.timeline.seconds < ours.timeline.seconds


def test_options_are_read_from_text():
    found = policies.configured("checkmate:rounding=0.5,time_limit=60")
    assert found == Checkmate(rounding=0.5, time_limit=60.0)
