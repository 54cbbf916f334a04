"""From where a storage is to be, op by op, to the decisions that bring it there."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import machines
from penstock.ir.machine import Device, Link, Machine, Tier
from penstock.ir.plan import Place, Plan, check
from penstock.ir.policy import Problem
from penstock.ir.schedule import Run
from penstock.ir.text import parse
from penstock.simulate.lower import lower
from penstock.solve.placement import decisions, penalty, room_above, slow_tier, stored, whole_pages
from strategies import traces

MIB = 2**20
OPTANE = machines.machine("xeon-optane+nvm-sync")
GPU = Machine(Device("cuda", 2**40), (Tier("host", 2**40, Link(2.0**33), Link(2.0**33)),))
STEP = parse("""
    f a  x:I1M w:P4M -> h:A8M  1ms
    f b  h           -> ~h     1ms
    f c  h           -> y:A1M  1ms
    b d  y w         -> g:G4M  1ms
    o s  g w         -> ~w     1ms
""")


def named(problem, name):
    trace, tier = problem.trace, slow_tier(problem.machine)
    (found,) = (one for one in stored(problem, tier) if trace.values[one.versions[0]].name == name)
    return found


def test_a_storage_knows_its_uses_and_who_wrote_what_they_find():
    problem = Problem(STEP, OPTANE, 0)
    h, w = named(problem, "h"), named(problem, "w")
    assert (h.uses, h.epoch, [*map(tuple, h.idle)]) == ((0, 1, 2), (0, 1, 1), [(), (), ()])
    assert (h.born, h.dies, h.begins, h.lasts) == (0, 2, False, False)
    # What the step finds of w is what the step before left: written at its last use.
    assert (w.uses, w.epoch, [*map(tuple, w.idle)]) == ((0, 3, 4), (2, 2, 2), [(1, 2), (), ()])
    assert (w.begins, w.lasts, tuple(w.lead)) == (True, True, ())


def test_a_use_in_the_tier_costs_what_its_bytes_take_longer():
    problem, tier = Problem(STEP, OPTANE, 0), OPTANE.tiers[0]
    read = penalty(OPTANE, tier, 8 * MIB, written=False)
    written = penalty(OPTANE, tier, 8 * MIB, written=True)
    assert read == pytest.approx(8 * MIB * (1 / 29e9 - 1 / 128e9))
    assert named(problem, "h").extra == (written, read + written, read)
    assert named(Problem(STEP, GPU, 0), "h").extra == (math.inf,) * 3


def test_the_room_above_is_what_all_that_can_be_below_leaves():
    problem = Problem(STEP, OPTANE, 20 * MIB)
    everything = stored(problem, OPTANE.tiers[0])
    assert room_above(problem, everything).tolist() == [20 * MIB] * 5
    # Without direct access operands are on the device, and what has no gap.
    bound = Problem(STEP, GPU, 20 * MIB)
    room = room_above(bound, stored(bound, GPU.tiers[0]))
    assert room[0] == (20 - 1 - 4 - 8) * MIB
    assert whole_pages(4097, 4096) == 8192


def test_stretches_are_joined_over_the_end_of_the_step():
    problem, tier = Problem(STEP, OPTANE, 0), OPTANE.tiers[0]
    w = named(problem, "w")
    after = STEP.next_version[w.versions[0]]

    def placed(*stretches):
        return decisions(problem, tier, {w: stretches})

    assert placed((0, True)) == [Place(w.versions[0], "nvm")]
    assert placed((0, False)) == []
    assert placed((0, False), (1, True), (3, False)) == [Place(w.versions[0], "nvm", 1, 3)]
    assert placed((0, True), (3, False)) == [Place(after, "nvm", 5, 3)]
    assert placed((0, False), (4, True)) == [Place(w.versions[0], "nvm", 4, 0)]
    assert placed((0, True), (1, True), (3, False), (4, True)) == [
        Place(w.versions[0], "nvm", 4, 3)
    ]


@given(traces(), st.data())
def test_an_op_uses_a_storage_in_the_tier_exactly_where_it_is_said_to_be_there(trace, data):
    problem = Problem(trace, OPTANE, trace.peak)
    where = {}
    for one in stored(problem, OPTANE.tiers[0]):
        at = [data.draw(st.booleans()) for _ in one.uses]
        after = [below or data.draw(st.booleans()) for below in at]
        there = [(0, after[-1] if one.lasts and one.uses else True)] if one.lead else []
        for use, idle, below, then in zip(one.uses, one.idle, at, after, strict=True):
            there.append((use, below))
            if idle:
                there.append((use + 1, then))
        where[one] = there
    plan = Plan(tuple(decisions(problem, OPTANE.tiers[0], where)))
    check(trace, plan, OPTANE)
    below = {
        (one.storage, use): dict(there)[use] for one, there in where.items() for use in one.uses
    }
    for action in lower(trace, plan).actions:
        if isinstance(action, Run):
            found = {trace.values[access.value].storage for access in action.direct}
            op = trace.ops[action.op]
            used = {trace.values[value].storage for value in (*op.reads, *op.writes)}
            assert found == {storage for storage in used if below[storage, action.op]}
