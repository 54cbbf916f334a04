"""Where values wait when the first tier is small."""

from dataclasses import replace

import pytest
from hypothesis import given

from penstock.ir.machine import Device, Link, Machine, Tier
from penstock.ir.plan import Plan, Swap
from penstock.ir.policy import Problem
from penstock.simulate.shelves import Shelves
from penstock.solve.best import outcome
from penstock.solve.farthest import farthest_first
from penstock.solve.tiers import sent_below, shelved, spread
from steps import chain
from strategies import problems

MIB = 2**20
TRACE = chain(6, "4M", "1s")
GAPS = list(TRACE.saved_gaps())  # layer n waits from op n + 1 to op 13 - n


def machine(host: int, disk: int = 2**40) -> Machine:
    link = Link(4 * MIB)
    tiers = (Tier("host", host, link, link), Tier("disk", disk, link, link))
    return Machine(Device("cpu", 2**40), tiers)


def homes(problem, gaps):
    return {tier.name: [gap.value for gap in there] for tier, there in spread(problem, gaps)}


def test_all_go_to_the_first_tier_that_holds_them():
    values = [gap.value for gap in GAPS]
    assert homes(Problem(TRACE, machine(24 * MIB), 0), GAPS) == {"host": values, "disk": []}


def test_what_idles_longest_makes_room():
    values = [gap.value for gap in GAPS]
    found = homes(Problem(TRACE, machine(16 * MIB), 0), GAPS)
    assert found == {"host": values[2:], "disk": values[:2]}


def test_the_last_tier_takes_what_no_other_holds():
    found = homes(Problem(TRACE, machine(0, 0), 0), GAPS)
    assert found == {"host": [], "disk": [gap.value for gap in GAPS]}


def test_what_is_given_takes_its_place_first():
    first = GAPS[0]
    given_plan = Plan((Swap(first, "host", first.start + 1, first.stop),))
    found = homes(Problem(TRACE, machine(20 * MIB), 0, given_plan), GAPS[1:])
    assert found == {"host": [gap.value for gap in GAPS[2:]], "disk": [GAPS[1].value]}


def test_a_shelf_holds_what_waits_there_and_when():
    swaps = tuple(Swap(gap, "host", gap.start + 1, gap.stop) for gap in GAPS[:2])
    shelves = Shelves(TRACE, machine(2**40), Plan(swaps))
    assert (shelves.held["host"] // MIB).tolist() == [0, 0, 4, *[8] * 9, 4, 0]
    assert shelves.peak("host") == 8 * MIB
    assert shelves.peak("disk") == 0


@given(problem=problems())
def test_farthest_first_overfills_no_tier_but_the_last(problem):
    tiers = tuple(replace(tier, capacity=3 * MIB) for tier in problem.machine.tiers)
    small = replace(problem, machine=problem.machine.with_tiers(*tiers))
    plan = farthest_first(small, 1)
    shelves = Shelves(problem.trace, small.machine, plan)
    for tier in tiers[:-1]:
        assert shelves.peak(tier.name) <= tier.capacity


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_farthest_first_fits_with_two_tiers_as_with_one(share):
    trace = chain(12)
    budget = int(share * trace.peak)
    plan = farthest_first(Problem(trace, machine(8 * MIB), budget), 1)
    assert {swap.tier for swap in plan.swaps} == {"host", "disk"}
    assert outcome(Problem(trace, machine(8 * MIB), budget), plan).shortfall == 0


def test_room_is_made_by_what_the_next_tier_can_write_at_once():
    """A tier that writes a layer's value in two layers' time takes every other, once it has a queue."""
    trace = chain(12, "4M", "1s")
    slow = Tier("disk", 2**40, Link(2 * MIB), Link(2 * MIB))
    host = Tier("host", 28 * MIB, Link(64 * MIB), Link(64 * MIB))
    described = Machine(Device("cpu", 2**40), (host, slow))
    gaps = list(trace.saved_gaps())
    found = dict(spread(Problem(trace, described, 0), gaps))
    assert [gap.start for gap in found[slow]] == [1, 2, 3, 5, 7]
    assert len(found[host]) == 7


SWAPS = [Swap(gap, "host", gap.start + 1, gap.stop) for gap in GAPS]


def test_swaps_stay_in_the_first_tier_as_long_as_it_holds_them():
    assert shelved(Problem(TRACE, machine(24 * MIB), 0), SWAPS) == SWAPS


def test_swaps_that_the_first_tier_cannot_hold_keep_their_triggers_and_go_to_the_next():
    found = shelved(Problem(TRACE, machine(16 * MIB), 0), SWAPS)
    assert [swap.tier for swap in found] == ["disk", "disk", *["host"] * 4]
    assert [replace(swap, tier="host") for swap in found] == SWAPS


def test_swaps_make_room_for_what_is_given():
    given_plan = Plan(tuple(SWAPS[:1]))
    found = shelved(Problem(TRACE, machine(20 * MIB), 0, given_plan), SWAPS[1:])
    assert [swap.tier for swap in found] == ["disk", *["host"] * 4]


def test_each_copy_back_is_timed_by_the_link_that_it_takes():
    """A slow disk is asked for a value sooner than the host would be."""
    link, slow = Link(64 * MIB), Link(MIB / 2)
    tiers = (Tier("host", 20 * MIB, link, link), Tier("disk", 2**40, slow, slow))
    two = Machine(Device("cpu", 2**40), tiers)
    (on_disk,) = [s for s in sent_below(Problem(TRACE, two, 0), GAPS) if s.tier == "disk"]
    all_on_host = sent_below(Problem(TRACE, two.with_tiers(tiers[0]), 0), GAPS)
    (on_host,) = [swap for swap in all_on_host if swap.gap == on_disk.gap]
    assert on_disk.prefetch_at < on_host.prefetch_at == on_host.gap.stop - 1
