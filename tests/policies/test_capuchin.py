"""Peng et al.: Capuchin (ASPLOS 2020)."""

from dataclasses import replace

import pytest

from hosts import host
from penstock.ir.machine import Link, Tier
from penstock.ir.plan import Plan, Recompute, Swap
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.machines import machine as preset
from penstock.policies.capuchin import Candidate, Capuchin, by_msps, free_time
from penstock.solve.best import outcome
from penstock.solve.hybrid import hasten, settle
from penstock.solve.swaps import just_in_time, late_gaps
from steps import chain

MIB = 2**20
GIB = 2**30


@pytest.mark.parametrize(
    ("gigabytes", "back", "left"), [(0.6, 0.3, 0.1), (1.2, 0.3, 0.0), (1.8, 0.35, -0.05)]
)
def test_free_time_is_what_two_copies_leave_of_the_interval(gigabytes, back, left):
    """12 GB/s, first access at 0.1 s: computed from the paper's formula."""
    tier = host(12e9).tiers[0]
    assert free_time(0.1, back, int(gigabytes * 1e9), tier) == pytest.approx(left, abs=1e-9)


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
    problem = Problem(trace, host(64 * GIB), int(0.8 * trace.peak))
    plan = Capuchin()(problem)
    found = outcome(problem, plan)
    assert plan.recomputes == ()
    assert len(plan.swaps) > 0
    assert found.shortfall == 0
    assert found.timeline.seconds == pytest.approx(trace.seconds, rel=0.03)


