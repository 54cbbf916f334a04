"""Online methods: a score, replayed over a step."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.ir.machine import Device, Link, Machine, Tier
from penstock.ir.plan import Recompute, Swap, check
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.solve.best import outcome
from penstock.solve.online import _Away, least_recently_used, replay
from steps import FED_BY_DEAD, chain
from strategies import problems

MIB = 2**20
LINK = Link(4 * MIB)
MACHINE = Machine(Device("cpu", 2**40), (Tier("disk", 2**40, LINK, LINK),))


def oldest(idle):
    return idle.made + 1.0


def names(trace, decisions):
    return [trace.values[decision.gap.value].name for decision in decisions]


def test_victims_leave_in_the_order_of_their_score_and_only_as_many_as_it_takes():
    trace = chain(8, "4M", "1s")
    problem = Problem(trace, MACHINE, trace.peak - 8 * MIB)
    assert sorted(names(trace, replay(problem, oldest).decisions)) == ["h0", "h1"]
    newest = replay(problem, lambda idle: -oldest(idle)).decisions
    assert "h0" not in names(trace, newest)


def test_a_dropped_value_is_remade_when_it_is_read():
    trace = chain(8, "4M", "1s")
    problem = Problem(trace, MACHINE, trace.peak - 8 * MIB)
    found = replay(problem, oldest)
    assert all(isinstance(decision, Recompute) for decision in found.decisions)
    # h1 is read before h0, and made from it: both are back then.
    assert {decision.remake_at for decision in found.decisions} == {found.decisions[1].gap.stop}
    assert (found.runs, found.again) == (len(trace.ops) + 2, 2.0)


def test_a_swapped_value_leaves_where_room_lacked_and_the_step_waits_for_it():
    trace = chain(8, "4M", "1s")
    problem = Problem(trace, MACHINE, trace.peak - 8 * MIB)
    found = replay(problem, oldest, by="swap")
    first, second = found.decisions
    # Seven values fill what six may: the first leaves when the seventh comes, and so on.
    assert first == Swap(first.gap, "disk", 6, first.gap.stop, fence=6)
    assert second.evict_at == second.fence == 7
    assert outcome(problem, problem.given.plus(found.decisions)).shortfall == 0
    assert found.runs == len(trace.ops)


def test_what_was_used_last_stays_longest():
    """h0 is read again by the last layer: h1 is what nobody asked for longest."""
    trace = parse("""
        f a  x:I1 -> h0:A4M! 1s
        f b  h0   -> h1:A4M! 1s
        f c  h1   -> h2:A4M! 1s
        f d  h2 h0 -> h3:A4M! 1s
        f e  h3   -> h4:A4M! 1s
        f l  h4   -> l:T1    1s
        b e' l h4 -> g4:T1   1s
        b d' g4 h3 -> g3:T1  1s
        b c' g3 h2 -> g2:T1  1s
        b b' g2 h1 -> g1:T1  1s
        b a' g1 h0 -> g0:T1  1s
    """)
    problem = Problem(trace, MACHINE, trace.peak - 4 * MIB)
    assert names(trace, replay(problem, least_recently_used).decisions) == ["h1"]
    assert names(trace, replay(problem, oldest).decisions) == ["h0"]


def test_a_value_whose_lineage_is_dead_is_remade_through_it():
    """k is made from h; both are dropped, and k is wanted first: h comes on the way, and stays."""
    problem = Problem(FED_BY_DEAD, MACHINE, 0)
    found = replay(problem, oldest)
    assert names(FED_BY_DEAD, found.decisions) == ["k"]  # h is made from what died: it stays


def test_a_score_sees_what_is_gone_around_a_value():
    """After h0 left: an ancestor of h1 that would have to come back first, and h1's own seconds."""
    seen = []

    def watched(idle):
        seen.append(dict(zip(idle.made.tolist(), idle.ancestors().tolist(), strict=True)))
        seen[-1] |= {"after": idle.descendants().tolist(), "near": idle.neighbourhoods().tolist()}
        return idle.made + 1.0

    trace = chain(8, "4M", "1s")
    replay(Problem(trace, MACHINE, trace.peak - 8 * MIB), watched)
    first, second = seen[:2]
    assert set(first["after"]) == {0.0}  # nothing is gone yet
    assert set(first["near"]) == {0.0}
    assert second[1] == 1.0  # h0, which took a second
    assert second[2] == 0.0  # h1 is still there
    assert second["near"][0] == 1.0


@pytest.mark.parametrize("by", ["drop", "swap"])
@settings(max_examples=40)
@given(problem=problems(), data=st.data())
def test_on_any_step_the_decisions_are_a_plan(by, problem, data):
    score = data.draw(st.sampled_from([oldest, least_recently_used, lambda idle: 1 / idle.nbytes]))
    found = replay(problem, score, by=by, smallest=1, limit=2.0)
    plan = problem.given.plus(found.decisions)
    check(problem.trace, plan, problem.machine)
    assert found.runs >= len(problem.trace.ops)
    if by == "swap" and not found.lacking:
        assert outcome(problem, plan).shortfall == 0
    if problem.budget >= problem.trace.peak:
        assert found.decisions == ()


@settings(max_examples=60)
@given(problem=problems(), data=st.data())
def test_what_is_remembered_of_what_is_gone_is_what_a_new_look_finds(problem, data):
    """Sums along the lineage are kept from one victim to the next: as values leave and come back."""
    seen, trace = _Away(problem.trace), problem.trace
    made = [value.id for value in trace.values if value.producer is not None]
    every = np.array(made, np.int64)
    for value in data.draw(st.lists(st.sampled_from(made), max_size=20)) if made else ():
        (seen.returns if seen.is_gone[value] else seen.leaves)(value)
        fresh = _Away(trace)
        for gone in np.flatnonzero(seen.is_gone).tolist():
            fresh.leaves(gone)
        for upward in (True, False):
            remembered = seen.closures(every, upward=upward)
            assert remembered.tolist() == fresh.closures(every, upward=upward).tolist()
