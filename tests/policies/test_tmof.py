"""Lin et al.: TMOF (HPCA 2023), on one device."""

import pytest

from penstock.ir.machine import Device, Link, Machine, Tier
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.policies.tmof import Tmof
from penstock.solve.best import outcome
from steps import chain

MIB, GIB = 2**20, 2**30


def machine(rate):
    return Machine(Device("gpu", 2**40), (Tier("host", 2**40, Link(rate), Link(rate)),))


def planned(trace, rate, budget, **options):
    problem = Problem(trace, machine(rate), budget)
    return outcome(problem, Tmof(**options)(problem))


def test_the_largest_reuse_distance_goes_first():
    trace = chain(12, "4M", "1s")
    found = planned(trace, 64 * MIB, trace.peak - 8 * MIB)
    assert [swap.gap.value for swap in found.plan.swaps] == [1, 2]  # the first two layers' values
    assert found.shortfall == 0


def test_distance_is_time_and_not_the_number_of_ops():
    trace = parse("""
        f a   x:I1 -> many:A4M!   1s
        f b   many -> slow:A4M!   1s
        f c   slow -> p:T1        1ms
        f d   p    -> q:T1        1ms
        b c'  q many -> r:T4M     60s
        b b'  r    -> s:T1        1ms
        b a'  s slow -> k:T1      1ms
    """)
    found = planned(trace, 64 * MIB, trace.peak - 2 * MIB)
    assert [trace.describe(swap.gap.value) for swap in found.plan.swaps] == ["slow"]


def test_a_copy_out_and_a_copy_back_share_the_link():
    """`a` must be away for op `p` and `b` for op `q`: one comes back while the other leaves."""
    trace = parse("""
        f a   x:I1 -> a:A4M!   1s
        f b   x    -> b:A4M!   1s
        f p   b    -> k:T1     1s +4M
        f r   k    -> l:T1     1s
        b q   l a  -> m:T1     1s +4M
        b s   m    -> n:T1     1s
        b t   n b  -> o:T1     1s
    """)
    found = planned(trace, 4 * MIB, 8 * MIB + 16, order="paired")
    spans = {(span.lane, span.ref): (span.start, span.end) for span in found.timeline.spans}
    assert found.shortfall == 0
    assert spans["host write", 2] == spans["host read", 1] == (3.0, 4.0)
    assert found.timeline.seconds == trace.seconds


@pytest.mark.parametrize("rate", [2 * MIB, 8 * MIB, 64 * MIB])
def test_the_faster_order_is_taken(rate):
    trace = chain(16, "4M", "1s")
    budget = trace.peak // 2
    best = planned(trace, rate, budget)
    others = [planned(trace, rate, budget, order=order) for order in ("paired", "late")]
    assert best.rank == min(other.rank for other in others)


def test_model_state_stays():
    trace = parse("""
        f f  x:I1K w:P64M -> h:A8M! 10ms
        f l  h            -> l:T1K  10ms
        b l' l            -> d:T8M  10ms
        b f' d h          -> g:G64M 10ms
        o s  g w          -> ~w     10ms
    """)
    found = planned(trace, 64 * GIB, trace.peak // 2)
    assert all(not trace.values[swap.gap.value].kind.is_state for swap in found.plan.swaps)
