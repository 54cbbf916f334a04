"""What the log of a followed step says of it."""

import time

import torch

from logs import TRACE, logged
from penstock.engine.lanes import Copy
from penstock.engine.tiers.host import HostStore
from penstock.ir.schedule import Verb
from runs import MIB

CPU = torch.device("cpu")


def test_what_was_called_back_was_held_once_and_all_the_time() -> None:
    log = logged(CPU)
    (row,) = (log.schedule.verb == Verb.EVICT).nonzero()[0].tolist()
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
