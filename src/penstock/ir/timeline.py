"""What a step cost, predicted or measured: spans on lanes, stalls by cause, the residency curve."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from penstock.ir.schedule import Cause
from penstock.ir.trace import Kind

__all__ = [
    "COMPUTE",
    "KINDS",
    "WORKSPACE",
    "Difference",
    "Span",
    "Timeline",
    "difference",
    "lane_of",
]

COMPUTE = "compute"
WORKSPACE = "workspace"
"""The row of the residency curve that holds the ops' scratch bytes."""

KINDS: tuple[str, ...] = (*Kind, WORKSPACE)
"""The rows of the residency curve."""


def lane_of(tier: str, *, inward: bool) -> str:
    """The lane that carries copies between the device and `tier` in one direction."""
    return f"{tier} read" if inward else f"{tier} write"


class Span(NamedTuple):
    """Something that kept a lane busy. `ref` is an op index on the compute lane, else a value id."""

    lane: str
    start: float  # seconds since the step began
    end: float
    ref: int
    again: bool = False  # a recomputation


@dataclass(frozen=True)
class Timeline:
    """One step, predicted or measured. Columns are parallel arrays.

    The residency curve is a step function: from `times[i]` on, `resident[k, i]` bytes of the kind
    `kinds[k]` are held. `overhead_bytes` is added to all of it: bytes of the device that belong to
    no value (allocator slack).
    """

    seconds: float
    lanes: tuple[str, ...]
    span_lane: NDArray[np.int16]
    span_start: NDArray[np.float64]
    span_end: NDArray[np.float64]
    span_ref: NDArray[np.int32]
    span_again: NDArray[np.bool_]
    times: NDArray[np.float64]
    resident: NDArray[np.int64]  # kinds x times
    kinds: tuple[str, ...] = KINDS
    stalls: dict[Cause, float] = field(default_factory=dict)
    traffic: dict[str, int] = field(default_factory=dict)  # bytes by lane
    overhead_bytes: int = 0

    @cached_property
    def total(self) -> NDArray[np.int64]:
        """Bytes held from each of `times` on."""
        summed: NDArray[np.int64] = self.resident.sum(axis=0) + self.overhead_bytes
        return summed

    @cached_property
    def peak(self) -> int:
        """Bytes."""
        return int(self.total.max(initial=self.overhead_bytes))

    @cached_property
    def first_runs(self) -> NDArray[np.bool_]:
        """By span: is it the run of an op, and no recomputation? In the order of the ops."""
        found: NDArray[np.bool_] = (self.span_lane == 0) & ~self.span_again
        return found

    @property
    def stall_seconds(self) -> float:
        return sum(self.stalls.values())

    @cached_property
    def recompute_seconds(self) -> float:
        busy = self.span_end - self.span_start
        return float(busy[self.span_again].sum())

    @property
    def spans(self) -> list[Span]:
        """The spans one by one, in the order in which they were begun."""
        return [
            Span(self.lanes[lane], float(start), float(end), int(ref), bool(again))
            for lane, start, end, ref, again in zip(
                self.span_lane,
                self.span_start,
                self.span_end,
                self.span_ref,
                self.span_again,
                strict=True,
            )
        ]

    def busy(self, lane: str) -> float:
        """Seconds for which `lane` worked; 0 if it does not exist."""
        if lane not in self.lanes:
            return 0.0
        mine = self.span_lane == self.lanes.index(lane)
        return float((self.span_end - self.span_start)[mine].sum())

    def at_peak(self) -> dict[str, int]:
        """What fills the memory when it is fullest: bytes by kind, largest first."""
        if not self.times.size:
            return {}
        column = self.resident[:, int(self.total.argmax())]
        held = {kind: int(n) for kind, n in zip(self.kinds, column, strict=True) if n}
        if self.overhead_bytes:
            held["allocator"] = self.overhead_bytes
        return dict(sorted(held.items(), key=lambda item: -item[1]))


class Difference(NamedTuple):
    """How far a prediction was off: (predicted - measured) / measured."""

    peak: float
    seconds: float


def difference(predicted: Timeline, measured: Timeline) -> Difference:
    """The relative error of a predicted timeline. Raises `ZeroDivisionError` on an empty one."""
    return Difference(
        predicted.peak / measured.peak - 1,
        predicted.seconds / measured.seconds - 1,
    )
