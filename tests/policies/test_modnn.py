"""Chen, Chen, Hu, Han: moDNN (IEEE TPDS 2019)."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from hosts import host
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.policies.modnn import Modnn
from penstock.policies.vdnn import Vdnn
from penstock.solve.best import outcome
from steps import STEPS, chain, convolutions
from strategies import problems

MIB = 2**20


def ask(policy, trace, budget, on):
    problem = Problem(trace, on, budget)
    return outcome(problem, policy(problem))


def moved(found):
    """Bytes over both links."""
    return sum(found.timeline.traffic.values())


def equation_7(trace):
    """For a whole batch: what is there when the step begins, and the most that a task works on."""
    size = trace.columns.nbytes.tolist()
    initial = set(trace.initial)
    tasks = (
        op.workspace + sum(size[v] for v in {*op.reads, *trace.fresh[op.index]} - initial)
        for op in trace.ops
    )
    return sum(size[v] for v in initial) + max(tasks)


@pytest.mark.parametrize("step", ["chain", "skips", "stateful"])
def test_the_lower_bound_is_reached_and_a_byte_less_is_not(step):
    """Gradients wait for the optimizer in `stateful`: they leave too."""
    trace, on = STEPS[step], host(2**30)
    bound = equation_7(trace)
    assert ask(Modnn(smallest=1), trace, bound, on).shortfall == 0
    assert ask(Modnn(smallest=1), trace, bound - 1, on).shortfall == 1


@pytest.mark.parametrize("step", STEPS)
def test_ample_memory_moves_nothing(step):
    assert ask(Modnn(), STEPS[step], STEPS[step].peak, host(2**30)).plan.decisions == ()


@pytest.mark.parametrize("share", [0.4, 0.6, 0.8, 0.95])
def test_it_moves_no_more_than_vdnn(share):
    trace, on = convolutions(12), host(8 * MIB)
    budget = int(share * trace.peak)
    every = ask(Vdnn("all"), trace, budget, on)
    found = ask(Modnn(), trace, budget, on)
    assert found.shortfall == 0
    assert moved(found) <= moved(every)
    assert found.timeline.seconds <= every.timeline.seconds


def test_a_fetch_starts_with_the_last_task_that_can_hide_it():
    """A copy lasts as long as a task; all is idle long enough."""
    trace = chain(12, "4M", "1s")
    found = ask(Modnn(), trace, trace.peak - 8 * MIB, host(4 * MIB))
    assert len(found.plan.swaps) == 2
    assert {swap.gap.stop - swap.prefetch_at for swap in found.plan.swaps} == {1}
    assert found.timeline.seconds == trace.seconds


def test_what_leaves_without_delay_goes_before_what_is_needed_last():
    """A megabyte lacks at op 3. The copy of s, needed last, would not be over before 8 s."""
    trace = parse("""
        f a   x:I1K -> s:A16M! 1s
        f b   x     -> e:A2M!  1s
        f f   x     -> y:A1M   1s
        f g   y     -> z:A4M   1s
        f h   z     -> l:T1    1s
        b b'  l e   -> q:T1    1s
        b c'  q     -> u:T1    4s
        b a'  u s   -> r:T1    1s
    """)
    found = ask(Modnn(), trace, trace.peak - MIB + 2**10, host(2 * MIB))
    assert [trace.values[s.gap.value].name for s in found.plan.swaps] == ["e"]
    assert found.timeline.seconds == trace.seconds


def held(found):
    """Bytes times seconds."""
    timeline = found.timeline
    lasts = np.diff([*timeline.times, timeline.seconds])
    return float((timeline.total * lasts).sum())


@pytest.mark.parametrize("share", [0.5, 0.7])
def test_fetching_as_early_as_possible_holds_more(share):
    trace, on = convolutions(12), host(8 * MIB)
    budget = int(share * trace.peak)
    wait, hurry = (ask(Modnn(wait=wait), trace, budget, on) for wait in (True, False))
    assert wait.shortfall == hurry.shortfall == 0
    assert moved(wait) <= moved(hurry)
    assert held(wait) < held(hurry)


def unmovable(trace):
    """The most bytes that no plan for activations can send away, at any op."""
    left = trace.live.copy()
    for gap in trace.gaps():
        value = trace.values[gap.value]
        if not gap.wraps and not value.kind.is_state:
            freed = len(left) if value.freed is None else value.freed + 1
            left[gap.start + 1 : freed if gap.stop is None else gap.stop] -= value.nbytes
    return int(left.max())


@settings(max_examples=80)
@given(problems())
def test_what_can_be_made_to_fit_fits(problem):
    tight = replace(problem, budget=unmovable(problem.trace))
    assert outcome(tight, Modnn(smallest=1)(tight)).shortfall == 0
