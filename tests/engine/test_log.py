"""What the log of a followed step says of it."""

import time

import torch

from penstock.engine.lanes import Copy
from penstock.engine.log import Log
from penstock.engine.tiers.host import HostStore
from penstock.engine.watch import Watch
from penstock.ir.machine import Device, Link, Machine, Tier
from penstock.ir.plan import Plan, Swap
from penstock.ir.policy import Problem
from penstock.ir.schedule import Verb
from penstock.ir.text import parse
from penstock.ir.trace import OpIndex
from penstock.solve.best import outcome
from runs import MIB

CPU = torch.device("cpu")
TRACE = parse("""
    f a x:I1M -> h:A64M! 1ms
    f b x     -> y:A1M   1ms
    f c y     -> z:A1M   1ms
    b d z h   -> g:T1M   1ms
""")
MACHINE = Machine(Device("CPU", 1 << 30), (Tier("host", 1 << 30, Link(1e9), Link(1e9)),))


def test_what_was_called_back_was_held_once_and_all_the_time() -> None:
    (gap,) = TRACE.saved_gaps(64 * MIB)
    plan = Plan((Swap(gap, "host", OpIndex(gap.start + 1), gap.stop),))
    schedule = outcome(Problem(TRACE, MACHINE, 1 << 30), plan).schedule
    log = Log(schedule, Watch(CPU))
    (row,) = (schedule.verb == Verb.EVICT).nonzero()[0].tolist()
    store = HostStore(CPU, 64 * MIB)
    out = Copy(64 * MIB, store.reserve(64 * MIB), torch.UntypedStorage(64 * MIB), inward=False)
    for op in range(3):
        log.ran(op, log.now(), 0)
    out.started, out.was_called_back = time.perf_counter(), True
    out.end()  # after the copy in was asked for
    log.copies[row] = out
    log.ran(3, log.now(), 0)
    chart = log.chart(1.0, log.stalls())
    assert chart.peak == TRACE.peak
    ran = chart.first_runs.nonzero()[0]
    for op in ran[1:]:  # `h` is there from the first on
        held = chart.total[chart.times <= chart.span_start[op]][-1]
        assert held >= 64 * MIB
    store.close()
