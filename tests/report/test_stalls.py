"""Stalls are what is left when runs and the host's time are taken away."""

from dataclasses import replace

import pytest

from penstock.ir.plan import Plan, Recompute, Swap
from penstock.ir.text import parse
from penstock.ir.trace import Gap
from penstock.report.stalls import Stall, stalls
from penstock.simulate.lower import lower
from penstock.simulate.run import price

STEP = parse("""
    f a  x:I1M -> h:A4M!  1s
    f b  h     -> y:A1M   2s
    f c  y     -> z:A1M   4s
    b d  z h   -> g:T1M   1s
""")
SLOW_HOST = replace(STEP, ops=tuple(replace(op, host_seconds=0.5) for op in STEP.ops))


@pytest.mark.parametrize("step", [STEP, SLOW_HOST])
def test_a_copy_that_comes_late_is_waited_for(step, machine):
    plan = Plan((Swap(Gap(1, 1, 3), "disk", evict_at=2, prefetch_at=3),))
    timeline = price(lower(step, plan), machine)
    (stall,) = stalls(step, timeline)
    # c has ended, h comes back in 2 s, and only then the host prepares d.
    began = 7.0 if step is STEP else 8.5
    assert stall == Stall(began, began + 2, 3)
    assert stall.end - stall.start == timeline.stall_seconds


def test_a_recomputation_is_not_waited_for(machine):
    timeline = price(lower(SLOW_HOST, Plan((Recompute(Gap(1, 1, 3), 3),))), machine)
    assert list(stalls(SLOW_HOST, timeline)) == []
