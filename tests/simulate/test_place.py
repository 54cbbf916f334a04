"""Ops that use what is placed in a tier, on steps small enough to be computed by hand, and on any.

The tier of `NVM` copies at 4 MiB/s down and 2 MiB/s up; ops read it at 2 MiB/s and write it at 1 MiB/s.
"""

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from penstock.errors import TraceError
from penstock.ir.machine import Device, Direct, Link, Machine, Tier
from penstock.ir.plan import Place, Plan, Recompute, check, wraps
from penstock.ir.schedule import Access, Run
from penstock.ir.text import parse
from penstock.ir.timeline import WORKSPACE, Span
from penstock.ir.trace import Gap
from penstock.simulate.lower import lower
from penstock.simulate.run import price
from strategies import placements, problems, traces

MIB = 2**20
NVM = Machine(
    Device("cpu", 2**40),
    (Tier("nvm", 2**40, Link(4 * MIB), Link(2 * MIB), direct=Direct(2 * MIB, MIB)),),
)
STEP = parse("""
    f a  x:I1M -> h:A4M!  1s
    f b  h     -> y:A1M   2s
    f c  y     -> z:A1M   4s
    b d  z h   -> g:T1M   1s
""")
H = 1


def run(trace, *places, machine=NVM, budget=None):
    plan = Plan(places)
    check(trace, plan, machine)
    return price(lower(trace, plan, budget), machine)


