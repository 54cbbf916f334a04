"""AutoTM's integer programme, against trying everything, and the plans made of it."""

import itertools
import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock import machines
from penstock.ir.machine import Device, Direct, Link, Machine, Tier
from penstock.ir.plan import Place, Plan, Swap, check
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.policies.autotm import Autotm
from penstock.simulate.least import least_budget
from penstock.solve.best import outcome
from penstock.solve.placement import penalty, slow_tier, stored
from penstock.solve.residence import programme
from steps import STEPS, chain
from strategies import traces

pytest.importorskip("highspy")

MIB = 2**20
OPTANE = machines.machine("xeon-optane+nvm-sync")
GPU = Machine(Device("cuda", 2**40), (Tier("host", 2**40, Link(2.0**33), Link(2.0**33)),))
VARIANTS = ("static", "synchronous", "asynchronous")


def exact(variant="synchronous", **options):
    return Autotm(variant, gap=0.0, smallest=1, **options)


def seconds(problem, variant):
    """The proven optimum of the programme."""
    found = exact(variant).solve(problem)[1]
    assert found.proven
    return found.objective


@pytest.mark.parametrize("variant", VARIANTS)
def test_where_everything_fits_nothing_moves_and_nothing_is_slower(variant):
    problem = Problem(STEPS["skips"], OPTANE, STEPS["skips"].peak)
    assert exact(variant)(problem) == Plan()
    assert seconds(problem, variant) == problem.trace.seconds


@pytest.mark.parametrize("step", ["chain", "in place"])
def test_more_fast_memory_is_never_slower_and_neither_is_more_freedom(step):
    trace, last = STEPS[step], [math.inf] * 3
    for share in (0.2, 0.4, 0.6, 0.8):
        problem = Problem(trace, OPTANE, int(share * trace.peak))
        now = [seconds(problem, variant) for variant in VARIANTS]
        assert all(b <= a + 1e-12 for a, b in pairwise(now))  # each may do more than the one before
        assert all(a <= b + 1e-12 for a, b in zip(now, last, strict=True))
        last = now


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("step", STEPS)
def test_a_plan_stays_inside_fast_memory(step, variant):
    trace = STEPS[step]
    for share in (0.1, 0.5):
        problem = Problem(trace, OPTANE, int(share * trace.peak))
        plan = Autotm(variant)(problem)
        check(trace, plan, OPTANE)
        found = outcome(problem, plan)
        small = least_budget(trace)  # what is small stays, and workspace is on the device
        if problem.budget >= small.nbytes:
            assert found.shortfall == 0


