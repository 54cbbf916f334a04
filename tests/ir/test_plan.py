"""A plan that does not fit its trace is refused, and told why."""

from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import PlanError
from penstock.ir.plan import Place, Plan, Recompute, Residency, Swap, check
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.ir.trace import Gap
from strategies import machines, plans, traces

# 0  1  2  3  4  5  6    h is idle 1..5, y is idle 2..4, w wraps 6..0
TRACE = parse("""
    f a  x:I1M w:P2M -> h:A8M!  1ms
    f b  h           -> y:A4M!  1ms
    f c  y           -> l:A1M   1ms
    b c' l           -> d:T1M   1ms
    b b' d y         -> e:T1M   1ms
    b a' e h         -> g:G2M   1ms
    o s  g w         -> ~w      1ms
""")
VALUE = {v.name: v.id for v in TRACE.values if v.id not in TRACE.previous_version}
H, Y = Gap(VALUE["h"], 1, 5), Gap(VALUE["y"], 2, 4)
W = Gap(TRACE.next_version[VALUE["w"]], 6, 0)
NEVER = Gap(VALUE["x"], 0, None)
SWAP = Swap(H, "disk", evict_at=2, prefetch_at=4)


def faults(*decisions, machine=None):
    with pytest.raises(PlanError) as caught:
        check(TRACE, Plan(decisions), machine)
    return list(caught.value.faults)


def swapped(**changes):
    return replace(SWAP, **changes)


@pytest.mark.parametrize(
    "decision",
    [
        SWAP,
        swapped(prefetch_at=5),
        swapped(fence=2),
        Recompute(H, 5),
        Recompute(H, 3),
        Swap(W, "disk", evict_at=7, prefetch_at=0),
    ],
)
def test_a_plan_that_fits_passes(decision, machine):
    assert check(TRACE, Plan((decision,)), machine) is None


def test_what_is_freed_is_not_evicted_afterwards():
    lingering = parse("""
        f a  x:I1M -> h:A8M  1ms
        f b  h     -> y:A1M  1ms
        f c  y     -> z:A1M  1ms
        free h
        f d  z     -> u:A1M  1ms
        keep u
    """)
    out = Swap(Gap(1, 1, None), "disk", evict_at=2, prefetch_at=None)
    check(lingering, Plan((out,)))
    with pytest.raises(PlanError, match="evicted at op 3, but it is freed after op 2"):
        check(lingering, Plan((replace(out, evict_at=3),)))


