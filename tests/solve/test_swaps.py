"""When values leave and come back."""

from hypothesis import given
from hypothesis import strategies as st

from penstock.ir.machine import Device, Link, Machine, Tier
from penstock.ir.plan import Plan, Swap, check
from penstock.ir.policy import Problem
from penstock.ir.trace import Gap
from penstock.solve.best import outcome
from penstock.solve.pressure import Pressure
from penstock.solve.swaps import before, just_in_time, late_gaps, op_starts
from steps import chain
from strategies import problems

MIB = 2**20
TRACE = chain(6, "4M", "1s")
# The copy of a layer lasts as long as the layer.
TIER = Tier("disk", 2**40, Link(4 * MIB), Link(4 * MIB))
MACHINE = Machine(Device("cpu", 2**40), (TIER,))
GAPS = list(TRACE.saved_gaps())


def test_op_starts_run_on_without_waiting():
    assert op_starts(TRACE) == [0, 1, 2, 3, 4, 5, 6, 6, 6, 7, 8, 9, 10, 11, 12]


def test_a_value_leaves_at_once_and_comes_back_as_late_as_the_link_allows():
    (swap,) = just_in_time(TRACE, TIER, GAPS[:1], margin=1.0)
    assert (swap.evict_at, swap.gap.stop) == (2, 13)
    assert swap.prefetch_at == 12  # its second of copying ends when op 13 begins


def test_a_margin_makes_it_come_earlier():
    (swap,) = just_in_time(TRACE, TIER, GAPS[:1], margin=1.5)
    assert swap.prefetch_at == 11


def test_copies_back_queue_on_their_lane():
    tier = Tier("disk", 2**40, Link(4 * MIB), Link(2 * MIB))  # two layers long
    swaps = just_in_time(TRACE, tier, GAPS[:3], margin=1.0)
    back = {swap.gap.stop: swap.prefetch_at for swap in swaps}
    # Layer 0 is wanted at 11 s and must leave the link at 9 s to the one before it, and so on.
    assert {stop: op_starts(TRACE)[at] for stop, at in back.items()} == {13: 9, 12: 7, 11: 5}


def test_what_comes_back_just_in_time_costs_nothing():
    swaps = just_in_time(TRACE, TIER, GAPS[:3])
    found = outcome(Problem(TRACE, MACHINE, TRACE.peak), Plan(tuple(swaps)))
    assert found.timeline.stall_seconds == 0
    assert found.timeline.seconds == TRACE.seconds


def test_a_gap_that_is_too_short_is_passed_over():
    short = Gap(1, 4, 5)
    assert just_in_time(TRACE, TIER, [short]) == []


def test_what_nothing_uses_again_never_comes_back():
    (swap,) = just_in_time(TRACE, TIER, [Gap(0, 0, None)])
    assert swap.prefetch_at is None


def test_under_pressure_a_value_waits_for_room():
    problem = Problem(TRACE, MACHINE, 12 * MIB)
    pressure = Pressure(problem)
    for gap in GAPS[:5]:
        pressure.relieve(gap, 4 * MIB)
    free = {s.gap: s.prefetch_at for s in just_in_time(TRACE, TIER, GAPS[:5], margin=3.0)}
    timed = just_in_time(TRACE, TIER, GAPS[:5], margin=3.0, pressure=pressure)
    assert all(swap.prefetch_at >= free[swap.gap] for swap in timed)
    assert any(swap.prefetch_at > free[swap.gap] for swap in timed)


@given(problems(), st.sampled_from([0.0, 1.0, 1.1, 4.0]), st.booleans())
def test_timed_swaps_always_make_a_valid_plan(problem, margin, pressed):
    trace, tier = problem.trace, problem.machine.tiers[0]
    gaps, pressure = list(trace.gaps()), Pressure(problem) if pressed else None
    if pressure is not None:
        for gap in gaps:
            pressure.relieve(gap, trace.values[gap.value].nbytes)
    swaps = just_in_time(trace, tier, gaps, margin=margin, pressure=pressure)
    check(trace, Plan(tuple(swaps)), problem.machine)
    assert {swap.gap for swap in swaps} <= set(gaps)


def late(prefetch_at):
    plan = Plan((Swap(GAPS[0], "disk", 2, prefetch_at),))
    return late_gaps(outcome(Problem(TRACE, MACHINE, TRACE.peak), plan))


def test_a_value_is_late_if_its_op_had_to_wait():
    assert late(prefetch_at=13) == {GAPS[0]}
    assert late(prefetch_at=11) == set()


def test_an_earlier_trigger_moves_by_whole_ops_and_not_out_of_the_gap():
    swap, starts = Swap(GAPS[0], "disk", 2, 12), op_starts(TRACE)
    assert before(swap, starts, 0.0).prefetch_at == 12
    assert before(swap, starts, 0.25).prefetch_at == 11
    assert before(swap, starts, 1.5).prefetch_at == 10
    assert before(swap, starts, 99.0).prefetch_at == GAPS[0].start + 2
