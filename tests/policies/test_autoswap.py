"""Zhang, Yeung, Shu, He, Wang: SmartPool and AutoSwap (2019).

The authors' golden curves (six scores on a recorded VGG) are not here: their traces carry no licence,
and the curves contain three slips of their code. The formulas are checked by hand instead.
"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hosts import host
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.policies import ask
from penstock.policies.autoswap import SCORES, Autoswap, scores
from penstock.simulate.least import least_budget
from penstock.solve.best import outcome
from steps import STEPS, chain
from strategies import problems

MIB = 2**20
GIB = 2.0**30


BY_HAND = parse("""
    f a  x:I1 -> p:A4M!  1s
    f b  x    -> q:A2M!  1s
    f c  x    -> y:T1    2s
    b b' q    -> m:T1    1s
    b a' p    -> n:T1    1s
""")


def by_hand(machine, load):
    gaps = [g for g in BY_HAND.gaps(MIB) if g.stop is not None and not g.wraps]
    assert [BY_HAND.values[g.value].name for g in gaps] == ["p", "q"]
    found = scores(BY_HAND, machine.tiers[0], gaps, np.array(load) * MIB)
    return {name: tuple(score.tolist()) for name, score in found.items()}


def test_the_four_scores_by_hand(machine):
    """4 MiB/s down, 2 up. p is idle from 1 s to 5 s, its copies take 3 s; q from 2 s to 4 s, 1.5 s."""
    found = by_hand(machine, [4, 6, 6, 6, 4])
    assert found["doa"] == (1.0, 0.5)
    assert found["aoa"] == (4 * MIB * 1.0, 2 * MIB * 0.5)
    assert found["wdoa"] == (24 * MIB, 12 * MIB)  # MiB s under the load
    # p is picked first; for the 2 s of q's absence its 4 MiB have left the load.
    assert found["swdoa"] == (24 * MIB, 12 * MIB - 8 * MIB)


def test_an_absence_shorter_than_its_copies_counts_less_the_larger_the_value_is():
    found = by_hand(host(1.0 * MIB), [4, 6, 6, 6, 4])
    assert found["doa"] == (-4.0, -2.0)
    assert found["aoa"] == (-4.0 / (4 * MIB), -2.0 / (2 * MIB))


def test_values_idle_at_the_peak_go_first():
    """q is idle for longer, but not while the step holds most."""
    trace = parse("""
        f a  x:I1 -> q:A4M   1ms
        f b  x    -> y:T1    40ms
        f c  q    -> p:A4M!  1ms
        f d  x    -> r:A4M!  1ms
        f e  r    -> z:A8M   1ms
        b e' z r  -> k:T1    1ms
        b a' p    -> l:T1    1ms
    """)
    problem = Problem(trace, host(64 * GIB), trace.peak - 2 * MIB)
    for score in SCORES:
        plan = Autoswap(score)(problem)
        assert outcome(problem, plan).shortfall == 0
        assert [trace.values[s.gap.value].name for s in plan.swaps] == ["p"]


@pytest.mark.parametrize("step", ["chain", "skips", "stateful"])
def test_the_sum_is_at_least_as_good_as_each_score(step):
    """The paper's curve is the envelope of the single scores at all forty limits, or below."""
    trace = STEPS[step]
    least = least_budget(trace).nbytes
    for share in (0.1, 0.3, 0.5, 0.8):
        problem = Problem(trace, host(2 * GIB), least + int(share * (trace.peak - least)))
        combined = outcome(problem, Autoswap()(problem)).rank
        assert combined <= min(outcome(problem, Autoswap(s)(problem)).rank for s in SCORES)


def test_another_seed_tries_other_weights_and_the_same_seed_the_same():
    trace = STEPS["skips"]
    problem = Problem(trace, host(1 * GIB), int(0.5 * trace.peak))
    assert Autoswap(seed=3)(problem) == Autoswap(seed=3)(problem)


def test_a_third_of_the_peak_goes_for_free():
    """Section 5: about a third of the load is saved at no cost in time, where copies hide."""
    trace = chain(30, "4M", "10ms")
    problem = Problem(trace, host(2 * GIB), int(0.66 * trace.peak))
    found = outcome(problem, Autoswap()(problem))
    assert found.shortfall == 0
    assert found.timeline.seconds == pytest.approx(trace.seconds, rel=1e-9)


def test_zero_overhead_keeps_what_would_make_compute_wait():
    """Mode 2 never delays: below what copies can hide, the limit is passed instead."""
    trace = chain(30, "4M", "1ms")
    problem = Problem(trace, host(2 * GIB), int(0.3 * trace.peak))
    limited = outcome(problem, Autoswap()(problem))
    assert limited.timeline.stall_seconds > 0
    plan = Autoswap(mode="free")(problem)
    assert 0 < len(plan.swaps) < len(limited.plan.swaps)
    unhindered = outcome(replace(problem, budget=2 * trace.peak), plan)
    assert unhindered.timeline.stall_seconds == pytest.approx(0.0, abs=1e-12)
    assert unhindered.timeline.peak < trace.peak


def test_small_values_stay():
    trace = chain(12, "512K")
    problem = Problem(trace, host(64 * GIB), trace.peak // 2)
    assert Autoswap()(problem).swaps == ()  # below 1 MiB, as in the paper
    assert len(Autoswap(smallest=2**16)(problem).swaps) > 0


def test_the_paper_counts_no_slack():
    trace = replace(chain(12), slack=8 * MIB)
    problem = Problem(trace, host(64 * GIB), trace.peak)
    assert len(Autoswap()(problem).swaps) > 0
    assert ask(Autoswap(accounting="paper"), problem).plan.swaps == ()


@settings(max_examples=20)
@given(problems(), st.sampled_from(["limit", "free"]))
def test_only_gaps_between_two_accesses_of_one_step_are_swapped(problem, mode):
    plan = Autoswap(mode=mode, evaluations=6)(problem)
    for swap in plan.swaps:
        assert swap.gap.stop is not None
        assert not swap.gap.wraps
        assert problem.trace.values[swap.gap.value].nbytes >= MIB
