"""Which values fill the device, from when to when, in a priced schedule."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.ir.schedule import Schedule, Verb
from penstock.ir.timeline import Timeline
from penstock.ir.trace import StorageId, ValueId
from penstock.simulate.chart import Times, changes

__all__ = ["Stays", "holders", "stays"]


@dataclass(frozen=True, slots=True)
class Stays:
    """Every stay of a value on the device, by column, in the order in which they begin.

    A storage is named by the version for which its bytes were taken, which may have been
    overwritten since. It is there twice while it is remade and its copy out has not ended.
    """

    value: NDArray[np.int64]
    begins: NDArray[np.int64]  # the point of the residency curve from which on it is there
    ends: NDArray[np.int64]  # the point from which on it is not; the number of points: it stays
    since: NDArray[np.float64]  # seconds since the step began
    until: NDArray[np.float64]


def stays(schedule: Schedule, timeline: Timeline) -> Stays:
    """When each value comes and goes.

    `timeline` is what `price` made of `schedule`; or what the engine measured of it, and then the
    points are near those of its residency curve, and the seconds exact.
    """
    trace, found = schedule.trace, changes(schedule, _times(schedule, timeline))
    ends = np.full(len(found.when), len(found.when))
    held: defaultdict[StorageId, list[int]] = defaultdict(list)
    for point, (value, nbytes) in enumerate(
        zip(found.value.tolist(), found.nbytes.tolist(), strict=True)
    ):
        if value >= 0 and nbytes > 0:
            held[trace.values[value].storage].append(point)
        elif value >= 0 and nbytes < 0 and (since := held[trace.values[value].storage]):
            ends[since.pop()] = point  # nothing is held only if a copy was measured out of order
    begins = np.flatnonzero((found.value >= 0) & (found.nbytes > 0))
    # The last copies out may end after the step.
    when = np.append(found.when, found.when.max(initial=timeline.seconds))
    return Stays(found.value[begins], begins, ends[begins], when[begins], when[ends[begins]])


def holders(schedule: Schedule, timeline: Timeline, point: int) -> tuple[ValueId, ...]:
    """The values on the device from `timeline.times[point]` on, largest first."""
    trace, found = schedule.trace, stays(schedule, timeline)
    there = found.value[(found.begins <= point) & (point < found.ends)]
    return tuple(sorted(map(ValueId, there.tolist()), key=lambda v: (-trace.values[v].nbytes, v)))


def _times(schedule: Schedule, timeline: Timeline) -> Times:
    """When each action happened, read back from the spans: they are in the order of the actions."""
    verb, subject = schedule.verb, schedule.subject
    is_run = verb <= Verb.RUN_AGAIN
    is_copy = (verb == Verb.EVICT) | (verb == Verb.PREFETCH)
    start, end = np.zeros(len(verb)), np.zeros(len(verb))
    start[is_run | is_copy], end[is_run | is_copy] = timeline.span_start, timeline.span_end
    ended = np.full(len(schedule.copies), -np.inf)
    ended[subject[is_copy]] = end[is_copy]
    carried = {copy for _, copy in schedule.away}
    earlier_end = np.full(len(schedule.copies), -np.inf)
    for copy in carried:
        earlier_end[copy] = ended[copy] - timeline.seconds
    # Drops happen as soon as what stands before them has ended: the last run, or the last wait.
    done = np.where(is_run, end, 0.0)
    done[verb == Verb.WAIT] = _waited(schedule, ended, earlier_end)
    is_drop = verb == Verb.DROP
    start[is_drop] = end[is_drop] = np.maximum.accumulate(done)[is_drop]
    return Times(start, end, timeline.seconds, timeline.stalls, earlier_end)


def _waited(
    schedule: Schedule, ended: NDArray[np.float64], earlier_end: NDArray[np.float64]
) -> NDArray[np.float64]:
    """For each wait, when what it waits for has ended: in this step, or already in the one before."""
    begun: set[int] = set()
    found = []
    for verb, subject in zip(schedule.verb.tolist(), schedule.subject.tolist(), strict=True):
        if verb in (Verb.EVICT, Verb.PREFETCH):
            begun.add(subject)
        elif verb == Verb.WAIT:
            found.append(ended[subject] if subject in begun else earlier_end[subject])
    return np.array(found)
