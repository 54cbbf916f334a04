"""Where the compute lane stood still."""

from collections.abc import Iterator
from typing import NamedTuple

from penstock.ir.timeline import COMPUTE, Timeline
from penstock.ir.trace import OpIndex, Trace

__all__ = ["Stall", "stalls"]


class Stall(NamedTuple):
    start: float  # seconds since the step began
    end: float
    before: OpIndex  # the op that had to wait


def stalls(trace: Trace, timeline: Timeline, at_least: float = 1e-9) -> Iterator[Stall]:
    """Stretches of more than `at_least` seconds in which nothing ran and the host was not the cause.

    The host's time before an op is that of its first run: a recomputation needs none. In a measured
    run, a host that was slower than when it was recorded shows here too.
    """
    free = 0.0
    for span in timeline.spans:
        if span.lane != COMPUTE:
            continue
        host = 0.0 if span.again else trace.ops[span.ref].host_seconds
        if span.start - free - host > at_least:
            yield Stall(free, span.start - host, OpIndex(span.ref))
        free = span.end