def held(timeline):
    """MiB after the last change at each moment."""
    return dict(zip(timeline.times.tolist(), (timeline.total // MIB).tolist(), strict=True))


def test_what_is_placed_from_birth_is_written_and_read_where_it_is():
    timeline = run(STEP, Place(H, "nvm"))
    assert timeline.spans == [
        Span("compute", 0.0, 5.0, 0),  # 1 s, and 4 MiB written at 1 MiB/s
        Span("compute", 5.0, 9.0, 1),  # 2 s, and 4 MiB read at 2 MiB/s
        Span("compute", 9.0, 13.0, 2),
        Span("compute", 13.0, 16.0, 3),
    ]
    assert held(timeline) == {0.0: 1, 5.0: 2, 9.0: 3, 13.0: 3, 16.0: 1}
    assert timeline.traffic == {"nvm write": 0, "nvm read": 0}


def test_the_device_bandwidth_is_in_the_seconds_of_the_op_already():
    known = replace(NVM, device=replace(NVM.device, bandwidth=4 * MIB))
    # Of 4 s to write and 2 s to read 4 MiB, 1 s is what the device would take.
    assert run(STEP, Place(H, "nvm"), machine=known).seconds == 16.0 - 3.0
    fast = replace(NVM, device=replace(NVM.device, bandwidth=1.5 * MIB))
    assert run(STEP, Place(H, "nvm"), machine=fast).seconds == pytest.approx(8.0 + 4 - 4 / 1.5)


def test_a_value_that_is_copied_out_is_read_there_until_it_is_copied_back():
    timeline = run(STEP, Place(H, "nvm", evict_at=1, prefetch_at=3))
    assert timeline.spans == [
        Span("compute", 0.0, 1.0, 0),
        Span("nvm write", 1.0, 2.0, H),
        Span("compute", 2.0, 6.0, 1),  # waits for the copy, then reads for 2 s
        Span("compute", 6.0, 10.0, 2),
        Span("nvm read", 10.0, 12.0, H),
        Span("compute", 12.0, 13.0, 3),
    ]
    assert held(timeline) == {0.0: 5, 1.0: 5, 2.0: 2, 6.0: 3, 10.0: 6, 12.0: 7, 13.0: 1}
    assert timeline.traffic == {"nvm write": 4 * MIB, "nvm read": 4 * MIB}


def test_an_op_that_does_not_use_the_value_does_not_wait_for_its_copy():
    timeline = run(STEP, Place(H, "nvm", evict_at=2))
    compute = [(span.start, span.end) for span in timeline.spans if span.lane == "compute"]
    assert compute == [(0.0, 1.0), (1.0, 3.0), (3.0, 7.0), (7.0, 10.0)]


STATE = parse("""
    f a  x:I1M w:P4M -> y:A1M  1s
    b b  y x         -> g:G4M  1s
    o s  g w         -> ~w     1s
    o t  x           -> ~x     1s
""")
W = 1


def test_state_that_is_placed_for_good_is_written_in_place_where_it_is():
    timeline = run(STATE, Place(W, "nvm"))
    # Read in a for 2 s; read and written in s for 2 s and 4 s.
    assert [span.end - span.start for span in timeline.spans] == [3.0, 1.0, 7.0, 1.0]
    assert timeline.peak == run(STATE).peak - 4 * MIB
    schedule = lower(STATE, Plan((Place(W, "nvm"),)))
    (update,) = (one for one in schedule.actions if isinstance(one, Run) and one.op == 2)
    after = STATE.next_version[W]
    assert update.direct == (Access(W, "nvm", False), Access(after, "nvm", True))


def test_state_that_comes_back_in_the_next_step_begins_the_step_below():
    after = STATE.next_version[W]
    timeline = run(STATE, Place(after, "nvm", evict_at=3, prefetch_at=2))
    # a reads it in the tier, s updates it on the device, and t runs beside the copy out.
    assert held(timeline)[0.0] == 2
    assert timeline.traffic == {"nvm write": 4 * MIB, "nvm read": 4 * MIB}
    compute = [span.end - span.start for span in timeline.spans if span.lane == "compute"]
    assert compute == [3.0, 1.0, 1.0, 1.0]


def test_what_was_not_written_since_it_came_back_leaves_without_a_copy():
    first = Place(H, "nvm", None, 1)
    again = Place(H, "nvm", 2, None)
    timeline = run(STEP, first, again)
    assert timeline.traffic == {"nvm write": 0, "nvm read": 4 * MIB}
    elsewhere = Place(H, "tape", 2, None)
    machine = NVM.with_tiers(*NVM.tiers, replace(NVM.tiers[0], name="tape"))
    moved = run(STEP, first, elsewhere, machine=machine)
    assert moved.traffic["tape write"] == 4 * MIB
    assert (timeline.peak, moved.peak) == (6 * MIB, 7 * MIB)  # it need not wait for a copy


def test_what_is_only_read_is_copied_out_in_no_step():
    trace = parse("""
        f a  x:I1M w:P4M -> y:A1M  1s
        f b  y           -> z:A1M  1s
        b c  z w         -> g:T1M  1s
        b d  g           -> e:T1M  1s
    """)
    timeline = run(trace, Place(1, "nvm", evict_at=1, prefetch_at=2))
    assert timeline.traffic == {"nvm write": 0, "nvm read": 4 * MIB}
    around = run(trace, Place(1, "nvm", evict_at=3, prefetch_at=0))
    assert around.traffic == {"nvm write": 0, "nvm read": 4 * MIB}
    assert held(around)[0.0] == 5  # x, and w on its way in; y is not made yet


def test_a_written_value_is_copied_out_again():
    trace = parse("""
        f a  x:I1M -> h:A4M  1s
        f b  h     -> y:A1M  1s
        f c  h y   -> ~h     1s
        f d  y     -> z:A1M  1s
        f e  h z   -> u:A1M  1s
    """)
    after = trace.next_version[1]
    clean = run(trace, Place(1, "nvm", None, 1), Place(after, "nvm", 3, 4))
    assert clean.traffic == {"nvm write": 4 * MIB, "nvm read": 8 * MIB}


def test_recomputation_reads_what_is_placed_where_it_is():

    trace = parse("""
        f a  x:I4M -> h:A1M!  1s
        f b  h     -> y:A1M   1s
        f c  y     -> z:A1M   1s
        b d  z h   -> g:T1M   1s
    """)
    plan = Plan((Place(0, "nvm"), Recompute(Gap(1, 1, 3), 3)))
    check(trace, plan, NVM)
    timeline = price(lower(trace, plan), NVM)
    assert timeline.recompute_seconds == 1.0 + 2.0


def test_a_tier_without_direct_rates_cannot_be_priced():
    bare = NVM.with_tiers(replace(NVM.tiers[0], direct=None))
    with pytest.raises(TraceError, match="tier 'nvm' of machine cpu has no direct rates"):
        price(lower(STEP, Plan((Place(H, "nvm"),))), bare)


# -- whatever the step -----------------------------------------------------------------------------


@st.composite
def placed(draw):
    problem = draw(problems())
    machine = draw(st.sampled_from([NVM, replace(NVM, device=Device("cpu", 2**40, 2.0**30))]))
    plan = draw(placements(problem.trace, machine))
    return replace(problem, machine=machine), plan


def ends_below(trace, place):
    return place.prefetch_at is None or wraps(trace, place)


@given(placed())
def test_no_byte_is_lost_and_none_is_made(case):
    problem, plan = case
    timeline = price(lower(problem.trace, plan, problem.budget), problem.machine)
    assert (timeline.resident >= 0).all()
    trace, placed_at = problem.trace, problem.trace.values
    away = {placed_at[p.value].storage for p in plan.places if ends_below(trace, p)}
    away |= {placed_at[s.gap.value].storage for s in plan.swaps if s.gap.wraps or not s.gap.stop}
    left = {v.storage: v.nbytes for v in trace.values if v.freed is None}
    there = sum(nbytes for storage, nbytes in left.items() if storage not in away)
    assert timeline.total[-1] == there + trace.slack


@given(placed())
def test_a_placed_schedule_stays_inside_the_budget_that_it_fits(case):
    problem, plan = case
    schedule = lower(problem.trace, plan, problem.budget)
    enough = problem.budget + schedule.shortfall
    mended = lower(problem.trace, plan, enough)
    assert mended.shortfall == 0
    assert price(mended, problem.machine).peak <= enough


@given(placed())
def test_every_use_of_a_placed_storage_is_on_the_device_or_an_access(case):
    """What a run reads and writes is held, or it is used where it is placed."""
    problem, plan = case
    trace = problem.trace
    schedule = lower(trace, plan, problem.budget)
    if plan.swaps or plan.recomputes:
        return
    away = {value for value, _ in schedule.away} | set(schedule.below)
    there = {trace.values[v].storage for v in trace.initial if v not in away}
    for action in schedule.actions:
        match action:
            case Run():
                direct = {trace.values[one.value].storage for one in action.direct}
                there |= {trace.values[v].storage for v in action.takes}
                op = trace.ops[action.op]
                for value in (*op.reads, *op.writes):
                    storage = trace.values[value].storage
                    assert (storage in there) != (storage in direct)
                there -= {trace.values[v].storage for v in action.frees}
            case _ if hasattr(action, "out"):
                there.add(trace.values[schedule.transfers[action.transfer].value].storage)
            case _ if hasattr(action, "after"):
                there.discard(trace.values[schedule.transfers[action.transfer].value].storage)
            case _ if hasattr(action, "value"):
                there.discard(trace.values[action.value].storage)


@given(traces())
def test_a_step_with_everything_below_holds_its_workspace_alone(trace):
    first = [versions[0] for versions in trace.versions_of.values()]
    plan = Plan(tuple(Place(value, "nvm") for value in first))
    check(trace, plan, NVM)
    timeline = price(lower(trace, plan, 0), NVM)
    assert timeline.peak == max(op.workspace for op in trace.ops)
    assert set(timeline.at_peak()) <= {WORKSPACE}


@given(placed(), st.sampled_from([1.0, 2.0, 64.0]), st.sampled_from([1.0, 2.0, 64.0]))
def test_a_faster_tier_is_never_slower(case, reading, writing):
    problem, plan = case
    tier = problem.machine.tiers[0]
    rates = Direct(tier.direct.read * reading, tier.direct.write * writing)
    faster = problem.machine.with_tiers(replace(tier, direct=rates))
    schedule = lower(problem.trace, plan, problem.budget)
    assume(not schedule.away)  # else the copies of the step before change what is waited for
    assert price(schedule, faster).seconds <= price(schedule, problem.machine).seconds + 1e-9


@given(problems())
def test_a_plan_that_places_nothing_accesses_nothing(problem):
    schedule = lower(problem.trace, Plan(), problem.budget)
    assert (len(schedule.direct), schedule.below) == (0, ())
