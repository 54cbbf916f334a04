"""Memory Monger: the released search over the threshold of Chen et al. (2016)."""

import math

import numpy as np
import pytest

from penstock.ir.machine import Device, Machine
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.policies.memonger import Memonger
from penstock.solve.best import outcome
from penstock.solve.segments import crossings, split
from steps import chain

MIB = 2**20
MACHINE = Machine(Device("cpu", 2**40))


def segmented(trace):
    saved, cuts = list(trace.saved_gaps(MIB)), crossings(trace, 1, MIB)
    return lambda threshold: split(trace, saved, cuts, threshold)


def searched(trace, **options):
    return [threshold for threshold, _ in Memonger(**options).search(segmented(trace))]


def test_the_thresholds_are_those_of_the_release():
    """A hundred values of 1 MiB, worked by hand from its search.

    None: saves 100, largest 1, so the guess is int(sqrt(50)) = 7. Above 7: segments of 8, twelve of
    which a cut ends: int(sqrt(12 * 8 / 2)) = 6. Above 6: fourteen of 7: int(sqrt(49)) = 7. The smallest
    segment seen is 1, so the grid has the step int((7 * sqrt(2) - 1) / 6) = 1.
    """
    assert searched(chain(100, "1M")) == [0, 7, 6, 2, 3, 4, 5, 6, 7]


def test_no_grid_where_its_step_is_less_than_a_mebibyte():
    assert searched(chain(9, "1M")) == [0, 2, 2]


def test_finer_units_find_finer_thresholds():
    assert max(searched(chain(9, "1M"), unit=2**10)) > 2 * 2**10


def test_at_nine_there_are_ten_segments_of_ten():
    """Section 4.1: n layers in sqrt(n) segments take 2 sqrt(n) at once."""
    trace = chain(100, "1M")
    cut = segmented(trace)(9 * MIB)
    assert (cut.kept, cut.largest) == (10 * MIB, 10 * MIB)
    found = outcome(problem := Problem(trace, MACHINE, 0), problem.given.plus(cut.decisions))
    assert found.timeline.peak <= (2 * math.isqrt(100) + 3) * MIB
    assert len([s for s in found.timeline.spans if s.ref < 100]) <= 2 * 100


def residual(blocks):
    """ResNet's shape: what enters a block is added to what leaves it; all saved, 1 MiB each."""
    forward = ["f aten.convolution x:I1 -> s0:A1M! 1ms"]
    backward = []
    for n in range(blocks):
        forward += [
            f"f aten.convolution s{n} -> h{n}:A1M! 1ms",
            f"f aten.add h{n} s{n} -> s{n + 1}:A1M! 1ms",
        ]
        backward += [
            f"b aten.convolution_backward g s{n} -> ~g 2ms",
            f"b aten.relu_backward g h{n} -> ~g 1ms",
        ]
    head = [f"f aten.loss s{blocks} -> l:T1 1ms", f"b aten.loss_backward l s{blocks} -> g:T1 1ms"]
    return parse("\n".join([*forward, *head, *reversed(backward)]))


@pytest.mark.parametrize("shape", [lambda n: chain(n, "1M"), residual], ids=["chain", "residual"])
def test_the_least_memory_grows_with_the_root_of_the_depth(shape):
    depths = [64, 128, 256]
    peaks, kept = [], []
    for depth in depths:
        problem = Problem(shape(depth), MACHINE, 0)
        plan = Memonger(goal="memory")(problem)
        peaks.append(outcome(problem, plan).timeline.peak)
        kept.append(problem.trace.peak)
    assert np.polyfit(np.log(depths), np.log(peaks), 1)[0] == pytest.approx(0.5, abs=0.1)
    assert np.polyfit(np.log(depths), np.log(kept), 1)[0] == pytest.approx(1.0, abs=0.05)


def test_the_least_memory_is_sought_whatever_the_budget():
    trace = chain(64, "1M")
    ample = Problem(trace, MACHINE, 2 * trace.peak)
    assert Memonger()(ample).decisions == ()
    least = outcome(ample, Memonger(goal="memory")(ample)).timeline.peak
    tight = Problem(trace, MACHINE, 0)
    assert least == outcome(tight, Memonger(goal="memory")(tight)).timeline.peak
    assert least < trace.peak / 2


def test_the_cheapest_threshold_that_fits_is_taken():
    trace = chain(64, "1M")
    found = [
        outcome(p := Problem(trace, MACHINE, budget * MIB), Memonger()(p))
        for budget in (18, 24, 40, 65)
    ]
    assert [one.shortfall for one in found] == [0, 0, 0, 0]
    seconds = [one.timeline.seconds for one in found]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[-1] == trace.seconds


def test_where_two_values_always_cross_only_a_cut_of_two_ends_a_segment():
    """An unrolled recurrence hands on two states; the release's marks name both with one label."""
    steps = range(1, 30)
    lines = ["f s0 x:I1 -> c0:A1M! h0:A1M! 1ms"]
    lines += [f"f s{t} c{t - 1} h{t - 1} -> c{t}:A1M! h{t}:A1M! 1ms" for t in steps]
    lines += ["f loss c29 h29 -> l:T1 0ms", "b loss' l -> g30:T1 0ms"]
    lines += [f"b s{t}' g{t + 1} c{t} h{t} -> g{t}:T1 1ms" for t in reversed(range(30))]
    trace = parse("\n".join(lines))
    problem = Problem(trace, MACHINE, 0)
    assert Memonger(widths=1, goal="memory")(problem).decisions == ()
    plan = Memonger(widths=2, goal="memory")(problem)
    assert outcome(problem, plan).timeline.peak < trace.peak / 2
    dropped = {trace.values[d.gap.value].name for d in plan.decisions}
    assert {name.replace("c", "h") for name in dropped} == {n for n in dropped if n[0] == "h"}