def test_what_is_placed_for_life_never_moves():
    problem = Problem(STEPS["chain"], OPTANE, STEPS["chain"].peak // 2)
    plan = exact("static")(problem)
    assert plan.places
    assert all(place.evict_at is place.prefetch_at is None for place in plan.places)


def test_the_synchronous_plan_costs_what_the_programme_says_where_copies_are_waited_for():
    # h is made and read once more; while it waits, there is no room for it.
    trace = parse("""
        f a  x:I1M -> h:A8M!   1ms
        f b  h     -> y:A1M    1ms
        f c  y     -> z:A8M    1ms
        f d  z     -> u:A1M    1ms
        b e  u h   -> g:T1M    1ms
    """)
    problem = Problem(trace, OPTANE, 11 * MIB)
    sought, found = exact().solve(problem)
    plan = exact()(problem)
    priced = outcome(problem, plan)
    assert (sought.storages != [], priced.shortfall) == (True, 0)
    assert priced.timeline.seconds <= found.objective + 1e-9


PATH = parse("""
    f a  x:I1M -> h:A8M!   1ms
    f b  h     -> y:A1M    1ms
    f c  y     -> z:A8M    1ms
    f d  h z   -> u:A1M    1ms
    f e  u     -> v:A8M    1ms
    b f  v h   -> g:T1M    1ms
""")


def cost_of(path, trace=PATH, budget=10 * MIB):
    """Seconds that the programme adds if h takes this path: at its uses, and after them."""
    problem = Problem(trace, OPTANE, budget)
    sought = programme(problem, "synchronous")
    storage = next(v.storage for v in trace.values if v.name == "h")
    for (name, number), value in path.items():
        sought.model.fix(sought.model.names[name, storage, number], value)
    others = [one for one in sought.storages if one.storage != storage]
    for one in others:  # the rest is free, and counted alike
        for number in range(len(one.uses)):
            sought.model.fix(sought.model.names["at", one.storage, number], 0.0)
    return sought.model.solve(10).objective


def test_a_version_is_copied_down_once():
    there, gone = {("at", n): 1.0 for n in range(4)}, {("after", 0): 0.0}
    tier = OPTANE.tiers[0]
    up, down = tier.read.seconds(8 * MIB), tier.write.seconds(8 * MIB)
    once = cost_of({**there, **gone, ("after", 1): 0.0})
    twice = cost_of({**there, **gone, ("after", 1): 0.0, ("after", 2): 0.0})
    assert twice - once == pytest.approx(up)
    born_below = cost_of({**there, ("at", 0): 0.0, **gone, ("after", 1): 0.0})
    written = penalty(OPTANE, tier, 8 * MIB, written=True)
    assert born_below - once == pytest.approx(written - down)


# -- against trying everything ----------------------------------------------------------------------


def ways(one, tier, moves):
    """Every path of a storage: what it costs, by the ops at which it is in fast memory."""
    found = {}
    count = len(one.uses)
    for bits in itertools.product((0, 1), repeat=2 * count + 1):
        at, after, lead = bits[:count], bits[count : 2 * count], bits[-1]
        if one.lasts and count:
            if lead != after[-1]:
                continue
        elif not one.begins and lead:
            continue
        if moves == "static" and len({*at, *after, *([lead] if one.begins else [])}) > 1:
            continue
        cost = sum(x for x, there in zip(one.extra, at, strict=True) if not there)
        # The path in the order of time, twice for what lasts: the first round is the step before.
        place, copied = (lead if one.begins else at[0] if count else 0), not lead
        paid = 0.0
        for _ in range(2 if one.lasts else 1):
            paid = 0.0
            for n in range(count):
                if at[n] > place:
                    paid += tier.read.seconds(one.nbytes)
                elif at[n] < place:
                    paid += 0.0 if copied else tier.write.seconds(one.nbytes)
                    copied = True
                if one.epoch[n] == n:  # this use writes it
                    copied = not at[n]
                if after[n] < at[n]:
                    paid += 0.0 if copied else tier.write.seconds(one.nbytes)
                    copied = True
                elif after[n] > at[n]:
                    paid += tier.read.seconds(one.nbytes)
                place = after[n]
        held = frozenset(
            [op for op in one.lead if lead]
            + [use for use, there in zip(one.uses, at, strict=True) if there]
            + [op for idle, there in zip(one.idle, after, strict=True) if there for op in idle]
        )
        found[held] = min(found.get(held, math.inf), cost + paid)
    return found


def by_trying(problem, moves):
    trace, tier = problem.trace, slow_tier(problem.machine)
    storages = stored(problem, tier)
    room = [problem.budget - op.workspace for op in trace.ops]
    cheapest = math.inf
    options = [list(ways(one, tier, moves).items()) for one in storages]
    for chosen in itertools.product(*options):
        if (cost := sum(cost for _, cost in chosen)) < cheapest:
            held = [0] * len(trace.ops)
            for one, (ops, _) in zip(storages, chosen, strict=True):
                for op in ops:
                    held[op] += one.nbytes
            if all(a <= b for a, b in zip(held, room, strict=True)):
                cheapest = cost
    return trace.seconds + cheapest


SMALL = [
    """
    f a  x:I2M -> h:A4M!   1ms
    f b  h     -> y:A3M    1ms
    b c  y h   -> g:T1M    1ms +1M
    """,
    """
    f a  x:I1M w:P4M -> y:A2M 1ms
    b b  y           -> g:T4M 1ms
    o s  g w         -> ~w    1ms
    """,
    """
    f a  w:P4M -> h:A3M    1ms
    f b  h     -> ~h       1ms
    f c  w     -> z:A4M    1ms
    b d  h z   -> g:T1M    1ms
    """,
]


@pytest.mark.parametrize("moves", ["static", "synchronous"])
@pytest.mark.parametrize("text", SMALL)
@pytest.mark.parametrize("room", [2, 5, 7, 9])
def test_the_optimum_is_that_of_trying_everything(text, room, moves):
    problem = Problem(parse(text), OPTANE, room * MIB)
    assert seconds(problem, moves) == pytest.approx(by_trying(problem, moves))


# -- other machines, other steps ----------------------------------------------------------------------


def test_without_direct_access_the_plan_swaps_what_lies_idle():
    problem = Problem(STEPS["skips"], GPU, int(0.7 * STEPS["skips"].peak))
    for variant in ("synchronous", "asynchronous"):
        plan = exact(variant)(problem)
        assert plan.swaps and not plan.places
        assert outcome(problem, plan).shortfall == 0
    assert exact("static")(problem) == Plan()


def test_an_asynchronous_plan_brings_values_back_ahead_of_their_use():
    problem = Problem(chain(8), GPU, int(0.6 * chain(8).peak))
    ahead = [swap.gap.stop - swap.prefetch_at for swap in exact("asynchronous")(problem).swaps]
    level = [swap.gap.stop - swap.prefetch_at for swap in exact("synchronous")(problem).swaps]
    assert max(ahead) > 0 == max(level)


@settings(max_examples=20)
@given(traces(max_layers=4), st.sampled_from([OPTANE, GPU]), st.sampled_from(VARIANTS), st.data())
def test_any_step_is_planned_and_what_is_given_stays(trace, machine, variant, data):
    from strategies import plans

    given_plan = Plan(data.draw(plans(trace, machine)).recomputes)
    problem = Problem(trace, machine, trace.peak // 2, given_plan)
    plan = exact(variant)(problem)
    check(trace, plan, machine)
    assert set(given_plan.decisions) <= set(plan.decisions)


def test_a_tier_as_fast_as_the_device_costs_nothing():
    tier = replace(OPTANE.tiers[0], direct=Direct(1e15, 1e15))
    problem = Problem(STEPS["chain"], OPTANE.with_tiers(tier), STEPS["chain"].peak // 4)
    assert seconds(problem, "static") == pytest.approx(problem.trace.seconds)
    assert outcome(problem, exact("static")(problem)).timeline.seconds == problem.trace.seconds


def test_decisions_are_placements_or_swaps_only():
    problem = Problem(STEPS["stateful"], OPTANE, STEPS["stateful"].peak // 3)
    for decision in exact()(problem).decisions:
        assert isinstance(decision, Place | Swap)


@settings(max_examples=40)
@given(traces(max_layers=4), st.sampled_from([0.3, 0.6, 0.8]))
def test_a_step_is_never_slower_than_the_programme_says(trace, share):
    """It lets moves between ops be waited for; a step waits for them only where it must."""
    smooth = OPTANE.with_tiers(replace(OPTANE.tiers[0], drag=0.0))
    problem = Problem(trace, smooth, int(share * trace.peak))
    said = {variant: seconds(problem, variant) for variant in ("static", "synchronous")}
    run = {variant: outcome(problem, exact(variant)(problem)).timeline.seconds for variant in said}
    assert run["static"] == pytest.approx(said["static"], rel=1e-9)
    assert run["synchronous"] <= said["synchronous"] * (1 + 1e-9)
