"""From a schedule to its timeline: the design's cost semantics, and nothing else.

Compute ops run in order on one lane. Each direction of each tier is a lane, first come first served
in trigger order. A copy out frees its bytes when it ends, a copy in takes them when it starts. While
a copy runs, compute loses the share of its speed that the tier's `drag` says.

An op that uses what is placed in a tier takes longer by those bytes at the tier's direct rates, less what
they take at the device's bandwidth, which is in its own seconds already.

Where the device says what faults cost, what is freed stays with the process, as the engine has it on a
CPU: memory comes from the system only where the step holds more than ever since it last gave back what
was free, which it does where it would hold more than the plan takes at most. The rest is spared.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

from penstock.ir.machine import Faults, Machine
from penstock.ir.plan import Plan
from penstock.ir.schedule import Cause, Schedule, Verb
from penstock.ir.timeline import Timeline
from penstock.ir.trace import Trace
from penstock.simulate.chart import Times, chart, lanes_of_copies
from penstock.simulate.faults import of_blocks, of_scratch, while_freeing
from penstock.simulate.lower import lower

__all__ = ["limit_of", "most_held", "price", "unbounded"]

_KEPT_SHARE = 2
"""One byte for so many that a plan takes is kept, where all are: hardly any step gains by more."""
_ROUNDED = 4 << 20
"""Bytes that blocks cut from what is kept take more than they have: huge pages at both ends."""
_SPARED_AT_MOST = 0.8
"""Share of an op's seconds, or of the host's before it, that faults can have been."""


def price(schedule: Schedule, machine: Machine) -> Timeline:
    """Predict what `schedule` costs on `machine`.

    A schedule that keeps values away from one step to the next is priced in its steady state: the
    copies that outlast the step before are still running when this one begins.
    """
    return _priced(schedule, machine, may_keep=schedule.trace.is_dense)


def unbounded(trace: Trace, machine: Machine) -> Timeline:
    """The step without a budget, as plain PyTorch has it: what is freed stays, written to or not."""
    return _priced(lower(trace, Plan()), machine, may_keep=True)


def _priced(schedule: Schedule, machine: Machine, *, may_keep: bool) -> Timeline:
    columns = _columns(schedule, machine, may_keep=may_keep)
    earlier_end = np.full(len(schedule.copies), -np.inf)
    walked = _walk(schedule, columns, earlier_end, _ALL, _ALL)
    if schedule.away:
        earlier_end = _ends_of_copies_out(schedule, columns, walked[1]) - walked[3]
    if schedule.away or columns.spared.any():
        walked = _walk(schedule, columns, earlier_end, walked[4], limit_of(schedule, walked[4]))
    start, end, stalls, seconds, _ = walked
    waited = dict(zip(Cause, stalls.tolist(), strict=True))
    return chart(schedule, Times(start, end, seconds, waited, earlier_end))


def most_held(peak: int, budget: int, *, keeps_all: bool) -> int:
    """The most bytes that a process holds, with what it keeps, by a plan that takes `peak` of them.

    What a plan was said to take it does take; one that evicts nothing half as much again.
    """
    most = peak + peak // _KEPT_SHARE if keeps_all else peak
    return min(most, budget) - _ROUNDED


def limit_of(schedule: Schedule, highest: int) -> int:
    """The same of values, where `highest` bytes of them are held at most."""
    if schedule.budget is None:
        return _ALL
    keeps_all = not (len(schedule.copies) or (schedule.verb == Verb.DROP).any())
    return most_held(highest, schedule.budget, keeps_all=keeps_all)


@dataclass(frozen=True, slots=True)
class _Columns:
    """What the walk needs beside the schedule's own columns."""

    cost: NDArray[np.float64]  # by action: seconds on the compute lane
    host: NDArray[np.float64]  # by action: seconds of the host before it
    lane: NDArray[np.int16]  # by transfer
    copy_cost: NDArray[np.float64]  # by transfer: seconds
    spared: NDArray[np.float64]  # by action: seconds of `cost`, if all that it takes was kept
    takes: NDArray[np.int64]  # by action: bytes
    scratch: NDArray[np.int64]  # by action: bytes, of a run
    frees: NDArray[np.int64]  # by action: bytes
    copied: NDArray[np.int64]  # by transfer: bytes
    begins: int  # bytes that are held when the step begins
    drag: NDArray[np.float64]  # by lane