WRONG = {
    "value 99 does not exist in this trace": swapped(gap=replace(H, value=99)),
    "value 2 (h), ops 2..5: op 2 does not use it": swapped(gap=replace(H, start=2)),
    "value 2 (h), ops 0..5: op 1 uses it inside the gap": swapped(gap=replace(H, start=0)),
    "value 2 (h), ops 1..end: op 5 still uses it": swapped(gap=replace(H, stop=None)),
    "value 2 (h), ops 5..6: nothing uses it after op 5": swapped(gap=Gap(2, 5, 6)),
    "value 2 (h), ops 5..1: its next use, op 1, is not after op 5": swapped(gap=Gap(2, 5, 1)),
    "value 1 (w), ops 0..0: only its last use in the step may open a gap into the next, not op 0": (
        swapped(gap=Gap(1, 0, 0))
    ),
    "value 8 (w), ops 6..3: the next step uses it first at op 0": swapped(gap=Gap(8, 6, 3)),
    "value 2 (h): out at op 0, but op 0 makes it; the step has 7 ops": swapped(evict_at=0),
    "value 8 (w): out at op 8, but op 6 makes it; the step has 7 ops": (
        swapped(gap=W, evict_at=8, prefetch_at=0)
    ),
    "value 0 (x): back at op 4, but nothing uses it again": swapped(gap=NEVER),
    "value 2 (h): never brought back, but op 5 uses it": swapped(prefetch_at=None),
    "value 2 (h): evicted at op 6, after its next use at op 5": swapped(evict_at=6),
    "value 2 (h): brought back at op 6, after its next use at op 5": swapped(prefetch_at=6),
    "value 2 (h): out at op 4 and back at op 3 leave no time away (ops 1..5)": (
        swapped(evict_at=4, prefetch_at=3)
    ),
    "value 2 (h): op 1 cannot wait for a copy out that starts at op 2 and whose bytes op 1 "
    "still uses": swapped(fence=1),
    "value 2 (h): op 7 cannot wait for a copy out that starts at op 2 and whose bytes op 1 "
    "still uses": swapped(fence=7),
    "value 8 (w): cannot be remade in the next step: its lineage belongs to this one": (
        Recompute(W, 0)
    ),
    "value 0 (x): nothing uses it again, so there is nothing to remake it for; swap it, or keep it": (
        Recompute(NEVER, 2)
    ),
    "value 2 (h): remade at op 1, outside ops 1..5": Recompute(H, 1),
    "value 2 (h): remade at op 6, outside ops 1..5": Recompute(H, 6),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_decision_is_refused_with_the_culprit_named(fault):
    assert faults(WRONG[fault]) == [fault]


def test_a_value_named_twice_is_refused():
    assert faults(SWAP, Recompute(H, 5)) == ["value 2 (h) is named twice for ops 1..5"]


def test_an_unknown_tier_is_refused_by_name(machine):
    assert faults(swapped(tier="tape"), machine=machine) == [
        "machine cpu has no tier 'tape'; it has: disk"
    ]
    check(TRACE, Plan((swapped(tier="tape"),)))  # without a machine nothing is known of tiers


def test_all_faults_are_listed_at_once(machine):
    found = faults(swapped(evict_at=0, tier="tape"), Recompute(Y, 9), machine=machine)
    assert len(found) == 3


def test_recomputing_from_something_gone_is_refused_by_name():
    # y is made from h, which is away until op 6, and h's own input dies with op 0.
    trace = parse("""
        f a  x:T1M -> h:A8M!  1ms
        f b  h     -> y:A4M!  1ms
        f c  y     -> l:A1M   1ms
        b c' l     -> d:T1M   1ms
        b b' d y   -> e:T1M   1ms
        b a' e     -> g:T1M   1ms
        b z' g h   -> k:T1M   1ms
    """)
    away = Swap(Gap(1, 1, 6), "disk", 2, 6)
    remade = Recompute(Gap(2, 2, 4), 4)
    check(trace, Plan((remade,)))
    with pytest.raises(PlanError) as caught:
        check(trace, Plan((away, remade)))
    assert caught.value.faults == (
        "value 2 (y) cannot be recomputed at op 4: it needs x, which is gone by then",
    )


def test_an_op_that_must_not_run_twice_is_named():
    trace = parse(
        "f a x:I1M -> h:A8M! 1ms !\nf b h -> y:A1M 1ms\nf c y -> z:A1M 1ms\nb d z h -> 1ms"
    )
    with pytest.raises(
        PlanError, match=r"value 1 \(h\) cannot be .*: op 0 \(a\) must not run twice"
    ):
        check(trace, Plan((Recompute(Gap(1, 1, 3), 3),)))


def test_a_plan_is_frozen_and_grows_by_copies():
    plan = Plan(policy="mine")
    grown = plan.plus([SWAP]).plus([Recompute(Y, 4)])
    assert plan.decisions == ()
    assert (grown.policy, grown.swaps, grown.recomputes) == ("mine", (SWAP,), (Recompute(Y, 4),))
    assert grown.counts() == {"swap": 1, "recompute": 1}
    with pytest.raises(FrozenInstanceError):
        plan.decisions = (SWAP,)
    with pytest.raises(FrozenInstanceError):
        SWAP.tier = "host"


def test_a_swapped_value_is_resident_outside_its_time_away():
    residency = Residency(TRACE, Plan((SWAP,)))
    assert [residency.holds(H.value, op) for op in range(7)] == [
        False,  # not made yet
        True,
        False,
        False,
        True,  # its copy back starts here, to be waited for
        True,
        False,  # freed with its last use
    ]


def test_state_away_between_steps_is_away_at_both_ends():
    trace = parse("""
        f n  x:I1M     -> u:A1M  1ms
        f a  u w:P2M   -> h:A8M  1ms
        o s  h w       -> ~w     1ms
        o t  x         -> ~x     1ms
    """)
    old = 2
    away = Swap(Gap(trace.next_version[old], 2, 1), "disk", 3, 1)
    residency = Residency(trace, Plan((away,)))
    assert [residency.holds(old, op) for op in (0, 1, 2)] == [False, True, True]
    assert not residency.holds(away.gap.value, 3)


@given(st.data())
def test_dropping_any_decision_of_swaps_leaves_a_valid_plan(data):
    trace, machine = data.draw(traces()), data.draw(machines())
    plan = data.draw(plans(trace, machine))
    swaps = Plan(plan.swaps)
    if swaps.decisions:
        out = data.draw(st.sampled_from(swaps.decisions))
        check(trace, Plan(tuple(d for d in swaps.decisions if d != out)), machine)


# -- placements -------------------------------------------------------------------------------------

W2 = TRACE.next_version[VALUE["w"]]
PLACED = [
    Place(VALUE["h"], "nvm"),
    Place(VALUE["h"], "nvm", None, 5),
    Place(VALUE["h"], "nvm", 1, None),
    Place(VALUE["h"], "nvm", 1, 5),
    Place(VALUE["w"], "nvm"),
    Place(VALUE["w"], "nvm", 1, 6),
    Place(VALUE["w"], "nvm", 0, 6),
    Place(W2, "nvm", 7, 0),
    Place(W2, "nvm", 7, 6),
]
MISPLACED = {
    "value 99 does not exist in this trace": Place(99, "nvm"),
    "value 8 (w): op 6 writes it over a value on the device; place that one too, or say at which op "
    "it is copied out": Place(W2, "nvm"),
    "value 1 (w): it begins the step in nvm and ends it on the device; say at which op it is copied "
    "out": Place(VALUE["w"], "nvm", None, 6),
    "value 1 (w): it begins the step on the device and ends it in nvm; say at which op it is copied "
    "back": Place(VALUE["w"], "nvm", 1, None),
    "value 2 (h): out at op 0, but op 0 makes it; the step has 7 ops": Place(VALUE["h"], "nvm", 0),
    "value 2 (h): out at op 6, but it is gone after op 5": Place(VALUE["h"], "nvm", 6),
    "value 2 (h): back at op 7; the step has 7 ops": Place(VALUE["h"], "nvm", None, 7),
    "value 2 (h): out at op 3 and back at op 2 leave no time in nvm": Place(
        VALUE["h"], "nvm", 3, 2
    ),
    "value 2 (h): out at op 0 and back at op 0 leave no time in nvm": Place(
        VALUE["h"], "nvm", None, 0
    ),
    "value 1 (w): out at op 3 and back at op 3 leave no time in nvm": Place(
        VALUE["w"], "nvm", 3, 3
    ),
    "value 2 (h): back at op 6, but no op from there to op 6 uses it": Place(
        VALUE["h"], "nvm", None, 6
    ),
    "value 8 (w): back at op 1, but no op from there to op 6 uses it": Place(W2, "nvm", 6, 1),
}


@pytest.mark.parametrize("place", PLACED)
def test_a_placement_that_fits_passes(place):
    assert check(TRACE, Plan((place,))) is None


@pytest.mark.parametrize("fault", MISPLACED)
def test_a_wrong_placement_is_refused_with_the_culprit_named(fault):
    found = faults(MISPLACED[fault])
    assert fault in found


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Place(VALUE["h"], "nvm", 1, 3), Place(VALUE["h"], "nvm", 3, 5)),
        (Place(VALUE["h"], "nvm"), SWAP),
        (Place(VALUE["h"], "nvm", 4), SWAP),
        (Place(VALUE["h"], "nvm", 4), Recompute(H, 5)),
        (Place(VALUE["w"], "nvm"), Swap(W, "disk", evict_at=7, prefetch_at=0)),
        (Place(W2, "nvm", 7, 2), Place(VALUE["w"], "nvm", 1, 5)),
    ],
)
def test_a_storage_is_in_one_place_at_a_time(one, other):
    for pair in ((one, other), (other, one)):
        found = faults(*pair)
        assert found and all("placed in nvm for ops" in fault for fault in found)


