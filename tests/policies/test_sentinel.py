"""Sentinel's intervals, on steps whose layers are their ops."""

from dataclasses import replace

import pytest
from hypothesis import given, settings

from penstock import machines
from penstock.ir.machine import Device, Link, Machine, Tier
from penstock.ir.plan import Place, Plan, check
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.policies.sentinel import Memory, Sentinel, layer_starts
from penstock.solve.best import outcome
from steps import STEPS, chain
from strategies import traces

MIB = 2**20
OPTANE = machines.machine("xeon-optane+nvm-sync")
GPU = Machine(Device("cuda", 2**40), (Tier("host", 2**40, Link(2.0**33), Link(2.0**33)),))


def test_where_everything_fits_nothing_moves():
    problem = Problem(STEPS["skips"], OPTANE, STEPS["skips"].peak)
    assert Sentinel()(problem) == Plan()


def test_a_layer_is_a_run_of_ops_of_one_module_in_one_phase():
    trace = STEPS["chain"]
    assert layer_starts(trace) == list(range(len(trace.ops)))
    named = replace(
        trace, ops=tuple(replace(op, module=f"block{op.index % 24 // 3}") for op in trace.ops)
    )
    # 13 ops of forward in runs of three, and the same of backward.
    assert layer_starts(named) == [0, 3, 6, 9, 12, 13, 15, 18, 21, 24]


@pytest.mark.parametrize("share", [0.2, 0.5])
@pytest.mark.parametrize("step", ["chain", "skips", "stateful"])
def test_no_plan_moves_what_lives_within_one_layer(step, share):
    trace = STEPS[step]
    problem = Problem(trace, OPTANE, int(share * trace.peak))
    plan = Sentinel()(problem)
    check(trace, plan, OPTANE)
    memory = Memory(problem, 4096, 1)
    long = {one.storage for one in memory.long}
    assert plan.places
    assert {trace.values[place.value].storage for place in plan.places} <= long
    for one in memory.long:
        assert one.begins or one.born < one.dies


def test_the_shortest_and_the_longest_interval_are_both_dominated():
    trace = chain(24)
    problem = Problem(trace, GPU, trace.peak // 3)
    memory = Memory(problem, 4096, 1)
    seconds = {
        length: outcome(problem, memory.plan(length)).rank
        for length in range(1, len(memory.layers) + 1)
    }
    best = min(seconds.values())
    assert best < seconds[1]
    assert best < seconds[len(memory.layers)]


def test_the_hot_go_first_where_not_all_fit():
    # hot and cold are read in the same interval, hot three times; there is room for one of them.
    trace = parse("""
        f a  hot:P8M cold:P8M -> y:A64K  1ms
        f b  hot y            -> z:A64K  1ms
        f c  hot z            -> u:A64K  1ms
        f d  u cold           -> v:A64K  1ms
    """)
    problem = Problem(trace, OPTANE, 9 * MIB)
    memory = Memory(problem, 4096, 1)
    plan = memory.plan(len(memory.layers))
    names = {trace.values[place.value].name for place in plan.places if place.evict_at is None}
    assert names == {"cold"}


def test_an_interval_that_is_lazy_brings_nothing_in():
    trace = chain(12)
    problem = Problem(trace, OPTANE, trace.peak // 2)
    memory = Memory(problem, 4096, 1)
    eager, lazy = memory.plan(4), memory.plan(4, {3, 4, 5, 6})
    back = [[p for p in plan.places if p.prefetch_at is not None] for plan in (eager, lazy)]
    assert len(back[1]) < len(back[0])
    assert all(place.prefetch_at < memory.layers[12] for place in back[1])


@pytest.mark.parametrize("step", STEPS)
def test_a_plan_stays_inside_fast_memory_wherever_the_short_lived_do(step):
    trace = STEPS[step]
    for share in (0.2, 0.5, 0.8):
        problem = Problem(trace, OPTANE, int(share * trace.peak))
        room = Memory(problem, 4096, Sentinel().smallest).room.min(initial=0)
        found = outcome(problem, Sentinel()(problem))
        assert found.shortfall == max(0, -room)


def test_without_direct_access_the_plan_swaps():
    trace = chain(12)
    problem = Problem(trace, GPU, trace.peak // 2)
    plan = Sentinel()(problem)
    check(trace, plan, GPU)
    assert plan.swaps and not plan.places
    assert outcome(problem, plan).shortfall == 0


def test_using_the_slow_memory_is_chosen_where_waiting_costs_more():
    # The links are hopeless, and ops lose little below.
    slow = replace(OPTANE.tiers[0], read=Link(2.0**20), write=Link(2.0**20))
    trace = chain(12)
    problem = Problem(trace, OPTANE.with_tiers(slow), trace.peak // 2)
    found = outcome(problem, Sentinel(trials=64)(problem))
    waiting = outcome(problem, Sentinel(trials=0)(problem))
    assert found.timeline.seconds < waiting.timeline.seconds


@settings(max_examples=20)
@given(traces(max_layers=4))
def test_any_step_is_planned(trace):
    for machine in (OPTANE, GPU):
        problem = Problem(trace, machine, trace.peak // 2)
        plan = Sentinel(smallest=1)(problem)
        check(trace, plan, machine)
        assert all(isinstance(d, Place) for d in plan.decisions) or machine is GPU
