"""A packing that is no higher than a given capacity, by complete search.

Idea      Buffers are stacked from below, so that what is placed is a skyline over time. In a valley
          of the skyline, take one moment: either one of the buffers that fit into the valley stands
          on its ground there, or the ground is left empty. Always branch where fewest ways are left.
Prunes    Ground is raised to where some buffer can still stand; above it, all that is alive at that
          moment must have room.
Returns   A failure is known by the stretch of time that it rests on: the search goes back to the
          latest decision that touches it. Moments that failed often are decided earlier; the search
          starts again and again, in other orders.
Sources   Stacked packings and floors by section are ideas of M. D. Moffitt, "MiniMalloc: A Lightweight
          Memory Allocator for Hardware-Accelerated Machine Learning" (ASPLOS 2023), who places
          buffers by rising offset. Valleys, the way back and the weights are ours: what lies apart in
          time then does not multiply the search. His dominated holes gained nothing here.
"""

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["Buffer", "Verdict", "pack", "parts"]


class Buffer(NamedTuple):
    """Bytes that are needed from time `start` up to, not including, time `stop`."""

    start: int
    stop: int
    nbytes: int


Verdict: TypeAlias = Literal["impossible", "unknown"]
"""Why there is no packing: none exists, or none was found in time."""


def pack(wanted: Sequence[Buffer], capacity: int, *, seconds: float) -> tuple[int, ...] | Verdict:
    """Offsets with which all buffers end at or below `capacity`.

    The search is the same each time; only where it is cut off depends on the clock.
    """
    ends = time.monotonic() + seconds
    offsets = [0] * len(wanted)
    verdict: Verdict | None = None
    for part in parts(wanted):
        found = _pack_part([wanted[i] for i in part], capacity, ends)
        if found == "impossible":
            return "impossible"
        if found == "unknown":
            verdict = "unknown"  # another part may still prove that there is none
            continue
        for i, offset in zip(part, found, strict=True):
            offsets[i] = int(offset)
    return verdict or tuple(offsets)


def parts(wanted: Sequence[Buffer]) -> Iterator[list[int]]:
    """The buffers that need bytes, by stretches of time that no buffer connects."""
    part: list[int] = []
    stop = -math.inf
    present = (i for i, b in enumerate(wanted) if b.nbytes and b.stop > b.start)
    for i in sorted(present, key=lambda i: wanted[i].start):
        if part and wanted[i].start >= stop:
            yield part
            part, stop = [], -math.inf
        part.append(i)
        stop = max(stop, wanted[i].stop)
    if part:
        yield part


_RUN = 2_000
"""Nodes of the shortest run before the search starts again."""
_EASED = 0.5
"""What is left of the weights of moments when it does."""


def _pack_part(part: Sequence[Buffer], capacity: int, ends: float) -> Sequence[int] | Verdict:
    table = np.array(part, np.int64)
    # A packing can be pushed down until every offset is a sum of sizes: multiples of their divisor do.
    unit = int(np.gcd.reduce(table[:, 2]))
    moments = np.unique(table[:, :2])
    first = np.searchsorted(moments, table[:, 0])
    last = np.searchsorted(moments, table[:, 1])
    size, room = table[:, 2] // unit, capacity // unit
    weight = np.ones(len(moments) - 1)
    offset = np.zeros(len(part), np.int64)
    for run, rank in enumerate(_ranks(first, last, size)):
        if time.monotonic() >= ends:
            break
        over_start, over = _by_section(first, last, rank, len(weight))
        limit = _RUN * _luby(run + 1)
        found = _search(first, last, size, over_start, over, room, weight, limit, offset)
        if found == _FOUND:
            return [int(one) * unit for one in offset]
        if found == _NONE:
            return "impossible"
        weight = 1 + (weight - 1) * _EASED
    return "unknown"


