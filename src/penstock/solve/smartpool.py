"""SmartPool: one pool for all that a planned step holds, coloured by lifetime, largest first.

Zhang, Yeung, Shu, He, Wang: Efficient Memory Management for GPU-based Deep Learning Systems (2019). A
block is bytes from one request to one release. In order of size, each takes the smallest hole between
the blocks that are alive with it, or goes on top. Blocks that are alive across the boundary of two
steps are coloured apart and stand below, so that the others are free to be coloured anew.

The pool is made for a plan: a value that is swapped is two blocks, each shorter than the value. When a
block begins and ends is as predicted; a run whose copies end later has to wait for the address.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from penstock.ir.timeline import WORKSPACE
from penstock.ir.trace import ValueId
from penstock.simulate.holders import stays
from penstock.solve.best import Outcome
from penstock.solve.offsets import Buffer, best_fit

__all__ = ["Block", "Pool", "blocks", "colour", "smartpool"]


class Block(NamedTuple):
    """Bytes of the device that a storage, or the workspace of an op, holds for a while.

    The times of the buffer are points of the residency curve.
    """

    value: ValueId | None  # the version for which the bytes were taken; None: workspace
    buffer: Buffer
    crosses: bool  # alive when the step begins, or when it ends


class Pool(NamedTuple):
    """An offset for each block, in the order in which they were given; and the bytes of the pool.

    Those of the blocks that cross from step to step are `crossing`, at the bottom.
    """

    offsets: tuple[int, ...]
    height: int
    crossing: int


def smartpool(found: Outcome, *, fit: Literal["best", "first"] = "best") -> Pool:
    """The pool of a planned step, workspace included."""
    held = blocks(found)
    return colour([block.buffer for block in held], [block.crosses for block in held], fit=fit)


def colour(
    wanted: Sequence[Buffer],
    crosses: Sequence[bool] | None = None,
    *,
    fit: Literal["best", "first"] = "best",
    copies: int = 1,
) -> Pool:
    """Offsets for `wanted`, in which those that `crosses` marks stand apart, below the others.

    `copies`: how often their region is there. With 2, one step's blocks can be alive while the next
    step makes its own.
    """
    marks = [False] * len(wanted) if crosses is None else crosses
    offsets = [0] * len(wanted)
    bottom = crossing = 0
    for group in (True, False):
        members = [i for i, mark in enumerate(marks) if mark is group]
        mine = [wanted[i] for i in members]
        order = sorted(range(len(mine)), key=lambda i: -mine[i].nbytes)
        spots = best_fit(mine, order) if fit == "best" else _first_fit(mine, order)
        for i, spot in zip(members, spots, strict=True):
            offsets[i] = bottom + spot
        tops = (spot + block.nbytes for spot, block in zip(spots, mine, strict=True))
        bottom += max(tops, default=0) * (copies if group else 1)
        crossing = bottom if group else crossing
    return Pool(tuple(offsets), bottom, crossing)


def _first_fit(wanted: Sequence[Buffer], order: Iterable[int]) -> tuple[int, ...]:
    """Offsets by placing one buffer after another in the lowest gap that has room."""
    offsets: dict[int, int] = {}
    for one in order:
        start, stop, nbytes = wanted[one]
        rivals = sorted(
            (spot, spot + wanted[i].nbytes)
            for i, spot in offsets.items()
            if max(start, wanted[i].start) < min(stop, wanted[i].stop)
        )
        bottom = 0
        for low, high in rivals:
            if low - bottom >= nbytes:
                break
            bottom = max(bottom, high)
        offsets[one] = bottom
    return tuple(offsets[i] for i in range(len(wanted)))


def blocks(found: Outcome) -> tuple[Block, ...]:
    """All that a planned step holds, as its predicted timeline has it; workspace comes last.

    Their bytes at the fullest moment are the timeline's peak, but for the allocator's slack.
    """
    timeline, trace = found.timeline, found.schedule.trace
    held, size = stays(found.schedule, timeline), trace.columns.nbytes.tolist()
    columns = held.value, held.begins, held.ends, held.since, held.until
    values = [
        Block(
            ValueId(value),
            Buffer(begins, ends, size[value]),
            crosses=(trace.values[value].producer is None and since <= 0)
            or ends == len(timeline.times)
            or until > timeline.seconds,
        )
        for value, begins, ends, since, until in zip(
            *(column.tolist() for column in columns), strict=True
        )
    ]
    change = np.diff(timeline.resident[timeline.kinds.index(WORKSPACE)], prepend=0)
    taken, given_back = np.flatnonzero(change > 0), np.flatnonzero(change < 0)
    scratch = [
        Block(None, Buffer(begins, ends, int(change[begins])), crosses=False)
        for begins, ends in zip(taken.tolist(), given_back.tolist(), strict=True)
    ]
    return (*values, *scratch)
