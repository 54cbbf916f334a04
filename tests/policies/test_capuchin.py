"""Peng et al.: Capuchin (ASPLOS 2020)."""

import pytest

from penstock.ir.machine import Device, Link, Machine, Tier
from penstock.ir.plan import Recompute
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.policies.capuchin import Candidate, Capuchin, by_msps
from penstock.solve.best import outcome
from steps import chain

MIB = 2**20
GIB = 2**30


def machine(bandwidth):
    link = Link(bandwidth)
    return Machine(Device("cpu", 2**40), (Tier("host", 2**40, link, link),))


@pytest.mark.parametrize(("mode", "last"), [("literal", 100 / 20), ("accumulating", 100 / 30)])
def test_algorithm_2_on_a_chain_with_a_dead_value(mode, last):
    """T0 -> T1 -> T2 -> T3 -> T4, computed by hand from the printed algorithm.

    T2 goes first (200 B / 8 s). Then T4 must remake T2 too (15 + 8 s). T1, a source of both, adds its
    10 s to each: the printed text charges it once, because its last assignment overwrites.
    """
    t1 = Candidate(1, 100, 10.0, {0})
    t2 = Candidate(2, 200, 8.0, {1})
    t4 = Candidate(4, 150, 15.0, {2})  # through T3, which is dead
    picked = []
    for need in (1, 201, 351):  # one more target each time
        fresh = [Candidate(c.value, c.nbytes, c.rp_time, set(c.srcs)) for c in (t1, t2, t4)]
        picked.append(by_msps(fresh, need, mode)[-1])
    assert [c.value for c in picked] == [2, 4, 1]
    assert [c.msps for c in picked] == pytest.approx([25.0, 6.522, last], abs=5e-4)
    assert picked[1].rp_time == 23.0
    assert picked[2].ext_time == (10.0 if mode == "literal" else 20.0)
    whole = by_msps([t1, t2, t4], 450, mode)
    assert all(c.srcs == {0} for c in whole)  # all of them start from T0 in the end


def test_what_the_link_hides_is_swapped_and_costs_nothing():
    trace = chain(20, "4M", "10ms")
    problem = Problem(trace, machine(64 * GIB), int(0.8 * trace.peak))
    plan = Capuchin()(problem)
    found = outcome(problem, plan)
    assert plan.recomputes == ()
    assert len(plan.swaps) > 0
    assert found.shortfall == 0
    assert found.timeline.seconds == pytest.approx(trace.seconds, rel=0.03)


def test_what_the_link_cannot_hide_is_recomputed():
    trace = chain(20, "4M", "10ms")
    slow = machine(4 * MIB)  # a copy takes a hundred ops
    problem = Problem(trace, slow, trace.peak // 2 + 4 * MIB)
    plan = Capuchin()(problem)
    assert plan.swaps == ()
    assert len(plan.recomputes) > 0
    assert outcome(problem, plan).shortfall == 0


def test_in_between_the_hybrid_is_no_slower_than_either_half():
    trace = chain(24, "4M", "10ms")
    between = machine(0.25 * GIB)
    problem = Problem(trace, between, int(0.3 * trace.peak))
    plan = Capuchin()(problem)
    hybrid = outcome(problem, plan)
    swaps, recomputes = Capuchin().choose(problem)
    only_swaps = Capuchin().settle(problem, [*swaps, *recomputes], [])
    only_remakes = Capuchin().settle(problem, [], [*swaps, *recomputes])
    assert hybrid.shortfall == 0
    assert hybrid.rank <= min(only_swaps.rank, only_remakes.rank)


def test_the_cheapest_memory_is_recomputed_first():
    """MSPS, bytes per second: of two values as large, the one that is faster to remake goes."""
    trace = parse("""
        f slow   x:I1K -> a:A8M! 800ms
        f fast   x     -> b:A8M! 1ms
        f use    a b   -> y:A1M! 1ms
        f loss   y     -> l:T1K  1ms
        b loss'  l y   -> d:T8M  1ms
        b next   d     -> e:T1K  1ms
        b fast'  e b   -> g:T1K  1ms
        b slow'  g a   -> k:T1K  1ms
    """)
    problem = Problem(trace, machine(4 * MIB), trace.peak - 2 * MIB)
    plan = Capuchin()(problem)
    names = [trace.values[d.gap.value].name for d in plan.decisions if isinstance(d, Recompute)]
    assert names == ["b"]


def test_model_state_stays():
    trace = parse("""
        f f  x:I1K w:P64M -> h:A8M! 10ms
        f l  h            -> l:T1K  10ms
        b l' l            -> d:T8M  10ms
        b f' d h          -> g:G64M 10ms
        o s  g w          -> ~w     10ms
    """)
    problem = Problem(trace, machine(64 * GIB), trace.peak // 2)
    plan = Capuchin()(problem)
    assert all(not trace.values[d.gap.value].kind.is_state for d in plan.decisions)