def _columns(schedule: Schedule, machine: Machine, *, may_keep: bool) -> _Columns:
    ops = schedule.trace.columns
    is_first = schedule.verb == Verb.RUN
    is_run = is_first | (schedule.verb == Verb.RUN_AGAIN)
    op = np.where(is_run, schedule.subject, 0)
    cost = np.where(is_run, ops.seconds[op], 0.0)
    if len(schedule.direct):
        cost += _direct_seconds(schedule, machine)
    host_seconds, spared = ops.host_seconds, np.zeros(len(cost))
    scratch = np.where(is_run, ops.workspace[op], 0)
    nbytes = ops.nbytes
    if (faults := machine.device.faults) and may_keep:
        given_back = while_freeing(schedule.trace, faults)
        host_seconds = host_seconds - np.minimum(given_back, _SPARED_AT_MOST * host_seconds)
        spared = np.minimum(_spared(schedule, scratch, faults), _SPARED_AT_MOST * cost)
    host = np.where(is_first, host_seconds[op], 0.0)
    takes, frees = (
        np.bincount(rows.owner, nbytes[rows.items], len(cost)).astype(np.int64)
        for rows in (schedule.takes, schedule.frees)
    )
    drops = schedule.verb == Verb.DROP
    frees[drops] += nbytes[schedule.subject[drops]]
    begins = int(nbytes[list(schedule.here)].sum())

    copies = schedule.copies
    tiers = [machine.tier(name) for name in copies.tiers]
    lane = lanes_of_copies(schedule)
    links = [None, *(link for tier in tiers for link in (tier.write, tier.read))]
    latency = np.array([link.latency if link else 0.0 for link in links])
    bandwidth = np.array([link.bandwidth if link else 1.0 for link in links])
    copied = nbytes[copies.value]
    return _Columns(
        cost,
        host,
        lane,
        latency[lane] + copied / bandwidth[lane],
        spared,
        takes,
        scratch,
        frees,
        copied,
        begins,
        np.array([0.0, *(tier.drag for tier in tiers for _ in range(2))]),
    )


def _direct_seconds(schedule: Schedule, machine: Machine) -> NDArray[np.float64]:
    """By action: how much longer its run takes because of what it uses in a tier; never less than 0."""
    used, tiers = schedule.direct, schedule.copies.tiers
    per_byte = np.zeros((len(tiers), 2))  # seconds: read, written
    for tier in np.unique(used.tier).tolist():
        rates = machine.direct(tiers[tier])
        per_byte[tier] = 1 / rates.read, 1 / rates.write
    if machine.device.bandwidth:
        per_byte = np.maximum(per_byte - 1 / machine.device.bandwidth, 0.0)
    nbytes = schedule.trace.columns.nbytes[used.value]
    more = nbytes * per_byte[used.tier, used.written.astype(np.intp)]
    found: NDArray[np.float64] = np.bincount(used.row, more, len(schedule.verb)).astype(np.float64)
    return found


def _spared(schedule: Schedule, scratch: NDArray[np.int64], faults: Faults) -> NDArray[np.float64]:
    """By action: seconds of faults in its run, where its memory came from the system."""
    rows, seconds = schedule.takes, of_blocks(schedule.trace.columns.nbytes, faults)
    taken = np.bincount(rows.owner, seconds[rows.items], len(scratch)).astype(np.float64)
    return taken + of_scratch(scratch, faults)


_ALL = 1 << 60
_Walked: TypeAlias = tuple[
    NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float, int
]


def _walk(
    schedule: Schedule,
    columns: _Columns,
    earlier_end: NDArray[np.float64],
    kept: int,
    limit: int,
) -> _Walked:
    walked: _Walked = _core(
        schedule.verb,
        schedule.subject,
        schedule.extra,
        schedule.room.starts,
        schedule.room.items,
        columns.cost,
        columns.host,
        columns.lane,
        columns.copy_cost,
        columns.spared,
        columns.takes,
        columns.scratch,
        columns.frees,
        columns.copied,
        columns.begins,
        min(kept, limit),
        limit,
        columns.drag,
        earlier_end,
        len(Cause),
    )
    return walked


_RUN, _AGAIN = int(Verb.RUN), int(Verb.RUN_AGAIN)
_EVICT, _PREFETCH, _WAIT = int(Verb.EVICT), int(Verb.PREFETCH), int(Verb.WAIT)


