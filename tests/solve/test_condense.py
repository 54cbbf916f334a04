"""Steps as graphs of a few nodes, and solutions as plans."""

from itertools import product
from math import prod

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from penstock.ir.machine import Device, Machine
from penstock.ir.plan import Recompute, Swap, check
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.ir.trace import Phase
from penstock.solve.best import outcome
from penstock.solve.condense import condense, pieces, scratch
from penstock.solve.settle import together
from penstock.solve.stages import Paging, Staged, begun, bettered, forced, paged, peak, solve
from steps import STEPS, chain
from strategies import problems

MIB = 2**20
MACHINE = Machine(Device("cpu", 2**40))


def condensed(trace, nodes=100, smallest=MIB, budget=0):
    return condense(Problem(trace, MACHINE, budget), nodes, smallest)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("nodes", [3, 8, 100])
def test_pieces_follow_each_other_and_stay_in_their_phase(step, nodes):
    trace = STEPS[step]
    starts = pieces(trace, nodes)
    assert starts[0] == 0 and starts == sorted(set(starts))
    for start, end in zip(starts, [*starts[1:], len(trace.ops)], strict=True):
        assert len({op.phase for op in trace.ops[start:end]}) == 1
    if nodes == 100:
        assert len(starts) == len(trace.ops)


def test_what_costs_little_a_byte_is_not_merged_with_what_costs_much():
    trace = parse("""
        f mm    x:I1M -> a:A8M!  8ms
        f gelu  a     -> b:A8M!  1ms
        f drop  b     -> c:A8M!  1ms
        f loss  c     -> l:T1K   0ms
        b loss' l c   -> g:T8M   1ms
        b drop' g b   -> h:T8M   1ms
        b gelu' h a   -> i:T8M   1ms
    """)
    starts = [op for op in pieces(trace, 4) if trace.ops[op].phase is Phase.FORWARD]
    assert starts == [0, 1]


def test_one_op_a_node_the_graph_costs_what_the_simulator_says():
    trace = chain(8, "1M")
    whole = condensed(trace)
    for budget in (5, 6, 7, 8):
        staged = solve(whole.graph, budget * MIB, 60.0)
        decisions = whole.decisions(staged)
        problem = Problem(trace, MACHINE, budget * MIB)
        check(trace, problem.given.plus(decisions))
        found = outcome(problem, problem.given.plus(decisions))
        assert found.shortfall == 0
        assert found.timeline.recompute_seconds == pytest.approx(staged.cost)
        assert found.timeline.peak <= peak(whole.graph, staged) <= budget * MIB


def test_everything_dropped_is_remade_where_it_is_needed():
    trace = chain(6, "1M")
    whole = condensed(trace)
    decisions = whole.decisions(forced(whole.graph, ()))
    assert decisions and all(isinstance(one, Recompute) for one in decisions)
    assert {trace.values[one.gap.value].name for one in decisions} == {f"h{n}" for n in range(6)}
    assert all(one.remake_at == one.gap.stop for one in decisions)


def test_a_copy_out_and_back_is_a_swap(machine):
    trace = chain(4, "1M")
    whole = condensed(trace)
    (number, stretch), (gap,) = next(iter(whole.gaps.items()))
    held = {(t, v) for (v, one) in whole.gaps for t in one if v != number}
    held.add((stretch.stop - 1, number))
    out, back = (stretch.start - 1, number), (stretch.stop - 2, number)
    staged = Staged(frozenset(), frozenset(held), frozenset({out}), frozenset({back}))
    (swap,) = whole.decisions(staged, machine.tiers[0])
    assert (swap.gap, swap.tier) == (gap, "disk")
    assert swap.evict_at == gap.start + 1
    assert swap.prefetch_at == whole.starts[stretch.stop - 2]


def test_a_node_that_must_not_run_twice_never_does():
    trace = STEPS["in place"]
    graph = condensed(trace).graph
    printing = next(op.index for op in trace.ops if not op.repeatable)
    assert not any(node == printing for _, node in forced(graph, ()).again)


def test_scratch_is_what_lives_inside():
    trace = parse("""
        f a x:I1M -> h:A4M 1ms +2M
        f b h     -> k:A8M 1ms
        f c k     -> y:A1M 1ms +1M
        b d y     -> 1ms
    """)
    assert scratch(trace, (0, 1, 2)) == 12 * MIB
    assert scratch(trace, (0, 1, 2), {2}) == 6 * MIB


@settings(max_examples=40)
@given(problem=problems())
def test_dropping_everything_is_a_plan_for_any_step(problem):
    whole = condense(problem, 12, 1)
    assert all(before >= 0 for before in whole.graph.before)
    decisions = together(problem, whole.decisions(forced(whole.graph, ())))
    check(problem.trace, problem.given.plus(decisions))


def choices(graph):
    """Every way of deciding: each stretch is held from one of its stages on, or not at all."""
    stretches = [(v, one) for v, data in enumerate(graph.data) for one in data.open]
    starts = product(*(range(one.start, one.stop + 1) for _, one in stretches))
    for chosen in starts:
        yield {
            (stage, v)
            for (v, one), begin in zip(stretches, chosen, strict=True)
            for stage in range(begin, one.stop)
        }


@settings(max_examples=60)
@given(problem=problems(max_layers=4), share=st.sampled_from([0.0, 0.3, 0.7]))
def test_no_choice_of_stays_is_cheaper_than_the_programmes(problem, share):
    graph = condense(problem, 10, 1024).graph
    assume(any(data.open for data in graph.data))
    assume(prod(len(one) + 1 for data in graph.data for one in data.open) <= 2_000)
    found = [(forced(graph, held), held) for held in choices(graph)]
    peaks = sorted(peak(graph, staged) for staged, _ in found)
    budget = peaks[int(share * (len(peaks) - 1))]
    least = min(staged.cost for staged, _ in found if peak(graph, staged) <= budget)
    staged = solve(graph, budget, 60.0)
    assert peak(graph, staged) <= budget
    assert staged.cost == pytest.approx(least)


def test_a_search_from_everything_dropped_fits_and_costs_less():
    trace = chain(12, "1M")
    graph = condensed(trace).graph
    dropped = forced(graph, ())
    for budget in (6 * MIB, 9 * MIB):
        found = bettered(graph, dropped, budget, 60.0)
        assert peak(graph, found) <= budget
        assert solve(graph, budget, 60.0).cost <= found.cost < dropped.cost
        start = begun(graph, budget, 60.0)
        assert peak(graph, start) <= budget


def test_copies_may_stand_for_second_runs(machine):
    trace = chain(8, "1M")
    whole = condensed(trace)
    count = len(whole.graph.data)
    free = Paging((0.0,) * count, (0.0,) * count)
    copied = paged(whole.graph, forced(whole.graph, ()), free)
    assert not copied.again and copied.cost == 0
    decisions = whole.decisions(copied, machine.tiers[0])
    assert decisions and all(isinstance(one, Swap) for one in decisions)
    problem = Problem(trace, machine, trace.peak)
    need = max(outcome(problem, problem.given.plus(decisions)).schedule.need)
    assert need <= peak(whole.graph, copied) < trace.peak
