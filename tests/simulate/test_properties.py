"""What holds for every step, plan, machine and budget."""

from itertools import pairwise

from hypothesis import assume, given
from hypothesis import strategies as st

from penstock.ir.machine import Machine
from penstock.ir.plan import Plan
from penstock.ir.timeline import lane_of
from penstock.ir.trace import Trace
from penstock.simulate.least import MOVABLE_FROM, least_budget
from penstock.simulate.lower import lower
from penstock.simulate.run import price
from strategies import machines, plans, problems, traces


@st.composite
def planned(draw: st.DrawFn, at_least: int = 1) -> tuple[Trace, Machine, int, Plan]:
    problem = draw(problems())
    plan = draw(plans(problem.trace, problem.machine, at_least))
    return problem.trace, problem.machine, problem.budget, plan


def working_set(trace: Trace) -> int:
    """The most that one op reads, makes and scratches at once."""
    size = trace.columns.nbytes
    return max(
        sum(int(size[v]) for v in {*op.reads, *trace.fresh[op.index]}) + op.workspace
        for op in trace.ops
    )


@given(planned())
def test_peak_is_never_below_the_largest_working_set(case):
    trace, machine, budget, plan = case
    assert price(lower(trace, plan, budget), machine).peak >= working_set(trace)


@given(problems(), st.integers(1, 2**26))
def test_more_budget_never_makes_the_keep_all_plan_slower(problem, more):
    trace, budget, machine = problem.trace, problem.budget, problem.machine
    tight, loose = (price(lower(trace, Plan(), b), machine) for b in (budget, budget + more))
    assert loose.seconds <= tight.seconds
    assert tight.seconds == trace.seconds


@given(traces(), machines())
def test_the_keep_all_plan_holds_what_the_trace_says(trace, machine):
    timeline = price(lower(trace, Plan()), machine)
    assert timeline.peak == trace.peak
    assert timeline.stall_seconds == 0
    assert not any(timeline.traffic.values())


@given(planned())
def test_what_goes_out_comes_back_once(case):
    trace, machine, budget, plan = case
    traffic = price(lower(trace, plan, budget), machine).traffic
    for tier in {swap.tier for swap in plan.swaps}:
        mine = [swap for swap in plan.swaps if swap.tier == tier]
        for_good = [swap for swap in mine if swap.prefetch_at is None]
        out, back = traffic[lane_of(tier, inward=False)], traffic[lane_of(tier, inward=True)]
        assert out == sum(trace.values[swap.gap.value].nbytes for swap in mine)
        assert out - back == sum(trace.values[swap.gap.value].nbytes for swap in for_good)


@given(planned(), machines(min_tiers=2))
def test_a_schedule_that_fits_stays_inside_the_budget_at_any_link_speed(case, other):
    trace, machine, budget, plan = case
    schedule = lower(trace, plan, budget)
    assume(schedule.shortfall == 0)
    assert price(schedule, machine).peak <= budget
    if len(machine.tiers) == len(other.tiers):
        assert price(schedule, other).peak <= budget


@given(planned())
def test_a_schedule_that_does_not_fit_says_by_how_much_and_where(case):
    trace, machine, budget, plan = case
    schedule = lower(trace, plan, budget)
    assert (schedule.worst is None) == (schedule.shortfall == 0)
    # Exactly the missing bytes, once given, make the same plan fit.
    enough = budget + schedule.shortfall
    mended = lower(trace, plan, enough)
    assert mended.shortfall == 0
    assert price(mended, machine).peak <= enough


@given(planned(at_least=MOVABLE_FROM))
def test_no_plan_fits_below_the_least_budget(case):
    trace, _, _, plan = case
    least = least_budget(trace)
    assert lower(trace, plan, least.nbytes - 1).shortfall > 0


@given(planned())
def test_waiting_is_all_that_a_budget_adds(case):
    """Step seconds are ops, remakes and stalls, and nothing else, where copies do not drag."""
    trace, machine, budget, plan = case
    assume(all(tier.drag == 0 for tier in machine.tiers))
    found = price(lower(trace, plan, budget), machine)
    assert found.seconds == trace.seconds + found.recompute_seconds + found.stall_seconds


@given(planned())
def test_every_op_runs_once_in_order(case):
    trace, machine, budget, plan = case
    spans = price(lower(trace, plan, budget), machine).spans
    runs = [span for span in spans if span.lane == "compute"]
    assert [span.ref for span in runs if not span.again] == list(range(len(trace.ops)))
    assert all(a.end <= b.start for a, b in pairwise(runs))


@given(planned())
def test_copies_on_one_lane_never_overlap(case):
    trace, machine, budget, plan = case
    timeline = price(lower(trace, plan, budget), machine)
    for lane in timeline.lanes[1:]:
        mine = [span for span in timeline.spans if span.lane == lane]
        assert all(a.end <= b.start for a, b in pairwise(mine))


@given(planned())
def test_pricing_twice_gives_the_same_timeline(case):
    trace, machine, budget, plan = case
    one, two = (price(lower(trace, plan, budget), machine) for _ in range(2))
    assert one.spans == two.spans
    assert (one.times == two.times).all()
    assert (one.resident == two.resident).all()