def test_a_storage_may_be_placed_again_later():
    check(TRACE, Plan((Place(VALUE["h"], "nvm", None, 1), Place(VALUE["h"], "nvm", 2, 5))))
    check(TRACE, Plan((Place(VALUE["h"], "nvm", None, 1), Swap(H, "disk", 2, 4))))


def test_a_tier_that_only_copies_reach_takes_no_placement(machine):
    (fault,) = faults(Place(VALUE["h"], "disk"), machine=machine)
    assert fault == (
        "tier 'disk' of machine cpu has no direct rates: ops cannot use what is placed there; tiers "
        "that have: none"
    )


def test_a_placed_value_is_there_for_a_recomputation():
    residency = Residency(TRACE, Plan((Place(VALUE["h"], "nvm"),)))
    assert residency.holds(VALUE["h"], 3)
    check(TRACE, Plan((Place(VALUE["h"], "nvm"), Recompute(Y, 4))))


def test_placements_are_counted_where_there_are_some():
    assert Plan((Place(VALUE["h"], "nvm"),)).counts() == {"swap": 0, "recompute": 0, "place": 1}
    assert Plan((SWAP,)).counts() == {"swap": 1, "recompute": 0}


def test_the_gaps_of_what_is_placed_are_not_free(machine):
    given_plan = Plan((Place(VALUE["h"], "nvm", 1, 5),))
    free = {gap.value for gap in Problem(TRACE, machine, 0, given_plan).free_gaps()}
    assert VALUE["h"] not in free
    assert VALUE["y"] in free


@pytest.mark.parametrize(("out", "is_free"), [(2, False), (3, True)])
def test_the_gap_before_a_copy_out_that_starts_early_is_not_free(machine, out, is_free):
    """h is read by ops 2 and 5. Copied out from op 2 on, it must be there when op 2 begins."""
    trace = parse("""
        f a  x:I4M -> h:A4M! 1s
        f b  x     -> y:A1M  1s
        f c  h y   -> z:A1M  1s
        f d  z     -> l:T1   1s
        b d' l     -> g:T1   1s
        b a' g h   -> k:T1   1s
    """)
    given_plan = Plan((Swap(Gap(1, 2, 5), "disk", out, 5),))
    free = set(Problem(trace, machine, 0, given_plan).free_gaps())
    assert (Gap(1, 0, 2) in free) == is_free