def test_what_the_link_cannot_hide_is_recomputed():
    trace = chain(20, "4M", "10ms")
    slow = host(4 * MIB)  # a copy takes a hundred ops
    problem = Problem(trace, slow, trace.peak // 2 + 4 * MIB)
    plan = Capuchin()(problem)
    assert plan.swaps == ()
    assert len(plan.recomputes) > 0
    assert outcome(problem, plan).shortfall == 0


def between():
    """A chain on a link that hides some of the copies, and a budget that needs most of them."""
    trace = chain(24, "4M", "10ms")
    return Problem(trace, host(0.25 * GIB), int(0.3 * trace.peak))


def test_in_between_the_hybrid_is_no_slower_than_either_half():
    problem = between()
    plan = Capuchin()(problem)
    hybrid = outcome(problem, plan)
    swaps, recomputes = Capuchin().choose(problem)
    only_swaps = settle(problem, [*swaps, *recomputes], [])
    only_remakes = settle(problem, [], [*swaps, *recomputes])
    assert hybrid.shortfall == 0
    assert hybrid.rank <= min(only_swaps.rank, only_remakes.rank)


def test_each_half_keeps_to_its_own_means():
    problem = between()
    assert Capuchin(method="swap")(problem).recomputes == ()
    assert Capuchin(method="recompute")(problem).swaps == ()
    assert len(Capuchin(method="swap")(problem).swaps) > 0
    assert len(Capuchin(method="recompute")(problem).recomputes) > 0


def test_the_cheapest_memory_is_recomputed_first():
    """MSPS, bytes per second: of two values as large, the one that is faster to remake goes."""
    trace = parse(TWO_PRODUCERS)
    problem = Problem(trace, host(4 * MIB), trace.peak - 2 * MIB)
    assert remade(trace, Capuchin()(problem)) == ["b"]


def test_the_printed_order_weighs_each_value_against_its_own_remake():
    """`a` can be swapped with the least overhead, so the listing asks what remaking `a` costs: 800 ms,
    less than its copies of 2 s each. The text compares with the best remake there is, that of `b`.
    """
    trace = parse(TWO_PRODUCERS)
    problem = Problem(trace, host(4 * MIB), trace.peak - 2 * MIB)
    printed = Capuchin(order="printed", rounds=0)
    assert printed.choose(problem) == ([], [gap_of(trace, "a")])
    assert Capuchin(rounds=0).choose(problem) == ([], [gap_of(trace, "b")])


TWO_PRODUCERS = """
    f slow   x:I1K -> a:A8M! 800ms
    f fast   x     -> b:A8M! 1ms
    f use    a b   -> y:A1M! 1ms
    f loss   y     -> l:T1K  1ms
    b loss'  l y   -> d:T8M  1ms
    b next   d     -> e:T1K  1ms
    b fast'  e b   -> g:T1K  1ms
    b slow'  g a   -> k:T1K  1ms
"""


def remade(trace, plan):
    return [trace.values[d.gap.value].name for d in plan.decisions if isinstance(d, Recompute)]


def gap_of(trace, name):
    return next(gap for gap in trace.saved_gaps() if trace.values[gap.value].name == name)


def test_model_state_stays():
    trace = parse("""
        f f  x:I1K w:P64M -> h:A8M! 10ms
        f l  h            -> l:T1K  10ms
        b l' l            -> d:T8M  10ms
        b f' d h          -> g:G64M 10ms
        o s  g w          -> ~w     10ms
    """)
    problem = Problem(trace, host(64 * GIB), trace.peak // 2)
    plan = Capuchin()(problem)
    assert all(not trace.values[d.gap.value].kind.is_state for d in plan.decisions)


def test_feedback_moves_late_triggers_until_none_is_late():
    """Every in-trigger begins three ops too late. Each round moves those that are late by 5 % of their
    copy's time, and none moves back.
    """
    trace = chain(20, "4M", "10ms")
    problem = Problem(trace, host(0.5 * GIB), trace.peak)  # a copy takes 0.8 of an op
    swaps = just_in_time(trace, problem.machine.tiers[0], list(trace.saved_gaps())[:8])
    late = [replace(s, prefetch_at=min(s.prefetch_at + 3, s.gap.stop)) for s in swaps]
    found = outcome(problem, Plan(tuple(late)))
    assert late_gaps(found) == {swap.gap for swap in swaps}
    at = {swap.gap: swap.prefetch_at for swap in late}
    for _ in range(50):  # the paper: stable in fewer than about 50 iterations
        found = hasten(problem, found, rounds=1, share=0.05)
        now = {swap.gap: swap.prefetch_at for swap in found.plan.swaps}
        assert all(now[gap] <= at[gap] for gap in at)
        at = now
    assert late_gaps(found) == set()


def test_coupled_copies_hold_up_the_next_op_and_decoupled_ones_do_not():
    trace = chain(20, "4M", "10ms")
    problem = Problem(trace, host(0.25 * GIB), int(0.8 * trace.peak))
    coupled = Capuchin(method="swap", decoupled=False)
    free, held = (outcome(problem, one(problem)) for one in (Capuchin(method="swap"), coupled))
    assert {swap.fence for swap in free.plan.swaps} == {None}
    assert all(swap.fence == swap.gap.start + 1 for swap in held.plan.swaps)
    assert free.timeline.seconds < held.timeline.seconds


def test_collective_recomputation_keeps_a_chain_linear():
    """Remade one by one, each target of a chain runs those before it again."""
    problem = Problem(chain(16, "4M", "10ms"), host(4 * MIB), 28 * MIB)
    together = Capuchin(method="recompute")
    apart = replace(together, collective=False)
    counts = {
        one: sum(span.again for span in outcome(problem, one(problem)).timeline.spans)
        for one in (together, apart)
    }
    assert counts[together] == len(together(problem).recomputes) < counts[apart]


def test_passive_mode_takes_what_was_accessed_first_while_the_step_waits():
    trace = chain(8, "4M", "10ms")
    problem = Problem(trace, host(0.25 * GIB), trace.peak - 6 * MIB)
    plan = Capuchin(method="passive")(problem)
    assert [trace.values[swap.gap.value].name for swap in plan.swaps] == ["h0", "h1"]
    assert all(swap.fence == swap.evict_at for swap in plan.swaps)
    assert all(swap.prefetch_at == swap.gap.stop for swap in plan.swaps)
    found = outcome(problem, plan)
    assert found.shortfall == 0
    assert found.timeline.seconds == pytest.approx(trace.seconds + 4 * 4 * MIB / (0.25 * GIB))


def convolutions():
    """Twelve convolutions and their activations, halved every third: VGG's shape, on its machine."""
    sizes = [256, 256, 256, 128, 128, 128, 64, 64, 64, 32, 32, 32]
    lines, before = [], "x:I8M"
    for n, size in enumerate(sizes):
        lines.append(f"f aten.convolution {before} w{n}:P1M -> c{n}:A{size}M! 24ms")
        lines.append(f"f aten.relu c{n} -> r{n}:A{size}M! 2ms")
        before = f"r{n}"
    lines += [f"f aten.loss {before} -> l:T1K 1ms", "b aten.loss_backward l -> g12:T32M 1ms"]
    for n, size in reversed(list(enumerate(sizes))):
        lines.append(f"b aten.relu_backward g{n + 1} r{n} -> d{n}:T{size}M 3ms")
        into = f"r{n - 1}" if n else "x"
        lines.append(f"b aten.convolution_backward d{n} {into} w{n} -> g{n}:T{size}M 48ms")
        if n:
            lines[-1] = lines[-1].replace(f" {into} w", f" {into} c{n - 1} w")
    return parse("\n".join(lines))


def test_a_fifth_less_costs_convolutions_next_to_nothing_by_swapping_alone():
    trace = convolutions()
    problem = Problem(trace, preset("p100"), int(0.8 * trace.peak))
    found = outcome(problem, Capuchin()(problem))
    assert found.shortfall == 0
    assert found.plan.recomputes == ()
    assert len(found.plan.swaps) > 0
    assert found.timeline.seconds <= 1.03 * trace.seconds


@pytest.mark.parametrize("share", [0.5, 0.4])
def test_far_below_the_hybrid_beats_both_halves(share):
    trace = convolutions()
    problem = Problem(trace, preset("p100"), int(share * trace.peak))
    ways = {
        m: outcome(problem, Capuchin(method=m)(problem)) for m in ("hybrid", "swap", "recompute")
    }
    plan = ways["hybrid"].plan
    assert len(plan.swaps) > 0
    assert len(plan.recomputes) > 0
    assert ways["hybrid"].rank < min(ways["swap"].rank, ways["recompute"].rank)


def test_where_no_copy_hides_the_hybrid_falls_back_on_remakes():
    trace = convolutions()
    slow = preset("p100").with_tiers(Tier("host", 2**40, Link(3e9), Link(3e9)))
    problem = Problem(trace, slow, trace.peak // 2)
    hybrid, half = (Capuchin(method=m)(problem) for m in ("hybrid", "recompute"))
    assert outcome(problem, hybrid).rank <= outcome(problem, half).rank


def test_swaps_that_are_late_for_good_are_left_where_the_step_is_fastest():
    """No trigger helps where the link is simply too slow: the feedback ends with what it has."""
    trace = chain(6, "4M", "10ms")
    problem = Problem(trace, host(1 * MIB), trace.peak)
    gap = next(trace.saved_gaps())
    found = outcome(problem, Plan((Swap(gap, "host", gap.start + 1, gap.stop),)))
    again = hasten(problem, found, rounds=20, share=0.05)
    assert again.rank <= found.rank
    assert gap in late_gaps(again)
