"""Where each buffer stands in one arena: offsets for buffers whose lifetimes are known in advance.

Several papers plan addresses and not only bytes (SmartPool, SwapAdvisor, AutoTM, DyMem); so does every
compiler for devices without an allocator. The problem is dynamic storage allocation, which is hard:
`assign` packs greedily and is at once done, `exact` searches (`solve/skyline.py`) for what fits under
a height, and asks CP-SAT for the lowest packing where that search does not tell.
"""

import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from penstock.errors import InternalError, NeedError, UsageError
from penstock.ir.trace import Trace
from penstock.solve import lowest
from penstock.solve.skyline import Buffer, pack

__all__ = ["Buffer", "Packing", "assign", "best_fit", "buffers", "check", "exact"]


@dataclass(frozen=True, slots=True)
class Packing:
    """An offset for each buffer, in the order in which they were given.

    `height` is the bytes that the arena needs, each buffer rounded up to the alignment; `floor` is a
    bound below which no packing gets.
    """

    offsets: tuple[int, ...]
    height: int
    floor: int

    @property
    def proven(self) -> bool:
        """Is it certain that no packing is lower?"""
        return self.height == self.floor


def buffers(trace: Trace) -> tuple[Buffer, ...]:
    """A step's storages in the order in which they are made, and then the workspace of each op that
    has one; time is the op index.
    """
    end = len(trace.ops)
    stop: dict[int, int] = {
        trace.values[value].storage: op + 1
        for op, gone in enumerate(trace.freed_after)
        for value in gone
    }
    first = [v for v in trace.values if v.id not in trace.previous_version]
    storages = (Buffer(v.producer or 0, stop.get(v.storage, end), v.nbytes) for v in first)
    scratch = (Buffer(op.index, op.index + 1, op.workspace) for op in trace.ops if op.workspace)
    return (*storages, *scratch)


def assign(wanted: Sequence[Buffer], *, alignment: int = 1) -> Packing:
    """The lowest of the packings that best fit finds in several orders: largest, longest, largest
    area, and earliest first.
    """
    wanted = _aligned(wanted, alignment)
    floor = _floor(wanted)
    best: Packing | None = None
    for key in _ORDERS:
        order = sorted(range(len(wanted)), key=[key(buffer) for buffer in wanted].__getitem__)
        offsets = best_fit(wanted, order)
        packing = Packing(offsets, _height(wanted, offsets), floor)
        if best is None or packing.height < best.height:
            best = packing
        if best.proven:
            break
    assert best is not None
    return best


_ORDERS: tuple[Callable[[Buffer], tuple[int, ...]], ...] = (
    lambda b: (-b.nbytes, b.start),
    lambda b: (b.start - b.stop, -b.nbytes, b.start),
    lambda b: (b.nbytes * (b.start - b.stop), -b.nbytes, b.start),
    lambda b: (b.start, -b.nbytes),
)


def best_fit(wanted: Sequence[Buffer], order: Iterable[int]) -> tuple[int, ...]:
    """Offsets by placing one buffer after another, in `order`, in the smallest gap that has room.

    A gap lies between buffers that are placed already and alive at the same time; if none has room,
    the buffer goes on top.
    """
    starts, stops, sizes = _columns(wanted)
    offsets = np.full(len(wanted), -1, np.int64)
    placed = np.zeros(len(wanted), np.bool_)
    for one in order:
        meets = np.maximum(starts, starts[one]) < np.minimum(stops, stops[one])
        rivals = placed & meets & (sizes > 0)
        low = offsets[rivals]
        by_offset = np.argsort(low)
        low = low[by_offset]
        high = np.maximum.accumulate(low + sizes[rivals][by_offset])
        bottom = np.concatenate(([0], high))  # of each gap; the last is open above
        room = low - bottom[:-1]
        fits = np.flatnonzero(room >= sizes[one])
        chosen = fits[room[fits].argmin()] if len(fits) else len(room)
        offsets[one] = bottom[chosen]
        placed[one] = True
    return tuple(offsets.tolist())


