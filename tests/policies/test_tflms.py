"""Le, Imai, Negishi, Kawachiya: TFLMS (2018), and its source: versions 1 and 2."""

from itertools import pairwise

import pytest

from penstock.ir.machine import Device, Link, Machine, Tier
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.policies.tflms import Tflms, Tuned, chain_rule, direct_order
from penstock.solve.best import outcome
from penstock.solve.paths import Graph, graph_of
from steps import STEPS, chain

MIB = 2**20
LINK = Link(8 * MIB)
MACHINE = Machine(Device("cpu", 2**40), (Tier("host", 2**40, LINK, LINK),))


def ask(policy, trace, budget=None):
    problem = Problem(trace, MACHINE, 2 * trace.peak if budget is None else budget)
    return outcome(problem, policy(problem))


def graph(level, edges, backward=()):
    """A graph as the source's own tests mock it: levels that the edges need not agree with."""
    count = len(level)
    before = [tuple(a for a, b in edges if b == op) for op in range(count)]
    after = [[b for a, b in edges if a == op] for op in range(count)]
    return Graph(level, before, after, [op in backward for op in range(count)])


# -- the source's unit tests ----------------------------------------------------------------------


def test_direct_order_takes_the_first_level_that_reaches_the_reader():
    """`test_do_direct_order`: from level 5 to 50, lb 3: levels 46 and 45 do not, 44 does."""
    maker, reader, expected = 0, 1, 7
    level = [5, 50, 46, 46, 46, 45, 45, 44, 44]
    found = direct_order(graph(level, [(expected, reader)]), maker, reader, 3, 100)
    assert found == expected
    assert level[found] == 44


def test_chain_rule_takes_the_gradient_of_an_op_further_on():
    """`test_do_chain_rule`, through one layer: fwdop -> l1a -> l2a -> grad, of level 7."""
    fwdop, bwop, l1a, l1b, l2a, l2b, l2c, grad = range(8)
    edges = [(fwdop, l1a), (fwdop, l1b), (l1a, l2a), (l1a, l2b), (l1b, l2c), (l2a, grad)]
    found = chain_rule(graph([5, 50, 0, 0, 0, 0, 0, 7], edges, backward={grad}), fwdop, bwop, 1, 10)
    assert found == grad


def test_chain_rule_gives_way_to_direct_order_where_backward_begins():
    """`test_do_chain_rule`, first part: reader on level 5, lb 4, backward from level 10 on."""
    maker, reader, other = range(3)
    near = graph([0, 5, 10], [(maker, reader), (maker, other)], backward={other})
    assert chain_rule(near, maker, reader, 4, 10) == direct_order(near, maker, reader, 4, 10)
    assert chain_rule(near, maker, reader, 4, 10) is None  # level 0 is the maker's own


TRACE = chain(12, "4M", "1s")


@pytest.mark.parametrize(("lb", "trigger"), [(1, 16), (7, 11), (10, 16)])
def test_a_bound_that_reaches_above_the_maker_is_set_back_to_one(lb, trigger):
    """`test_add_control_dependency`: from level 15 to 24, lb 10 becomes 1; to 26 it stays 10."""
    level = graph_of(TRACE).level
    swaps = ask(Tflms("v1", lb=lb, control="direct_order"), TRACE).plan.swaps
    (swap,) = (swap for swap in swaps if swap.gap.value == 9)
    assert (level[8], level[swap.gap.stop]) == (8, 17)
    assert swap.prefetch_at == trigger


# -- version 1 ------------------------------------------------------------------------------------


def v1(**options):
    return Tflms("v1", **options)


def test_every_edge_from_forward_to_backward_is_swapped_as_soon_as_it_is_made():
    swaps = ask(v1(), TRACE).plan.swaps
    assert [swap.gap.value for swap in swaps] == list(range(1, 13))
    assert [swap.evict_at for swap in swaps] == [swap.gap.start for swap in swaps]


def test_no_tensors_is_an_empty_plan():
    assert ask(v1(n_tensors=0), TRACE).plan.decisions == ()


def test_the_first_tensors_are_swapped():
    assert [s.gap.value for s in ask(v1(n_tensors=3), TRACE).plan.swaps] == [1, 2, 3]


