"""SmartPool (Zhang et al. 2019): lifetimes as colours, largest first, crossing blocks apart.

The pools of the authors' three recorded traces are known to the byte; the traces carry no licence, so they
are not here, and the rule is checked by hand.
"""

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.ir.machine import Device, Link, Machine, Tier
from penstock.ir.plan import Plan, Swap
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.policies.swap_all import SwapAll
from penstock.solve.best import outcome
from penstock.solve.offsets import Buffer, best_fit, check
from penstock.solve.smartpool import blocks, colour, smartpool
from steps import STEPS, chain
from strategies import plans, problems

MIB = 2**20
LINK = Link(4.0 * 2**30)
MACHINE = Machine(Device("cpu", 2**40), (Tier("host", 2**40, LINK, LINK),))


def swapped(trace, budget):
    problem = Problem(trace, MACHINE, budget)
    return outcome(problem, SwapAll()(problem))


def test_the_sort_by_size_is_what_saves():
    """Figure 4's point: in order of arrival the large block finds its place taken by small ones."""
    wanted = [Buffer(0, 4, 1), Buffer(1, 3, 2), Buffer(2, 6, 1), Buffer(3, 6, 3)]
    by_size = colour(wanted)
    arrival = best_fit(wanted, range(4))
    tops = [low + b.nbytes for low, b in zip(arrival, wanted, strict=True)]
    assert by_size.height == 5 < max(tops)
    assert check(wanted, by_size.offsets) == []


def test_a_block_freed_where_another_is_requested_does_not_conflict():
    """The code's strict comparison: max(r1, r2) < min(d1, d2)."""
    assert colour([Buffer(0, 3, 5), Buffer(3, 7, 5)]).height == 5
    assert colour([Buffer(0, 4, 5), Buffer(3, 7, 5)]).height == 10


def test_crossing_blocks_stand_below_and_apart():
    wanted = [Buffer(0, 2, 4), Buffer(3, 9, 3), Buffer(2, 5, 2), Buffer(7, 9, 3)]
    pool = colour(wanted, [False, True, False, True])
    # Both crossing blocks are alive at 7: 6 bytes. The two others share 4 above them.
    assert (pool.crossing, pool.height) == (6, 10)
    assert sorted(pool.offsets[i] for i in (1, 3)) == [0, 3]
    assert pool.offsets[0] == pool.offsets[2] == 6
    twice = colour(wanted, [False, True, False, True], copies=2)
    assert (twice.crossing, twice.height) == (12, 16)


BUFFERS = st.lists(
    st.builds(
        lambda start, length, nbytes: Buffer(start, start + length, nbytes),
        st.integers(0, 8),
        st.integers(1, 5),
        st.integers(1, 9),
    ),
    max_size=14,
)


@given(BUFFERS, st.data())
def test_no_blocks_overlap_whichever_the_fit_and_the_groups(wanted, data):
    marks = data.draw(st.lists(st.booleans(), min_size=len(wanted), max_size=len(wanted)))
    for fit in ("best", "first"):
        pool = colour(wanted, marks, fit=fit)
        assert check(wanted, pool.offsets) == []
        tops = [low + b.nbytes for low, b in zip(pool.offsets, wanted, strict=True)]
        assert max(tops, default=0) == pool.height
        bottom = [top for top, mark in zip(tops, marks, strict=True) if mark]
        above = [low for low, mark in zip(pool.offsets, marks, strict=True) if not mark]
        assert max(bottom, default=0) == pool.crossing
        assert min(above, default=pool.crossing) >= pool.crossing


def test_first_fit_takes_the_lowest_hole_and_best_fit_the_smallest():
    wanted = [
        *(Buffer(0, 9, 20), Buffer(0, 1, 19), Buffer(0, 9, 18), Buffer(0, 1, 17)),
        *(Buffer(0, 9, 16), Buffer(3, 5, 3)),
    ]
    assert colour(wanted, fit="best").offsets[5] == 74 - 17 + 0  # the hole of 17
    assert colour(wanted, fit="first").offsets[5] == 20  # the hole of 19


def test_a_swapped_value_is_two_blocks_that_are_shorter_than_it():
    trace = chain(12)
    found = swapped(trace, trace.peak // 2)
    first = next(v.id for v in trace.values if v.name == "h0")
    mine = sorted(block.buffer for block in blocks(found) if block.value == first)
    assert len(mine) == 2
    assert mine[0].stop <= mine[1].start
    kept = outcome(Problem(trace, MACHINE, trace.peak), Plan())
    assert sum(block.value == first for block in blocks(kept)) == 1


def test_the_pool_of_a_swapped_step_is_lower_than_that_of_the_step():
    trace = chain(12)
    plain = smartpool(outcome(Problem(trace, MACHINE, trace.peak), Plan()))
    found = swapped(trace, trace.peak // 2)
    pool = smartpool(found)
    assert plain.height == trace.peak  # equal sizes leave no holes
    assert found.timeline.peak <= pool.height < plain.height


def test_model_state_crosses_and_what_the_step_makes_does_not():
    trace = STEPS["stateful"]
    found = outcome(Problem(trace, MACHINE, trace.peak), Plan())
    crossing = {block.value for block in blocks(found) if block.crosses}
    assert crossing == set(trace.initial)
    assert smartpool(found).crossing == sum(trace.values[v].nbytes for v in trace.initial)


def test_workspace_is_in_the_pool_too():
    trace = parse("""
        f a  x:I1M -> h:A8M!  1ms +2M
        b a' h x   -> g:T4M   1ms +3M
    """)
    found = outcome(Problem(trace, MACHINE, trace.peak), Plan())
    scratch = [block.buffer.nbytes for block in blocks(found) if block.value is None]
    assert scratch == [2 * MIB, 3 * MIB]
    assert smartpool(found).height >= trace.peak == 16 * MIB


def fullest(wanted):
    ends = sorted({b.start for b in wanted})
    return max((sum(b.nbytes for b in wanted if b.start <= at < b.stop) for at in ends), default=0)


@settings(max_examples=60)
@given(problems(), st.data())
def test_the_blocks_of_a_plan_fill_what_its_timeline_says(problem, data):
    drawn = data.draw(plans(problem.trace, problem.machine))
    # Not across steps: where copies take longer than the step there is no steady state to read from.
    within = (swap for swap in drawn.swaps if not swap.gap.wraps)
    found = outcome(problem, Plan(tuple(within)))
    held = blocks(found)
    wanted = [block.buffer for block in held]
    assert fullest(wanted) == found.timeline.peak - problem.trace.slack
    pool = smartpool(found)
    assert check(wanted, pool.offsets) == []
    assert pool.height >= fullest(wanted)


def test_a_copy_that_outlasts_the_step_crosses():
    trace = STEPS["stateful"]
    slow = Link(2.0**28)
    machine = Machine(Device("cpu", 2**40), (Tier("host", 2**40, slow, slow),))
    gap = max((g for g in trace.gaps() if g.wraps), key=lambda g: trace.values[g.value].nbytes)
    plan = Plan((Swap(gap, "host", gap.start + 1, gap.stop),))
    found = outcome(Problem(trace, machine, 2 * trace.peak), plan)
    first = next(
        v for v in trace.initial if trace.values[v].storage == trace.values[gap.value].storage
    )
    mine = [block for block in blocks(found) if block.value in (first, gap.value)]
    assert any(block.crosses for block in mine)
