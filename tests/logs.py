"""The log of a step that leaves 64 MiB idle, and of a plan that swaps them."""

import torch

from penstock.engine.log import Log
from penstock.engine.watch import Watch
from penstock.ir.machine import Device, Link, Machine, Tier
from penstock.ir.plan import Plan, Swap
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.ir.trace import OpIndex
from penstock.solve.best import outcome
from runs import MIB

__all__ = ["MACHINE", "TRACE", "logged"]

TRACE = parse("""
    f a x:I1M -> h:A64M! 1ms
    f b x     -> y:A1M   1ms
    f c y     -> z:A1M   1ms
    b d z h   -> g:T1M   1ms
""")
MACHINE = Machine(Device("GPU", 1 << 30), (Tier("host", 1 << 30, Link(1e9), Link(1e9)),))


def logged(device: torch.device) -> Log:
    (gap,) = TRACE.saved_gaps(64 * MIB)
    plan = Plan((Swap(gap, "host", OpIndex(gap.start + 1), gap.stop),))
    return Log(outcome(Problem(TRACE, MACHINE, 1 << 30), plan).schedule, Watch(device))
