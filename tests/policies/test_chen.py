"""Chen, Xu, Zhang, Guestrin: Training Deep Nets with Sublinear Memory Cost (2016)."""

import math

import numpy as np
import pytest

from penstock.ir.machine import Device, Machine
from penstock.ir.plan import Plan
from penstock.ir.policy import Problem
from penstock.policies.chen import Chen
from penstock.solve.best import outcome
from penstock.solve.segments import crossings, split
from steps import chain

MIB = 2**20
MACHINE = Machine(Device("cpu", 2**40))


def units(layers):
    """A uniform chain of `layers` activations of 1 MiB, and nothing else above a byte."""
    trace = chain(layers, "1M")
    assert len(list(trace.saved_gaps(MIB))) == layers
    return trace


def segmented(trace, threshold):
    return split(trace, list(trace.saved_gaps(MIB)), crossings(trace, 1, MIB), threshold)


def test_a_hundred_layers_in_ten_segments_take_twice_the_root():
    """Section 4.1: n layers in k segments take k + n/k, least at k = sqrt(n)."""
    trace = units(100)
    cut = segmented(trace, 9 * MIB)
    assert (cut.kept, cut.largest) == (10 * MIB, 10 * MIB)  # x + y = 20 = 2 sqrt(100)
    assert len(cut.decisions) == 100 - 10
    found = outcome(Problem(trace, MACHINE, 0), Plan(tuple(cut.decisions)))
    assert found.timeline.peak <= (2 * math.isqrt(100) + 3) * MIB
    forward = [s for s in found.timeline.spans if s.ref < 100 and s.lane == "compute"]
    assert len(forward) <= 2 * 100


def test_a_threshold_of_nothing_keeps_everything():
    trace = units(100)
    cut = segmented(trace, 0)
    assert cut.decisions == []
    assert (cut.kept, cut.largest) == (100 * MIB, MIB)


def test_each_segment_is_remade_in_one_pass():
    trace = units(36)
    cut = segmented(trace, 5 * MIB)
    passes = {decision.remake_at for decision in cut.decisions}
    assert len(passes) == 6
    found = outcome(Problem(trace, MACHINE, 0), Plan(tuple(cut.decisions)))
    again = [s.ref for s in found.timeline.spans if s.again]
    assert len(again) == len(set(again)) == 30  # nothing is remade twice


def test_memory_grows_with_the_root_of_the_depth():
    depths = [16, 64, 256]
    peaks = [
        outcome(p := Problem(units(n), MACHINE, 0), Chen()(p)).timeline.peak / MIB for n in depths
    ]
    kept = [units(n).peak / MIB for n in depths]
    assert slope(depths, peaks) == pytest.approx(0.5, abs=0.1)
    assert slope(depths, kept) == pytest.approx(1.0, abs=0.05)


def slope(xs, ys):
    return np.polyfit(np.log(xs), np.log(ys), 1)[0]


def test_one_extra_forward_is_the_most_it_costs():
    trace = units(64)
    problem = Problem(trace, MACHINE, 20 * MIB)
    found = outcome(problem, Chen()(problem))
    assert found.shortfall == 0
    forward = sum(op.seconds for op in trace.ops if op.phase == "forward")
    assert 0 < found.timeline.recompute_seconds <= forward
    assert found.timeline.stall_seconds == 0


def test_the_cheapest_threshold_that_fits_is_taken():
    trace = units(64)
    seconds = []
    for budget in (18, 24, 40, 65):
        problem = Problem(trace, MACHINE, budget * MIB)
        seconds.append(outcome(problem, Chen()(problem)).timeline.seconds)
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[-1] == trace.seconds