@pytest.mark.parametrize("control", ["direct_order", "chain_rule"])
def test_a_larger_lower_bound_comes_no_later_and_needs_no_less(control):
    triggers, peaks = [], []
    for lb in (1, 2, 4):
        found = ask(v1(lb=lb, control=control), TRACE)
        triggers.append({s.gap: s.prefetch_at for s in found.plan.swaps if s.gap.value <= 8})
        peaks.append(found.timeline.peak)
    for near, far in pairwise(triggers):
        assert all(far[gap] <= near[gap] for gap in near)
        assert far != near
    assert peaks == sorted(peaks)


def test_all_tensors_that_come_back_late_need_least():
    peaks = {
        (n, lb): ask(v1(n_tensors=n, lb=lb), TRACE).timeline.peak
        for n in (0, 4, None)
        for lb in (1, 3, 5)
    }
    assert peaks[None, 1] == min(peaks.values())
    assert peaks[0, 1] == TRACE.peak


FORK = parse("""
    f a  x:I1M    -> h:A4M! 1s
    f b  h        -> i:A1M  1s
    f c  i        -> j:A1M  1s
    f d  h j      -> k:A1M  1s
    f l  k        -> l:T1   1s
    b d' l h      -> m:T1   1s
    b c' m        -> n:T1   1s
    b b' n        -> o:T1   1s
    b a' o h      -> p:T1   1s
""")


def stretches(policy, trace=FORK):
    return [(s.gap.start, s.gap.stop) for s in ask(policy, trace).plan.swaps]


def test_readers_share_a_copy_back_if_they_are_fused():
    assert stretches(v1(fuse_swapins=True)) == [(3, 5)]
    assert stretches(v1()) == [(3, 5), (5, 8)]


def test_branches_inside_forward_are_swapped_on_demand():
    assert stretches(v1(swap_branches=True)) == [(1, 3), (3, 5), (5, 8)]
    assert stretches(v1(swap_branches=True, branch_threshold=3)) == [(3, 5), (5, 8)]


def test_results_of_sums_and_products_stay():
    trace = parse("""
        f aten.add  x:I4M -> h:A4M! 1s
        f f         h     -> i:A4M! 1s
        f l         i     -> l:T1   1s
        b l'        l     -> m:T1   1s
        b f'        m i   -> n:T1   1s
        b add'      n h   -> o:T1   1s
    """)
    assert [s.gap.value for s in ask(v1(), trace).plan.swaps] == [2]


# -- version 2 ------------------------------------------------------------------------------------


def tuned(trace, budget, **options):
    problem = Problem(trace, MACHINE, budget)
    return Tflms(**options).tuned(problem, graph_of(trace)), problem


@pytest.mark.parametrize("share", [0.4, 0.6, 0.8])
def test_the_threshold_found_is_the_largest_that_fits(share):
    found, problem = tuned(TRACE, int(share * TRACE.peak), share=1.0)

    def lacks(wanted):
        plan = Tflms().swapped(problem, graph_of(TRACE), wanted)
        return outcome(problem, plan).shortfall

    assert lacks(found) == 0
    assert lacks(Tuned(found.threshold + 1, 1, 0)) > 0
    assert lacks(found._replace(ahead=found.ahead + 1)) > 0 or found.ahead == len(TRACE.ops)


def test_a_step_that_fits_is_left_alone():
    for step, trace in STEPS.items():
        assert ask(Tflms(share=1.0), trace, trace.peak).plan.decisions == (), step


def test_a_tenth_of_the_memory_beside_parameters_is_left_free():
    trace = STEPS["skips"]
    assert not any(trace.values[v].kind.is_state for v in trace.initial)
    assert ask(Tflms(), trace, int(trace.peak / 0.9) + 2).plan.decisions == ()
    assert ask(Tflms(), trace, int(trace.peak / 0.9) - MIB).plan.decisions != ()


def test_readers_whose_levels_are_near_share_a_copy_back():
    problem = Problem(FORK, MACHINE, FORK.peak)
    graph = graph_of(FORK)
    wide, near = (
        [(s.gap.start, s.gap.stop) for s in Tflms().swapped(problem, graph, Tuned(3, 1, by)).swaps]
        for by in (2, 3)
    )
    assert graph.level[8] - graph.level[5] == 3
    assert wide == [(3, 5), (5, 8)]
    assert near == [(3, 5)]


def test_further_ahead_is_no_later():
    problem = Problem(TRACE, MACHINE, TRACE.peak)
    before = None
    for ahead in (1, 2, 5, 20):
        plan = Tflms().swapped(problem, graph_of(TRACE), Tuned(4, ahead, 0))
        now = [swap.prefetch_at for swap in plan.swaps]
        assert before is None or all(a <= b for a, b in zip(now, before, strict=True))
        assert now != before
        before = now
