"""The moment at which the device holds most, and what it holds then."""

from collections import Counter
from dataclasses import dataclass
from typing import TypeAlias

from penstock.ir.schedule import Schedule
from penstock.ir.timeline import Timeline
from penstock.ir.trace import OpIndex, Trace, ValueId
from penstock.simulate.holders import holders

__all__ = ["Fullest", "Share", "fullest", "module_of"]

_MODULES = 12
"""Modules are told apart as deep down as leaves at most this many."""

Share: TypeAlias = tuple[str, int]
"""What, and its bytes."""


@dataclass(frozen=True, slots=True)
class Fullest:
    """What the device holds when it holds most, largest first."""

    seconds: float  # since the step began
    op: OpIndex | None  # the op that runs then; None: the first has not begun
    nbytes: int
    kinds: tuple[Share, ...]  # workspace and allocator among them
    modules: tuple[Share, ...]  # of values alone
    values: tuple[ValueId, ...]


def fullest(schedule: Schedule, timeline: Timeline) -> Fullest:
    """When the device holds most in one run of a schedule, and what it holds then."""
    trace = schedule.trace
    point = int(timeline.total.argmax())
    seconds = float(timeline.times[point])
    values = holders(schedule, timeline, point)
    modules: Counter[str] = Counter()
    for value in values:
        modules[module_of(trace, value)] += trace.values[value].nbytes
    return Fullest(
        seconds,
        _op_at(timeline, seconds),
        timeline.peak,
        tuple(timeline.at_peak().items()),
        tuple(_rolled_up(modules).most_common()),
        values,
    )


def module_of(trace: Trace, value: ValueId) -> str:
    """The module whose state a value is or that made it; empty if none did."""
    it = trace.values[value]
    if it.name:  # `exp_avg of decoder.3.weight` belongs to decoder.3
        return it.name.rpartition(" of ")[2].rpartition(".")[0]
    return "" if it.producer is None else trace.ops[it.producer].module


def _op_at(timeline: Timeline, seconds: float) -> OpIndex | None:
    """The op that runs then, or that ran last before."""
    begun = (timeline.span_lane == 0) & (timeline.span_start <= seconds)
    runs = timeline.span_ref[begun]
    return OpIndex(int(runs[-1])) if runs.size else None


def _rolled_up(modules: Counter[str]) -> Counter[str]:
    """The same bytes by the deepest level of modules at which they are few."""
    found = modules
    deepest = max((path.count(".") for path in modules), default=0)
    for depth in range(deepest + 1, 0, -1):
        found = Counter()
        for path, nbytes in modules.items():
            found[".".join(path.split(".")[:depth])] += nbytes
        if len(found) <= _MODULES:
            break
    return found
