"""Kirisame et al.: Dynamic Tensor Rematerialization (ICLR 2021).

The golden values count the ops that the authors' simulator runs on its uniform chain (its eager
runtime, `RuntimeV2EagerOptimized`), at a budget of 2 ceil(sqrt n). Their curves on recorded models can
be compared in shape only: the recordings carry no licence.
"""

from dataclasses import replace
from math import ceil, inf, sqrt

import pytest

from penstock.ir.machine import Device, Machine
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.policies.dtr import SCORES, Dtr
from penstock.solve.best import outcome
from penstock.solve.online import replay
from penstock.source import step_and_machine
from steps import STEPS, chain

MACHINE = Machine(Device("cpu", 2**40))
MIB = 2**20

GOLDEN = {
    16: {"dtr": 40, "eq": 40, "msps": 41, "local": 43, "lru": 43, "size": 76},
    36: {"dtr": 96, "eq": 96, "msps": 103, "local": 127, "lru": 127, "size": 396},
    64: {"dtr": 177, "eq": 177, "msps": 188, "local": 289, "lru": 289, "size": 1352},
    100: {"dtr": 280, "eq": 280, "msps": 300, "local": 555, "lru": 555, "size": 3520},
    256: {"dtr": 742, "eq": 742, "msps": 816, "local": 2494, "lru": 2494, "size": 25936},
}


def uniform(n):
    """The authors' chain: each op makes one byte in one second.

    f(i) reads f(i - 1). b(n - 1) reads nothing; b(i) reads f(i - 1) and b(i + 1). f(i) is released just
    before b(i).
    """
    lines = ["f f0 -> f0:A1 1s"]
    lines += [f"f f{i} f{i - 1} -> f{i}:A1 1s" for i in range(1, n)]
    lines += [f"b b{n - 1} -> b{n - 1}:T1 1s", f"free f{n - 2}"]
    for i in reversed(range(n - 1)):
        lines.append(f"b b{i} {f'f{i - 1}' if i else ''} b{i + 1} -> b{i}:T1 1s")
    return parse("\n".join(lines))


def replayed(n, score, budget=None, limit=inf):
    room = 2 * ceil(sqrt(n)) if budget is None else budget
    problem = Problem(uniform(n), MACHINE, room)
    return replay(problem, SCORES[score], smallest=1, limit=limit)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("n", GOLDEN)
def test_as_many_ops_run_as_in_the_authors_simulator(n, score):
    found = replayed(n, score)
    assert found.lacking == 0
    assert found.runs == GOLDEN[n][score]


def test_the_full_score_stays_below_one_and_a_half_steps_and_recency_does_not():
    runs = {score: [replayed(n, score).runs / (2 * n) for n in GOLDEN] for score in SCORES}
    assert max(runs["dtr"]) < 1.5
    assert runs["lru"][-1] > 1.5
    assert runs["local"][-1] > 1.5


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("step", STEPS)
def test_without_a_limit_nothing_is_remade(score, step):
    problem = Problem(STEPS[step], MACHINE, STEPS[step].peak)
    found = replay(problem, SCORES[score], smallest=1)
    assert (found.runs, found.again, found.decisions) == (len(STEPS[step].ops), 0.0, ())
    assert Dtr(score=score)(problem).decisions == ()


@pytest.mark.parametrize("score", ["dtr", "eq", "msps", "local", "lru"])
def test_the_plan_fits_wherever_the_replay_did(score):
    trace = chain(36, "1M")
    problem = Problem(trace, MACHINE, 14 * MIB)
    assert replay(problem, SCORES[score]).lacking == 0
    found = outcome(problem, Dtr(score=score)(problem))
    assert found.shortfall == 0
    assert 0 < found.timeline.recompute_seconds <= trace.seconds


def test_less_room_costs_more_time_and_recency_costs_most():
    """The shape of the authors' curves: overhead grows as the budget shrinks, and h_DTR's least."""
    trace = chain(64, "1M")
    seconds = {
        score: [
            outcome(p := Problem(trace, MACHINE, room * MIB), Dtr(score=score)(p)).timeline.seconds
            for room in (50, 30, 18)
        ]
        for score in ("dtr", "lru")
    }
    assert seconds["dtr"] == sorted(seconds["dtr"])
    assert seconds["dtr"][-1] < seconds["lru"][-1]


def test_beyond_its_limit_it_gives_up_and_says_what_lacks():
    """One step's seconds of remakes again is thrashing."""
    found = replayed(64, "size", limit=1.0)
    assert found.thrashed
    assert found.again <= 128 + 64
    assert found.lacking > 0
    assert not replayed(64, "dtr", limit=1.0).thrashed


def test_where_nothing_may_leave_it_says_what_lacks():
    found = replayed(16, "dtr", budget=2)
    assert found.lacking > 0


@pytest.mark.parametrize("step", ["zoo:unet?size=full", "zoo:frozen?size=small"])
def test_with_the_bytes_that_it_lacks_it_fits(step):
    trace, machine = step_and_machine(step, "gh200")
    problem = Problem(trace, machine, int(0.4 * (trace.peak + trace.slack)))
    lacks = outcome(problem, Dtr()(problem)).shortfall
    enough = replace(problem, budget=problem.budget + lacks)
    assert lacks > 0
    assert outcome(enough, Dtr()(enough)).shortfall == 0


def test_the_cheap_one_of_two_goes():
    """c / (m x staleness): of two values as large and as old, the one that is faster to remake."""
    trace = parse("""
        f slow   x:I1K -> a:A8M! 800ms
        f fast   x     -> b:A8M! 1ms
        f use    a b   -> y:A1M! 1ms
        f loss   y     -> l:T1K  1ms
        b loss'  l y   -> d:T8M  1ms
        b next   d     -> e:T1K  1ms
        b fast'  e b   -> g:T1K  1ms
        b slow'  g a   -> k:T1K  1ms
    """)
    plan = Dtr()(Problem(trace, MACHINE, trace.peak - 2 * MIB))
    assert [trace.values[d.gap.value].name for d in plan.decisions] == ["b"]


def test_by_size_the_largest_goes_whatever_it_costs():
    trace = parse("""
        f slow   x:I1K -> a:A8M! 800ms
        f fast   x     -> b:A4M! 1ms
        f use    a b   -> y:A1M! 1ms
        f loss   y     -> l:T1K  1ms
        b loss'  l y   -> d:T8M  1ms
        b next   d     -> e:T1K  1ms
        b fast'  e b   -> g:T1K  1ms
        b slow'  g a   -> k:T1K  1ms
    """)
    for score, gone in (("size", ["a"]), ("dtr", ["b"])):
        plan = Dtr(score=score)(Problem(trace, MACHINE, trace.peak - 2 * MIB))
        assert [trace.values[d.gap.value].name for d in plan.decisions] == gone