def exact(
    wanted: Sequence[Buffer],
    *,
    alignment: int = 1,
    capacity: int | None = None,
    seconds: float = 60.0,
    workers: int = 1,
) -> Packing:
    """The lowest packing, or the lowest that was found in `seconds`: see `proven`.

    With `capacity`, any packing of at most that height will do. Without it, half of the time goes to
    the search for one as high as what is alive at once, half to CP-SAT; which needs the package
    `ortools`: `NeedError` if it is missing. For some hundred buffers at most.
    """
    wanted = _aligned(wanted, alignment)
    start = assign(wanted)
    if start.proven or (capacity is not None and start.height <= capacity):
        return start
    goal = start.floor if capacity is None else capacity
    if goal < start.floor:
        return start  # the capacity is below what is alive at once
    found = pack(wanted, goal, seconds=seconds / 2 if capacity is None else seconds)
    if isinstance(found, tuple):
        return Packing(found, _height(wanted, found), start.floor)
    # A packing can be pushed down until every offset is a sum of sizes: multiples of their divisor do.
    unit = math.gcd(*(buffer.nbytes for buffer in wanted))
    if found == "impossible":
        start = replace(start, floor=(goal // unit + 1) * unit)
    if capacity is not None or start.proven:
        return start
    return _lowest(wanted, start, unit, seconds / 2, workers)


def _lowest(
    wanted: Sequence[Buffer], start: Packing, unit: int, seconds: float, workers: int
) -> Packing:
    """What CP-SAT makes of `start` in `seconds`."""
    if importlib.util.find_spec("ortools") is None:
        raise NeedError(
            "exact offsets need OR-tools: pip install 'penstock[solvers]', or use assign"
        )
    question = {
        "boxes": [(one.start, one.stop, one.nbytes // unit) for one in wanted],
        "hint": [offset // unit for offset in start.offsets],
        "floor": start.floor // unit,
        "highest": start.height // unit,
        "seconds": seconds,
        "workers": workers,
    }
    asked = subprocess.run(
        [sys.executable, lowest.__file__],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode:
        last = (asked.stderr.strip().splitlines() or ["no message"])[-1]
        raise InternalError(f"CP-SAT failed on {len(wanted)} buffers: {last}")
    answer = json.loads(asked.stdout)
    match answer["status"]:
        case "found":
            offsets = tuple(spot * unit for spot in answer["offsets"])
            floor = max(start.floor, math.ceil(answer["bound"] - 1e-6) * unit)
            return Packing(offsets, _height(wanted, offsets), floor)
        case "unknown":
            return start  # nothing was found in time
        case other:
            raise InternalError(f"CP-SAT refuses the model of {len(wanted)} buffers: {other}")


def check(wanted: Sequence[Buffer], offsets: Sequence[int], *, alignment: int = 1) -> list[str]:
    """What is wrong with `offsets`, one line each; nothing if they are a packing."""
    faults = [
        f"buffer {i} stands at {offset}, which is no multiple of {alignment}"
        for i, offset in enumerate(offsets)
        if offset < 0 or offset % alignment
    ]
    starts, stops, sizes = _columns(wanted)
    low = np.array(offsets, np.int64)
    for i in range(len(wanted)):
        meets = np.maximum(starts, starts[i]) < np.minimum(stops, stops[i])
        meets &= np.maximum(low, low[i]) < np.minimum(low + sizes, low[i] + sizes[i])
        meets[: i + 1] = False
        faults += [f"buffers {i} and {j} overlap" for j in np.flatnonzero(meets).tolist()]
    return faults


def _aligned(wanted: Sequence[Buffer], alignment: int) -> list[Buffer]:
    """The buffers with their sizes rounded up; what lives no time needs no bytes."""
    if alignment < 1:
        raise UsageError(f"alignment is {alignment}; it must be 1 or more")
    for i, buffer in enumerate(wanted):
        if buffer.nbytes < 0 or buffer.stop < buffer.start:
            raise UsageError(
                f"buffer {i} cannot be: {buffer.nbytes} bytes from {buffer.start} to {buffer.stop}"
            )
    return [
        buffer._replace(
            nbytes=-(-buffer.nbytes // alignment) * alignment if buffer.stop > buffer.start else 0
        )
        for buffer in wanted
    ]


def _floor(wanted: Sequence[Buffer]) -> int:
    """The most bytes that are alive at one time."""
    changes: dict[int, int] = {}
    for start, stop, nbytes in wanted:
        changes[start] = changes.get(start, 0) + nbytes
        changes[stop] = changes.get(stop, 0) - nbytes
    return int(np.cumsum([changes[at] for at in sorted(changes)], dtype=np.int64).max(initial=0))


def _height(wanted: Sequence[Buffer], offsets: Sequence[int]) -> int:
    tops = (offset + buffer.nbytes for offset, buffer in zip(offsets, wanted, strict=True))
    return max(tops, default=0)


def _columns(
    wanted: Sequence[Buffer],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    table = np.array(wanted, np.int64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2]
