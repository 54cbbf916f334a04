"""From the times of a schedule's actions to its timeline: spans, lanes, the residency curve.

The same code charts what the simulator predicts and what the engine measures, so the two differ only
in when things happened.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from penstock.ir.schedule import Cause, Schedule, Verb
from penstock.ir.timeline import COMPUTE, KINDS, Timeline, lane_of

__all__ = ["Changes", "Times", "changes", "chart", "lanes_of_copies"]


@dataclass(frozen=True, slots=True)
class Times:
    """When each action of a schedule began and ended, in seconds since the step began.

    `earlier_end`: by transfer, when the step before ends (or ended) it; -inf if it did not make it.
    """

    start: NDArray[np.float64]  # by action
    end: NDArray[np.float64]  # by action
    seconds: float  # of the whole step
    stalls: dict[Cause, float]
    earlier_end: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Changes:
    """All that a schedule takes and gives back, in the order in which it happens."""

    when: NDArray[np.float64]  # seconds since the step began
    kind: NDArray[np.int64]  # position in `KINDS`
    nbytes: NDArray[np.int64]  # below 0: given back
    value: NDArray[np.int64]  # -1: the workspace of an op


def lanes_of_copies(schedule: Schedule) -> NDArray[np.int16]:
    """By transfer: its lane. Lane 0 is compute; then each tier has one out and one in."""
    lanes: NDArray[np.int16] = 1 + 2 * schedule.copies.tier + schedule.copies.inward
    return lanes


def chart(schedule: Schedule, times: Times) -> Timeline:
    """The timeline of a schedule of which it is known when everything happened."""
    start_of, end_of = times.start, times.end
    copies = schedule.copies
    lanes = (
        COMPUTE,
        *(lane_of(name, inward=way) for name in copies.tiers for way in (False, True)),
    )
    lane_of_copy = lanes_of_copies(schedule)
    verb, subject = schedule.verb, schedule.subject
    is_run = verb <= Verb.RUN_AGAIN
    is_copy = (verb == Verb.EVICT) | (verb == Verb.PREFETCH)
    value_of = copies.value
    found = changes(schedule, times)
    moved = np.zeros((len(KINDS), len(found.when)), np.int64)
    moved[found.kind, np.arange(len(found.when))] = found.nbytes

    lane = np.zeros(len(verb), np.int16)
    lane[is_copy] = lane_of_copy[subject[is_copy]]
    ref = subject.copy()
    ref[is_copy] = value_of[subject[is_copy]]
    is_span = is_run | is_copy
    nbytes = schedule.trace.columns.nbytes[value_of]
    traffic = np.bincount(lane_of_copy, nbytes, len(lanes)).astype(np.int64)
    return Timeline(
        seconds=times.seconds,
        lanes=lanes,
        span_lane=lane[is_span],
        span_start=start_of[is_span],
        span_end=end_of[is_span],
        span_ref=ref[is_span],
        span_again=(verb == Verb.RUN_AGAIN)[is_span],
        times=found.when,
        resident=np.cumsum(moved, axis=1),
        stalls=times.stalls,
        traffic=dict(zip(lanes[1:], traffic[1:].tolist(), strict=True)),
        overhead_bytes=schedule.trace.slack,
    )


def changes(schedule: Schedule, times: Times) -> Changes:
    """What the residency curve is the sum of."""
    start_of, end_of, earlier_end = times.start, times.end, times.earlier_end
    value_of = schedule.copies.value
    trace, verb, subject = schedule.trace, schedule.verb, schedule.subject
    size, kind = trace.columns.nbytes, trace.columns.kind
    scratch = len(KINDS) - 1
    count = len(verb)

    # Changes as columns: when, on which row of the curve, how many bytes, and a rank that settles
    # equal times. Rank is program order, so whatever makes room stands before what takes it.
    when: list[NDArray[np.float64]] = []
    which: list[NDArray[np.int64]] = []
    delta: list[NDArray[np.int64]] = []
    whose: list[NDArray[np.int64]] = []
    rank: list[NDArray[np.int64]] = []

    def change(
        at: NDArray[np.float64],
        row: NDArray[np.int64],
        nbytes: NDArray[np.int64],
        values: NDArray[np.int64] | NDArray[np.int32],
        order: _Order,
    ) -> None:
        when.append(at)
        which.append(row)
        delta.append(nbytes)
        whose.append(values.astype(np.int64))
        rank.append(np.broadcast_to(np.asarray(order, np.int64), at.shape))

    def change_values(
        at: NDArray[np.float64], values: NDArray[np.int32], sign: int, order: _Order
    ) -> None:
        change(at, kind[values], sign * size[values], values, order)

    leaving = np.array([v for v, t in schedule.away if earlier_end[t] > 0], np.int32)
    initial = np.array(schedule.here, np.int32)
    change_values(np.zeros(len(initial)), initial, 1, -1)
    change_values(np.zeros(len(leaving)), leaving, 1, -1)
    until = np.array([earlier_end[t] for _, t in schedule.away if earlier_end[t] > 0], np.float64)
    change_values(until, leaving, -1, -1)

    takes, frees = schedule.takes, schedule.frees
    change_values(start_of[takes.owner], takes.items, 1, 3 * takes.owner + 1)
    change_values(end_of[frees.owner], frees.items, -1, 3 * frees.owner + 2)
    rows = np.arange(count)
    runs = rows[verb <= Verb.RUN_AGAIN]
    workspace = trace.columns.workspace[subject[runs]]
    on_scratch = np.full(len(runs), scratch)
    nobody = np.full(len(runs), -1)
    change(start_of[runs], on_scratch, workspace, nobody, 3 * runs + 1)
    change(end_of[runs], on_scratch, -workspace, nobody, 3 * runs + 2)

    evicts = rows[verb == Verb.EVICT]
    ran_until = np.zeros(len(trace.ops) + 1)  # the last: before any op, for evictions that say -1
    first_runs = rows[verb == Verb.RUN]
    ran_until[subject[first_runs]] = end_of[first_runs]
    freed = np.maximum(end_of[evicts], ran_until[schedule.extra[evicts]])
    change_values(freed, value_of[subject[evicts]], -1, 3 * evicts)
    prefetches = rows[verb == Verb.PREFETCH]
    change_values(start_of[prefetches], value_of[subject[prefetches]], 1, 3 * prefetches + 1)
    drops = rows[verb == Verb.DROP]
    change_values(start_of[drops], subject[drops], -1, 3 * drops)

    moments = np.concatenate(when)
    order = np.lexsort((np.concatenate(rank), moments))
    return Changes(
        moments[order],
        np.concatenate(which)[order],
        np.concatenate(delta)[order],
        np.concatenate(whose)[order],
    )


_Order: TypeAlias = "int | NDArray[np.int64] | NDArray[np.int32]"