def _ranks(
    first: NDArray[np.int64], last: NDArray[np.int64], size: NDArray[np.int64]
) -> Iterator[NDArray[np.float64]]:
    """For each run, a number for each buffer: those with small ones are tried first."""
    length = (last - first).astype(np.float64)
    keys = (-length, -length * size, -size.astype(np.float64), -length * np.sqrt(size))
    yield from keys
    random = np.random.default_rng(0)
    while True:
        for key in keys:
            yield key * random.uniform(0.5, 1.0, len(key))


def _luby(run: int) -> int:
    """1, 1, 2, 1, 1, 2, 4, ...: no more than a logarithm worse than the best length for all runs."""
    bits = run.bit_length()
    return 1 << (bits - 1) if run == (1 << bits) - 1 else _luby(run - (1 << (bits - 1)) + 1)


def _by_section(
    first: NDArray[np.int64], last: NDArray[np.int64], rank: NDArray[np.float64], sections: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The buffers over each section, by rank, in one array; where each section's begin."""
    over: list[list[int]] = [[] for _ in range(sections)]
    for one in np.argsort(rank, kind="stable").tolist():
        for section in range(first[one], last[one]):
            over[section].append(one)
    start = np.cumsum([0, *map(len, over)])
    return start.astype(np.int64), np.array([one for some in over for one in some], np.int64)


# -- the search, compiled -----------------------------------------------------------------------
# A section is the time between two neighbouring starts or stops. `ground[s]` is the height below
# which nothing more is placed in section s; `left[s]` and `right[s]` are the first and last section
# of the stretch whose decisions say so. `rest[s]` is what is alive there and not placed yet.

_FOUND, _NONE, _LIMIT = 1, 0, -1
_HIGH = 2**62
_EMPTY = -1  # the option to leave the ground empty


@njit(cache=True)
def _nearest(ground: Any, first: int, last: int, section: int, height: int) -> int:
    """The section nearest to `section` in a buffer's time whose ground is at `height` or above."""
    before, after = section, section
    while True:
        if before >= first:
            if ground[before] >= height:
                return before
            before -= 1
        if after < last:
            if ground[after] >= height:
                return after
            after += 1


@njit(cache=True)
def _settle(
    ground: Any,
    left: Any,
    right: Any,
    first: Any,
    last: Any,
    placed: Any,
    rest: Any,
    over_start: Any,
    over: Any,
    capacity: int,
    low: Any,
    wanted: Any,
) -> int:
    """Raise the ground to where buffers can still stand; fills `low` by buffer.

    Returns a section in which there is too little room above it, or -1.
    """
    wanted[:] = _HIGH
    for one in range(len(first)):
        if placed[one]:
            continue
        stand = ground[first[one]]
        for s in range(first[one] + 1, last[one]):
            stand = max(stand, ground[s])
        low[one] = stand
        for s in range(first[one], last[one]):
            wanted[s] = min(wanted[s], stand)
    failed = -1
    for s in range(len(rest)):
        if rest[s] == 0:
            continue
        height = wanted[s]
        if height > ground[s]:
            for i in range(over_start[s], over_start[s + 1]):
                if not placed[over[i]]:
                    near = _nearest(ground, first[over[i]], last[over[i]], s, height)
                    left[s] = min(left[s], left[near])
                    right[s] = max(right[s], right[near])
            ground[s] = height
        if ground[s] + rest[s] > capacity and (
            failed < 0 or right[s] - left[s] < right[failed] - left[failed]
        ):
            failed = s
    return failed


@njit(cache=True)
def _branch(
    ground: Any,
    first: Any,
    last: Any,
    size: Any,
    placed: Any,
    rest: Any,
    capacity: int,
    weight: Any,
    low: Any,
    counts: Any,
    above: Any,
    valley: Any,
    begins: Any,
    ends: Any,
    wall: Any,
    smallest: Any,
) -> int:
    """The section to decide next: in a valley, with few ways for its weight, and little room.

    `valley` numbers the valleys by section (-1: none), of which the others tell the first and last
    section, the lower wall and the smallest buffer that fits; `above` is where the lowest buffer
    stands that cannot stand on a section's ground.
    """
    sections = len(rest)
    number = 0
    s = 0
    while s < sections:
        end = s
        if rest[s] == 0:
            valley[s] = -1
        else:
            while end + 1 < sections and rest[end + 1] > 0 and ground[end + 1] == ground[s]:
                end += 1
            lower = _HIGH
            if s > 0 and rest[s - 1] > 0:
                lower = ground[s - 1]
            if end + 1 < sections and rest[end + 1] > 0 and ground[end + 1] < lower:
                lower = ground[end + 1]
            for t in range(s, end + 1):
                valley[t] = number if lower > ground[s] else -1
            if lower > ground[s]:
                begins[number], ends[number], wall[number] = s, end, lower
                smallest[number] = _HIGH
                number += 1
        s = end + 1
    counts[:] = 0
    above[:] = _HIGH
    for one in range(len(first)):
        if placed[one]:
            continue
        stand = low[one]
        for s in range(first[one], last[one]):
            if ground[s] == stand:
                counts[s] += 1
            elif stand < above[s]:
                above[s] = stand
        within = valley[first[one]]
        if within >= 0 and ground[first[one]] == stand and size[one] < smallest[within]:
            smallest[within] = size[one]
    best, best_score, best_room = -1, 0.0, 0
    for s in range(sections):
        within = valley[s]
        if within < 0:
            continue
        level = _next_level(ground[s], above[s], wall[within], smallest[within])
        ways = counts[s] + (1 if level + rest[s] <= capacity else 0)
        if ways <= 1:
            return s
        score, room = ways / weight[s], capacity - ground[s] - rest[s]
        if best < 0 or score < best_score or (score == best_score and room < best_room):
            best, best_score, best_room = s, score, room
    return best


@njit(cache=True)
def _next_level(ground: int, above: int, wall: int, smallest: int) -> int:
    """Where the lowest buffer over a section of a valley stands, at least, if not on the ground.

    Pushed down as far as it goes, it stands on ground outside, or on another buffer, which lies in
    the valley or reaches over its wall.
    """
    return min(above, ground + smallest, wall + 1)


@njit(cache=True)
def _search(
    first: Any,
    last: Any,
    size: Any,
    over_start: Any,
    over: Any,
    capacity: int,
    weight: Any,
    limit: int,
    offset: Any,
) -> int:
    """Fills `offset` and returns `_FOUND`; or `_NONE`; or `_LIMIT` after so many nodes."""
    buffers, sections = len(first), len(weight)
    depths = buffers + 4 * sections + 2
    widest = 1
    for s in range(sections):
        widest = max(widest, over_start[s + 1] - over_start[s])
    grounds = np.empty((depths, sections), np.int64)  # most of it is never touched
    lefts = np.empty((depths, sections), np.int32)
    rights = np.empty((depths, sections), np.int32)
    rest = np.zeros(sections, np.int64)
    placed = np.zeros(buffers, np.bool_)
    low = np.zeros(buffers, np.int64)
    wanted, above = np.zeros(sections, np.int64), np.zeros(sections, np.int64)
    counts, valley = np.zeros(sections, np.int64), np.zeros(sections, np.int64)
    begins, ends = np.zeros(sections, np.int64), np.zeros(sections, np.int64)
    wall, smallest = np.zeros(sections, np.int64), np.zeros(sections, np.int64)
    # By depth: where is branched, the ways, how many are tried, which is taken.
    where, level = np.zeros(depths, np.int64), np.zeros(depths, np.int64)
    options = np.empty((depths, widest + 1), np.int64)
    ways, tried = np.zeros(depths, np.int64), np.zeros(depths, np.int64)
    taken = np.zeros(depths, np.int64)
    # The stretch that failures so far rest on, and that on which an empty ground's height rests.
    why_left, why_right = np.zeros(depths, np.int64), np.zeros(depths, np.int64)
    hole_left, hole_right = np.zeros(depths, np.int64), np.zeros(depths, np.int64)

    for one in range(buffers):
        for s in range(first[one], last[one]):
            rest[s] += size[one]
    for s in range(sections):
        grounds[0, s], lefts[0, s], rights[0, s] = 0, s, s
        if rest[s] > capacity:
            return _NONE
    depth, unplaced, nodes = 0, buffers, 0
    while True:
        if unplaced == 0:
            return _FOUND
        ground, left, right = grounds[depth], lefts[depth], rights[depth]
        failed = _settle(
            ground, left, right, first, last, placed, rest, over_start, over, capacity, low, wanted
        )
        if failed >= 0:
            weight[failed] += 1.0
            a, z = left[failed], right[failed]
        else:
            s = _branch(
                ground, first, last, size, placed, rest, capacity, weight, low,
                counts, above, valley, begins, ends, wall, smallest,
            )  # fmt: skip
            within = valley[s]
            a, z = left[s], right[s]
            count = 0
            for i in range(over_start[s], over_start[s + 1]):
                one = over[i]
                if placed[one]:
                    continue
                if low[one] == ground[s]:
                    # Of buffers that are alike, the first stands for all.
                    alike = False
                    for k in range(count):
                        same = options[depth, k]
                        if (
                            first[same] == first[one]
                            and last[same] == last[one]
                            and size[same] == size[one]
                        ):
                            alike = True
                    if not alike:
                        options[depth, count] = one
                        count += 1
                else:
                    near = _nearest(ground, first[one], last[one], s, ground[s] + 1)
                    a, z = min(a, left[near]), max(z, right[near])
            # What an empty ground's height rests on: the valley, its walls, who stands above it.
            ha, hz = min(a, begins[within]), max(z, ends[within])
            if begins[within] > 0:
                ha = min(ha, left[begins[within] - 1], begins[within] - 1)
                hz = max(hz, right[begins[within] - 1])
            if ends[within] + 1 < sections:
                ha = min(ha, left[ends[within] + 1])
                hz = max(hz, right[ends[within] + 1], ends[within] + 1)
            for i in range(over_start[s], over_start[s + 1]):
                one = over[i]
                if not placed[one] and low[one] > ground[s]:
                    near = _nearest(ground, first[one], last[one], s, low[one])
                    ha, hz = min(ha, left[near]), max(hz, right[near])
            height = _next_level(ground[s], above[s], wall[within], smallest[within])
            if height + rest[s] <= capacity:
                options[depth, count] = _EMPTY
                count += 1
            elif capacity - ground[s] - rest[s] > 0:
                a, z = ha, hz
            where[depth], level[depth] = s, height
            hole_left[depth], hole_right[depth] = ha, hz
            why_left[depth], why_right[depth] = a, z
            ways[depth], tried[depth] = count, 0
        if failed >= 0:
            nodes += 1
            while True:
                depth -= 1
                if depth < 0:
                    return _NONE
                one, s = taken[depth], where[depth]
                if one == _EMPTY:
                    touches = a <= s <= z
                else:
                    placed[one] = False
                    unplaced += 1
                    for t in range(first[one], last[one]):
                        rest[t] += size[one]
                    touches = first[one] <= z and last[one] > a
                if not touches:
                    continue  # whatever else is decided there, the failure stands
                why_left[depth] = min(why_left[depth], a)
                why_right[depth] = max(why_right[depth], z)
                if tried[depth] < ways[depth]:
                    break
                a, z = why_left[depth], why_right[depth]
            if nodes >= limit:
                return _LIMIT
        # Take the next way at this depth.
        if depth + 1 >= depths:
            return _LIMIT
        one, s = options[depth, tried[depth]], where[depth]
        tried[depth] += 1
        taken[depth] = one
        grounds[depth + 1] = grounds[depth]
        lefts[depth + 1] = lefts[depth]
        rights[depth + 1] = rights[depth]
        if one == _EMPTY:
            grounds[depth + 1, s] = level[depth]
            lefts[depth + 1, s] = min(lefts[depth, s], hole_left[depth])
            rights[depth + 1, s] = max(rights[depth, s], hole_right[depth])
        else:
            offset[one] = grounds[depth, s]
            placed[one] = True
            unplaced -= 1
            for t in range(first[one], last[one]):
                grounds[depth + 1, t] = grounds[depth, s] + size[one]
                rest[t] -= size[one]
        depth += 1