@njit(cache=True)
def _core(
    verb: NDArray[np.int8],
    subject: NDArray[np.int32],
    extra: NDArray[np.int32],
    room_starts: NDArray[np.int32],
    room: NDArray[np.int32],
    cost: NDArray[np.float64],
    host: NDArray[np.float64],
    lane: NDArray[np.int16],
    copy_cost: NDArray[np.float64],
    spared: NDArray[np.float64],
    takes: NDArray[np.int64],
    scratch: NDArray[np.int64],
    frees: NDArray[np.int64],
    copied: NDArray[np.int64],
    begins: int,
    kept: int,
    limit: int,
    drag: NDArray[np.float64],
    earlier_end: NDArray[np.float64],
    causes: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float, int]:
    """Start and end of each action, stall seconds by cause, the end of the last run, most bytes held.

    The process holds `kept` bytes of values and of what it keeps when the step begins; it gives back
    what it keeps where that would be more than `limit`. `earlier_end`: when the step before ends (or
    ended) each copy out, in seconds from the start of this step; -inf for copies that it did not make.
    """
    rows, lanes, transfers = len(verb), len(drag), len(lane)
    start, end = np.zeros(rows), np.zeros(rows)
    stalls = np.zeros(causes)
    copy_end = earlier_end.copy()
    free = np.zeros(lanes)  # when each lane has done all that was put on it
    for transfer in range(transfers):
        free[lane[transfer]] = max(free[lane[transfer]], copy_end[transfer])
    # Busy stretches of each lane, in order; `first` skips those that are over.
    busy_start = np.zeros((lanes, transfers + 1))
    busy_end = np.zeros((lanes, transfers + 1))
    first, stretches = np.zeros(lanes, np.int64), np.zeros(lanes, np.int64)
    for one in range(lanes):
        if free[one] > 0:
            busy_end[one, 0] = free[one]
            stretches[one] = 1
    # Copies out by lane, as they end: their bytes are free then.
    leaver = np.zeros((lanes, transfers + 1), np.int64)
    left_first, leavers = np.zeros(lanes, np.int64), np.zeros(lanes, np.int64)
    live = highest = begins  # bytes of values
    now = 0.0
    for row in range(rows):
        for one in range(1, lanes):
            while left_first[one] < leavers[one]:
                copy = leaver[one, left_first[one]]
                if copy_end[copy] > now:
                    break
                live -= copied[copy]
                left_first[one] += 1
        if verb[row] == _RUN or verb[row] == _AGAIN:
            now += host[row]
            start[row] = now
            left = cost[row]
            need = takes[row] + scratch[row]
            if need > 0:
                if kept + need > limit:
                    kept = live
                anew = min(max(live + need - kept, 0), need)
                left -= spared[row] * (1.0 - anew / need)
                kept = max(kept, live + need)
                highest = max(highest, live + need)
            live += takes[row] - frees[row]
            while left > 0.0:
                speed, change = 1.0, np.inf
                for one in range(1, lanes):
                    while first[one] < stretches[one] and busy_end[one, first[one]] <= now:
                        first[one] += 1
                    if first[one] < stretches[one]:
                        if busy_start[one, first[one]] <= now:
                            speed *= 1.0 - drag[one]
                            change = min(change, busy_end[one, first[one]])
                        else:
                            change = min(change, busy_start[one, first[one]])
                if now + left / speed <= change:
                    now += left / speed
                    left = 0.0
                else:
                    left -= (change - now) * speed
                    now = change
            end[row] = now
        elif verb[row] == _EVICT or verb[row] == _PREFETCH:
            transfer = subject[row]
            here = lane[transfer]
            begin = max(now, free[here])
            if verb[row] == _PREFETCH:
                if extra[row] >= 0:
                    begin = max(begin, copy_end[extra[row]])
                for other in range(room_starts[row], room_starts[row + 1]):
                    begin = max(begin, copy_end[room[other]])
            start[row] = begin
            end[row] = begin + copy_cost[transfer]
            copy_end[transfer] = free[here] = end[row]
            if verb[row] == _EVICT:
                leaver[here, leavers[here]] = transfer
                leavers[here] += 1
            else:
                if kept + copied[transfer] > limit:
                    kept = live
                live += copied[transfer]
                kept, highest = max(kept, live), max(highest, live)
            busy_start[here, stretches[here]] = begin
            busy_end[here, stretches[here]] = end[row]
            stretches[here] += 1
        elif verb[row] == _WAIT:
            start[row] = now
            if copy_end[subject[row]] > now:
                stalls[extra[row]] += copy_end[subject[row]] - now
                now = copy_end[subject[row]]
            end[row] = now
        else:
            live -= frees[row]
            start[row] = end[row] = now
    return start, end, stalls, now, highest


def _ends_of_copies_out(
    schedule: Schedule, columns: _Columns, end_of: NDArray[np.float64]
) -> NDArray[np.float64]:
    """By transfer: when each copy out of a walked step ended; -inf for copies in."""
    found = np.full(len(columns.lane), -np.inf)
    out = schedule.verb == Verb.EVICT
    found[schedule.subject[out]] = end_of[out]
    return found
